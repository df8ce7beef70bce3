"""Command lines: a recipe with overrides, and complaints that give no secret away."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from .secrets import redact


class DiscreetParser(argparse.ArgumentParser):
    """A parser whose complaints do not repeat secrets that stand on the command line."""

    def error(self, message: str) -> NoReturn:
        """Show usage and message, end with code 2."""
        super().error(redact(message))

    def parse_mixed(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse commands of which some take `overrides`; these may stand behind options too, where
        argparse no longer expects them."""
        arguments, rest = self.parse_known_args(argv)
        takes_more = hasattr(arguments, "overrides")
        if rest and not (takes_more and all("=" in w and not w.startswith("-") for w in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            arguments.overrides = [*arguments.overrides, *rest]
        return arguments


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number, `least` or more."""

    def parse(text: str) -> int:
        number = int(text) if text.removeprefix("-").isdecimal() else least - 1
        if not least <= number < 2**63:
            raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from {least}")
        return number

    return parse


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return number


natural, counted = whole(0), whole(1)
