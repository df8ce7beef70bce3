"""A first recipe from someone's own file: every format, the sizes chosen, and bad input."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from data_prep.errors import DataError, RecipeError
from data_prep.recipe.sources import Source
from data_prep.sources import Rejects, plan_tasks, read_rows
from pipeline.init import init_recipe, machine
from pipeline.init.look import look
from pipeline.init.machine import Machine, measure
from pipeline.init.size import MAX_EPOCHS, plan
from pipeline.recipe import Recipe, load_recipe

TEXTS = [
    f'Review {i}: the "food" was fine, if a little salty; naïve café staff, {i * 7 % 13} stars.'
    for i in range(600)
]
SLOW = Machine(2e10, gpu=False, cores=2)


@pytest.fixture(autouse=True)
def quick_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.init.measure", lambda: SLOW)


def table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "summary", "review text", "stars"])
    writer.writerows([i, "short", t, i % 5] for i, t in enumerate(TEXTS))
    return text.getvalue().encode()


def json_lines() -> bytes:
    rows = ({"id": i, "title": "short", "body": t, "ok": True} for i, t in enumerate(TEXTS))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "reviews.csv": table(","), "reviews.tsv": table("\t"), "semi.csv": table(";"),
    "unnamed": table("\t"), "reviews.csv.gz": gzip.compress(table(",")), "r.jsonl": json_lines(),
    "r.jsonl.xz": lzma.compress(json_lines()), "data.json": json_lines(),
    "lines.txt": "\n".join(TEXTS).encode(), "r.jsonl.bz2": bz2.compress(json_lines()),
    "r.csv.zst": zstandard.ZstdCompressor().compress(table(",")),
    "odd [1]*.txt.gz": gzip.compress("\r\n \r\n".join(TEXTS).encode("utf-8-sig")),
}  # fmt: skip
KINDS = {
    "reviews.csv": "csv", "reviews.tsv": "csv", "semi.csv": "csv", "unnamed": "csv",
    "reviews.csv.gz": "csv", "r.jsonl": "jsonl", "r.jsonl.xz": "jsonl", "data.json": "jsonl",
    "r.jsonl.bz2": "jsonl", "r.csv.zst": "csv",
    "lines.txt": "text", "odd [1]*.txt.gz": "text",
}  # fmt: skip


def make(name: str, content: bytes, kind: str = "transformer", minutes: float = 1) -> Recipe:
    path = Path(name)
    path.write_bytes(content)
    out = Path("recipes/mine.yaml")
    assert init_recipe(path, out, minutes, kind=kind) == out  # type: ignore[arg-type]
    return load_recipe(out)


def documents(source: Source) -> int:
    """How many documents the data preparation reads from a source."""
    rows = (read_rows(task, source, Rejects()) for task in plan_tasks([source]))
    return sum(len(block.texts) for blocks in rows for block in blocks)


@pytest.mark.parametrize("name", FILES)
def test_every_format_can_be_read_back(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make(name, FILES[name])
    [source] = recipe.data.sources
    assert source.kind == KINDS[name]
    assert recipe.data.folder == f"prepared/{recipe.run.name}"
    assert documents(source) == len(TEXTS)
    printed = capsys.readouterr().out
    assert "python -m pipeline run recipes/mine.yaml" in printed
    if source.kind == "csv":
        assert source.text_field == "review text"
        assert "summary" in printed
    found = look(Path(name))
    assert found.documents == len(TEXTS)
    assert found.text_bytes == pytest.approx(sum(len(t.encode()) for t in TEXTS), rel=0.05)


def test_parquet() -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"n": list(range(600)), "words": TEXTS}), "p.parquet")
    init_recipe(Path("p.parquet"), Path("p.yaml"), 1)
    [source] = load_recipe("p.yaml").data.sources
    assert source.kind == "parquet" and source.text_field == "words"
    parquet.write_table(arrow.table({"n": [1], "m": [2.5]}), "q.parquet")
    with pytest.raises(DataError, match="no field holds text.*n .*m "):
        look(Path("q.parquet"))
    Path("bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="not a readable Parquet"):
        look(Path("bad.parquet"))


def test_every_key_has_a_comment() -> None:
    for kind in ("transformer", "mlstm"):
        Path("recipes/mine.yaml").unlink(missing_ok=True)
        recipe = make("lines.txt", FILES["lines.txt"], kind)
        assert recipe.model.kind == kind
        before = ""
        for line in Path("recipes/mine.yaml").read_text().splitlines():
            if line and not line.strip().startswith("#") and not line.endswith(":"):
                assert "  # " in line or before.strip().startswith("#"), line
            before = line


def test_hostile_names_and_fields_stay_text() -> None:
    fields = ["text # {not} a comment: [", "id\nrun: {steps: 1}"]
    rows = ({fields[0]: t, fields[1]: "x"} for t in TEXTS)
    recipe = make("'a\": #b{0}.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
    [source] = recipe.data.sources
    assert source.kind == "jsonl" and source.text_field == fields[0]
    assert documents(source) == len(TEXTS)


def test_large_compressed_file_is_estimated() -> None:
    text = "\n".join(f"{i} {t}" for i in range(120) for t in TEXTS)
    Path("big.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert look(Path("big.txt.gz")).text_bytes == pytest.approx(len(text.encode()), rel=0.1)


def test_plan_keeps_its_promises() -> None:
    for kind in ("transformer", "mlstm"):
        sizes = []
        for minutes in (0.1, 30, 3000):
            for text_bytes in (20_000, 10**6, 10**9):
                chosen = plan(text_bytes, minutes, SLOW, kind)  # type: ignore[arg-type]
                assert chosen.epochs <= MAX_EPOCHS + 0.01
                assert chosen.minutes <= minutes * 1.01
                assert chosen.width % chosen.heads == 0
            sizes.append(chosen.parameters)  # of the largest text
        assert sizes == sorted(sizes) and sizes[-1] > 4 * sizes[0]  # more time, larger model


def test_measured_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = measure()
    assert 1e8 < found.flops_per_second < 1e14
    assert "no NVIDIA GPU" in found.describe()
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert measure().gpu and "not measured" in measure().describe()


BAD = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n\n ", "white space"),
    "junk.txt": (bytes(range(256)) * 40, "binary"),
    "junk.bin": (b"\x89\xfe\xfd" * 400, "not UTF-8"),
    "wide.txt": ("text".encode("utf-16") * 3, "UTF-16"),
    "numbers.csv": (b"a,b\n" + b"1,2.5\n" * 400, "no field holds text.*a .*b "),
    "numbers.jsonl": (b'{"n": 1, "flag": true}\n' * 40, "no field holds text.*n .*flag "),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "object 2: not JSON"),
    "array.json": (b'[{"text": "a"}]\n', "one object a line"),
    "ragged.csv": (b"a,b\n1,2,3;4\t5|6\n" * 3, "check its quotes"),
    "few.txt": (b"one line\n" * 5, "5 documents"),
    "small.txt": (b"one line\n" * 50, "bytes of text"),
    "plain.gz": (b"not packed", "rename"),
    "packed.txt": (gzip.compress(b"text"), "rename"),
    "cut.txt.gz": (gzip.compress(b"text and more text " * 99)[:40], "damaged or cut"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str) -> None:
    content, message = BAD[name]
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        init_recipe(Path(name), Path("out.yaml"), 1)
    assert not Path("out.yaml").exists()


def test_refusals() -> None:
    with pytest.raises(DataError, match="no such file"):
        init_recipe(Path("nowhere.csv"), Path("out.yaml"), 1)
    Path("out.yaml").touch()
    with pytest.raises(RecipeError, match="exists already"):
        init_recipe(Path("nowhere.csv"), Path("out.yaml"), 1)
    with pytest.raises(RecipeError, match="minutes is 0"):
        init_recipe(Path("nowhere.csv"), Path("other.yaml"), 0)
