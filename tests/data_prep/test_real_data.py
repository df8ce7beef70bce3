"""The recipes of `recipes/data/` on real text, counted again by other means.

Runs where the corpora lie with their table of rows and hashes, README.md: in the folder that the
environment variable CORPORA names, else in `shared/data` beside the checkout.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import lzma
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet
import pytest
from documents import documents

from data_prep.prepare import prepare
from data_prep.recipe.data import DataConfig
from data_prep.recipe.loader import read_tree, validate
from data_prep.recipe.sources import FieldSource, Source, TextSource
from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.sources import source_files

ROOT = Path(__file__).parents[2]
CORPORA = Path(os.environ.get("CORPORA", ROOT.parent / "shared/data"))
RECIPES = ROOT / "recipes/data"
FULL = RECIPES / "amazon_full.yaml"  # of a dump that lies nowhere here

pytestmark = pytest.mark.skipif(
    not (CORPORA / "README.md").is_file(), reason=f"no corpora with a README.md in {CORPORA}"
)

LONG = {"imdb"}
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if path != FULL)
EACH = [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in NAMES]


class Row(NamedTuple):
    """A line of the table of files."""

    rows: int
    size: int
    unpacked: int
    text: int | None
    sha256: str


def published() -> dict[str, Row]:
    """The table of files, by the path that recipes lead to."""
    table = {}
    for line in (CORPORA / "README.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and re.fullmatch("[0-9a-f]{64}", cells[5]):
            numbers = [None if c == "-" else int(c.replace(",", "")) for c in cells[1:5]]
            table[f"corpora/{cells[0]}"] = Row(*numbers, cells[5])  # type: ignore
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, where `corpora` leads to the data."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "corpora").symlink_to(CORPORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Callable[[str], Path]:
    """A recipe's prepared folder, made once."""

    def make(name: str) -> Path:
        prepare(RECIPES / f"{name}.yaml", workers=1)
        return folder / config(name).folder

    return make


def config(name: str) -> DataConfig:
    found: DataConfig = validate(DataConfig, read_tree(RECIPES / f"{name}.yaml")["data"], "data")
    return found


def load(path: Path, name: str) -> Any:
    return json.loads((path / name).read_text())


# What is there to read, by the shortest way that is not the pipeline's.


def content(path: Path) -> str:
    opened: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "rb") as stream:
        return stream.read().decode()  # type: ignore[no-any-return]


def rows(path: Path) -> list[dict[str, Any]]:
    if ".csv" in path.name:
        return list(csv.DictReader(io.StringIO(content(path), newline="")))
    return [json.loads(line) for line in content(path).split("\n") if line]


def texts(source: Source) -> Iterator[tuple[str, str]]:
    """File and text of every record, empty where it has none."""
    for path in source_files(source):
        if isinstance(source, FieldSource):
            for row in rows(path):
                parts = [row.get(field) or "" for field in source.text_fields]
                yield str(path), source.join_with.join(filter(None, parts))
            continue
        assert isinstance(source, TextSource)
        if source.document == "file":
            yield str(path), content(path)
            continue
        for blank, lines in groupby(content(path).split("\n"), lambda line: not line.strip()):
            if not blank:
                yield str(path), "\n".join(lines)


def cleaned(text: str, data: DataConfig) -> str:
    """What is left to compare by: neither white space nor control characters matter to it."""
    if data.clean.strip_tags:
        text = re.sub(r"<[a-zA-Z/!][^<>]*>", " ", text)
    if data.clean.profile != "none":
        text = html.unescape(text)
    if data.clean.profile == "modern":
        text = unicodedata.normalize("NFC", text)
        text = "".join(c for c in text if unicodedata.category(c) != "Cc" or c.isspace())
    return text


def key(text: str, data: DataConfig) -> str:
    return "".join(cleaned(text, data).casefold().split())


def test_recipes_read_every_file(folder: Path) -> None:
    read = set()
    for name in NAMES:
        data = config(name)
        for source in [*data.sources, *data.leaks.sets.values()]:
            read |= set(map(str, source_files(source)))
    files = {f"corpora/{p.relative_to(CORPORA)}" for p in CORPORA.glob("*/*")}
    assert read == set(published()) == files


def test_no_recipe_learns_from_held_out_text(folder: Path) -> None:
    trained = [source for name in NAMES for source in config(name).sources]
    files = {str(path) for source in trained for path in source_files(source)}
    assert set(published()) - files == {"corpora/imdb/test_even.jsonl.xz"}


@pytest.mark.parametrize("name", [*NAMES, FULL.stem])
def test_recipes_hold_data_and_tokenizer_only(name: str) -> None:
    tree = read_tree(RECIPES / f"{name}.yaml")
    assert set(tree) == {"data", "tokenizer"} and validate_tokenizer(tree["tokenizer"])
    assert config(name).folder == f"prepared/{name}"
    assert all(source.licence != "unknown" or "PIQA" in source.origin and source.origin
               for source in config(name).sources)  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_the_card_adds_up(name: str, prepared: Callable[[str], Path]) -> None:
    path, table, data = prepared(name), published(), config(name)
    card, manifest = load(path, "card.json"), load(path, "manifest.json")
    empty = 0
    for source, entry in zip(data.sources, card["sources"], strict=True):
        found = list(texts(source))
        missing = sum(not text for _, text in found)
        assert (entry["records"], entry["rejected"]) == (len(found), missing)
        assert (entry["licence"], entry["origin"]) == (source.licence, source.origin)
        empty += missing
        if isinstance(source, FieldSource):
            assert entry["records"] == sum(table[str(f)].rows for f in source_files(source))
    counts = card["counts"]
    assert counts["records"]["read"] == sum(entry["records"] for entry in card["sources"])
    assert counts["rejected"] == ({"no_text": empty} if empty else {})
    assert sum(split["documents"] for split in card["splits"].values()) == (
        counts["records"]["read"] - empty - sum(counts["dropped"].values())
        + counts["records"].get("repeated", 0) + counts["records"].get("cut", 0)
    )  # fmt: skip
    for name_of_split, split in manifest["splits"].items():
        shards = split.pop("shards")
        assert card["splits"][name_of_split] == split
        indexes = [parquet.read_metadata(path / shard["index"]).num_rows for shard in shards]
        assert indexes == [shard["documents"] for shard in shards]
        assert split["documents"] == sum(indexes)
    for listed in card["files"]:
        row = table[listed["path"]]
        assert (listed["bytes"], listed["sha256"]) == (row.size, row.sha256)


WHOLE = [
    "tokenizer={kind: bytes}",
    "data.clean={profile: none}",
    "data.order=source",
    "data.duplicates={exact: false}",
    "data.leaks={}",
    "data.personal={}",
]


# amazon_all reads what others read, with weights.
@pytest.mark.parametrize("name", [name for name in EACH if name.values[0] != "amazon_all"])
def test_every_byte_of_text_arrives(name: str, folder: Path) -> None:
    """Without a step that changes or drops text, on the direct way from reading to shards."""
    target = f"whole/{name}"
    manifest = prepare(RECIPES / f"{name}.yaml", [*WHOLE, f"data.folder={target}"], workers=1)
    splits = manifest["splits"].values()
    found = sum(split["bytes"] for split in splits)
    assert found == sum(split["tokens"] - 3 * split["documents"] for split in splits)
    sizes: dict[str, int] = {}
    for source in config(name).sources:
        for file, text in texts(source):
            sizes[file] = sizes.get(file, 0) + len(text.encode())
        if isinstance(source, FieldSource) and len(source.text_fields) == 1:
            for path in map(str, source_files(source)):
                assert published()[path].text in (None, sizes[path])
    assert found == sum(sizes.values())
    order = {file: place for place, file in enumerate(sizes)}
    arrived = sorted(documents(folder / target), key=lambda d: (order[d.file], d.record))
    everything = [pair for source in config(name).sources for pair in texts(source)]
    if name == "text8":  # one document, cut into pieces that go to all splits
        whole = everything[0][1]
        assert sum(len(d.text) for d in arrived) == len(whole)
        assert all(d.text in whole for d in arrived)
        return
    assert [(d.file, d.text) for d in arrived] == [pair for pair in everything if pair[1]]


@pytest.mark.parametrize(
    ("name", "lines"),
    [("wikitext2", None), ("shakespeare", 40_000), ("text8", None)],
)
def test_rows_of_plain_text_are_lines(name: str, lines: int | None, folder: Path) -> None:
    """The table counts lines, blank ones too; a recipe's documents hold those that are not."""
    for source in config(name).sources:
        for path in map(str, source_files(source)):
            text, row = content(Path(path)), published()[path]
            assert len(text.encode()) == row.unpacked == row.text
            assert row.rows == (lines or max(1, text.count("\n")))
            blank = sum(not line.strip() for line in text.splitlines())
            in_documents = [t.count("\n") + 1 for f, t in texts(source) if f == path]
            assert blank + sum(in_documents) == row.rows


UNDISTURBED = ["amazon_2014", "amazon_2018", "fine_foods", "blitzer", "openwebtext"]


@pytest.mark.parametrize("name", UNDISTURBED)
def test_exact_duplicates_counted_again(name: str, prepared: Callable[[str], Path]) -> None:
    data, dropped = config(name), load(prepared(name), "card.json")["counts"]["dropped"]
    found = [key(text, data) for source in data.sources for _, text in texts(source) if text]
    assert dropped.get("exact_duplicate", 0) == len(found) - len(set(found))


def test_beauty_and_fashion_as_the_table_tells(prepared: Callable[[str], Path]) -> None:
    data, path = config("amazon_2018"), prepared("amazon_2018")
    expected = [(5269, 1364, 5), (3176, 439, 16)]  # rows, different texts, rows without one
    for source, (count, different, missing) in zip(data.sources, expected, strict=True):
        found = [text for _, text in texts(source)]
        assert (len(found), len(set(found)), found.count("")) == (count, different, missing)
    rejects = [json.loads(line) for line in (path / "rejects.jsonl").open()]
    for source in data.sources:
        (file,) = map(str, source_files(source))
        empty = [n for n, (_, text) in enumerate(texts(source), 1) if not text]
        assert [r["record"] for r in rejects if r["file"] == file] == empty
    assert all(set(reject) == {"file", "record", "reason"} for reject in rejects)
    # The first of each text, in reading order, less the near duplicates.
    firsts: dict[str, tuple[str, int]] = {}
    for source in data.sources:
        for number, (file, text) in enumerate(texts(source), 1):
            if text:
                firsts.setdefault(key(text, data), (file, number))
    left = {(d.file, d.record) for d in documents(path)}
    near = load(path, "card.json")["counts"]["dropped"]["near_duplicate"]
    assert left < set(firsts.values()) and len(left) == len(firsts) - near


def test_fine_foods_shared_by_both_files(prepared: Callable[[str], Path]) -> None:
    data, path = config("fine_foods"), prepared("fine_foods")
    head, small = (list(texts(source)) for source in data.sources)
    keys_of_head, keys_of_small = ({key(text, data) for _, text in some} for some in (head, small))
    assert 100 <= len(keys_of_head & keys_of_small) <= 120
    left = {(d.file, d.record) for d in documents(path)}
    # A CSV row's record is the line it ends on; none of these texts has a line end in it.
    seen: set[str] = set()
    records: dict[str, int] = {head[0][0]: 1}  # the header
    for file, text in head + small:
        records[file] = records.get(file, 0) + 1
        assert ((file, records[file]) in left) == (key(text, data) not in seen)
        seen.add(key(text, data))
    assert len(seen) == len(left) == len(keys_of_head | keys_of_small)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("amazon_")])
def test_reviewers_never_arrive(name: str, prepared: Callable[[str], Path]) -> None:
    path, people, products, stars = prepared(name), set(), set(), set()
    for source in config(name).sources:
        for file in source_files(source):
            for row in rows(file):
                people |= {row.get(f) for f in ("reviewerID", "reviewerName", "UserId",
                                                "ProfileName")}  # fmt: skip
                products.add(row.get(source.id_field))  # type: ignore[union-attr, arg-type]
                value = row.get(source.label_field)  # type: ignore[union-attr, arg-type]
                stars.add(str(value).removesuffix(".0"))
    for index in path.glob("*.parquet"):
        assert set(parquet.read_schema(index).names) <= {"file", "record", "label", "id"}
    arrived = documents(path)
    assert {d.label for d in arrived} <= stars and {d.id for d in arrived} <= products | {None}
    assert not {d.label for d in arrived} & people
    # Names occur in texts, where people sign; ids of reviewers occur nowhere.
    ids = {p for p in people if p and re.fullmatch("A[0-9A-Z]{9,}", p)}
    assert len(ids) > 100
    for file in path.rglob("*"):
        raw = file.read_bytes() if file.is_file() else b""
        assert not set(re.findall("A[0-9A-Z]{9,}", raw.decode("latin-1"))) & ids, file
    assert not {d.id for d in arrived} & ids


def test_the_full_dump_is_laid_out_as_in_the_papers(folder: Path) -> None:
    """On the largest file of reviews here, in the place of the dump."""
    files = "corpora/amazon_musical_instruments_5/reviews.json.gz"
    manifest = prepare(FULL, [f"data.sources.0.path={files}"], workers=1)
    assert manifest["reset_documents"] == 80_000
    arrived = documents(folder / config(FULL.stem).folder)
    found = [row["reviewText"] for row in rows(Path(files)) if row["reviewText"]]
    expected = {html.unescape(text).replace("\n", " ").strip() for text in found}
    assert {d.text for d in arrived} <= expected
    assert len(arrived) == len({"".join(text.casefold().split()) for text in expected})
    assert not any("\n" in d.text for d in arrived)
    # A thousandth of 9,300 reviews each, give or take four standard deviations.
    shares = [manifest["splits"][split]["documents"] for split in ("validation", "test")]
    assert all(1 <= share <= 9.3 + 4 * 9.3**0.5 for share in shares)


Example = tuple[str, int]  # the name of an evaluation set, and a number in it


def words(text: str) -> list[str]:
    """Runs of letters and digits; those of these reviews are all in these scripts."""
    return re.findall("[0-9a-z\u00c0-\u1fff]+", re.sub("[A-Z]", lambda m: m[0].lower(), text))


def runs(own: list[str], n: int) -> Iterator[int]:
    """Every `n` words in a row, as the hash of the tuple."""
    return map(hash, zip(*(own[i:] for i in range(n)), strict=False))


@pytest.mark.long
def test_leaks_counted_again(prepared: Callable[[str], Path]) -> None:
    """13 words in a row, or all of a shorter example, by sets of tuples of words."""
    data, leaks = config("imdb"), load(prepared("imdb"), "card.json")["leaks"]
    owners: dict[int, tuple[Example, ...]] = {}
    for name, source in data.leaks.sets.items():
        found = [words(cleaned(text, data)) for _, text in texts(source)]
        short = sum(len(example) < 8 for example in found)
        assert (leaks[name]["examples"], leaks[name]["too_short"]) == (len(found), short)
        for number, example in enumerate(found):
            owner = ((name, number),)
            for run in runs(example, min(13, len(example))) if len(example) >= 8 else ():
                owners[run] = owners.get(run, ()) + owner
    met: set[Example] = set()
    overlapping = dict.fromkeys(leaks, 0)
    for _, text in (pair for source in data.sources for pair in texts(source)):
        own = words(cleaned(text, data))
        found_runs = (run for n in range(8, 14) for run in runs(own, n) if run in owners)
        here = {owner for run in found_runs for owner in owners[run]}
        met |= here
        for name in {name for name, _ in here}:
            overlapping[name] += 1
    for name, found_of in leaks.items():
        assert found_of["examples_found"] == sum(owner == name for owner, _ in met)
        assert found_of["overlapping_documents"] == overlapping[name]
