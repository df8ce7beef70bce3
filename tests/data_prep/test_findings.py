"""What the manifest and the data card say, against the documents that lie in the shards."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from documents import Document, documents

from data_prep.prepare import prepare_tree

TREE = {
    "data": {
        "folder": "prepared",
        "sources": [{"kind": "jsonl", "path": "a.jsonl", "text_field": "text"}],
        "clean": {"profile": "none"},
        "split": {"validation": 0.2, "test": 0.2},
    },
    "tokenizer": {"kind": "bytes"},
}
TEXTS = [f"Review {n} of a thing that costs {n * n} and weighs {n % 7}." for n in range(400)]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def source(name: str, **keys: Any) -> dict[str, Any]:
    return {"kind": "jsonl", "path": name, "text_field": "text", **keys}


def run(tokenizer: Mapping[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """Prepare with these keys of `data`, and see that counts and documents agree."""
    tree = {"data": TREE["data"] | data, "tokenizer": tokenizer or TREE["tokenizer"]}  # type: ignore
    manifest = prepare_tree(tree, force=True, workers=1)
    counts, splits = manifest["counts"], manifest["splits"]
    left = counts["records"]["read"] + counts["records"].get("repeated", 0)
    left -= sum(counts["rejected"].values()) + sum(counts["dropped"].values())
    assert left == sum(split["documents"] for split in splits.values())
    return manifest


def by_text(found: Iterable[Document], split: str) -> Counter[str]:
    return Counter(d.text for d in found if d.split == split)


@pytest.mark.parametrize("order", ["shuffled", "source"])
@pytest.mark.parametrize("weight", [0.5, 1, 2, 2.5])
def test_a_weight_repeats_training_documents_only(weight: float, order: str) -> None:
    write("a.jsonl", ({"text": text} for text in TEXTS[:200]))
    write("b.jsonl", ({"text": text} for text in TEXTS[200:]))
    sources = [source("a.jsonl", weight=weight), source("b.jsonl")]
    run(sources=[source("a.jsonl"), source("b.jsonl")], order=order)
    plain = documents("prepared")
    manifest = run(sources=sources, order=order)
    weighted = documents("prepared")
    for held_out in ("validation", "test"):
        assert [d for d in weighted if d.split == held_out] == [
            d for d in plain if d.split == held_out
        ]
    once = by_text(plain, "train")
    times = by_text(weighted, "train")
    mine = [text for text in once if text in TEXTS[:200]]
    assert all(times[text] == 1 for text in once if text not in TEXTS[:200])
    assert {times[text] for text in mine} == {int(weight), -int(-weight // 1)}
    # Every document draws its half by itself: four standard deviations.
    extra = sum(times[text] - int(weight) for text in mine)
    expected = len(mine) * (weight % 1)
    assert abs(extra - expected) <= 4 * (len(mine) / 4) ** 0.5 * (weight % 1 > 0)
    counts = manifest["counts"]
    assert counts["dropped"].get("weight", 0) == sum(times[text] == 0 for text in mine)
    repeated = sum(max(times[text] - 1, 0) for text in mine)
    assert counts["records"].get("repeated", 0) == repeated
    assert [s["weight"] for s in manifest["sources"]] == [weight, 1]
    if weight == 2:  # copies do not stand side by side
        texts = [d.text for d in weighted if d.split == "train"]
        assert sum(a == b for a, b in zip(texts, texts[1:], strict=False)) < len(mine) / 10
        # A copy stands anywhere in its shard: on the average in the middle, within 4 deviations.
        copies = [place for place, text in enumerate(texts) if text in texts[:place]]
        middle = sum(copies) / len(copies) / len(texts)
        assert abs(middle - (0.5 if order == "source" else 2 / 3)) < 0.1


@pytest.mark.parametrize("tokenizer", [{"kind": "bytes"}, {"kind": "bpe", "vocab_size": 300}])
@pytest.mark.parametrize("order", ["shuffled", "source"])
@pytest.mark.parametrize("exact", [True, False])
def test_labels_and_ids_stay_with_their_text(
    tokenizer: dict[str, Any], order: str, exact: bool
) -> None:
    """On both ways to the shards, the direct one and that through the spool."""
    rows: list[dict[str, Any]] = [
        {"text": text, "stars": n % 5, "mean": n / 8, "key": f"B{n}", "name": "Jane"}
        for n, text in enumerate(TEXTS)
    ]
    rows[5] |= {"stars": None, "key": None}
    rows[6] = {"text": rows[6]["text"], "mean": True}
    rows[7] = {"stars": 1, "key": "B7"}
    write("a.jsonl", rows[:250])
    write("b.jsonl", rows[250:300])
    write("c.jsonl", rows[300:])
    manifest = run(
        tokenizer,
        sources=[
            source("a.jsonl", label_field="stars", id_field="key"),
            source("b.jsonl"),
            source("c.jsonl", label_field="mean"),
        ],
        order=order,
        duplicates={"exact": exact},
        shard_tokens=1000,
    )
    assert manifest["counts"]["rejected"] == {"no_text": 1}
    assert len(manifest["splits"]["train"]["shards"]) >= 2
    found = {(d.file, d.record): (d.label, d.id, d.text) for d in documents("prepared")}
    expected: dict[tuple[str, int], Any] = {
        ("a.jsonl", n + 1): (str(n % 5), f"B{n}", TEXTS[n]) for n in range(250)
    }
    expected |= {("b.jsonl", n - 249): (None, None, TEXTS[n]) for n in range(250, 300)}
    expected |= {
        ("c.jsonl", n - 299): (str(n // 8 if n % 8 == 0 else n / 8), None, TEXTS[n])
        for n in range(300, 400)
    }
    expected["a.jsonl", 6] = (None, None, TEXTS[5])
    expected["a.jsonl", 7] = (None, None, TEXTS[6])
    del expected["a.jsonl", 8]
    assert found == expected
    splits = {d.text: d.split for d in documents("prepared")}
    assert len(set(splits.values())) == 3
    kept = b"".join(path.read_bytes() for path in Path("prepared").rglob("*") if path.is_file())
    assert b"Jane" not in kept


@pytest.mark.parametrize("remove", [False, True])
def test_leaks_are_reported_and_removed(remove: bool) -> None:
    quiz = [
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
        "Only eight words, and all of them here",
        "too short to look for",
        "an example that no document of the corpus holds in any place or any form at all",
    ]
    leaking = [
        "He counted: TWO, three four five six seven eight nine ten eleven twelve - thirteen"
        " fourteen!",
        "He counted: three four five six seven eight nine ten eleven twelve thirteen fourteen",
        "so: only eight words and all of them here.",
        "it is too short to look for it",
        "Only eight words, and all of them",
    ]
    write("quiz.jsonl", ({"text": text} for text in quiz))
    write("other.jsonl", ({"text": text} for text in quiz[1:2]))
    write("a.jsonl", ({"text": text} for text in TEXTS + leaking))
    sets = {"quiz": source("quiz.jsonl"), "other": source("other.jsonl")}
    manifest = run(leaks={"sets": sets, "remove": remove})
    common = {"removed": remove, "examples_found": 1}
    assert manifest["leaks"] == {
        "quiz": {"examples": 4, "too_short": 1, "overlapping_documents": 2}
        | common | {"examples_found": 2},
        "other": {"examples": 1, "too_short": 0, "overlapping_documents": 1} | common,
    }  # fmt: skip
    gone = {leaking[0], leaking[2]} if remove else set()
    assert {d.text for d in documents("prepared")} == {*TEXTS, *leaking} - gone
    assert manifest["counts"]["dropped"] == ({"leak": 2} if remove else {})
    files = [record["path"] for record in manifest["inputs"]]
    assert files == ["a.jsonl", "other.jsonl", "quiz.jsonl"]
    card = Path("prepared/README.md").read_text()
    assert f"| quiz | 4 | 2 | 1 | 2 | {remove} |" in card


@pytest.mark.parametrize("scrub", [[], ["email"]])
def test_leaks_are_found_where_personal_data_is_replaced(scrub: list[str]) -> None:
    example = "write to the seller at jane.doe@example.com before you send anything back to them"
    write("quiz.jsonl", [{"text": example}])
    write("a.jsonl", ({"text": text} for text in [*TEXTS, f"He said: {example}. So I did."]))
    leaks = {"sets": {"quiz": source("quiz.jsonl")}, "remove": True}
    manifest = run(leaks=leaks, personal={"scrub": scrub})
    assert manifest["leaks"]["quiz"]["examples_found"] == 1
    assert manifest["counts"]["dropped"] == {"leak": 1}


def test_limits_of_length_do_not_shorten_evaluation_sets() -> None:
    example = "Only nine words, and every one of them here"
    write("quiz.jsonl", [{"text": example}])
    write("a.jsonl", ({"text": text} for text in [*TEXTS, f"{TEXTS[0]} {example}. {TEXTS[1]}"]))
    sets = {"quiz": source("quiz.jsonl")}
    limits = {"profile": "none", "min_characters": len(example) + 1, "max_characters": 10**6}
    write("b.jsonl", ({"text": text + " And more, at some length."} for text in TEXTS))
    manifest = run(leaks={"sets": sets}, clean=limits, sources=[source("[ab].jsonl")])
    assert manifest["leaks"]["quiz"]["examples"] == 1
    assert manifest["leaks"]["quiz"]["overlapping_documents"] == 1


def test_personal_data_is_replaced_and_counted() -> None:
    private = [
        "Write to jane.doe@example.com or john@example.org.",
        "Call (212) 555-0123, or 020 7946 0958 from abroad.",
        "Paid with 4111 1111 1111 1111 from 192.168.1.1, ask jane.doe@example.com",
        "電話は03-1234-5678まで",
    ]
    write("a.jsonl", ({"text": text} for text in TEXTS + private))
    manifest = run(personal={"scrub": ["email", "phone", "card"]})
    found = {d.text for d in documents("prepared")}
    assert found - set(TEXTS) == {
        "Write to <EMAIL> or <EMAIL>.",
        "Call <PHONE>, or <PHONE> from abroad.",
        "Paid with <CARD> from 192.168.1.1, ask <EMAIL>",
        "電話は<PHONE>まで",
    }
    assert manifest["counts"]["changed"] == {"card": 1, "email": 3, "phone": 3}
    card = json.loads(Path("prepared/card.json").read_text())["personal_data"]
    assert card["replaced"] == manifest["counts"]["changed"]
    assert card["replaced_kinds"] == ["email", "phone", "card"]
    assert "names" in card["not_covered"]
    kept = b"".join(path.read_bytes() for path in Path("prepared").rglob("*") if path.is_file())
    assert b"example.com" not in kept and b"555-0123" not in kept


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """The rows of the table under each heading, without the line of titles."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        heading = line.lstrip("# ") if line.startswith("#") else heading
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            tables.setdefault(heading, []).append([c.strip().replace(r"\|", "|") for c in cells])
    return {heading: rows[2:] for heading, rows in tables.items()}


def test_card_and_manifest_agree() -> None:
    rows: list[dict[str, Any]] = [{"text": text + " &amp; more"} for text in TEXTS]
    rows += [{"text": TEXTS[0].upper() + " & MORE"}, {"text": ""}, {"text": 5}]
    write("a.jsonl", rows)
    write("b.jsonl", [{"body": "é" * 50, "id": n} for n in range(3)])
    manifest = run(
        sources=[
            source("a.jsonl", licence="CC0-1.0", origin="here | there"),
            source("b.jsonl", text_field="body", licence="MIT", weight=2),
        ],
        clean={"profile": "modern", "max_characters": 60},
        max_bad_share=0.1,
    )
    card = json.loads(Path("prepared/card.json").read_text())
    assert card["sources"] == manifest["sources"] and card["leaks"] == manifest["leaks"] == {}
    assert card["counts"] == manifest["counts"] == {
        "records": {"read": 406} | {k: v for k, v in manifest["counts"]["records"].items()
                                    if k == "repeated"},
        "rejected": {"no_text": 1, "not_text": 1},
        "dropped": {"exact_duplicate": 3},
        "changed": {"entities": 400},
    }  # fmt: skip
    for name, split in manifest["splits"].items():
        mine = [d.text for d in documents("prepared") if d.split == name]
        assert split["documents"] == len(mine)
        assert split["characters"] == sum(map(len, mine))
        assert split["bytes"] == sum(len(text.encode()) for text in mine)
        assert split["tokens"] == split["bytes"] + 3 * len(mine)
        lengths = Counter((len(text.encode()) + 3).bit_length() - 1 for text in mine)
        found = dict(enumerate(split["documents_by_log2_tokens"]))
        assert {power: count for power, count in found.items() if count} == lengths
        assert card["splits"][name] == {k: v for k, v in split.items() if k != "shards"}
    assert card["files"] == [
        {"path": r["path"], "bytes": r["size"], "sha256": r["sha256"]} for r in manifest["inputs"]
    ]
    assert card["tokenizer"] == manifest["tokenizer"]
    check_markdown(card)


def check_markdown(card: Mapping[str, Any]) -> None:
    text = Path("prepared/README.md").read_text()
    assert "Licences as stated: CC0-1.0, MIT." in text
    tables = markdown_tables(text)
    names = ("path", "kind", "licence", "origin", "weight", "records", "rejected",
             "kept_before_duplicates")  # fmt: skip
    assert tables["Sources"] == [[str(s[name]) for name in names] for s in card["sources"]]
    counts = [[g, n, str(c)] for g, found in card["counts"].items() for n, c in found.items()]
    assert tables["Counts"] == counts
    columns = ("documents", "tokens", "bytes", "characters")
    assert tables["Splits"] == [
        [name, *(f"{split[column]:,}" for column in columns)]
        for name, split in card["splits"].items()
    ]
    assert [row[::2] for row in tables["Files"]] == [
        [f["path"], f["sha256"]] for f in card["files"]
    ]


def test_rejects_hold_places_and_no_content() -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS[:60]]
    lines[10:10] = ['{"text": "secret', '["secret"]', '{"text": {"secret": 1}}', '{"text": ""}',
                    r'{"text": "secret \ud800"}']  # fmt: skip
    raw = "\n".join(lines).encode() + b'\n{"text": "secret \xff"}\n'
    Path("a.jsonl").write_bytes(raw)
    manifest = run(max_bad_share=0.5)
    expected = {"not_json": 11, "not_object": 12, "not_text": 13, "no_text": 14, "not_unicode": 15,
                "not_utf8": 66}  # fmt: skip
    assert manifest["counts"]["rejected"] == dict.fromkeys(sorted(expected), 1)
    rejects = [json.loads(line) for line in Path("prepared/rejects.jsonl").open()]
    assert {r["reason"]: r["record"] for r in rejects} == expected
    assert all(r["file"] == "a.jsonl" for r in rejects)
    for path in Path("prepared").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert len(documents("prepared")) == 60


MANY = [
    "この商品はとても良いです。毎日使っていますが、壊れません。",
    "音が大きくて最高！😀👍🏽 家族👨\u200d👩\u200d👧も喜んでいます🇯🇵",
    "Naïve café, Straße, señor — “quoted” … 100 % ½",
    "한국어 리뷰입니다. 아주 좋아요 ❤\ufe0f",
    "Прекрасный товар, рекомендую всем",
    "สินค้าดีมาก ราคาไม่แพง",
    "مرحبا بالعالم",
    "line one\nline two\ttabbed  twice ",
    "𠮷野家で𩸽を食べた",
]


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"kind": "bytes"},
        {"kind": "bpe", "vocab_size": 400},
        {"kind": "unigram", "vocab_size": 700},
        {"kind": "word", "min_count": 1},
    ],
    ids=lambda tokenizer: str(tokenizer["kind"]),
)
@pytest.mark.parametrize("profile", ["none", "modern"])
def test_text_of_many_scripts_comes_back(tokenizer: dict[str, Any], profile: str) -> None:
    texts = [f"{text} {n}" for n in range(30) for text in MANY]
    write("a.jsonl", ({"text": text} for text in texts))
    manifest = run(tokenizer, clean={"profile": profile}, split={"validation": 0.1, "test": 0.1})
    found = documents("prepared")
    assert sum(d.split != "train" for d in found) > 20
    assert sorted(d.text for d in found) == sorted(texts)
    report = manifest["tokenizer"]["report"]
    assert (report["unknown_rate"], report["exact_round_trips"]) == (0, 1)
