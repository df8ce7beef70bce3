"""Japanese text and emoji, from prepare through training to generated text, with every tokenizer
that a run can have."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import Prepared
from tests.e2e.commands import python
from tests.pipeline.tiny import write_recipe

_WORDS = [
    "東京",
    "コーヒー",
    "とても",
    "おいしい",
    "😀",
    "👩‍👩‍👧",
    "猫",
    "が",
    "です。",
    "買って",
    "よかった",
    "！",
]
_PROMPT = "東京のコーヒー😀"


def write_japanese(path: Path, documents: int = 240) -> Path:
    random_words = random.Random(7)
    texts = ["".join(random_words.choices(_WORDS, k=random_words.randint(6, 14)))
             for _ in range(documents)]  # fmt: skip
    texts += texts[:20]  # exact duplicates, which have no spaces to be found by
    path.write_text(
        "".join(json.dumps({"reviewText": t}, ensure_ascii=False) + "\n" for t in texts)
    )
    return path


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [
        pytest.param("mlstm", {"kind": "bytes"}, marks=pytest.mark.long),
        ("gpt2", {"kind": "bpe", "vocab_size": 300}),
        ("gpt2", {"kind": "unigram", "vocab_size": 512}),
        ("gpt2", {"kind": "word", "vocab_size": 200, "min_count": 1}),
    ],
)
def test_japanese_goes_all_the_way(tmp_path: Path, kind: str, tokenizer: dict[str, Any]) -> None:
    write_japanese(tmp_path / "corpus.jsonl")
    recipe = write_recipe(
        tmp_path, kind, tokenizer=tokenizer, eval__prompts=[_PROMPT], eval__sample_tokens=12
    )
    prepared = Prepared.open(tmp_path / f"prepared-{kind}")
    assert prepared.manifest["counts"]["dropped"]["exact_duplicate"] >= 20
    train = prepared.split("train")
    ends = train.document_ends.tolist()
    text = prepared.tokenizer().decode(train.read(ends[0], ends[1])).strip()
    assert "�" not in text and any(word in text for word in _WORDS)
    done = python("-m", "pipeline", "run", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    [sample] = json.loads((tmp_path / "runs" / kind / "evals/samples.json").read_text())
    assert sample["prompt"] == _PROMPT and sample["tokens"] >= 1
    assert _PROMPT in (tmp_path / "runs" / kind / "report.html").read_text()
