"""Files that are whole or not there, whatever ends the program that writes them."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(final: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, flush it, and give it its final name."""
    temporary = final.with_name(f".writing_{final.name}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, final)
        flush(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
