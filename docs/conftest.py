"""Runs the code of every page: Python blocks in one namespace a page, shell blocks line by line."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]


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
    if words[:3] == ["python", "-m", "mxm_kernels"]:
        done = _run([sys.executable, *words[1:], "--no-check"])
        return done.stderr if done.returncode else None
    if words[:2] == ["python", "-m"]:  # a command of minutes: its options must exist
        done = _run([sys.executable, "-m", words[2], "--help"])
        unknown = [o for o in re.findall(r"--[a-z_-]+", command) if o not in done.stdout]
        return f"no option {unknown}" if unknown else done.stderr if done.returncode else None
    if words[:2] == ["pip", "install"]:
        return _unknown_extra(words[-1])
    return "docs/conftest.py does not know how to check this command"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _unknown_extra(target: str) -> str | None:
    """``pip install .`` is `make dist`'s to run; an extra must be one of pyproject.toml's."""
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"\[([a-z,]+)\]", target)
    wanted = extras[0].split(",") if extras else []
    missing = [extra for extra in wanted if not re.search(rf"^{extra} = \[", project, re.MULTILINE)]
    return f"no extra {missing}" if missing else None


def _start(namespace: dict) -> None:
    torch.manual_seed(0)
    namespace["find_spec"] = find_spec  # for the conditions of skipped examples


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("sh", run_shell), SkipParser()],
    patterns=["*.md"],
    setup=_start,
).pytest()
