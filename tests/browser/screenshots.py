"""The pictures of the pages in docs/, taken again:

    python -m tests.browser.screenshots RUN RUNS

`report.png` is the top of RUN/report.html, `watch.png` the live page over the folder RUNS.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

from pipeline.watch.server import Server
from pipeline.watch.watched import Watched
from tests.browser.chromium import Browser

_PICTURES = Path(__file__).parents[2] / "docs/pictures"
_SIZE = (1100, 1000)


def main(run: Path, runs: Path) -> None:
    server = Server(Watched([runs]), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open((run / "report.html").resolve().as_uri(), _SIZE)
        _keep(browser, "report.png")
        browser.open(f"http://127.0.0.1:{server.server_port}/", _SIZE)
        browser.wait_for("document.documentElement.dataset.drawn === 'yes'")
        _keep(browser, "watch.png")


def _keep(browser: Browser, name: str) -> None:
    """A page has few colours, and a palette of 64 makes a third of the bytes."""
    picture = Image.open(io.BytesIO(browser.screenshot()))
    picture.convert("RGB").quantize(64).save(_PICTURES / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
