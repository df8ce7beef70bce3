"""The errors a user can meet, each with the exit code its command ends with.

0   finished
1   crash: a defect of the program, shown with its traceback; or a disk that fails, in one line
2   the recipe, or a check made before work began, refuses the run
3   the data refuses: missing, damaged or not what the recipe says
4   training diverged
75  stopped with everything saved, or rolled back; the same command goes on
130 interrupted from the keyboard
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from .secrets import redact


class PipelineError(Exception):
    """A foreseen failure: one message that says what was found, expected, and to be done."""

    exit_code = 1


class RecipeError(PipelineError):
    """The recipe, the command line or the state of the output folders refuses the run."""

    exit_code = 2


class DataError(PipelineError):
    """Source text, shards, tokenizer or manifest are missing, damaged or of another kind."""

    exit_code = 3


class Diverged(PipelineError):
    """The loss is no longer a number worth training on."""

    exit_code = 4


class StoppedAndSaved(PipelineError):
    """A stop was asked for and the state is on disk; 75 is EX_TEMPFAIL, 'try again later'."""

    exit_code = 75


class RolledBack(StoppedAndSaved):
    """The run goes on from its last checkpoint and passes over the batches that hurt it."""


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES}


def disk_trouble(error: BaseException) -> PipelineError | None:
    """What to tell of a disk that is full, read-only or broken; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return PipelineError(
        f"{where}{error.strerror}: free some space or mend the folder, and run the same command; "
        "what was saved before still stands"
    )


def run_main(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run `main` on `argv` (default: the command line) and return the process exit code.

    Foreseen failures, and disks that fail, become one `error:` line on stderr; any other exception
    is a defect and passes through with its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(arguments) or 0
    except PipelineError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough; the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        _complain(str(trouble), on_every_rank=True)
        return trouble.exit_code


def _complain(text: str, on_every_rank: bool = False) -> None:
    # Under a launcher every rank comes to the same error; one of them says it.
    if on_every_rank or os.environ.get("RANK", "0") == "0":
        print(f"error: {redact(text)}", file=sys.stderr)
