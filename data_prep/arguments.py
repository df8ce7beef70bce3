"""Command lines: a recipe with overrides, and complaints that give no secret away."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
