"""The prepare stage: sources to a folder of shards, a tokenizer, a data card and a manifest.

    read      files, or byte ranges of them, to cleaned text in the spool
    twins     which documents are duplicates
    tokenizer trained on a sample of what is left
    encode    ranges of the permuted documents to shards
    finish    card, manifest, and the rename that makes the folder appear

Each step is a list of tasks that any process may do, on this host or on others that share the
folder (`claims`). Every task writes the same bytes however often it runs, so a run may be killed
at any moment and started again. A finished folder is never changed: when the recipe or an input
has changed it is moved to `FOLDER.superseded-N` and a new one is made.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .card import write_card
from .claims import TaskFolder, beating
from .direct import ShardSink, goes_directly, index_task, plan_indexes
from .duplicates import (
    DuplicateJob,
    find_duplicates,
    merge_dropped,
    plan_exact,
    plan_near,
)
from .encoding import EncodeJob, PartOrigin, encode_task, plan_shards, sample_texts
from .errors import RecipeError
from .findings import check_read, gather_findings, lines_before
from .folders import (
    clear_work,
    leave,
    open_scratch,
    presence,
    put_in_place,
    refuse_foreign,
    scratch_of,
    shares_at_work,
)
from .leaks import LeakIndex
from .manifest import (
    FileRecord,
    read_manifest,
    stage_manifest,
    sync,
    versions,
    write_manifest,
)
from .plan import (
    FORMAT,
    Plan,
    default_workers,
    input_files,
    sections,
    stage_hash,
    status,
    what_is_made,
)
from .pool import ALL, Crew, Share, Task, disk_errors, run_tasks
from .reading import ReadJob, Sink, evaluation_texts, first_texts, read_task
from .recipe.loader import read_tree
from .sources import plan_tasks
from .spooling import SpoolSink, first_rank, open_parts, part_files
from .tokenizers import load_tokenizer, round_trip_report, train_tokenizer

_REPORTED_TEXTS = 1000  # of the sample, for the round-trip report
_SHARD_BYTES = 2**30  # of text; Arrow counts the bytes of a column in 31 bits
_REPORTED_MEGABYTES = 1.0  # the sample of a tokenizer that is not trained
_DISTRIBUTIONS = ("numpy", "msgspec", "pyarrow", "tokenizers", "sentencepiece", "xxhash")


def prepare(
    recipe_path: Path | str,
    overrides: Sequence[str] = (),
    force: bool = False,
    workers: int | None = None,
    share: Share = ALL,
) -> dict[str, Any]:
    """Run the stage for a recipe file; see `prepare_tree`."""
    return prepare_tree(read_tree(recipe_path, overrides), force, workers, share)


def prepare_tree(
    tree: dict[str, Any],
    force: bool = False,
    workers: int | None = None,
    share: Share = ALL,
) -> dict[str, Any]:
    """Run the stage for a recipe and return the manifest; nothing is done when it is current.

    `force` prepares anew even then; `workers` are processes, one per core by default; `share` is
    the part of the tasks that is done here. RecipeError when the recipe is wrong or a folder
    cannot be used; DataError when a source is unreadable, too many records are bad, or a split
    that training needs is empty; StoppedAndSaved when this was one part of several and the others
    are missing.
    """
    data, tokenizer = sections(tree)
    folder = Path(data.folder)
    reason = "forced" if force else status(data, tokenizer)
    if reason is None:
        with suppress(OSError):  # a finished folder may be on a disk that is only read
            clear_work(folder)
        print(f"{folder}: up to date")
        return read_manifest(folder / "manifest.json")
    refuse_foreign(folder)
    print(f"{folder}: preparing ({reason})", flush=True)
    with disk_errors(folder):
        scratch = scratch_of(folder)
        crew = Crew(workers or default_workers(data))
        plan = Plan(data, tokenizer, scratch, crew, share)
        try:
            with presence(scratch, share) as me, crew:
                open_scratch(scratch, what_is_made(data, tokenizer), me)
                # Another process may have finished between the first look and this one.
                late = not force and status(data, tokenizer) is None
                manifest = None if late else _build(plan, folder)
            if late:
                leave(scratch)
        except FileNotFoundError:
            # Another process finished and renamed the scratch folder under our feet.
            if scratch.exists():
                raise
            if status(data, tokenizer) is not None:
                hint = "its result was left as it is: run again, or choose another data.folder"
                raise RecipeError(
                    f"{folder}: another recipe was prepared meanwhile; {hint}"
                ) from None
            manifest = None
    if manifest is None:
        print(f"{folder}: finished by another process")
    return read_manifest(folder / "manifest.json")


def _build(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """Do what is left to do; None when another process finished the folder first."""
    started = time.monotonic()
    _index_leaks(plan)
    if goes_directly(plan.data, plan.tokenizer):
        tokenizer = _make_tokenizer(plan, lambda _: first_texts(plan.data, _REPORTED_TEXTS))
        read = _read(plan, ShardSink)
        check_read(plan.data, read)
        shards = _index(plan, read)
    else:
        read = _read(plan, SpoolSink)
        check_read(plan.data, read)
        parts = part_files(plan.work("read"), read)
        kept = _find_twins(plan, parts, sum(sum(result["documents"]) for result in read))
        tokenizer = _make_tokenizer(plan, partial(_sample, plan, parts, read))
        # A sample that met duplicates only says nothing; a byte a token makes shards enough.
        bytes_per_token = tokenizer["report"]["bytes_per_token"] or 1.0
        shards = _encode(plan, read, bytes_per_token, max(kept, 1e-9))
    return _finish(plan, folder, read, shards, tokenizer, started)


def _run(plan: Plan, title: str, phase: str, jobs: Sequence[Any], work: Callable[[Any], Any],
         size: Callable[[Any], int]) -> list[dict[str, Any]]:  # fmt: skip
    tasks = [Task(job.name, job, size(job)) for job in jobs]
    at_work = partial(shares_at_work, plan.scratch)
    return run_tasks(title, plan.work(phase), tasks, work, plan.crew, plan.share, at_work)


def _once(plan: Plan, phase: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a step that one process does while others wait, whatever part they are."""
    task = Task(phase, None, 0)
    return run_tasks(phase, plan.work(phase), [task], lambda _: work(), Crew())[0]


def _index_leaks(plan: Plan) -> None:
    if not plan.data.leaks.sets:
        return

    def build() -> dict[str, Any]:
        config = plan.data.leaks
        texts = evaluation_texts(plan.data)
        index = LeakIndex.build(texts, config.ngram, config.shortest)
        index.save(plan.work("leaks") / "index.npz")
        return {name: asdict(size) for name, size in index.sets.items()}

    _once(plan, "leaks", build)


def _read(plan: Plan, sink: Callable[[ReadJob], Sink]) -> list[dict[str, Any]]:
    folder = plan.work("read")
    tasks = plan_tasks(plan.data.sources)
    jobs = [ReadJob(plan.data, folder, number, task, sink) for number, task in enumerate(tasks)]
    return _run(plan, "reading", "read", jobs, read_task, lambda job: job.task.size)


def _find_twins(plan: Plan, parts: Sequence[Path], documents: int) -> float:
    """List the duplicates; returns the share of the documents that is left."""
    dropped = 0
    config, folder = plan.data.duplicates, plan.work("duplicates")
    size = sum(path.stat().st_size for path in parts)

    def share(job: DuplicateJob) -> int:
        return size // job.ranges

    for kind, plan_kind in (("exact", plan_exact), ("near", plan_near)):
        if jobs := plan_kind(config, folder, parts, documents):
            _run(plan, f"{kind} duplicates", "duplicates", jobs, find_duplicates, share)
            merged = _once(
                plan, f"{kind}-dropped", partial(merge_dropped, folder, kind, len(parts))
            )
            dropped += merged["dropped"]
    return 1.0 - dropped / max(1, documents)


def _sample(
    plan: Plan, parts: Sequence[Path], read: Sequence[dict[str, Any]], megabytes: float
) -> Iterable[str]:
    train_bytes = sum(part["bytes"][0] for result in read for part in result["parts"].values())
    return sample_texts(open_parts(parts), plan.work("duplicates"), megabytes, train_bytes)


def _make_tokenizer(plan: Plan, sample_of: Callable[[float], Iterable[str]]) -> dict[str, Any]:
    """Train the tokenizer on a sample of so many megabytes, and save it; returns its round-trip
    report."""

    def make() -> dict[str, Any]:
        config, began = plan.tokenizer, time.monotonic()
        sample = list(sample_of(getattr(config, "sample_megabytes", _REPORTED_MEGABYTES)))
        tokenizer = train_tokenizer(config, sample)
        tokenizer.save(folder := plan.scratch / "tokenizer")
        for path in folder.iterdir():
            sync(path)
        report = round_trip_report(tokenizer, sample[:_REPORTED_TEXTS])
        size = sum(len(text.encode()) for text in sample)
        seconds = round(time.monotonic() - began, 3)
        return {"report": report | {"sample_bytes": size}, "seconds": seconds}

    return _once(plan, "tokenizer", make)


def _encode(
    plan: Plan, read: Sequence[dict[str, Any]], bytes_per_token: float, kept: float
) -> list[dict[str, Any]]:
    """Shards of about `data.shard_tokens`, of the share of the spool that is `kept`."""
    data, origins = plan.data, _origins(plan, read)
    sizes = [origin.text_bytes for origin in origins]
    ranks = [origin.first_rank for origin in origins]
    shard_bytes = data.shard_tokens * bytes_per_token
    if min(shard_bytes, sum(map(sum, sizes)) * kept) > _SHARD_BYTES:
        most = int(_SHARD_BYTES / bytes_per_token)
        found = f"{shard_bytes / 1e9:.1f} GB of text, and a process holds a shard in memory"
        raise RecipeError(
            f"data.shard_tokens={data.shard_tokens:,} is about {found}; expected {most:,} at most"
        )
    shards = plan_shards(data, sizes, ranks, shard_bytes / kept)
    duplicates = plan.work("duplicates")
    run = uuid.uuid4().hex
    jobs = [EncodeJob(run, data, plan.scratch, duplicates, origins, *shard) for shard in shards]
    size = sum(map(sum, sizes)) / max(1, len(jobs))
    return _run(plan, "encoding", "encode", jobs, encode_task, lambda _: int(size))


def _index(plan: Plan, read: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shards that reading has written, each with its index of documents."""
    parts = {name: part for result in read for name, part in result["parts"].items()}
    before = [origin.lines_before for origin in _origins(plan, read)]
    jobs = plan_indexes(plan.scratch, plan.work("read"), parts, before)
    done = _run(plan, "indexing", "index", jobs, index_task, lambda _: 1)
    shards = [shard for part in parts.values() for shard in part["shards"]]
    indexes = [index for result in done for index in result["indexes"]]
    pairs = zip(shards, indexes, strict=True)
    return [shard | {"index": index, "counts": {}} for shard, index in pairs]


def _origins(plan: Plan, read: Sequence[dict[str, Any]]) -> list[PartOrigin]:
    """Where each part comes from, in reading order."""
    return [
        PartOrigin(
            path=plan.work("read") / f"{name}.arrow",
            file=result["path"],
            lines_before=before,
            weight=plan.data.sources[result["source"]].weight,
            first_rank=first_rank(number, part["before"]),
            bytes_per_split=part["bytes"],
        )
        for number, (result, before) in enumerate(zip(read, lines_before(read), strict=True))
        for name, part in result["parts"].items()
    ]


def _finish(
    plan: Plan, folder: Path, read: Sequence[dict[str, Any]], shards: Sequence[dict[str, Any]],
    tokenizer: dict[str, Any], started: float,
) -> dict[str, Any] | None:  # fmt: skip
    phase = TaskFolder(plan.work("finish"))
    while (claim := phase.claim("finish")) is None:
        time.sleep(0.5)  # the other renames the folder, and looking into it then fails
    with beating(claim):
        manifest = _write_manifest(plan, read, shards, tokenizer, started)
    if aside := put_in_place(plan.scratch, folder):
        print(f"{folder}: the previous data is kept at {aside}")
    _print_summary(manifest)
    return manifest


def _write_manifest(
    plan: Plan, read: Sequence[dict[str, Any]], shards: Sequence[dict[str, Any]],
    made: dict[str, Any], started: float,
) -> dict[str, Any]:  # fmt: skip
    findings = gather_findings(plan.data, read, shards, plan.work("leaks"))
    inputs = _input_records(plan, read)
    loaded = load_tokenizer(plan.scratch / "tokenizer")
    names = ("kind", "vocab_size", "fingerprint")
    tokenizer = {name: getattr(loaded, name) for name in names}
    tokenizer |= {"folder": "tokenizer", "report": made["report"]}
    card = write_card(plan.scratch, plan.data, inputs, tokenizer, findings)
    tokenizer_files = sorted((plan.scratch / "tokenizer").iterdir())
    outputs = [FileRecord.of(path, plan.scratch) for path in [*tokenizer_files, *card]]
    for shard in shards:
        outputs += [FileRecord.from_json(shard["shard"]), FileRecord.from_json(shard["index"])]
    manifest = {"format": FORMAT} | stage_manifest(
        "prepare",
        stage_hash(plan.data, plan.tokenizer),
        inputs,
        outputs,
        tokenizer=tokenizer,
        reset_documents=plan.data.reset_documents,
        **asdict(findings),
        versions=versions(*_DISTRIBUTIONS),
        seconds=round(time.monotonic() - started, 3),
        tokenizer_seconds=made["seconds"],
    )
    # It vouches for files that are on the disk itself: whatever wrote one has seen to that.
    write_manifest(plan.scratch / "manifest.json", manifest)
    return manifest


def _input_records(plan: Plan, read: Sequence[dict[str, Any]]) -> list[FileRecord]:
    """Every input as it was read. RecipeError when one has changed since the run began."""
    known = {r["input"]["path"]: FileRecord.from_json(r["input"]) for r in read if r["input"]}
    paths = input_files(plan.data, plan.tokenizer)
    records = [known[str(p)] if str(p) in known else FileRecord.of(p) for p in paths]
    begun = {path: (size, mtime) for path, size, mtime in _plan_files(plan)}
    for record in records:
        now = os.stat(record.path)  # again: a file of several tasks may have changed between them
        found = {(record.size, record.mtime_ns), (now.st_size, now.st_mtime_ns)}
        if found != {begun.get(record.path)}:
            hint = "nothing was put in place: run again when it is whole"
            raise RecipeError(f"{record.path} changed while it was being prepared; {hint}")
    return records


def _plan_files(plan: Plan) -> list[list[Any]]:
    return read_manifest(plan.scratch / "plan.json")["read"][-1]  # type: ignore[no-any-return]


def _print_summary(manifest: dict[str, Any]) -> None:
    print(f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'shards':>8}")
    for name, split in manifest["splits"].items():
        sizes = f"{split['documents']:>12,}{split['tokens']:>16,}{split['bytes']:>16,}"
        print(f"{name:<12}{sizes}{len(split['shards']):>8}")
    for title, counts in manifest["counts"].items():
        words = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
        print(f"{title}: {words}")
