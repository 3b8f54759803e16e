"""How far along, in one line of a terminal; elsewhere a line every few seconds."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TextIO

WIDTH, EVERY = 30, 10.0  # characters; seconds between lines that are no terminal's


class Progress:
    """A bar of the seconds spent, and what is being done."""

    def __init__(self, seconds: float, stream: TextIO | None = None) -> None:
        self.seconds, self.stream = seconds, stream or sys.stderr
        self.began, self.said = monotonic(), -EVERY
        self.terminal = self.stream.isatty()

    def __call__(self, what: str) -> None:
        """Say it."""
        spent = monotonic() - self.began
        line = f"{spent:3.0f} of {self.seconds:.0f} s  {what}"
        if self.terminal:
            full = round(WIDTH * min(1.0, spent / self.seconds))
            self.stream.write(f"\r[{'#' * full}{'-' * (WIDTH - full)}] {line}\x1b[K")
        elif spent - self.said >= EVERY:
            self.said = spent
            self.stream.write(line + "\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.terminal:
            self.stream.write("\n")
