"""What a run of the prepare stage makes, from what, and whether it has been made already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .direct import goes_directly
from .folders import WORK
from .manifest import recipe_hash, stage_is_current
from .pool import Crew, Share
from .recipe.data import DataConfig
from .recipe.loader import validate
from .recipe.tokenizer import AnyTokenizerConfig, validate_tokenizer
from .sources import source_files
from .workers import available_cores

FORMAT = 2
_SMALL_BYTES = 2**24  # inputs up to here are done before a pool of processes has started


@dataclass(frozen=True)
class Plan:
    """What one run of the stage makes, and where."""

    data: DataConfig
    tokenizer: AnyTokenizerConfig
    scratch: Path
    crew: Crew
    share: Share

    def work(self, phase: str) -> Path:
        """The folder of a phase's claims, markers and intermediate files."""
        return self.scratch / WORK / phase


def prepare_status(tree: dict[str, Any]) -> str | None:
    """None when the prepared folder of a recipe tree is current, else why it is not."""
    return status(*sections(tree))


def prepare_hash(tree: dict[str, Any]) -> str:
    """The `recipe_hash` of a recipe's prepared manifest; the sources need not be there."""
    return stage_hash(*sections(tree))


def sections(tree: dict[str, Any]) -> tuple[DataConfig, AnyTokenizerConfig]:
    """The two validated sections of a recipe tree; RecipeError when one is wrong."""
    data = validate(DataConfig, tree.get("data"), "data")
    return data, validate_tokenizer(tree.get("tokenizer"))


def status(data: DataConfig, tokenizer: AnyTokenizerConfig) -> str | None:
    """None when the prepared folder is current, else why it is not."""
    manifest = Path(data.folder) / "manifest.json"
    return stage_is_current(manifest, stage_hash(data, tokenizer), input_files(data, tokenizer))


def stage_hash(data: DataConfig, tokenizer: AnyTokenizerConfig) -> str:
    """A hash of all that decides what is made."""
    # The folder decides where the result lies, not what it is, so a moved folder stays valid.
    return recipe_hash(FORMAT, data.model_dump(mode="json", exclude={"folder"}), tokenizer)


def _read_hash(data: DataConfig, tokenizer: AnyTokenizerConfig) -> str:
    """A hash of what reading depends on; more of the recipe may change without reading again."""
    later = {"folder", "max_bad_share", "reset_documents"}
    if goes_directly(data, tokenizer):  # then reading encodes too
        return recipe_hash(FORMAT, data.model_dump(mode="json", exclude=later), tokenizer)
    return recipe_hash(FORMAT, data.model_dump(mode="json", exclude=later | {"shard_tokens"}))


def input_files(data: DataConfig, tokenizer: AnyTokenizerConfig) -> list[Path]:
    """Every file that is read, sorted. DataError when a source has none."""
    sources = [*data.sources, *data.leaks.sets.values()]
    files = {path for source in sources for path in source_files(source)}
    if tokenizer.kind == "hf":
        files |= {path for path in Path(tokenizer.path).glob("*") if path.is_file()}
    return sorted(files)


def what_is_made(data: DataConfig, tokenizer: AnyTokenizerConfig) -> dict[str, Any]:
    """What is being made, and from what: equal plans may share their work."""
    inputs = [(str(path), path.stat()) for path in input_files(data, tokenizer)]
    files = [[path, status.st_size, status.st_mtime_ns] for path, status in inputs]
    return {
        "recipe": stage_hash(data, tokenizer),
        "read": [_read_hash(data, tokenizer), files],
        "direct": goes_directly(data, tokenizer),
    }


def default_workers(data: DataConfig) -> int:
    """A process for each core; one alone where there is little to read."""
    size = sum(path.stat().st_size for source in data.sources for path in source_files(source))
    return 1 if size < _SMALL_BYTES else available_cores()
