"""The page's server: five addresses, GET alone, and no path of a file in any of them.

A page of another site can make a browser send requests here. So a request must name this machine
in its Host header (a foreign name that was made to point here does not), and one that comes from
another origin is refused.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from data_prep.errors import RecipeError
from pipeline.watch.watched import Watched

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("watch.html", "text/html; charset=utf-8"),
    "/watch.css": ("watch.css", "text/css; charset=utf-8"),
    "/watch.js": ("watch.js", "text/javascript; charset=utf-8"),
}
_JSON = "application/json; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Server(ThreadingHTTPServer):
    """Listens on `host`; `watched` is what it shows."""

    daemon_threads = True

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        self.watched = watched
        self.host = host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def is_named(self, host: str) -> bool:
        """Whether a Host header names this server. The port may be that of a tunnel."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if self.host in ("0.0.0.0", "::"):  # an address cannot be made to point elsewhere
            return name == socket.gethostname().lower() or _is_address(name)
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error; a defect is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds for a request to come

    def do_GET(self) -> None:
        if problem := self._refusal():
            self._answer(403, "text/plain; charset=utf-8", problem.encode())
            return
        path, _, query = self.path.partition("?")
        if path in _FILES:
            name, kind = _FILES[path]
            self._answer(200, kind, (_PAGE / name).read_bytes())
        elif path == "/runs.json":
            self._answer_json(self.server.watched.list_runs())
        elif path == "/curves.json":
            asked = dict(parse_qsl(query))
            known = _known(asked.get("known", ""))
            self._answer_json(self.server.watched.curves(asked.get("run", ""), known))
        else:
            self._answer(404, "text/plain; charset=utf-8", b"not found\n")

    def _refuse_method(self) -> None:
        self._answer(405, "text/plain; charset=utf-8", b"GET only\n")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method

    def _refusal(self) -> str | None:
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        if len(hosts) != 1 or not self.server.is_named(hosts[0]):
            return "refused: the Host header does not name this machine\n"
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return "refused: the request comes from another origin\n"
        return None

    def _answer_json(self, content: dict[str, Any] | None) -> None:
        body = json.dumps({} if content is None else content, allow_nan=False).encode()
        self._answer(404 if content is None else 200, _JSON, body)

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "watch"

    def log_message(self, format: str, *arguments: Any) -> None:
        """A request every other second is nothing to tell of."""


def watch(folders: Sequence[Path], host: str, port: int) -> None:
    """Serve the page until Ctrl-C. RecipeError for a missing folder or an address not to be had."""
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise RecipeError(
            f"{', '.join(missing)}: no such folder; give run folders, or a folder that holds them"
        )
    try:
        server = Server(Watched(folders), host, port)
    except (OSError, OverflowError) as error:
        raise RecipeError(
            f"cannot listen on {host} port {port} ({error}): give another --port or --host"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.server_port}/"
    print(f"watching {', '.join(map(str, folders))} on {address} (Ctrl-C ends)", flush=True)
    if host.lower() not in _LOOPBACK:
        print("anyone who can reach this address can read the runs", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to end it
            print()


def _known(text: str) -> dict[str, tuple[int, int]]:
    """`loss:GENERATION:BUCKETS,...`; what is malformed is nothing known."""
    known = {}
    for part in text.split(",")[:20]:
        fields = part.split(":")
        if len(fields) == 3 and all(
            f.isascii() and f.isdigit() and len(f) < 17 for f in fields[1:]
        ):
            known[fields[0]] = int(fields[1]), int(fields[2])
    return known


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
