"""Command line of data preparation.

python -m data_prep prepare RECIPE [key=value ...]   make the prepared folder
python -m data_prep inspect FOLDER                   verify and show a prepared folder
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .errors import run_main

_EXIT_CODES = """exit codes:
  0 finished    2 the recipe refuses    3 the data refuses    130 interrupted"""


def main(argv: list[str]) -> None:
    """Parse `argv` and run its command."""
    arguments = _parser("-h" in argv or "--help" in argv).parse_args(argv)
    arguments.run(arguments)


def _parser(with_keys: bool) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m data_prep",
        description="From raw text to token shards.",
        epilog=_EXIT_CODES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(required=True, metavar="prepare | inspect")
    prepare = commands.add_parser(
        "prepare",
        help="make the prepared folder of a recipe",
        description="Read, clean, split, tokenize and shard the sources of a recipe.",
        epilog=_keys() if with_keys else None,
        formatter_class=raw,
    )
    prepare.add_argument("recipe", metavar="RECIPE", help="YAML file with data: and tokenizer:")
    prepare.add_argument("overrides", metavar="key=value", nargs="*", help="such as data.seed=1")
    prepare.add_argument("--force", action="store_true", help="prepare anew even if up to date")
    prepare.set_defaults(run=_prepare)
    inspect = commands.add_parser(
        "inspect",
        help="verify and show a prepared folder",
        description="Verify every checksum of a prepared folder, then show counts and samples.",
    )
    inspect.add_argument("folder", metavar="FOLDER", help="a prepared folder (data.folder)")
    inspect.set_defaults(run=_inspect)
    return parser


def _keys() -> str:
    from .recipe.data import DataConfig
    from .recipe.loader import describe
    from .recipe.tokenizer import TokenizerConfig

    data, tokenizer = describe(DataConfig, "  "), describe(TokenizerConfig, "  ")
    return f"recipe keys:\ndata:\n{data}\ntokenizer:\n{tokenizer}"


def _prepare(arguments: Any) -> None:
    from .prepare import prepare

    prepare(arguments.recipe, arguments.overrides, arguments.force)


def _inspect(arguments: Any) -> None:
    from .inspect import inspect

    inspect(arguments.folder)


if __name__ == "__main__":
    sys.exit(run_main(main))
