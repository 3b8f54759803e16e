"""The public surface as text: every public name with its signature, one parameter a line.

``python -m tests.support.surface`` (``make surface``) writes it to docs/public_surface.txt; a test
compares the two, so that no signature changes unnoticed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ForwardRef

import mxm_kernels
import mxm_kernels.data
import mxm_kernels.open_clip
import mxm_kernels.retrieval
import mxm_kernels.sentence_transformers

FILE = Path(__file__).parents[2] / "docs" / "public_surface.txt"
MODULES = (
    mxm_kernels,
    mxm_kernels.data,
    mxm_kernels.open_clip,
    mxm_kernels.retrieval,
    mxm_kernels.sentence_transformers,
)


def surface() -> str:
    """Every name in the ``__all__`` of every public module, with what a user may call on it."""
    return "\n".join(_module(module) for module in MODULES)


def _module(module: ModuleType) -> str:
    blocks = [f"# {module.__name__}"]
    for name in sorted(module.__all__):
        member = getattr(module, name)
        if inspect.isclass(member):
            blocks += [f"class {name}({_base(member)}):", *_fields(member), *_methods(member)]
        elif callable(member):
            blocks.append(_call(f"def {name}", member))
        else:
            blocks.append(f"{name}: {type(member).__name__}")
    return "\n".join(blocks) + "\n"


def _base(kind: type) -> str:
    """The nearest base that is public: another package's, or one of ours that has a name."""
    bases = (base for base in kind.__mro__[1:] if not base.__name__.startswith("_"))
    named = {name for module in MODULES for name in module.__all__}
    ours = "mxm_kernels."
    return next(
        b.__name__ for b in bases if not b.__module__.startswith(ours) or b.__name__ in named
    )


def _fields(kind: type) -> list[str]:
    """Keys of a TypedDict, fields of a NamedTuple; those of a TypedDict's bases included."""
    if not issubclass(kind, tuple | dict):
        return []
    return [f"    {name}: {_annotation(hint)}" for name, hint in kind.__annotations__.items()]


def _annotation(hint: object) -> object:
    return hint.__forward_arg__ if isinstance(hint, ForwardRef) else hint


def _methods(kind: type) -> list[str]:
    """The constructor and the public methods that are the package's own, inherited or not."""
    members: dict[str, object] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("mxm_kernels"):
            members.update(vars(base))
    blocks = []
    for name, member in members.items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            blocks.append(f"    property {name}")
        elif isinstance(member, classmethod | staticmethod):
            blocks.append(_call(f"classmethod {name}", member.__func__, "    ", method=True))
        elif inspect.isfunction(member):
            blocks.append(_call(f"def {name}", member, "    ", method=True))
    return blocks


def _call(head: str, function: Callable, indent: str = "", method: bool = False) -> str:
    signature = inspect.signature(function)
    lines = []
    for parameter in list(signature.parameters.values())[1 if method else 0 :]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(_parameter(parameter))
    listed = "".join(f"\n{indent}    {line}," for line in lines) + f"\n{indent}" if lines else ""
    returns = signature.return_annotation
    arrow = "" if returns is inspect.Signature.empty else f" -> {returns}"
    return f"{indent}{head}({listed}){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    default = parameter.default
    shown = default.__name__ if inspect.isfunction(default) else repr(default)
    return text if default is parameter.empty else f"{text} = {shown}"


def main() -> None:
    """Write the file."""
    FILE.write_text(surface())
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
