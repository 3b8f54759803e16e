"""The code of every page runs: Python blocks in one namespace a page, shell blocks line by line."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import unittest
from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def name(page: Path) -> str:
    """The page's path in the docs: hosts/open_clip."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


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


@pytest.fixture
def one_rank(monkeypatch):
    """What torchrun sets, for the blocks that start a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in address.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_runs(page, sybil):
    """In order, as a reader runs them: a block may use what an earlier one made."""
    document = sybil.parse(page)
    document.namespace["find_spec"] = find_spec  # for the conditions of skipped examples
    for example in document.examples():
        try:
            example.evaluate()
        except unittest.SkipTest:
            continue


PARALLEL = [page for page in PAGES if "dist.init_process_group" in page.read_text()]


def test_there_are_pages_with_process_groups():
    assert PARALLEL


@pytest.mark.parametrize("page", PARALLEL, ids=name)
def test_process_groups_run_under_torchrun(page, tmp_path):
    """The page's Python as one script, in two processes that torchrun starts."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    done = "open(os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"  # after the last block
    (tmp_path / "page.py").write_text("\n".join([*blocks, "import os", done]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_of_a_language_that_does_not_run(page):
    languages = set(re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)) - {""}
    assert languages <= {"python", "sh", "text"}


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
