"""Exact and near duplicates through the whole stage, against the rule stated in so many words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from documents import documents

from data_prep import duplicates, sources, spooling
from data_prep.prepare import prepare_tree

pytest.importorskip("rensa")

NEAR = {"exact": False, "near": True}
WORDS = [f"{a}{b}" for a in "ba ce di fo gu ha je ki lo mu".split() for b in "ns rt lm x".split()]
JAPANESE = "この商品はとても良いです。毎日使っていますが、壊れません。友人にもおすすめします。"
OTHERS = [f"Filler number {i} says {i * i} things of its own, {i**3} in all." for i in range(40)]


def kept(
    files: Mapping[str, Sequence[str]], twins: Mapping[str, Any], order: str = "source"
) -> list[tuple[str, int]]:
    """File and record of the documents that are left, in reading order."""
    for name, texts in files.items():
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        Path(name).write_text("".join(rows))
    data = {
        "folder": "prepared",
        "sources": [{"kind": "jsonl", "path": name, "text_field": "text"} for name in files],
        "clean": {"profile": "none"},
        "duplicates": dict(twins),
        "split": {"validation": 0.3, "test": 0},
        "order": order,
    }
    prepare_tree({"data": data, "tokenizer": {"kind": "bytes"}}, force=True, workers=1)
    names = list(files)
    found = [(d.file, d.record) for d in documents("prepared")]
    for d in documents("prepared"):
        assert d.text == files[d.file][d.record - 1]
    return sorted(found, key=lambda place: (names.index(place[0]), place[1]))


def dropped(texts: Sequence[str], twins: Mapping[str, Any]) -> list[int]:
    """The numbers, from 0, of the texts of one file that are dropped."""
    left = {record - 1 for _, record in kept({"a.jsonl": texts}, twins)}
    return [number for number in range(len(texts)) if number not in left]


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+|[ぁ-んァ-ン一-龥]", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def jaccard(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    return len(first & second) / len(first | second)


def perturbed(seed: int) -> list[str]:
    """Texts of 100 to 400 words, or of characters without spaces, in copies in which a few of them
    are replaced; all shuffled."""
    chance = random.Random(seed)
    texts = []
    for number in range(36):
        spaced = number % 3 > 0
        units = WORDS if spaced else [chr(c) for c in range(0x4E00, 0x4E60)]
        words = chance.choices(units, k=chance.randrange(100, 400))
        for _ in range(chance.randrange(2, 10)):
            copy = list(words)
            for _ in range(chance.choice((0, 1, 1, 2, 8, 20))):
                copy[chance.randrange(len(copy))] = chance.choice(units)
            texts.append((" " if spaced else "").join(copy))
    chance.shuffle(texts)
    return texts


@pytest.mark.parametrize(("seed", "threshold", "n"), [(0, 0.8, 5), (1, 0.8, 3), (2, 0.6, 5)])
def test_what_comparing_all_pairs_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, threshold: float, n: int
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = perturbed(seed)
    found = set(dropped(texts, NEAR | {"threshold": threshold, "ngram": n}))
    sets = [grams(text, n) for text in texts]
    best = [max((jaccard(s, e) for e in sets[:i]), default=0.0) for i, s in enumerate(sets)]
    # Candidates are compared, so nothing is dropped without an earlier twin, the first never.
    assert all(best[number] >= threshold for number in found)
    leaders: list[set[tuple[str, ...]]] = []
    clear = set()  # the texts that are clearly like an earlier one that stays
    for number, own in enumerate(sets):
        likeness = max((jaccard(own, leader) for leader in leaders), default=0.0)
        if likeness >= (1 + threshold) / 2:
            clear.add(number)
        if likeness < threshold:
            leaders.append(own)
    assert len(clear) > 50 and len(found) < len(texts) - 36 + 1
    assert len(clear & found) >= 0.95 * len(clear)


@pytest.mark.parametrize("spaces", [False, True])
def test_japanese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spaces: bool) -> None:
    monkeypatch.chdir(tmp_path)
    far = "配送が遅くて箱が破れていました。中身は無事でしたが、次は別の店で買おうと思います。"
    edited = JAPANESE.replace("毎日", "毎週")
    texts = [far, JAPANESE, edited, *OTHERS]
    if spaces:
        texts[2] = " ".join(edited)
    assert dropped(texts, NEAR | {"threshold": 0.7}) == [2]
    assert dropped(texts[:1] + texts[2:0:-1] + texts[3:], NEAR | {"threshold": 0.7}) == [2]
    assert dropped(texts, {"exact": True}) == []


def test_exact_duplicates_differ_in_case_and_white_space_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [
        "A good strap", "a GOOD\n strap ", "agoodstrap", "a good strap!", "A góod strap",
        "Straße ÀÉ", "STRASSE\u00a0\u3000àé", "とても 良い", "とても良い", "とても良い。",
    ]  # fmt: skip
    assert dropped(texts + OTHERS, {"exact": True}) == [1, 2, 6, 8]
    assert dropped(texts + OTHERS, {"exact": False}) == []


def test_the_first_in_reading_order_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources come in the order of the recipe, whatever their names, and rows in theirs."""
    monkeypatch.chdir(tmp_path)
    edited = JAPANESE.replace("毎日", "毎週")
    files = {
        "z.jsonl": ["again", JAPANESE, *OTHERS[:20], "Again "],
        "a.jsonl": [edited, "AGAIN", "new", *OTHERS[20:], "NEW"],
    }
    lost = {("z.jsonl", 23), ("a.jsonl", 2), ("a.jsonl", 24)}
    everything = {(name, n + 1) for name, texts in files.items() for n in range(len(texts))}
    assert everything - set(kept(files, {"exact": True})) == lost
    both = {"exact": True, "near": True, "threshold": 0.7}
    assert everything - set(kept(files, both)) == lost | {("a.jsonl", 1)}
    turned = dict(reversed(files.items()))
    lost = {("a.jsonl", 24), ("z.jsonl", 1), ("z.jsonl", 2), ("z.jsonl", 23)}
    assert everything - set(kept(turned, both, "shuffled")) == lost


def shrink(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: int) -> None:
    assert getattr(module, name) > value
    monkeypatch.setattr(module, name, value)


CUTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "ranges of hashes": lambda patch: shrink(patch, duplicates, "_ROWS_PER_TASK", 20),
    "byte ranges": lambda patch: shrink(patch, sources, "TASK_BYTES", 4000),
    "parts": lambda patch: shrink(patch, spooling, "PART_BYTES", 2000),
}


@pytest.mark.parametrize("twins", [{"exact": True}, NEAR, {"exact": True, "near": True}])
def test_cuts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twins: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = perturbed(3)
    texts += [text.upper() for text in texts[::5]]
    whole = [record for _, record in kept({"a.jsonl": texts}, twins)]
    assert 20 < len(whole) < len(texts) - 20
    for cut in CUTS.values():
        with monkeypatch.context() as patch:
            cut(patch)
            assert [record for _, record in kept({"a.jsonl": texts}, twins)] == whole
    third = len(texts) // 3
    files = {"c.jsonl": texts[:third], "a.jsonl": texts[third : third + 1],
             "b.jsonl": texts[third + 1 :]}  # fmt: skip
    before = {"c.jsonl": 0, "a.jsonl": third, "b.jsonl": third + 1}
    assert [before[name] + record for name, record in kept(files, twins)] == whole
