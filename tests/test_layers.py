"""Dependencies point one way: a layer of the package imports those below it, and none above."""

import ast
from itertools import chain
from pathlib import Path

import pytest

import mxm_kernels

PACKAGE = Path(mxm_kernels.__file__).parent
LAYERS = (
    ("folds", "checks", "compiling", "memory", "_native"),
    ("backends",),
    ("ops",),
    ("distributed",),
    ("core",),
    ("losses",),
    ("functional", "modules"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
EXTERNAL = {  # who may import it
    "torch.distributed": {"distributed/ranks.py", "open_clip/captions.py"},
    "triton": {"backends/triton"},
    "mxm_kernels._native": {"backends/native/extension.py", "environment/report.py"},
}


def _imports(path):
    """What a file imports when it runs, which what is for the type checker alone is not."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(layer):
    module = PACKAGE / f"{layer}.py"
    return [module] if module.exists() else sorted((PACKAGE / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", [name for name in HEIGHT if name != "_native"])
def test_a_layer_imports_none_above_it(layer):
    files = _files(layer)
    assert files
    for name in chain.from_iterable(map(_imports, files)):
        package, _, rest = name.partition(".")
        if package == "mxm_kernels":
            other = rest.partition(".")[0]
            assert HEIGHT[other] <= HEIGHT[layer], f"{layer} imports {name}"


@pytest.mark.parametrize("library", EXTERNAL)
def test_a_library_is_used_in_one_place(library):
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if any(place.startswith(allowed) for allowed in EXTERNAL[library]):
            continue
        found = [n for n in _imports(path) if f"{n}.".startswith(f"{library}.")]
        assert not found, f"{place} imports {found[0]}"
