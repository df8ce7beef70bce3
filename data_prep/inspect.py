"""A look into a prepared folder: verified checksums, sizes, lengths, a few documents as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from .errors import DataError
from .shards import Prepared, read_header
from .tokenizers import Tokenizer

LENGTHS_PICTURE = "lengths.png"
_SHOWN_CHARACTERS = 300
_BAR = 40  # characters of the longest bar


def inspect(folder: Path | str, documents: int = 3, seed: int | None = None) -> None:
    """Print what a prepared folder holds and draw the lengths of its documents into
    `lengths.png`; DataError when anything in it is altered."""
    prepared = Prepared.open(folder, verify=True)
    tokenizer = prepared.tokenizer()
    print(f"{folder}: all checksums agree")
    print(f"data        {prepared.fingerprint}")
    print(f"tokenizer   {tokenizer.kind}, {tokenizer.vocab_size} ids, {tokenizer.fingerprint}")
    for name, entry in prepared.manifest["splits"].items():
        split = prepared.split(name)
        counts = f"{split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
        print(f"{name:<12}{counts}")
        for shard in entry["shards"]:
            header = read_header(prepared.folder / shard["path"])
            size = f"{header.itemsize} bytes an id, {header.tokens:,} tokens"
            print(f"  {shard['path']}  {size}, {header.documents:,} documents")
    _show_lengths(prepared.manifest["splits"])
    picture = prepared.folder / LENGTHS_PICTURE
    if _draw_lengths(prepared.manifest["splits"], picture):
        print(f"picture     {picture}")
    _show_documents(prepared, tokenizer, documents, seed)


def _show_lengths(splits: dict[str, Any]) -> None:
    counts = splits["train"]["documents_by_log2_tokens"]
    print("lengths of train documents, tokens:")
    longest = max(counts, default=1)
    for power, count in enumerate(counts):
        if count:
            bar = "#" * max(1, round(_BAR * count / longest))
            print(f"  {2**power:>9,} to {2 ** (power + 1) - 1:<9,} {count:>12,} {bar}")


def _draw_lengths(splits: dict[str, Any], path: Path) -> bool:
    """Bars of documents by length, a colour a split. False where nothing can be drawn."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plot
    except ImportError:
        print("picture     none: pip install matplotlib")
        return False
    figure, axes = plot.subplots(figsize=(8, 4), layout="constrained")
    for place, (name, entry) in enumerate(splits.items()):
        counts = np.array(entry["documents_by_log2_tokens"])
        if counts.sum():
            left = np.arange(len(counts)) + (place - 1) * 0.27
            axes.bar(left, counts / counts.sum(), width=0.27, label=name)
    powers = range(max(len(entry["documents_by_log2_tokens"]) for entry in splits.values()))
    axes.set_xticks(powers, [f"{2**power:,}" for power in powers], rotation=45)
    axes.set_xlabel("tokens in a document, from this many to twice as many")
    axes.set_ylabel("share of the split's documents")
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        print(f"picture     none: cannot write {path} ({error.strerror})")
        return False
    finally:
        plot.close(figure)
    return True


def _show_documents(prepared: Prepared, tokenizer: Tokenizer, count: int, seed: int | None) -> None:
    split = prepared.split("train")
    random = np.random.default_rng(seed)
    chosen = random.choice(split.documents, min(count, split.documents), replace=False)
    origins, ends = _origins(prepared), split.document_ends
    for index in sorted(chosen.tolist()):
        start = int(ends[index - 1]) if index else 0
        text = tokenizer.decode(split.read(start, int(ends[index])))
        print(f"train document {index} ({origins(index)}): {text[:_SHOWN_CHARACTERS]!r}")


def _origins(prepared: Prepared) -> Any:
    """A function from the number of a train document to its file and record."""
    shards = prepared.manifest["splits"]["train"]["shards"]
    firsts = np.cumsum([0, *(shard["documents"] for shard in shards)])

    def origin(index: int) -> str:
        place = int(np.searchsorted(firsts, index, "right")) - 1
        path = prepared.folder / shards[place]["index"]
        try:
            rows = parquet.read_table(path).slice(index - int(firsts[place]), 1).to_pylist()
        except OSError as error:
            raise DataError(f"{path}: {error}; restore it or run prepare again") from None
        return f"{rows[0]['file']}, record {rows[0]['record']}"

    return origin
