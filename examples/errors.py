"""Errors that end a command with one line instead of a traceback, and its exit status."""

import sys
from collections.abc import Callable


class OptionError(ValueError):
    """An option cannot be met; the message names it."""


class CheckpointError(RuntimeError):
    """What a run keeps cannot be written or read; the message names it and says why."""


class InterruptedRunError(Exception):
    """The user stopped the run; its last step is in a checkpoint."""


def exit_status(work: Callable[[], object], again: str) -> int:
    """Do the work of a command; say in a line what ends it early.

    Args:
        work: returns where nothing went wrong.
        again: how to go on after an interruption.

    """
    try:
        work()
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, OSError) as error:  # the latter name their file
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        print(f"\n{str(stop) or 'Interrupted'}. {again}", file=sys.stderr)
        return 130
    return 0
