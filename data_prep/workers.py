"""How worker processes are started: forked off a server that has imported what they need and done
nothing else. So they begin at once, share that memory, and inherit no lock and no thread. Where
libraries do not bear a fork (macOS), each is started anew."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing import connection, forkserver
from typing import Any

_IMPORTED = ["data_prep.prepare"]
_FORKS = sys.platform == "linux"


def worker_context() -> Any:
    """The multiprocessing context of workers."""
    context = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
    if _FORKS:
        context.set_forkserver_preload(_IMPORTED)
    return context


def start_server() -> None:
    """Have the server begin to import, on another core, while this process does. It ends with
    this process."""
    if _FORKS:
        worker_context()
        forkserver.ensure_running()


def stop_with_parent() -> None:
    """In a worker: end when the process that it works for has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
