"""A headless Chromium, driven through the pipe of its DevTools: no node, no driver, no socket."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

BINARY = shutil.which("chromium") or shutil.which("google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--hide-scrollbars", "--disable-extensions", "--mute-audio",
    # Every page here is ours, and the sandbox does not start for root in a container.
    "--no-sandbox",
)  # fmt: skip
_PATIENCE_S = 60

needs_chromium = pytest.mark.skipif(BINARY is None, reason="chromium is not installed")


class Browser:
    """One tab. What goes wrong in a page (exceptions, refused resources) is kept in `errors`."""

    def __init__(self, profile: Path) -> None:
        assert BINARY is not None
        to_browser, self._send = _pipe()
        self._receive, from_browser = _pipe()

        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        command = [BINARY, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *command], pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._session = None
        self.call("Browser.close")
        self._process.wait(_PATIENCE_S)
        os.close(self._send)
        os.close(self._receive)

    def open(self, url: str, size: tuple[int, int]) -> None:
        """Load a page in a window of this many CSS pixels; a narrow one is a phone."""
        self.errors, self.requests = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1],
            deviceScaleFactor=1, mobile=size[0] < 600,
        )  # fmt: skip
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        end = time.monotonic() + _PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def screenshot(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command, its result; what the page reports meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._receive, 1 << 20)
            assert part, "chromium has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str | None, found: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif event == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])


def _pipe() -> tuple[int, int]:
    """Reading and writing end, numbered past the 3 and 4 that Chromium takes."""
    reading, writing = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reading, writing))
    os.close(reading)
    os.close(writing)
    return moved[0], moved[1]
