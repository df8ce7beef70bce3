"""The pages as a browser shows them, on a desk and on a phone: nothing sticks out, every picture
has a title, axes and units, and nothing is fetched from elsewhere."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load_recipe
from pipeline.report.compare import compare_runs
from pipeline.report.stage import write_report
from pipeline.watch.server import Server
from pipeline.watch.watched import Watched
from tests.browser.chromium import DESKTOP, PHONE, Browser, needs_chromium
from tests.pipeline.test_report import make_run
from tests.pipeline.test_watch import line, write_run

pytestmark = needs_chromium
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
LONG = "a_run_with_a_name_that_is_longer_than_the_width_of_any_telephone"
NAMED = {"task", "terms exchanged"}
UNIT = re.compile(r"\(.+\)|\bper\b")  # in brackets, or the label is itself one
STICKING_OUT = """
  [...document.querySelectorAll('body *')]
    .filter((e) => !e.closest('.scroll') || e.matches('.scroll'))
    .filter((e) => !e.closest('svg') || e.matches('text'))
    .filter((e) => { const box = e.getBoundingClientRect();
      return box.width && (box.right > WIDTH + 1 || box.left < -1); })
    .map((e) => e.outerHTML.slice(0, 80))
"""
TRANSFER = {
    "accuracy": 0.8, "interval": [0.75, 0.85], "nonzero_weights": 5, "features": 64, "C": 0.25,
    "unit": 7, "unit_accuracy": 0.7, "unit_interval": [0.65, 0.75], "majority_accuracy": 0.5,
    "texts_per_second": 99.0, "unit_sign": 1, "labels": ["bad", "good"],
    "histogram": {"edges": [-1, 0, 1], "counts": [[5, 2], [1, 6]]},
    "courses": [{"text": "a fine film " * 9, "label": 1, "values": [0.1, -0.2] * 54}],
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with every kind of picture, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    recipes = [make_run(root, name, points=60) for name in (LONG, "b")]
    for folder in (root / "runs").iterdir():
        (folder / "evals/transfer.json").write_text(json.dumps({"sst": TRANSFER}))
    write_report(load_recipe(recipes[0]))
    page = compare_runs([root / "runs" / LONG, root / "runs/b"], root / "compare")
    return {"report": root / "runs" / LONG / "report.html", "comparison": page}


def check_layout(browser: Browser, size: tuple[int, int]) -> None:
    # A telephone zooms out until all is in view: then innerWidth is no longer what was asked for.
    wide, inner = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert browser.evaluate(STICKING_OUT.replace("WIDTH", str(size[0]))) == []
    assert wide <= size[0] == inner
    assert browser.errors == []


def check_words(words: str) -> None:
    """`TITLE: Y (unit) against X (unit)`; a heat map has the label of its colours alone."""
    title, colon, axes = words.partition(": ")
    assert title and colon, words
    assert " against " in axes or words.startswith("Unit 7 after each character"), words
    # A row for each task, source or length has names for its ticks, not numbers with a unit.
    labels = [label for label in axes.split(" against ") if label not in NAMED]
    assert labels and all(UNIT.search(label) for label in labels), words


@SIZES
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_fits_and_its_pictures_say_what_they_show(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    url = pages[name].as_uri()
    browser.open(url, size)
    check_layout(browser, size)
    assert [r for r in browser.requests if not r.startswith("data:")] == [url]
    images = browser.evaluate(
        "[...document.images].map((i) => [i.alt, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(images) >= (3 if name == "comparison" else 8)
    for words, pixels, shown in images:
        assert 0 < shown <= pixels
        check_words(words)


# The live page ---------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    for number, name in enumerate([LONG, "<b onmouseover=alert(1)>x", "new"]):
        run = write_run(tmp_path / "runs" / name, [])
        steps = range(1, 3000 if number == 0 else 60)
        text = "".join(line(step, **evaluated(step)) for step in steps)
        (run.root / "metrics.jsonl").write_text(text if name != "new" else "")
    server = Server(Watched([tmp_path / "runs"]), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", tmp_path / "runs"
    server.shutdown()
    thread.join()
    server.server_close()


def evaluated(step: int) -> dict[str, Any]:
    every = {"train/loss_per_byte": 7 / step, "train/learning_rate": 1e-4 * step}
    found = {"eval/loss": 11 / step, "eval/bits_per_byte": 3 + 1 / step}
    return every | (found if step % 20 == 0 else {})


def open_live(browser: Browser, url: str, size: tuple[int, int]) -> None:
    browser.open(url, size)
    browser.wait_for("document.documentElement.dataset.drawn === 'yes'")


@SIZES
@pytest.mark.parametrize("axis", ["0", "1", "2"], ids=["steps", "tokens", "time"])
def test_the_live_page_fits_and_its_pictures_say_what_they_show(
    browser: Browser, live: tuple[str, Path], axis: str, size: tuple[int, int]
) -> None:
    url, _ = live
    open_live(browser, url, size)
    browser.evaluate(
        f"byId('axis').value = '{axis}'; byId('axis').dispatchEvent(new Event('change'))"
    )
    check_layout(browser, size)
    assert all(request.startswith((url, "data:")) for request in browser.requests)
    words = browser.evaluate(
        "[...document.querySelectorAll('figure:not([hidden]) svg[role=img]')]"
        ".map((s) => [s.getAttribute('aria-label'), s.parentNode.firstChild.textContent,"
        " s.querySelector('.y.label').textContent, s.querySelector('.x.label').textContent,"
        " s.querySelectorAll('line').length])"
    )
    assert len(words) == 5
    for whole, title, y, x, lines in words:
        assert whole == f"{title}: {y} against {x}"
        assert lines >= 4  # of a grid
        check_words(whole)


def test_names_of_folders_are_text(browser: Browser, live: tuple[str, Path]) -> None:
    open_live(browser, live[0], DESKTOP)
    names = browser.evaluate("[...document.querySelectorAll('#runs label')].map(e => e.innerText)")
    assert [name.strip() for name in names] == ["<b onmouseover=alert(1)>x", LONG, "new"]
    assert browser.evaluate("document.querySelectorAll('#runs b').length") == 0


def test_curves_grow_while_the_run_writes(browser: Browser, live: tuple[str, Path]) -> None:
    url, runs = live
    open_live(browser, url, DESKTOP)
    step = "[...document.querySelectorAll('#runs tr')].at(-1).children[2].textContent"
    points = (
        "[...runs.values()].find((run) => run.info.name === 'new').curves.loss?.rows.length ?? 0"
    )
    assert (browser.evaluate(step), browser.evaluate(points)) == ("–", 0)
    log = runs / "new/metrics.jsonl"
    with log.open("a") as file:
        file.write(line(1) + line(2) + line(3)[:20])
        file.flush()
        browser.wait_for(f"{points} === 2")
        assert browser.evaluate(step) == "2/100 (2.0 %)"
        file.write(line(3)[20:])
    browser.wait_for(f"{points} === 3")
    log.write_text(line(1))  # cut off by a resume
    browser.wait_for(f"{points} === 1")
    browser.wait_for(f"{step} === '1/100 (1.0 %)'")
    assert browser.errors == []


def test_a_run_can_be_left_out(browser: Browser, live: tuple[str, Path]) -> None:
    open_live(browser, live[0], DESKTOP)
    curves = "document.querySelectorAll('figure svg svg path[fill=none]:not([stroke-dasharray])')"
    before = browser.evaluate(f"{curves}.length")
    browser.evaluate("document.querySelector('#runs input').click()")
    assert (before, browser.evaluate(f"{curves}.length")) == (10, 5)
