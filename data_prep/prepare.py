"""The prepare stage: sources to a folder of shards, a tokenizer and a manifest.

Everything is built in `FOLDER.tmp` and renamed at the end, so a folder with a manifest is
always whole. A finished folder is never changed: when the recipe or an input has changed it is
moved to `FOLDER.superseded-N` and a new one is made.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .clean import clean
from .errors import DataError
from .folders import new_scratch, put_in_place, refuse_foreign
from .manifest import (
    FileRecord,
    read_manifest,
    recipe_hash,
    stage_is_current,
    stage_manifest,
    versions,
    write_manifest,
)
from .order import DocumentOrder
from .recipe.data import DataConfig
from .recipe.loader import read_tree, validate
from .recipe.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig, validate_tokenizer
from .shards import ShardWriter
from .sources import read_documents, source_files
from .split import SPLITS, split_of
from .tokenizers import Tokenizer, train_tokenizer

FORMAT = 1
_BATCH = 1024  # documents encoded at once: enough to keep the tokenizer's threads busy
_DISTRIBUTIONS = ("numpy", "tokenizers", "pyarrow")

TokenizerSection = BytesTokenizerConfig | BpeTokenizerConfig


def prepare(
    recipe_path: Path | str, overrides: Sequence[str] = (), force: bool = False
) -> dict[str, Any]:
    """Run the stage for a recipe file; see `prepare_tree`."""
    return prepare_tree(read_tree(recipe_path, overrides), force)


def prepare_tree(tree: dict[str, Any], force: bool = False) -> dict[str, Any]:
    """Run the stage for a recipe and return the manifest; nothing is done when it is current.

    `force` prepares anew even then. RecipeError when the recipe is wrong or the folder holds
    something else; DataError when a source is unreadable or a split that training needs is
    empty.
    """
    data, tokenizer = _sections(tree)
    folder = Path(data.folder)
    reason = "forced" if force else _status(data, tokenizer)
    if reason is None:
        print(f"{folder}: up to date")
        return read_manifest(folder / "manifest.json")
    refuse_foreign(folder)
    print(f"{folder}: preparing ({reason})")
    scratch = new_scratch(folder)
    manifest = _build(scratch, data, tokenizer)
    if aside := put_in_place(scratch, folder):
        print(f"{folder}: the previous data is kept at {aside}")
    _print_summary(manifest)
    return manifest


def prepare_status(tree: dict[str, Any]) -> str | None:
    """None when the prepared folder of a recipe tree is current, else why it is not."""
    return _status(*_sections(tree))


def prepare_hash(tree: dict[str, Any]) -> str:
    """The `recipe_hash` of a recipe's prepared manifest; the sources need not be there."""
    return _hash(*_sections(tree))


def _sections(tree: dict[str, Any]) -> tuple[DataConfig, TokenizerSection]:
    data = validate(DataConfig, tree.get("data"), "data")
    return data, validate_tokenizer(tree.get("tokenizer"))


def _status(data: DataConfig, tokenizer: TokenizerSection) -> str | None:
    manifest = Path(data.folder) / "manifest.json"
    return stage_is_current(manifest, _hash(data, tokenizer), _inputs(data))


def _hash(data: DataConfig, tokenizer: TokenizerSection) -> str:
    # The folder decides where the result lies, not what it is, so a moved folder stays valid.
    return recipe_hash(FORMAT, data.model_dump(mode="json", exclude={"folder"}), tokenizer)


def _inputs(data: DataConfig) -> list[Path]:
    return sorted({path for source in data.sources for path in source_files(source)})


def _build(scratch: Path, data: DataConfig, section: TokenizerSection) -> dict[str, Any]:
    """Fill the scratch folder; its manifest is written last."""
    started = time.monotonic()
    inputs = [FileRecord.of(path) for path in _inputs(data)]
    counts: Counter[str] = Counter()
    order = _gather(DocumentOrder(scratch / "order", data.seed), data, counts)
    tokenizer = train_tokenizer(section, _sample(order, section))
    tokenizer.save(scratch / "tokenizer")
    histograms: dict[str, np.ndarray] = {}
    splits: dict[str, Any] = {}
    for name in SPLITS:
        splits[name], histograms[name] = _write_split(scratch, name, order, tokenizer, data)
    for name in SPLITS[1:]:
        bits = _unigram_bits(histograms["train"], histograms[name])
        splits[name]["unigram_bits_per_byte"] = bits
    shutil.rmtree(scratch / "order")
    outputs = [FileRecord.of(path, scratch) for path in sorted((scratch / "tokenizer").iterdir())]
    outputs += [FileRecord.from_json(s) for split in splits.values() for s in split["shards"]]
    manifest = {"format": FORMAT} | stage_manifest(
        "prepare",
        _hash(data, section),
        inputs,
        outputs,
        tokenizer={
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "folder": "tokenizer",
        },
        splits=splits,
        counts=dict(sorted(counts.items())),
        versions=versions(*_DISTRIBUTIONS),
        seconds=round(time.monotonic() - started, 3),
    )
    write_manifest(scratch / "manifest.json", manifest)
    return manifest


def _gather(order: DocumentOrder, data: DataConfig, counts: Counter[str]) -> DocumentOrder:
    """Read, clean and split every document; DataError when a needed split stays empty."""
    documents: Counter[str] = Counter()
    with tqdm(desc="reading", unit="doc", disable=None) as progress:
        for source in data.sources:
            for document in read_documents(source, counts):
                text = clean(document.text, data.clean, counts)
                if text is not None:
                    name = split_of(text, data.split)
                    order.add(name, text)
                    documents[name] += 1
                progress.update()
    order.close()
    if not documents:
        dropped = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        hint = "check data.sources and data.clean"
        raise DataError(f"no document is left after cleaning ({dropped or 'no rows'}); {hint}")
    for name in SPLITS[:2]:
        if not documents[name]:
            total = documents.total()
            hint = "give more documents, or change data.split"
            raise DataError(f"the {name} split is empty ({total} documents in all); {hint}")
    return order


def _sample(order: DocumentOrder, section: TokenizerSection) -> Iterator[str]:
    """The head of the permuted train split, which is a random sample, up to the size asked."""
    if isinstance(section, BytesTokenizerConfig):
        return
    left = section.sample_megabytes * 1e6
    for text in order.read("train"):
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def _write_split(
    folder: Path, name: str, order: DocumentOrder, tokenizer: Tokenizer, data: DataConfig
) -> tuple[dict[str, Any], np.ndarray]:
    """Encode one split into shards; returns its manifest entry and its byte histogram."""
    writer = ShardWriter(
        folder,
        name,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.id_dtype,
        data.shard_tokens,
    )
    histogram = np.zeros(256, np.int64)
    documents = characters = 0
    texts = order.read(name)
    with tqdm(desc=f"encoding {name}", unit="doc", disable=None) as progress:
        while batch := list(islice(texts, _BATCH)):
            for ids in tokenizer.encode_documents(batch):
                reset = data.reset_documents > 0 and documents % data.reset_documents == 0
                writer.add(ids, reset)
                documents += 1
            joined = "".join(batch)
            characters += len(joined)
            histogram += np.bincount(np.frombuffer(joined.encode(), np.uint8), minlength=256)
            progress.update(len(batch))
    shards = writer.close()
    entry = {
        "documents": documents,
        "tokens": sum(shard["tokens"] for shard in shards),
        "bytes": int(histogram.sum()),
        "characters": characters,
        "shards": shards,
    }
    return entry, histogram


def _unigram_bits(train: np.ndarray, split: np.ndarray) -> float | None:
    """Bits per byte of a split under the train split's add-one byte frequencies."""
    if not split.sum():
        return None
    bits = -np.log2((train + 1) / (train.sum() + len(train)))
    return float((split * bits).sum() / split.sum())


def _print_summary(manifest: dict[str, Any]) -> None:
    print(f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'shards':>8}")
    for name, split in manifest["splits"].items():
        sizes = f"{split['documents']:>12,}{split['tokens']:>16,}{split['bytes']:>16,}"
        print(f"{name:<12}{sizes}{len(split['shards']):>8}")
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest["counts"].items())
    print(f"documents touched or dropped, by step: {counts}")
