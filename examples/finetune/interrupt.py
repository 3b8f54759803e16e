"""Let a step finish when the user, or a scheduler, wants the run to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedRunError(Exception):
    """The user stopped the run; its last step is in a checkpoint."""


class StopRequest:
    """Whether SIGINT or SIGTERM has arrived. The second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn signals into a request while the block runs."""
    request = StopRequest()
    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
