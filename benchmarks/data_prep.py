"""Speed and memory of data preparation, beside what one would otherwise do.

    python benchmarks/data_prep.py [--quick] [--json FILE] [--corpus GLOB] [--folder DIR]

All figures per core are of one process kept on one core. `--corpus` names Amazon JSON lines;
without it the embedded reviews are used, repeated under fresh ids.
"""

from __future__ import annotations

import gzip
import html
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Row, interleaved, one_core, options, report, row
from benchmarks.reviews import review_rows, write_reviews
from data_prep.prepare import prepare_tree
from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.shards import Prepared, Split
from data_prep.tokenizers import Tokenizer, train_tokenizer

_BYTES = {"clean": {"profile": "openai"}, "duplicates": {"exact": False}, "order": "source"}
_SHUFFLED = _BYTES | {"order": "shuffled"}
_FULL = {
    "clean": {"profile": "modern", "strip_tags": True},
    "duplicates": {"exact": True, "near": True},
    "personal": {"scrub": ["email", "phone", "card", "ip"]},
}
# The peak is read from /proc: what `wait4` tells begins with the memory of the parent.
_CHILD = """
import re, sys
from data_prep.__main__ import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
_DUMP_BYTES = 57e9  # JSON of the 82 million reviews


class Bench:
    """Inputs and arms; every arm returns its figure, so that arms can be interleaved."""

    def __init__(self, folder: Path, corpus: str | None, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.rows = review_rows(corpus)
        self.rounds = 1 if quick else 5
        size = 60_000_000 if quick else 200_000_000
        self.plain, self.packed = folder / "reviews.jsonl", folder / "reviews.jsonl.gz"
        self.size = write_reviews(self.plain, self.rows, size)
        with open(self.plain, "rb") as source, gzip.open(self.packed, "wb", 6) as target:
            shutil.copyfileobj(source, target, 2**20)

    def prepare(
        self, path: Path, data: dict[str, Any], tokenizer: dict[str, Any] | None = None
    ) -> float:
        """Seconds of the whole stage in this process."""
        out = self.folder / "prepared"
        shutil.rmtree(out, ignore_errors=True)
        source = {"kind": "jsonl", "path": str(path), "text_field": "reviewText"}
        tree = {
            "data": {"folder": str(out), "sources": [source], **data},
            "tokenizer": tokenizer or {"kind": "bytes"},
        }
        began = time.perf_counter()
        _quietly(lambda: prepare_tree(tree, workers=1))
        return time.perf_counter() - began

    def megabytes_per_second(self, seconds: float) -> float:
        """Of JSON."""
        return self.size / seconds / 1e6


def bytes_rows(bench: Bench) -> list[Row]:
    """Bytes from JSON lines: parsed, unescaped, split, written, with index and checksums."""
    rate = bench.megabytes_per_second
    with one_core():
        found = interleaved(
            {
                "gz": lambda: rate(bench.prepare(bench.packed, _BYTES)),
                "obvious gz": lambda: rate(_obvious(bench.packed, bench.folder / "out")),
                "plain": lambda: rate(bench.prepare(bench.plain, _BYTES)),
                "obvious plain": lambda: rate(_obvious(bench.plain, bench.folder / "out")),
                "shuffled": lambda: rate(bench.prepare(bench.plain, _SHUFFLED)),
            },
            bench.rounds,
        )
        full = rate(bench.prepare(bench.plain, _FULL))
    unit, obvious = "MB/s of JSON per core", "obvious-python"
    return [
        row("prepare bytes json", f"{unit}, .gz", found["gz"], found["obvious gz"], obvious),
        row("prepare bytes json plain", unit, found["plain"], found["obvious plain"], obvious),
        row(
            "prepare bytes json shuffled", unit, found["shuffled"], found["obvious plain"], obvious
        ),
        row("prepare full profile", unit, full, found["obvious plain"], obvious),
    ]


def _obvious(path: Path, out: Path) -> float:
    """Seconds of the loop that the page of the Amazon reviews shows, with what follows it: json,
    html, one write a review."""
    began = time.perf_counter()
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as lines, open(out, "wb") as target:
        for line in lines:
            text = json.loads(line).get("reviewText")
            if text:
                text = html.unescape(text).replace("\n", " ").strip()
                target.write(f"\n {text} ".encode())
    return time.perf_counter() - began


def scaling_rows(bench: Bench) -> list[Row]:
    """One process against two, as commands; their start counts, and tells less the longer they
    run."""
    sizes = (300_000_000,) if bench.quick else (2_000_000_000, 6_000_000_000)
    return [_scaling_row(bench, size) for size in sizes]


def _scaling_row(bench: Bench, size: int) -> Row:
    path = bench.folder / "large.jsonl"
    size = write_reviews(path, bench.rows, size)

    def command(workers: int) -> float:
        return size / _command(bench.folder, path, _BYTES, workers)[0] / 1e6

    found = interleaved({"two": lambda: command(2), "one": lambda: command(1)},
                        1 if bench.quick else 3)  # fmt: skip
    path.unlink()
    metric = f"MB/s of JSON, whole command, {size / 1e9:.1g} GB"
    return row("prepare bytes json 2 cores", metric, found["two"], found["one"], "one process")


def memory_rows(bench: Bench) -> list[Row]:
    """Peak memory of one worker, and time, on an input and on one ten times as large."""
    small, factor = (20_000_000, 5) if bench.quick else (200_000_000, 10)
    figures = []
    for size in (small, small * factor):
        path = bench.folder / "input.jsonl"
        size = write_reviews(path, bench.rows, size)
        data = {"clean": {"profile": "openai"}}  # shuffled, exact duplicates dropped
        seconds, peak = _command(bench.folder, path, data, 1)
        figures.append((size, seconds, peak))
        path.unlink()
    (size, seconds, peak), (larger, more_seconds, more_peak) = figures
    print(
        f"peak memory {peak:.0f} MB on {size / 1e6:.0f} MB, {more_peak:.0f} on {larger / 1e6:.0f}"
    )
    return [
        row(f"prepare memory x{factor}", "peak MB of a worker", more_peak, peak,
            f"input of {size / 1e6:.0f} MB", lower_is_better=True),
        row(f"prepare time x{factor}", "seconds per GB", more_seconds / larger * 1e9,
            seconds / size * 1e9, f"input of {size / 1e6:.0f} MB", lower_is_better=True),
    ]  # fmt: skip


def _command(folder: Path, path: Path, data: dict[str, Any], workers: int) -> tuple[float, float]:
    """Seconds and peak memory (MB, of the largest process) of the command."""
    out = folder / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    source = {"kind": "jsonl", "path": str(path), "text_field": "reviewText"}
    tree = {
        "data": {"folder": str(out), "sources": [source], **data},
        "tokenizer": {"kind": "bytes"},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(tree))  # JSON is YAML
    began = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, "prepare", str(recipe), "--workers", str(workers)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"prepare ended with {done.returncode}: {done.stderr}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def bpe_rows(bench: Bench) -> list[Row]:
    """BPE encoding of distinct reviews, one core, against `tokenizers` with one thread."""
    texts = [found["reviewText"] for found in bench.rows]
    raws = [text.encode() for text in texts]
    size = sum(map(len, raws)) / 1e6
    began = time.perf_counter()
    config = validate_tokenizer({"kind": "bpe", "vocab_size": 8192})
    tokenizer = train_tokenizer(config, _sample(texts, 5e6 if bench.quick else 100e6))
    trained = time.perf_counter() - began
    tokenizer.save(bench.folder / "tokenizer")
    import tokenizers

    peer = tokenizers.Tokenizer.from_file(str(bench.folder / "tokenizer" / "tokenizer.json"))
    peer.encode_special_tokens = True
    _same_ids(tokenizer, peer, texts)

    def ours() -> float:
        began = time.perf_counter()
        for first in range(0, len(raws), 512):
            tokenizer.encode_utf8(raws[first : first + 512])
        return size / (time.perf_counter() - began)

    def hf() -> float:
        began = time.perf_counter()
        for first in range(0, len(texts), 512):
            peer.encode_batch(texts[first : first + 512], add_special_tokens=False)
        return size / (time.perf_counter() - began)

    with one_core():
        found = interleaved({"ours": ours, "hf": hf}, bench.rounds)
    megabytes = 5 if bench.quick else 100
    return [
        row("prepare bpe encode", "MB/s of text per core", found["ours"], found["hf"],
            "hf-tokenizers"),
        row("prepare bpe train", f"seconds for {megabytes} MB", trained),
    ]  # fmt: skip


def _sample(texts: list[str], size: float) -> list[str]:
    found, gathered = [], 0
    while gathered < size:
        found += texts
        gathered += sum(map(len, texts))
    return found


def _same_ids(tokenizer: Tokenizer, peer: Any, texts: list[str]) -> None:
    ids, lengths = tokenizer.encode_utf8([text.encode() for text in texts])
    wanted = peer.encode_batch(texts, add_special_tokens=False)
    flat = [number for encoding in wanted for number in [*encoding.ids, tokenizer.end_id]]
    if ids.tolist() != flat or len(lengths) != len(texts):
        raise SystemExit("the ids of the fast encoder differ from those of tokenizers")


def pipelines_rows(bench: Bench) -> list[Row]:
    """The whole way from JSON lines to token ids on disk, against other pipelines."""
    tokenizer = bench.folder / "tokenizer"
    path = bench.folder / "part.jsonl"
    size = write_reviews(path, bench.rows, 5_000_000 if bench.quick else 20_000_000) / 1e6
    data = {"clean": {"profile": "none"}, "duplicates": {"exact": False}}
    arms: dict[str, Callable[[], float]] = {
        "ours": lambda: size / bench.prepare(path, data, {"kind": "hf", "path": str(tokenizer)}),
        "datasets.map": lambda: size / _datasets_map(path, tokenizer, bench.folder / "arrow"),
    }
    try:
        trove = bench.folder / "trove"
        _datatrove(path, tokenizer, trove)  # says here what it lacks
        arms["datatrove"] = lambda: size / _seconds_of(_datatrove(path, tokenizer, trove), trove)
    except ImportError as error:
        print(f"datatrove's arm is left out: {error}")
    with one_core():
        found = interleaved(arms, 1 if bench.quick else 3)
    unit = "MB/s of JSON per core"
    return [
        row(f"prepare bpe json vs {name}", unit, found["ours"], found[name], name)
        for name in ("datasets.map", "datatrove")
        if name in found
    ]


def _datasets_map(path: Path, tokenizer: Path, out: Path) -> float:
    import datasets
    import tokenizers

    shutil.rmtree(out, ignore_errors=True)
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = library.encode_batch(rows["reviewText"], add_special_tokens=False)
        return {"ids": [encoding.ids for encoding in found]}

    began = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(path), split="train",
                                   cache_dir=str(out))  # fmt: skip
    loaded.map(encode, batched=True, remove_columns=loaded.column_names,
               cache_file_name=str(out / "ids.arrow"))  # fmt: skip
    return time.perf_counter() - began


def _datatrove(path: Path, tokenizer: Path, out: Path) -> Any:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    return LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(path.parent), glob_pattern=path.name, text_key="reviewText"),
            DocumentTokenizer(
                output_folder=str(out / "ids"),
                tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
                shuffle_documents=False,
            ),
        ],
        tasks=1,
        logging_dir=str(out / "logs"),
    )


def _seconds_of(executor: Any, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    executor.run()
    return time.perf_counter() - began


def loader_rows(bench: Bench) -> list[Row]:
    """Reading windows of the shards, one core: lanes as mLSTMs read, random as Transformers do."""
    bench.prepare(bench.plain, _SHUFFLED)
    split = Prepared.open(bench.folder / "prepared", verify=False).split("train")
    rounds = 100 if bench.quick else 400
    rows = []
    with one_core():
        for name, batch, length, starts in (
            ("loader lanes B=128 T=256", 128, 256, _lanes),
            ("loader lanes B=2048 T=256", 2048, 256, _lanes),
            ("loader random B=64 T=1024", 64, 1024, _random),
        ):
            arms = {
                "ours": lambda b=batch, n=length, s=starts: _reading(  # type: ignore[misc]
                    lambda at: split.windows(at, n + 1), split, b, n, s, rounds),
                "loop": lambda b=batch, n=length, s=starts: _reading(  # type: ignore[misc]
                    lambda at: np.stack([split.read(i, i + n + 1) for i in at.tolist()]),
                    split, b, n, s, rounds),
            }  # fmt: skip
            found = interleaved(arms, bench.rounds)
            unit = "M tokens/s per core"
            rows.append(row(name, unit, found["ours"], found["loop"], "row-by-row"))
    return rows


def _lanes(split: Split, batch: int, length: int, step: int) -> np.ndarray:
    lane = (split.tokens - 1) // batch
    return np.arange(batch) * lane + step * length % (lane - length)


def _random(split: Split, batch: int, length: int, step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, split.tokens - length - 1, batch)


def _reading(
    read: Callable[[np.ndarray], np.ndarray], split: Split, batch: int, length: int,
    starts: Callable[..., np.ndarray], rounds: int,
) -> float:  # fmt: skip
    places = [starts(split, batch, length, step) for step in range(rounds)]
    began = time.perf_counter()
    for at in places:
        read(at)
    return rounds * batch * length / (time.perf_counter() - began) / 1e6


def print_estimate(rows: list[Row]) -> None:
    """Hours for the whole Amazon dump, from this run's rates."""
    rates = {found.case: found.ours for found in rows}
    print("\nestimate for the 57 GB of JSON (40 GB of text) of the Amazon dump, disks aside:")
    for case in ("prepare bytes json plain", "prepare bytes json shuffled", "prepare full profile"):
        times = (f"{_DUMP_BYTES / rates[case] / 1e6 / cores / 60:,.1f}" for cores in (2, 16, 64))
        print(f"  {case:<30} {' / '.join(times)} minutes on 2 / 16 / 64 cores")


def _quietly(work: Callable[[], Any]) -> None:
    out = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        try:
            work()
        finally:
            sys.stdout = out


def main() -> None:
    parser = options(__doc__.partition("\n")[0])
    parser.add_argument("--corpus", metavar="GLOB", help="Amazon JSON lines, plain or packed")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the files are written")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.folder) as folder:
        bench = Bench(Path(folder), arguments.corpus, arguments.quick)
        rows = [
            found
            for part in (bytes_rows, scaling_rows, memory_rows, bpe_rows, pipelines_rows,
                         loader_rows)
            for found in part(bench)
        ]  # fmt: skip
    report(rows, arguments.json)
    print_estimate(rows)


if __name__ == "__main__":
    main()
