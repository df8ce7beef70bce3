"""How worker processes are started: forked off a server that has imported what they need and done
nothing else. So they begin at once, share that memory, and inherit no lock and no thread. Where
libraries do not bear a fork (macOS), each is started anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

_IMPORTED = ["data_prep.prepare"]
_FORKS = sys.platform == "linux"


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_context() -> Any:
    """The multiprocessing context of workers. Its server begins to import at once, on another core;
    it ends with this process."""
    context = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
    if _FORKS:
        context.set_forkserver_preload(_IMPORTED)
        # Ctrl-C goes to the server too, which would die of it with a traceback while it imports.
        resource_tracker.ensure_running()  # first: starting it lets the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C is heard when the block has ended. A worker whose start it cut off would be known to
    nobody, and would say with a traceback that the process it works for has gone."""
    if threading.current_thread() is not threading.main_thread():  # no other hears Ctrl-C
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def stop_with_parent() -> None:
    """In a worker: end when the process that it works for has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
