"""Files that are whole or not there, whatever ends the program that writes them.

What is read again carries the SHA-256 of what was written, and a file that has changed since is
refused: JSON in a member of its own, other files in `NAME.sha256`, as `sha256sum -c` reads it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import CheckpointError

DIGEST = "sha256"
# PyTorch's writer, safetensors and the rest raise these; some do not name a full disk.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def write_whole(final: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, flush it, and give it its final name.

    Raises:
        CheckpointError: it cannot be written.

    """
    temporary = final.with_name(f".writing_{final.name}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, final)
        flush(final.parent)
    except WRITE_ERRORS as error:
        raise CheckpointError(f"cannot write {final}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_kept(final: Path, write: Callable[[Path], object]) -> None:
    """Write a file as :func:`write_whole` does, and its SHA-256 beside it."""
    record = digest_file(final)
    record.unlink(missing_ok=True)
    write_whole(final, write)
    line = f"{digest_of(final)}  {final.name}\n"
    write_whole(record, lambda path: path.write_text(line))


def is_kept(final: Path) -> bool:
    """Whether a file was written by :func:`write_kept`, to the end.

    Raises:
        CheckpointError: it has changed since.

    """
    record = digest_file(final)
    if not (final.is_file() and record.is_file()):
        return False
    if record.read_bytes() != f"{digest_of(final)}  {final.name}\n".encode():
        raise changed(final)
    return True


def require_kept(final: Path) -> Path:
    """A file that :func:`write_kept` wrote.

    Raises:
        CheckpointError: it is not there, was not written to the end, or has changed since.

    """
    if not is_kept(final):
        raise CheckpointError(f"{final} is missing, or has no SHA-256 in {digest_file(final).name}")
    return final


def digest_file(final: Path) -> Path:
    """Where the SHA-256 of a file is."""
    return final.with_name(f"{final.name}.{DIGEST}")


def changed(path: Path) -> CheckpointError:
    """Error of a file that is not what was written."""
    return CheckpointError(
        f"{path} is not what was written there, by its SHA-256; remove it to have it made anew"
    )


def sealed(content: dict[str, Any]) -> str:
    """JSON text of an object, with the SHA-256 of the rest as its last member."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, DIGEST: digest})


def unsealed(text: str) -> dict[str, Any] | None:
    """Content of a text that :func:`sealed` made; None if it is not exactly that."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    content.pop(DIGEST, None)
    return content if sealed(content) == text else None


def write_json(final: Path, content: dict[str, Any]) -> None:
    """Write a sealed JSON file."""
    write_whole(final, lambda path: path.write_text(sealed(content)))


def read_json(path: Path) -> dict[str, Any]:
    """Content of a sealed JSON file.

    Raises:
        CheckpointError: it is not what was written.

    """
    content = unsealed(path.read_text(errors="replace"))
    if content is None:
        raise changed(path)
    return content
