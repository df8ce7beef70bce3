"""Command line of data preparation.

python -m data_prep prepare RECIPE [key=value ...]   make the prepared folder
python -m data_prep submit RECIPE [key=value ...]    the same on a cluster, through datatrove
python -m data_prep inspect FOLDER                   verify and show a prepared folder
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from .arguments import DiscreetParser, counted, natural
from .console import outlive_console
from .errors import RecipeError, run_main

_EXIT_CODES = """exit codes:
  0 finished    2 the recipe or the output folder refuses    3 the data refuses
  75 this part is done, others are missing: run them         130 interrupted"""
_SHARED = """Run it again after a crash: it goes on with what is left.
Run it at the same time on several hosts that share the folder: they share the tasks."""


def main(argv: list[str]) -> None:
    """Parse `argv` and run its command."""
    parser = _parser("-h" in argv or "--help" in argv)
    arguments = parser.parse_mixed(argv)
    arguments.run(arguments)


def _parser(with_keys: bool) -> DiscreetParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = DiscreetParser(
        "python -m data_prep",
        description="From raw text to token shards.",
        epilog=_EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="prepare | submit | inspect")
    about = "Read, clean, deduplicate, split, tokenize and shard the sources of a recipe."
    prepare = commands.add_parser(
        "prepare",
        help="make the prepared folder of a recipe",
        description=f"{about}\n{_SHARED}",
        epilog=_keys() if with_keys else None,
        formatter_class=raw,
    )
    _recipe_arguments(prepare)
    prepare.add_argument("--force", action="store_true", help="prepare anew even if up to date")
    prepare.add_argument(
        "--tasks",
        metavar="I/N",
        help="do part I of N of the tasks, from 1, as in a SLURM array; 75 when others are missing",
    )
    prepare.set_defaults(run=_prepare)
    submit = commands.add_parser(
        "submit",
        help="prepare on a cluster through datatrove",
        description=f"{about}\nThe parts run under datatrove (pip install datatrove).",
        formatter_class=raw,
    )
    _recipe_arguments(submit)
    submit.add_argument("--engine", choices=("slurm", "ray", "local"), default="slurm")
    submit.add_argument("--parts", type=counted, required=True, help="processes over all hosts")
    submit.add_argument("--partition", help="SLURM partition")
    submit.add_argument("--time", default="24:00:00", help="SLURM time limit (default 24:00:00)")
    submit.add_argument("--cpus", type=counted, default=1, help="cores of a part (default 1)")
    submit.set_defaults(run=_submit)
    inspect = commands.add_parser(
        "inspect",
        help="verify and show a prepared folder",
        description="Verify every checksum of a prepared folder, then show counts, lengths and "
        "documents at random; writes a picture of the lengths into the folder.",
    )
    inspect.add_argument("folder", metavar="FOLDER", help="a prepared folder (data.folder)")
    inspect.add_argument(
        "--documents", type=natural, default=3, metavar="N", help="documents to show (default 3)"
    )
    inspect.add_argument("--seed", type=natural, help="choose the same documents each time")
    inspect.set_defaults(run=_inspect)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file with data: and tokenizer:")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="such as data.seed=1")
    parser.add_argument(
        "--workers", type=counted, metavar="N", help="processes on this host (default: cores)"
    )


def _keys() -> str:
    from .recipe.data import DataConfig
    from .recipe.loader import describe
    from .recipe.tokenizer import TokenizerConfig

    data, tokenizer = describe(DataConfig, "  "), describe(TokenizerConfig, "  ")
    return f"recipe keys:\ndata:\n{data}\ntokenizer:\n{tokenizer}"


def _prepare(arguments: Any) -> None:
    outlive_console()
    from .workers import available_cores, worker_context

    if (arguments.workers or available_cores()) != 1:
        worker_context()  # first of all: its server imports while this process does
    from .pool import ALL
    from .prepare import prepare

    share = _share(arguments.tasks) if arguments.tasks else ALL
    prepare(arguments.recipe, arguments.overrides, arguments.force, arguments.workers, share)


def _share(text: str) -> Any:
    from .pool import Share

    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise RecipeError(f"--tasks {text}: expected I/N with I from 1 to N, such as 3/16")
    return Share(part - 1, parts)


def _submit(arguments: Any) -> None:
    from .submit import Cluster, submit

    cluster = Cluster(
        arguments.engine, arguments.parts, arguments.cpus, arguments.time, arguments.partition
    )
    submit(Path(arguments.recipe), arguments.overrides, arguments.workers, cluster)


def _inspect(arguments: Any) -> None:
    from .inspect import inspect

    inspect(arguments.folder, arguments.documents, arguments.seed)


if __name__ == "__main__":
    sys.exit(run_main(main))
