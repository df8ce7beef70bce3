"""Which examples of the evaluation sets occur in the corpus, by the word n-grams they share.

The measure is that of GPT-3 (Brown et al. 2020, appendix C): an example has leaked when a document
holds any 13 consecutive words of it, or all of its words where it has fewer. Examples of very few
words would be found everywhere; they are not checked but counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .columns import slices
from .grams import Hashes, Offsets, cumulated, grams_of, ranges, words
from .manifest import put_in_place, sync

_BLOCK = 1000  # examples hashed at a time, which bounds the memory of building
_BYTES_AT_ONCE = 2**22  # of documents: what their words take is many times as large


@dataclass(frozen=True)
class SetSize:
    """How many examples an evaluation set has, and how many have too few words to be checked."""

    examples: int
    too_short: int


@dataclass(frozen=True)
class SetLeaks:
    """How many documents overlap with an evaluation set, and the numbers of its examples found,
    ascending. Plain enough for JSON: `asdict` and `SetLeaks(**found)`."""

    overlapping_documents: int
    examples: list[int]


class LeakIndex:
    """The n-grams of all evaluation sets, each with the examples that hold it.

    Example e of a set has the number e + the sizes of the sets before it; the gram grams[i], in
    ascending order, occurs in the examples[offsets[i]:offsets[i + 1]].
    """

    def __init__(
        self,
        sets: Mapping[str, SetSize],
        lengths: Sequence[int],
        grams: Hashes,
        offsets: Offsets,
        examples: Offsets,
    ) -> None:
        self.sets, self.lengths = dict(sets), list(lengths)
        self._grams, self._offsets, self._examples = grams, offsets, examples
        self._firsts = cumulated([size.examples for size in self.sets.values()])
        self._in_set = np.zeros((len(self.sets), len(grams)), np.bool_)
        set_of = np.searchsorted(self._firsts, examples, side="right") - 1
        self._in_set[set_of, np.repeat(np.arange(len(grams)), np.diff(offsets))] = True
        # Most grams of a corpus are in no set, and the leading bits of nearly all already say so.
        bits = min(max(16, len(grams).bit_length() + 4), 26)
        self._shift = np.uint64(64 - bits)
        self._leading = np.zeros(2**bits, np.bool_)
        self._leading[grams >> self._shift] = True

    @classmethod
    def build(
        cls, sets: Mapping[str, Sequence[bytes]], ngram: int = 13, shortest: int = 8
    ) -> LeakIndex:
        """Index the UTF-8 examples of each named set; those under `shortest` words (at most
        `ngram`) are left out."""
        sizes: dict[str, SetSize] = {}
        lengths: set[int] = set()
        grams, examples = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        first = 0
        for name, texts in sets.items():
            too_short = 0
            for start in range(0, len(texts), _BLOCK):
                hashes, offsets = words(texts[start : start + _BLOCK])
                counts = np.diff(offsets)
                too_short += int(np.sum(counts < shortest))
                lengths.update(np.minimum(counts[counts >= shortest], ngram).tolist())
                found, found_offsets = grams_of(hashes, offsets, ngram)
                owners = np.repeat(np.arange(len(counts)), np.diff(found_offsets))
                checked = counts[owners] >= shortest
                grams.append(found[checked])
                examples.append(first + start + owners[checked])
            sizes[name] = SetSize(len(texts), too_short)
            first += len(texts)
        return cls(
            sizes, sorted(lengths), *_grouped(np.concatenate(grams), np.concatenate(examples))
        )

    def find(self, documents: Sequence[bytes]) -> tuple[NDArray[np.bool_], dict[str, SetLeaks]]:
        """Which UTF-8 `documents` share an n-gram with any set, and what was found of each set.

        Returns overlaps (documents,) and the leaks by name, of all sets, for `merged`.
        """
        pieces = list(slices(list(map(len, documents)), len(documents), _BYTES_AT_ONCE))
        found = [self._find(documents[piece]) for piece in pieces or [slice(0)]]
        overlaps, leaks = zip(*found, strict=True)
        return np.concatenate(overlaps), merged(leaks)

    def _find(self, documents: Sequence[bytes]) -> tuple[NDArray[np.bool_], dict[str, SetLeaks]]:
        hashes, offsets = words(documents)
        lookups = [self._look_up(*grams_of(hashes, offsets, n)) for n in self.lengths]
        none = np.empty(0, np.int64)
        owners = np.concatenate([none, *(owners for owners, _ in lookups)])
        places = np.concatenate([none, *(places for _, places in lookups)])
        overlaps = np.zeros((len(self.sets), len(documents)), np.bool_)
        for row, in_set in zip(overlaps, self._in_set, strict=True):
            row[owners[in_set[places]]] = True
        leaks = {
            name: SetLeaks(int(np.sum(row)), examples)
            for name, row, examples in zip(
                self.sets, overlaps, self._examples_at(np.unique(places)), strict=True
            )
        }
        return np.logical_or.reduce(overlaps, axis=0), leaks

    def _examples_at(self, places: Offsets) -> list[list[int]]:
        """For each set the numbers of its examples that hold any of the grams at `places`."""
        counts = self._offsets[places + 1] - self._offsets[places]
        examples = np.unique(self._examples[ranges(self._offsets[places], counts)])
        # Without any set there is still one piece, an empty one.
        pieces = np.split(examples, np.searchsorted(examples, self._firsts[1:-1]))
        return [
            (piece - first).tolist()
            for piece, first in zip(pieces, self._firsts[:-1], strict=False)
        ]

    def _look_up(self, grams: Hashes, offsets: Offsets) -> tuple[Offsets, Offsets]:
        """The documents that own indexed grams, and the places of those grams in the index."""
        likely = np.flatnonzero(self._leading[grams >> self._shift])
        wanted = grams[likely]
        places = np.minimum(np.searchsorted(self._grams, wanted), len(self._grams) - 1)
        exact = self._grams[places] == wanted
        return np.searchsorted(offsets, likely[exact], side="right") - 1, places[exact]

    def save(self, path: Path) -> None:
        """Write the index as one .npz file, never seen half written."""
        sizes = [(size.examples, size.too_short) for size in self.sets.values()]
        beside = path.with_name(path.name + ".tmp")
        with beside.open("wb") as file:
            np.savez(
                file,
                names=np.array(list(self.sets), np.str_),
                sizes=np.array(sizes, np.int64).reshape(-1, 2),
                lengths=np.array(self.lengths, np.int64),
                grams=self._grams,
                offsets=self._offsets,
                examples=self._examples,
            )
        sync(beside)
        put_in_place(beside, path)

    @classmethod
    def load(cls, path: Path) -> LeakIndex:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            sizes = (SetSize(*size) for size in file["sizes"].tolist())
            sets = dict(zip(file["names"].tolist(), sizes, strict=True))
            arrays = file["grams"], file["offsets"], file["examples"]
            return cls(sets, file["lengths"].tolist(), *arrays)


def merged(parts: Iterable[Mapping[str, SetLeaks]]) -> dict[str, SetLeaks]:
    """The leaks of a whole corpus from those of its disjoint parts."""
    documents: dict[str, int] = {}
    examples: dict[str, set[int]] = {}
    for part in parts:
        for name, leaks in part.items():
            documents[name] = documents.get(name, 0) + leaks.overlapping_documents
            examples.setdefault(name, set()).update(leaks.examples)
    return {name: SetLeaks(documents[name], sorted(examples[name])) for name in documents}


def _grouped(grams: Hashes, examples: Offsets) -> tuple[Hashes, Offsets, Offsets]:
    """Distinct grams ascending, offsets, and the distinct examples of each gram."""
    order = np.lexsort((examples, grams))
    grams, examples = grams[order], examples[order]
    repeated = (grams[1:] == grams[:-1]) & (examples[1:] == examples[:-1])
    kept = np.append(np.ones(min(len(grams), 1), np.bool_), ~repeated)
    grams, examples = grams[kept], examples[kept]
    distinct, starts = np.unique(grams, return_index=True)
    return distinct, np.append(starts, len(grams)), examples
