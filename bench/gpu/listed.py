"""A plugin of pytest that runs a list of tests in its order, and counts as it goes.

``-p bench.gpu.listed --listed=LIST --listed-report=FILE``. A line of the list is a test's whole
name, with ``triton`` for the Triton backend on whichever device there is. FILE is JSON, rewritten
by rename after every test, so that a run that is stopped leaves its counts. With pytest-xdist the
process that hands out the tests counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.results import Results
from bench.gpu.right import names

SHOWN, LENGTH = 5, 600  # failures whose words are kept, and how many letters of each
SAME = 60  # last letters by which two failures are one fault


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    group = parser.getgroup("listed tests")
    group.addoption("--listed", type=Path, help="file of the tests' names")
    group.addoption("--listed-report", type=Path, help="file of the counts")


def pytest_configure(config: pytest.Config) -> None:
    """Workers select, the first process counts too."""
    wanted = names(config.getoption("--listed").read_text())
    config.pluginmanager.register(Select(wanted), "listed-select")
    if not hasattr(config, "workerinput"):
        report = config.getoption("--listed-report")
        config.pluginmanager.register(Count(wanted, report), "listed-count")


def plain(nodeid: str) -> str:
    """A test's name without its device."""
    return re.sub(r"triton-(cuda|cpu)", "triton", nodeid)


class Select:
    """Keeps the listed tests, in the list's order."""

    def __init__(self, wanted: list[str]) -> None:
        self.order = {name: place for place, name in enumerate(wanted)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        """Drop the others."""
        kept = [item for item in items if plain(item.nodeid) in self.order]
        kept.sort(key=lambda item: self.order[plain(item.nodeid)])
        items[:] = kept


class Count:
    """Counts what ran, and how it ended."""

    def __init__(self, wanted: list[str], report: Path) -> None:
        self.report = Results(report)
        self.found: set[str] = set()
        self.wanted = wanted
        self.ended: dict[str, str] = {}
        self.failures: list[dict[str, str]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers: what was collected."""
        self._collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """What a worker collected."""
        self._collected(ids)

    def _collected(self, ids: list[str]) -> None:
        self.found.update(map(plain, ids))
        self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failure, not only tests that are missing."""
        if report.failed:
            self._failed(report.nodeid, str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        name = plain(report.nodeid)
        if report.failed:
            self.ended[name] = "failed"
            self._failed(name, report.longreprtext)
        elif report.skipped:
            self.ended.setdefault(name, "skipped")
        elif report.when == "call":
            self.ended.setdefault(name, "passed")
        self._write()

    def _failed(self, name: str, words: str) -> None:
        ends = words.rstrip()[-SAME:]  # one fault fails many tests
        alike = any(failure["words"].rstrip().endswith(ends) for failure in self.failures)
        if len(self.failures) < SHOWN and not alike:
            self.failures.append({"test": name, "words": words[-LENGTH:]})
        self._write()

    def _write(self) -> None:
        how = list(self.ended.values())
        counts: dict[str, Any] = {
            "listed": len(self.wanted),
            "ran": len(how),
            **{kind: how.count(kind) for kind in ("passed", "failed", "skipped")},
            "missing": [name for name in self.wanted if name not in self.found],
            "first failures": self.failures,
        }
        if any(failure["test"] not in self.ended for failure in self.failures):
            counts["failed"] = max(counts["failed"], 1)
        self.report.keep(counts)
