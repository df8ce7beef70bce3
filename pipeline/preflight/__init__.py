"""Checks before any memory is taken: tick or cross with the reason, exit code 2 on a cross.

`dry_run` validates a recipe without its data being there; `preflight` also looks at the machine,
the prepared shards and, under a launcher, the other ranks; `quick` is the part that costs nothing.
"""

from pipeline.preflight.dry import dry_run
from pipeline.preflight.page import preflight, quick

__all__ = ["dry_run", "preflight", "quick"]
