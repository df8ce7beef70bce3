"""Bad input through the whole stage: each ends with one message and its exit code, or costs only
the records that are bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from conftest import PACKS, assert_same, contents, run, sample_texts
from documents import documents

from data_prep import prepare as stage
from data_prep.__main__ import main
from data_prep.errors import run_main
from data_prep.shards import Prepared

GOOD = b'{"text": "good %d"}\n'
DIRECT = ["data.order=source", "data.duplicates.exact=false"]


def good(count: int) -> bytes:
    return b"".join(GOOD % number for number in range(count))


@pytest.fixture
def corpus(recipe: Path) -> Path:
    """The file that the recipe reads, to be written by the test."""
    path = recipe.with_name("corpus.jsonl")
    path.unlink()
    return path


@pytest.fixture
def command(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the stage; gives its exit code and what it said on stderr, at most one line."""

    def command(*overrides: str) -> tuple[int, str]:
        code = run_main(main, ["prepare", str(recipe), *overrides])
        said = capsys.readouterr().err
        assert said.count("\n") == (code != 0) and said.startswith("error: " * (code != 0))
        return code, said

    return command


Command = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.sources.0.path=folder"], "folder is a folder, expected a file"),
        (["data.sources.0.path=none.*"], "no file at none.*"),
        (["data.sources.0.text_field=body"], "no field 'body'; the fields there are: id, text"),
        (["data.sources.0.text_field=id"], "300 of 300 records (100.00%) are bad: not_text 300"),
        (["data.sources.0.label_field=stars"], "no field 'stars'; the fields there are: id, text"),
        (["data.sources.0.path=empty"], "no document is left after cleaning (no rows)"),
        (["data.sources.0={kind: parquet, path: corpus.jsonl, text_field: text}"],
         "corpus.jsonl: not a readable Parquet file"),
        (["data.sources.0={kind: datasets, path: folder, text_field: text}"],
         "dataset folder: cannot be read"),
        (["data.sources.0={kind: csv, path: corpus.jsonl, text_field: text}"], "no field 'text'"),
    ],
)  # fmt: skip
def test_one_message(recipe: Path, command: Command, overrides: list[str], words: str) -> None:
    Path("folder").mkdir()
    Path("empty").touch()
    code, said = command(*overrides)
    assert code == 3 and words in said
    assert not Path("prepared").exists()
    assert command()[0] == 0  # nothing stands in the way of the next run


@pytest.mark.parametrize(
    ("suffix", "workers"), [*((suffix, "1") for suffix in PACKS), (".gz", "2")]
)
def test_cut_off_archives(
    recipe: Path, corpus: Path, command: Command, suffix: str, workers: str
) -> None:
    corpus.write_bytes(good(400))
    lines = [b'{"text": "%d %s"}\n' % (n, b"filler " * 30) for n in range(9000)]
    Path(f"corpus-2.jsonl{suffix}").write_bytes(PACKS[suffix](b"".join(lines))[:-9])
    paths = ["data.sources.0.path=[corpus.jsonl, corpus-*]", "data.shard_tokens=1000000"]
    code, said = command(*paths, "--workers", workers)
    assert code == 3 and f"corpus-2.jsonl{suffix}: damaged or cut short after" in said
    assert not Path("prepared").exists()
    code, _ = command(*paths, "data.allow_truncated=true", "--workers", workers)
    assert code == 0
    rows = chain.from_iterable(parquet.read_table(path).to_pylist()
                               for path in Path("prepared").glob("*.parquet"))  # fmt: skip
    found = sorted(row["record"] for row in rows if row["file"] != "corpus.jsonl")
    assert found == list(range(1, len(found) + 1))
    # The unit of bzip2 is a block of 900 kB, which is lost as a whole.
    assert len(found) > (4000 if suffix == ".bz2" else 8000)


def _reading_is_over(*_: Any) -> None:
    raise AssertionError("read again")


@pytest.mark.parametrize("direct", [[], DIRECT])
def test_what_was_read_is_kept_when_more_may_be_bad(
    recipe: Path,
    corpus: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    direct: list[str],
) -> None:
    corpus.write_bytes(good(290) + b"bad\n\xff\n[]\n5\n" + good(6))
    code, said = command(*direct)
    assert code == 3
    reasons = "bad: not_object 2, not_json 1, not_utf8 1; the first at corpus.jsonl, record 291;"
    assert f"4 of 300 records (1.33%) are {reasons} expected at most 1.00%" in said
    assert not Path("prepared").exists()
    more = [*direct, "data.max_bad_share=0.02"]
    assert command(*more, "data.folder=fresh")[0] == 0
    monkeypatch.setattr(stage, "read_task", _reading_is_over)
    assert command(*more)[0] == 0
    assert_same(contents("prepared"), contents("fresh"))
    assert Prepared.open("prepared", verify=True).manifest["counts"]["records"]["read"] == 300


def test_other_keys_that_reading_does_not_need(
    recipe: Path, corpus: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has changed since a run that stopped: the result is that of the last recipe."""
    corpus.write_bytes(good(290) + b"bad\n" * 10)
    for direct in ([], DIRECT):
        assert command(*direct)[0] == 3
        changed = [
            *direct,
            "data.max_bad_share=1",
            "data.shard_tokens=300",
            "data.reset_documents=0",
        ]
        assert command(*changed)[0] == 0
        assert command(*changed, "data.folder=fresh")[0] == 0
        assert_same(contents("prepared"), contents("fresh"))


@pytest.mark.parametrize(
    ("records", "bad", "share", "refused"),
    [
        (99, 1, "0", False), (99, 2, "0.01", True), (10, 1, "0.01", False), (10, 2, "0.2", False),
        (1, 1, "0.01", False), (100, 1, "0.01", False), (100, 1, "0.009", True),
        (100, 1, "0", True), (300, 3, "0.01", False), (300, 4, "0.01", True),
        (300, 300, "1", False),
    ],
)  # fmt: skip
def test_how_many_may_be_bad(
    recipe: Path, corpus: Path, command: Command, records: int, bad: int, share: str, refused: bool
) -> None:
    corpus.write_bytes(good(records - bad) + b"bad\n" * bad)
    found, said = command(f"data.max_bad_share={share}")
    assert found == 3 if refused else found in (0, 3)  # of few, a split may be left empty
    assert (f"{bad} of {records} records" in said) == refused


def test_rejects_are_listed_without_their_text(
    recipe: Path, corpus: Path, command: Command
) -> None:
    lines = [b'{"text": ""}', b'{"text": "secret"', b'{"text": {"a": "secret"}}', b"\xff secret"]
    corpus.write_bytes(b"\n".join([*lines, good(400)]))
    Path("corpus-2.csv").write_bytes(b'text\na,b\n""\n' + b"secret\xff\n" + b"good\n" * 300)
    more = "data.sources=[{kind: jsonl, path: corpus.jsonl, text_field: text}, "
    more += "{kind: csv, path: corpus-2.csv, text_field: text}]"
    assert command(more)[0] == 0
    raw = Path("prepared/rejects.jsonl").read_text()
    assert "secret" not in raw
    found = [json.loads(line) for line in raw.splitlines()]
    assert [(row["file"], row["record"], row["reason"]) for row in found] == [
        ("corpus.jsonl", 1, "no_text"),
        ("corpus.jsonl", 2, "not_json"),
        ("corpus.jsonl", 3, "not_text"),
        ("corpus.jsonl", 4, "not_utf8"),
        ("corpus-2.csv", 2, "bad_csv"),
        ("corpus-2.csv", 3, "no_text"),
        ("corpus-2.csv", 4, "not_utf8"),
    ]
    manifest = Prepared.open("prepared").manifest
    expected = {"bad_csv": 1, "no_text": 2, "not_json": 1, "not_text": 1, "not_utf8": 2}
    assert manifest["counts"]["rejected"] == expected
    assert [source["rejected"] for source in manifest["sources"]] == [4, 3]
    assert [source["records"] for source in manifest["sources"]] == [404, 303]
    assert manifest["counts"]["records"]["read"] == 707


def test_the_message_names_the_first(recipe: Path, corpus: Path, command: Command) -> None:
    corpus.write_bytes(good(7) + b'{"text": ""}\n' + b"bad\n" * 9 + good(90))
    code, said = command()
    assert code == 3 and "the first at corpus.jsonl, record 8;" in said


def test_a_quote_without_end_is_not_one_bad_record(
    recipe: Path, corpus: Path, command: Command
) -> None:
    """It takes all that follows with it, which must not be lost in silence."""
    rows = [f"{text}\n" for text in sample_texts(600)]
    Path("a.csv").write_text("".join(["text\n", *rows[:200], '"open\n', *rows[200:]]))
    code, said = command("data.sources=[{kind: csv, path: a.csv, text_field: text}]")
    assert code == 3 and "bad_csv" in said


@pytest.mark.parametrize("kind", ["bytes", "bpe, vocab_size: 300"])
def test_a_sample_that_met_copies_only(
    recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of a corpus of copies a small sample may hold nothing that is kept."""
    monkeypatch.setattr(stage, "_REPORTED_MEGABYTES", 1e-9)
    size = ", sample_megabytes: 1.0e-9" if kind != "bytes" else ""
    code, said = command(f"tokenizer={{kind: {kind}{size}}}")
    assert code == 0 or (code == 3 and "sample" in said)


# What the system tells of this process begins with the memory of the one that started it, the whole
# test run; VmHWM does not.
MEASURED = """
import re, resource, sys
from data_prep.__main__ import main
from data_prep.errors import run_main
code = run_main(main)
own = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(f"peak {peak / 1000:.0f} MB" if peak > 1_000_000 else code)
"""


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("jsonl", "text_field: text"),
        ("csv", "text_field: text"),
        ("text", "document: line"),
        ("text", "document: paragraph"),
    ],
)
def test_a_line_of_200_megabytes(recipe: Path, corpus: Path, kind: str, keys: str) -> None:
    lines = good(400).splitlines(keepends=True)
    lines = lines if kind == "jsonl" else [b"text\n", *(b"good %d\n\n" % n for n in range(400))]
    with open("corpus.jsonl", "wb") as stream:
        stream.write(b"".join(lines[:200]))
        stream.seek(200_000_000, 1)  # zeros, which take no room
        stream.write(b"\n" + b"".join(lines[200:]))
    source = f"data.sources.0={{kind: {kind}, path: corpus.jsonl, {keys}}}"
    code, output = run("-c", MEASURED, "prepare", "recipe.yaml", source)
    assert code == 0, output
    counts = Prepared.open("prepared").manifest["counts"]
    assert counts["rejected"] == {"too_long_line": 1}
    # As lines of text, the header is one more.
    expected = 402 if "line" in keys else 401
    assert counts["records"]["read"] == expected
    assert len(documents("prepared")) == expected - 1


def test_a_quote_without_end_stays_in_memory(recipe: Path, corpus: Path) -> None:
    rows = b"".join(b"good %d\n" % number for number in range(400))
    corpus.write_bytes(b"text\n" + rows + b'"' + (b"open and on " * 10_000 + b"\n") * 1200)
    source = "data.sources.0={kind: csv, path: corpus.jsonl, text_field: text}"
    code, output = run("-c", MEASURED, "prepare", "recipe.yaml", source, "data.shard_tokens=100000")
    assert code in (0, 3), output
