"""A tiny corpus, tiny recipes and a way to run them, for tests that train."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = "the tea is good and bad coffee was great not so very nice cup of warm milk again".split()


def write_corpus(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """JSON lines of random sentences, enough structure for a loss to fall."""
    rng = random.Random(seed)
    with path.open("w") as out:
        for _ in range(documents):
            text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(8, 30)))
            out.write(json.dumps({"reviewText": text}) + "\n")
    return path


def recipe_tree(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A recipe of a run in `folder`; `changes` are dotted keys with __ for the dots."""
    mlstm = kind == "mlstm"
    corpus = str(folder / "corpus.jsonl")
    source = {"kind": "jsonl", "path": corpus, "text_field": "reviewText"}
    tree: dict[str, Any] = {
        "run": {
            "name": kind, "folder": str(folder / "runs"), "steps": 6, "seed": 5,
            "log_every_steps": 1,
        },
        "data": {
            "folder": str(folder / f"prepared-{kind}"),
            "sources": [source],
            "split": {"validation": 0.1, "test": 0.1},
        },
        "tokenizer": {"kind": "bytes"} if mlstm else {"kind": "bpe", "vocab_size": 300},
        "model": (
            {"kind": "mlstm", "hidden": 24, "embedding": 8, "layers": 2}
            if mlstm
            else {
                "kind": "transformer",
                "config": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32,
                           "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0},
            }
        ),
        "batch": {"global_batch": 8, "micro_batch": 2, "window_tokens": 16},
        "optim": {"lr": 0.01, "warmup_steps": 2, "weight_decay": 0.1},
        "eval": {"every_steps": 3, "max_tokens": 256, "batch": 3},
        "checkpoint": {"keep_last": 9},
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split("__")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def write_recipe(folder: Path, kind: str, **changes: Any) -> Path:
    """Corpus, recipe file and prepared data in `folder`; returns the recipe's path."""
    from data_prep.prepare import prepare

    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder / "corpus.jsonl")
    path = folder / f"{kind}-{abs(hash(str(sorted(changes.items())))) % 10**8}.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(folder, kind, **changes)))
    prepare(path)
    return path


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses(run_folder: Path) -> list[float]:
    """Training losses by step, every bit of them."""
    return [line["train/loss"] for line in metrics(run_folder) if "train/loss" in line]
