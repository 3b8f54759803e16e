"""Options of a command line as dataclasses, and the error that names one of them."""

from dataclasses import field
from typing import Any, cast

from transformers import HfArgumentParser


class OptionError(ValueError):
    """An option cannot be met; the message names it."""


def option(default: Any, help_text: str) -> Any:
    """Dataclass field with a help text for the command line."""
    return field(default=default, metadata={"help": help_text})


def parse(
    arguments: list[str] | None, types: list[type], prog: str, description: str | None
) -> Any:
    """Parse a command line, of this process if it is None, to instances of dataclasses."""
    parser = HfArgumentParser(cast(Any, types), prog=prog, description=description)
    *options, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options
