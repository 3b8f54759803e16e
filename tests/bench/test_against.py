"""The comparison of two trees: the package against a copy of itself."""

import shutil
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

import mxm_kernels
from bench import against

native = pytest.importorskip("mxm_kernels._native", reason="the native backend is not built")


@pytest.fixture
def tree(tmp_path):
    """What ``pip install --target`` leaves: the package and its extension in one folder."""
    package = tmp_path / "tree" / "mxm_kernels"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(mxm_kernels.__file__).parent, package, ignore=ignored)
    shutil.copy(native.__file__, package)
    return package.parent


def run(*arguments):
    command = [sys.executable, "-m", "bench.against", *map(str, arguments)]
    return subprocess.run(command, cwd=against.ROOT, capture_output=True, text=True)


def test_a_tree_against_its_copy(tree, tmp_path):
    out = tmp_path / "table.md"
    small = ("--case", "24x20x16", "4x20x16x1x5", "--repeats", 2, "--turns", 2)
    done = run(tree, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    packages = done.stdout.splitlines()[:2]
    assert packages == [str(Path(mxm_kernels.__file__).parent), str(tree / "mxm_kernels")]
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines()[2:]]
    assert [row[0].partition(",")[0] for row in rows] == ["24 x 20 x 16", "4 x 20 x 16"]
    for _, ratios, middle, of_turns, *_ in rows:
        numbers = [float(ratio) for ratio in ratios.split(", ")]
        assert len(numbers) == 2
        assert all(isfinite(n) and n > 0 for n in (*numbers, float(middle), float(of_turns)))


def test_a_tree_without_an_extension(tree):
    (tree / "mxm_kernels" / Path(native.__file__).name).unlink()
    done = run(tree)
    assert done.returncode == 2 and "no mxm_kernels with a built extension" in done.stderr


def test_a_worker_that_cannot_start(tree):
    (tree / "mxm_kernels" / "__init__.py").write_text("raise ImportError('a broken tree')")
    done = run(tree)
    assert done.returncode == 1
    assert "a broken tree" in done.stderr and "a worker ended" in done.stderr


def test_the_row_of_a_case():
    run = [[[2.0, 2.0, 8.0], [1.0, 1.0, 1.0]], [[2.0, 4.0, 4.0], [4.0, 4.0, 4.0]]]
    other = [[[1.0], [1.0]], [[3.0], [1.0]]]
    _, each, *rest = against.row(against.LARGE, [run, other])
    assert each == "1.200, 2.000"  # 3 s over 2.5, 2 over 1
    assert rest == ["1.600", "1.500", "2.5 s", "1.75 s"]  # turns: 2, 1, 1, 3


def test_the_cases_are_the_papers_and_a_large_one():
    assert against._case("80x400x512x1x5") in against.paper(512)
    assert against._case("4920x4100x512") == against.LARGE
