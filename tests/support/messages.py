"""The error messages that the package can produce, read from its source.

A message is a template: what is only known when it is raised is written as an ellipsis, so that
``f"{name} must be a tensor, got {came}"`` reads ``… must be a tensor, got …``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import mxm_kernels

PACKAGE = Path(mxm_kernels.__file__).parent  # that of the wheel, where that is tested
GAP = "…"


def messages(package: Path = PACKAGE) -> set[str]:
    """The templates of everything raised, and of the reasons why a backend is unavailable."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= _raised(node) | _reasons(node)
    return found


def _raised(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
        return set()
    return _texts(node.exc.args[0])


def _reasons(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.FunctionDef) or node.name != "unavailable":
        return set()
    returns = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
    return {text for value in returns if value is not None for text in _texts(value)}


def _texts(node: ast.expr) -> set[str]:
    text = _text(node)
    return {text} if text is not None and any(map(str.isalpha, text)) else set()


def _text(node: ast.expr) -> str | None:
    """A string, an f-string or a sum of them; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else GAP for v in node.values]
        return "".join(str(part) for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return (left or GAP) + (right or GAP)
    return None


def main() -> None:
    """Print them."""
    print("\n".join(sorted(messages())))


if __name__ == "__main__":
    main()
