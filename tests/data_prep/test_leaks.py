from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.leaks import LeakIndex, SetLeaks, SetSize, merged

# Few words and short lengths, so that examples repeat, nest and overlap.
texts = st.lists(st.sampled_from(["a", "B", "é", "語", "x1"]), max_size=9).map(" ".join)
documents = st.lists(texts.map(str.encode), max_size=5)


def runs(text: bytes, n: int) -> set[tuple[str, ...]]:
    found = text.decode().lower().split()
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def obvious(
    sets: Mapping[str, Sequence[bytes]], corpus: Sequence[bytes], ngram: int, shortest: int
) -> tuple[list[bool], dict[str, SetLeaks]]:
    pairs = []
    for name, examples in sets.items():
        for number, example in enumerate(examples):
            n = min(len(example.split()), ngram)
            pairs += [
                (name, number, i)
                for i, document in enumerate(corpus)
                if n >= shortest and runs(example, n) & runs(document, n)
            ]
    overlaps = [any(i == j for _, _, j in pairs) for i in range(len(corpus))]
    leaks = {
        name: SetLeaks(
            len({i for found, _, i in pairs if found == name}),
            sorted({number for found, number, _ in pairs if found == name}),
        )
        for name in sets
    }
    return overlaps, leaks


@given(
    st.dictionaries(st.sampled_from(["one", "two", "three"]), documents),
    documents,
    st.integers(2, 5),
    st.integers(1, 2),
)
def test_finds_what_sets_of_word_tuples_find(
    sets: dict[str, list[bytes]], corpus: list[bytes], ngram: int, shortest: int
) -> None:
    overlaps, leaks = LeakIndex.build(sets, ngram, shortest).find(corpus)
    assert (overlaps.tolist(), leaks) == obvious(sets, corpus, ngram, shortest)


@given(st.dictionaries(st.sampled_from(["one", "two"]), documents), documents, documents)
def test_parts_of_the_corpus_merge_to_the_whole(
    sets: dict[str, list[bytes]], first: list[bytes], second: list[bytes]
) -> None:
    index = LeakIndex.build(sets, 3, 2)
    parts = [index.find(first)[1], index.find(second)[1], index.find([])[1]]
    whole = index.find(first + second)[1]
    through_json = [
        {name: SetLeaks(**json.loads(json.dumps(asdict(leaks)))) for name, leaks in part.items()}
        for part in parts
    ]
    assert merged(parts) == merged(through_json) == whole


def test_thirteen_words_or_a_whole_short_example() -> None:
    long = b" ".join(b"w%d" % i for i in range(20))
    sets = {
        "long": [long, b"other", long],
        "short": [b"Eight words are just enough to be checked!"],
    }
    index = LeakIndex.build(sets)
    assert index.sets == {"long": SetSize(3, 1), "short": SetSize(1, 0)}
    assert index.lengths == [8, 13]
    corpus = [
        b"so: " + b" ".join(long.split()[5:18]) + b" and more",
        b" ".join(long.split()[5:17]) + b" and more",
        b"quote eight, words are JUST enough to be checked unquote",
        b"other",
        b"",
    ]
    overlaps, leaks = index.find(corpus)
    assert overlaps.tolist() == [True, False, True, False, False]
    assert leaks == {"long": SetLeaks(1, [0, 2]), "short": SetLeaks(1, [0])}


def test_saved_and_pickled_indexes_find_the_same(tmp_path: Path) -> None:
    examples = [f"question {i} of many asks for thing {i % 7}".encode() for i in range(3000)]
    index = LeakIndex.build({"quiz": examples, "nothing": []}, 5, 3)
    index.save(tmp_path / "leaks.index")
    corpus = [b"he said: question 2999 of many", b"many asks for thing 3 again", b"nothing here"]
    expected = index.find(corpus)
    assert expected[1]["quiz"].examples == sorted({2999, *range(3, 3000, 7)})
    for copy in (LeakIndex.load(tmp_path / "leaks.index"), pickle.loads(pickle.dumps(index))):
        assert copy.sets == index.sets and copy.lengths == index.lengths
        overlaps, leaks = copy.find(corpus)
        assert np.array_equal(overlaps, expected[0]) and leaks == expected[1]
