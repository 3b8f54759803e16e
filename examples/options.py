"""Options of a command line as dataclasses, and what each of them may be."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from .errors import OptionError


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be, both ends among them; NaN is none of them.

    Args:
        least: the smallest.
        most: the largest.
        wording: what is expected, after "must"; by default the end that a number is beyond.

    """

    least: float
    most: float
    wording: str = ""

    def expected(self, value: object, kind: type) -> str:
        """What a value must be instead, or nothing if it is in the range."""
        number = Integral if kind is int else Real
        if isinstance(value, bool) or not isinstance(value, number):
            return "be an integer" if kind is int else "be a number"
        if self.least <= cast(float, value) <= self.most:
            return ""
        beyond = "at most" if cast(float, value) > self.most else "at least"
        end = self.most if beyond == "at most" else self.least
        return self.wording or f"be {beyond} {end}"


MOST = 2**31 - 1
Count = Annotated[int, Range(0, MOST)]
PositiveCount = Annotated[int, Range(1, MOST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what NumPy's global generator takes
Processes = Annotated[int, Range(0, 1024)]
Workers = Annotated[int, Range(1, 1024)]
Pixels = Annotated[int, Range(1, 4096)]
Width = Annotated[int, Range(1, 65536)]
Fraction = Annotated[float, Range(0, 1, "lie in [0, 1]")]
Penalty = Annotated[float, Range(0, 1000, "not be negative, nor above 1000")]


class OptionGroup:
    """Base of dataclasses of options, which checks every value that has a :class:`Range`.

    A subclass with a `__post_init__` of its own calls this one first.

    Raises:
        OptionError: a value is not what its type says; the message names the option.

    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if get_origin(hint) is list:
                (hint,) = get_args(hint)
            for one in value if isinstance(value, list) else [value]:
                if expected := unmet(hint, one):
                    raise OptionError(f"--{name} must {expected}, not {one!r}")


def unmet(hint: Any, value: object) -> str:
    """What a value must be instead by its type hint, or nothing."""
    if get_origin(hint) is Annotated:
        kind, allowed = get_args(hint)
        return allowed.expected(value, kind)
    if get_origin(hint) is Literal and value not in get_args(hint):
        return f"be {' or '.join(get_args(hint))}"
    return ""


def option(default: Any, help_text: str) -> Any:
    """Dataclass field with a help text for the command line."""
    return field(default=default, metadata={"help": help_text})


def parse(
    arguments: list[str] | None,
    types: Sequence[type],
    prog: str,
    description: str | None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Parse a command line, of this process if it is None, to instances of dataclasses.

    Args:
        arguments: the words of the command line.
        types: dataclasses of the options.
        prog: the command, for its help and its errors.
        description: what the command does, for its help.
        presets: values of options by name, for each name that `--preset` takes; what stands on the
            command line itself wins over them. None: there is no `--preset`.

    """
    parser = HfArgumentParser(cast(Any, types), prog=prog, description=description)
    if presets:
        meaning = f"other defaults of several options: {', '.join(presets)}"
        parser.add_argument("--preset", choices=presets, metavar="NAME", help=meaning)
        chosen = parser.parse_known_args(arguments)[0].preset
        parser.set_defaults(**presets.get(chosen, {}))
    *options, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options[: len(types)]  # --preset is in none of them


def require_seeds(seeds: list[int]) -> None:
    """Refuse no seed, and one that is there twice, whose run would count twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"--seeds must name different seeds, at least one, not {seeds}")


def require_writable(name: str, folder: Path) -> None:
    """Make the folder that an option names, and try that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(
            f"--{name} must name a folder that files can be written to, not {folder}: "
            f"{error.strerror}"
        ) from error


def require_one_process(prog: str) -> None:
    """Refuse to run under a launcher of several processes, which would all write the same."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise OptionError(f"{prog} runs in one process, and was started in {processes}")
