"""Tasks of one phase, done by this process or by a pool of workers, shared with other hosts.

Workers take tasks one at a time, so a slow one holds up nobody. What is done stays done: after a
crash the same command goes on with the tasks that are left.
"""

from __future__ import annotations

import errno
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .claims import TaskFolder, beating
from .errors import PipelineError, RecipeError, StoppedAndSaved
from .progress import METER, Bar
from .workers import interrupts_held, stop_with_parent, worker_context

_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST
}  # fmt: skip
_POLL_SECONDS = 0.2


class Share(NamedTuple):
    """The tasks that are this run's: part `part` (from 0) of `parts`."""

    part: int = 0
    parts: int = 1

    def has(self, number: int) -> bool:
        """Whether task `number` (from 0) is one of them."""
        return number % self.parts == self.part


ALL = Share()


class Task(NamedTuple):
    """A name, what the work function gets, and its size for the progress bar, bytes."""

    name: str
    argument: Any
    size: int


Work = Callable[[Any], dict[str, Any]]


class Crew:
    """The processes that do the tasks of a run: this one alone, or workers that are started when
    first needed and stay for all phases."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def pool(self) -> ProcessPoolExecutor:
        """The workers."""
        if self._pool is None:
            context = worker_context()
            shared = METER.share(context, self.processes)
            self._pool = ProcessPoolExecutor(
                self.processes, context, initializer=_start_worker, initargs=(shared,)
            )
        return self._pool

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        METER.part()


def run_tasks(
    title: str,
    folder: Path,
    tasks: Sequence[Task],
    work: Work,
    crew: Crew,
    share: Share = ALL,
    at_work: Callable[[], Sequence[Share]] = tuple,
) -> list[dict[str, Any]]:
    """The results of all tasks in their order, doing those that are not done.

    `work` must give the same files and result however often it is called. Tasks that another
    process has are waited for, and those of other parts while `at_work`, the shares of the runs
    that live, has their part. StoppedAndSaved when nobody does or will do them.
    """
    phase = TaskFolder(folder)
    # A result is read once: with thousands of tasks on a network disk, reading is what costs.
    results = {task.name: phase.result(task.name) for task in tasks}
    open_tasks = [task for task in tasks if results[task.name] is None]
    if open_tasks:
        done = sum(task.size for task in tasks) - sum(task.size for task in open_tasks)
        numbers = {task.name: number for number, task in enumerate(tasks)}
        mine = [task for task in open_tasks if share.has(numbers[task.name])]
        others = {t.name: numbers[t.name] for t in open_tasks if not share.has(numbers[t.name])}
        with Bar(title, sum(task.size for task in tasks), done) as bar:
            _work_off(phase, mine, work, crew, bar)
            _await_others(phase, title, others, at_work)
    for name, result in results.items():
        results[name] = result if result is not None else phase.result(name)
    return list(results.values())  # type: ignore[arg-type]


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into a RecipeError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        what = f"{folder}: cannot write {error.filename or 'there'} ({error.strerror})"
        hint = "what is done is kept: make room or correct data.folder, then run again"
        raise RecipeError(f"{what}; {hint}") from error


def _work_off(phase: TaskFolder, tasks: list[Task], work: Work, crew: Crew, bar: Bar) -> None:
    if crew.processes == 1 or len(tasks) <= 1:
        METER.on_change = bar.update
        try:
            _in_turn(tasks, lambda task: _attempt(phase.folder, task, work))
        finally:
            METER.on_change = None
        return
    try:
        _in_parallel(crew.pool(), phase, tasks, work, bar)
    except BrokenProcessPool:
        hint = "out of memory? what is done is kept: run again, with fewer --workers"
        raise PipelineError(f"a worker process was killed ({hint})") from None


def _in_turn(tasks: list[Task], attempt: Callable[[Task], bool]) -> None:
    while tasks:
        tasks = [task for task in tasks if not attempt(task)]
        if tasks:  # others have them
            time.sleep(_POLL_SECONDS)


def _in_parallel(
    pool: ProcessPoolExecutor, phase: TaskFolder, tasks: list[Task], work: Work, bar: Bar
) -> None:
    while tasks:
        with interrupts_held():  # workers are started as tasks are submitted
            running = {pool.submit(_attempt, phase.folder, task, work): task for task in tasks}
        busy = []  # another process has them: to be looked at again later
        while running:
            finished, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
            bar.update()
            for future in finished:
                task = running.pop(future)
                busy += [] if future.result() else [task]
        tasks = busy
        time.sleep(_POLL_SECONDS if busy else 0)


def _await_others(
    phase: TaskFolder, title: str, numbers: dict[str, int], at_work: Callable[[], Sequence[Share]]
) -> None:
    """Wait for tasks of other parts, by name, as long as somebody works on one of them or is about
    to: a run that lives may stand between two tasks, or in an earlier phase."""
    while numbers := {name: n for name, n in numbers.items() if phase.result(name) is None}:
        shares = at_work()
        coming = any(share.has(number) for share in shares for number in numbers.values())
        if not coming and not any(map(phase.owner, numbers)):
            what = f"this part is done, {len(numbers)} tasks of other parts are not"
            hint = "what is done is kept: run the other parts, then this one again"
            raise StoppedAndSaved(f"{title}: {what} and nobody works on them; {hint}")
        time.sleep(_POLL_SECONDS * 5)


def _attempt(folder: Path, task: Task, work: Work) -> bool:
    """Do a task, unless a living process has it. True when it is done."""
    phase = TaskFolder(folder)
    claim = phase.claim(task.name)
    if claim is None:
        return phase.result(task.name) is not None
    with beating(claim):
        result = work(task.argument)
    # Whoever took it over, because this process had seemed dead, may still be at it.
    return phase.finish(claim, result) or phase.result(task.name) is not None


def _start_worker(shared: Any) -> None:
    """Stop with the parent; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    METER.join(shared)
    stop_with_parent()
