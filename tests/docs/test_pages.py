"""The code of every page runs: Python blocks in one namespace a page, shell blocks line by line.

A page whose Python is for several processes says so: ``<!-- processes: 2 -->``. It runs as a script
that torchrun starts, in one process and in so many, and the gradients have to be equal.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OPTIONAL = "accelerate", "peft", "pytorch_lightning", "transformers"


def name(page: Path) -> str:
    """The page's path in the docs: hosts/open_clip."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


def processes(page: Path) -> int:
    """How many the page asks for."""
    said = re.search(r"<!-- processes: (\d+) -->", page.read_text())
    return int(said[1]) if said else 1


def python_of(page: Path) -> str:
    """The page's Python blocks as one script."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


def require_libraries(page: Path) -> None:
    """Skip a page whose library is not installed. Blocks may have conditions of their own."""
    if "<!-- skip" not in page.read_text():
        imported = re.findall(r"^from (\w+) import", python_of(page), re.MULTILINE)
        missing = [name for name in OPTIONAL if name in imported and find_spec(name) is None]
        if missing:
            pytest.skip(f"{', '.join(missing)} is not installed")


ALONE = [page for page in PAGES if processes(page) == 1]
TOGETHER = [page for page in PAGES if processes(page) > 1]


def run_shell(example: Example) -> str | None:
    """Run what is quick; of the rest check that it exists."""
    for line in example.parsed.strip().splitlines():
        problem = _problem(line.partition("  #")[0].strip())
        if problem:
            return f"{line}: {problem}"
    return None


def _problem(command: str) -> str | None:
    words = command.split()
    if words[:1] == ["make"]:
        done = _run(["make", "--dry-run", *words[1:]])
        return done.stderr if done.returncode else None
    if words[:4] == ["python", "-m", "mxm_kernels", "tune"]:
        return _unknown_option(words[1:4], command)
    if words[:3] == ["python", "-m", "mxm_kernels"]:
        done = _run([sys.executable, *words[1:], "--no-check"])
        return done.stderr if done.returncode else None
    if words[:2] == ["python", "-m"]:
        return _unknown_option(words[1:3], command)
    if words[0].endswith(".sh"):
        return None if (ROOT / words[0]).exists() else "there is no such script"
    if words[:2] == ["pip", "install"]:
        return _unknown_extra(words[-1])
    return "this test does not know how to check this command"


def _unknown_option(program: list[str], command: str) -> str | None:
    """A command of minutes is not run; its options must exist."""
    done = _run([sys.executable, *program, "--help"])
    unknown = [o for o in re.findall(r"--[a-z_-]+", command) if o not in done.stdout]
    return f"no option {unknown}" if unknown else done.stderr if done.returncode else None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _unknown_extra(target: str) -> str | None:
    """``pip install .`` is `make dist`'s to run; an extra must be one of pyproject.toml's."""
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"\[([a-z,]+)\]", target)
    wanted = extras[0].split(",") if extras else []
    missing = [extra for extra in wanted if not re.search(rf"^{extra} = \[", project, re.MULTILINE)]
    return f"no extra {missing}" if missing else None


@pytest.fixture(scope="module")
def sybil():
    """Finds the blocks of a page."""
    return Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("sh", run_shell), SkipParser()])


@pytest.mark.parametrize("page", ALONE, ids=name)
def test_every_block_runs(page, sybil, tmp_path, monkeypatch):
    """In order, as a reader runs them: a block may use what an earlier one made."""
    require_libraries(page)
    monkeypatch.chdir(tmp_path)  # for what the page writes
    document = sybil.parse(page)
    document.namespace["find_spec"] = find_spec  # for the conditions of skipped examples
    for example in document.examples():
        try:
            example.evaluate()
        except unittest.SkipTest:
            continue


def test_pages_that_make_a_group_say_for_how_many_processes():
    assert TOGETHER
    assert not [name(page) for page in ALONE if "init_process_group(" in python_of(page)]


def run_script(page: Path, folder: Path, count: int) -> list[list[list[torch.Tensor]]]:
    """What the optimisers saw in each of ``count`` processes: gradients of every step."""
    folder.mkdir()
    (folder / "page.py").write_text(python_of(page))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*launcher, "--nproc-per-node", str(count), "-m", "tests.support.page", "page.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        # gloo is for CPUs; a library must not find a GPU.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    ranks = [torch.load(folder / f"rank_{rank}.pt") for rank in range(count)]
    assert [rank["processes"] for rank in ranks] == [count] * count
    return [rank["steps"] for rank in ranks]


@pytest.mark.parametrize("page", TOGETHER, ids=name)
def test_processes_have_the_gradients_of_one(page, tmp_path):
    require_libraries(page)
    (alone,) = run_script(page, tmp_path / "alone", 1)
    assert bool(alone) == (page.parent.name == "hosts"), "the pages of hosts train"
    for steps in run_script(page, tmp_path / "together", processes(page)):
        for seen, expected in zip(steps, alone, strict=True):
            size = max(float(gradient.abs().max()) for gradient in expected)
            torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_of_a_language_that_does_not_run(page):
    languages = set(re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)) - {""}
    assert languages <= {"python", "sh", "text"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_shown_section_of_a_file_exists(page):
    """Its fence has no name of a language that ruff would format: the snippet is no Python yet."""
    for block in re.findall(
        r"^``` {.python}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        shown = re.fullmatch(r'--8<-- "(docs/recipes/\w+\.py):(\w+)"\n', block)
        assert shown, block
        assert f"# --8<-- [start:{shown[2]}]\n" in (ROOT / shown[1]).read_text()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("make docs", None),
        ("make nothing", "nothing"),
        ("pip install .[examples]", None),
        ("pip install .[nothing]", "no extra"),
        ("rm -rf .", "does not know"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, problem):
    found = _problem(command)
    assert (found is None) if problem is None else problem in found
