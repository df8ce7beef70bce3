"""The live page's server: what it refuses, and that it gives away nothing but the runs."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from data_prep.errors import RecipeError
from pipeline.__main__ import parse
from pipeline.watch import watch
from pipeline.watch.server import Server
from pipeline.watch.watched import Watched
from tests.pipeline.test_watch import line, write_run

PAGES = ("/", "/watch.css", "/watch.js", "/runs.json")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_run(tmp_path / "runs/a", range(1, 40))
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "runs/a/other.txt").write_text("secret")
    made = Server(Watched([tmp_path / "runs"]), "127.0.0.1", 0)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def get(
    server: Server, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | (headers or {})).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_is_kept_to_this_page(server: Server, path: str) -> None:
    status, body, headers = get(server, path)
    assert status == 200 and body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:80"])
def test_this_machine_may_be_named_in_any_way(server: Server, host: str) -> None:
    assert get(server, "/runs.json", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:6010", "127.0.0.1.evil.example", "localhost.evil.example",
     "10.0.0.1", "", "evil@127.0.0.1.example", "[::1", "evil.example#@x"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/runs.json", "/curves.json?run=x", "/nothing"])
def test_a_foreign_name_is_refused(server: Server, host: str, path: str) -> None:
    status, body, _ = get(server, path, {"Host": host})
    assert status == 403 and b"Host header" in body


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_no_host_and_two_hosts_are_refused(server: Server) -> None:
    assert b" 403 " in raw(server, b"GET /runs.json HTTP/1.0\r\n\r\n")
    two = b"GET /runs.json HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in raw(server, two)


def test_another_origin_is_refused(server: Server) -> None:
    own = f"127.0.0.1:{server.server_port}"
    assert get(server, "/runs.json", {"Origin": f"http://{own}"})[0] == 200
    for origin in ("http://evil.example", "null", f"https://{own}", "http://127.0.0.1:1"):
        status, body, _ = get(server, "/runs.json", {"Origin": origin})
        assert status == 403 and b"origin" in body, origin


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "BREW"])
def test_only_get(server: Server, method: str) -> None:
    assert get(server, "/runs.json", method=method)[0] in (405, 501)


def test_no_path_leads_to_a_file(server: Server, tmp_path: Path) -> None:
    tries = [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "//etc/passwd",
        "/a/other.txt",
        "/server.py",
        f"/{tmp_path}/secret.txt",
        "/page/watch.js",
        "/watch.js/../../__init__.py",
        "/watch.js%00",
    ]
    runs = ["../a", str(tmp_path), str(tmp_path / "runs/a"), "a", "a/../../secret.txt", "",
            "id\0", "%00"]  # fmt: skip
    tries += [f"/curves.json?run={quote(run)}" for run in runs] + [
        "/curves.json",
        "/curves.json?&=",
    ]
    for path in tries:
        status, body, _ = get(server, path)
        assert status == 404 and b"secret" not in body and b"root:" not in body, path


def test_no_answer_holds_a_path(server: Server, tmp_path: Path) -> None:
    (run,) = json.loads(get(server, "/runs.json")[1])["runs"]
    bodies = [get(server, path)[1] for path in (*PAGES, f"/curves.json?run={run['id']}")]
    assert not any(str(tmp_path).encode() in body for body in bodies)


def test_the_page_names_nothing_outside(server: Server) -> None:
    for path in ("/", "/watch.css", "/watch.js"):
        text = get(server, path)[1].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text


def test_a_second_question_is_answered_with_the_news_alone(server: Server, tmp_path: Path) -> None:
    (run,) = json.loads(get(server, "/runs.json")[1])["runs"]
    log = tmp_path / "runs/a/metrics.jsonl"
    with log.open("a") as file:
        file.write("".join(line(step) for step in range(40, 20_001)))
    known, sizes, rows = "", [], {}
    for more in ("", line(20_001), ""):
        with log.open("a") as file:
            file.write(more)
        _, body, _ = get(server, f"/curves.json?run={run['id']}&known={known}")
        sizes.append(len(body))
        for name, news in json.loads(body)["curves"].items():
            rows[name] = rows.get(name, [])[: news["start"]] + news["rows"]
            have = f"{name}:{news['generation']}:{news['known']}"
            known = ",".join([k for k in known.split(",") if not k.startswith(name + ":")] + [have])
    assert sizes[0] > 50_000 and sizes[1] < 1000  # the whole curve, then its last bucket
    assert sizes[2] < 1000
    assert rows["loss"][-1][0] == 20_001 and len(rows["loss"]) <= 1024


@pytest.mark.parametrize("known", ["loss", "loss:1", "loss:a:b", "loss:-1:2", ":::", "loss:²:1",
                                   "loss:99999999999999999999:1", "x:1:1"])  # fmt: skip
def test_malformed_questions_are_answered_in_full(server: Server, known: str) -> None:
    (run,) = json.loads(get(server, "/runs.json")[1])["runs"]
    status, body, _ = get(server, f"/curves.json?run={run['id']}&known={quote(known)}")
    assert status == 200 and len(json.loads(body)["curves"]["loss"]["rows"]) == 39


def test_a_wildcard_is_named_by_address_or_own_name(tmp_path: Path) -> None:
    server = Server(Watched([tmp_path]), "0.0.0.0", 0)
    server.server_close()
    assert server.is_named("192.168.1.5:6010") and server.is_named(socket.gethostname())
    assert not server.is_named("evil.example")


def test_the_command_listens_on_this_machine_alone() -> None:
    arguments = parse(["watch"])
    assert (arguments.host, arguments.runs) == ("127.0.0.1", [Path("runs")])


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1])
    command = [sys.executable, "-m", "pipeline", "watch", str(tmp_path), "--port", "0"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/runs.json")
        assert json.loads(connection.getresponse().read())["runs"][0]["name"] == "a"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_what_cannot_be_watched_is_refused(tmp_path: Path, server: Server) -> None:
    with pytest.raises(RecipeError, match="gone: no such folder; give run folders"):
        watch([tmp_path / "gone"], "127.0.0.1", 0)
    for port in (server.server_port, 70_000):
        with pytest.raises(RecipeError, match=f"cannot listen on 127.0.0.1 port {port}"):
            watch([tmp_path], "127.0.0.1", port)
