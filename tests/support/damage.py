"""Ways in which a file is not any more what was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flip(path: Path, place: float, bits: int = 0x01) -> None:
    """Flip bits of the byte at a place, from 0, the first, to 1, the last."""
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= bits
    path.write_bytes(content)


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Give a file its content back afterwards."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)
