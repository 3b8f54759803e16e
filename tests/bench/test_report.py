"""Results are kept, and every number of the README comes from them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import floor
from bench import report as reports
from bench.cases import LARGE, PAPER, Case
from bench.report import fill, rated, report, results_files
from bench.results_file import RESULTS, Results, read
from bench.targets import OVER_FLOOR

README = Path(__file__).parents[2] / "README.md"
MACHINE = {
    "cpu": "A CPU", "cores": 2, "gpu": None, "memory_bytes": 1 << 34, "python": "3.12",
    "versions": {"torch": "2"}, "commit": "abc", "source": "def", "date": "2026-01-01",
}  # fmt: skip


def record(group, case, provider, both, floor=1.0, dense=10.0, peak=1 << 24):
    spread = {"median": both, "q10": both * 0.9, "q90": both * 1.1}
    return {
        "group": group, "provider": provider, "case": case.as_dict(), "threads": 2, "repeats": 5,
        "seconds": dict.fromkeys(("forward", "backward", "both"), spread),
        "to_floor": {"both": both / floor}, "to_dense": {"both": both / dense},
        "peak_bytes": peak, "gate": {}, "machine": MACHINE,
    }  # fmt: skip


RECORDS = [
    record("large", LARGE, "native", 1.05),
    record("large", LARGE, "dense eager", 10.0, peak=3 << 30),
    record("large", LARGE, "floor", 1.0),
    record("batch", Case(840, 700, 512), "native", 0.05, 0.04, 0.3),
    record("paper", PAPER, "native", 0.002, 0.001, 0.004),
    record("paper", PAPER, "dense eager", 0.001, 0.001, 0.004),
    *(
        record("rounds", replace(LARGE, rounds=r), "native", 1 + r / 1000, 1, 10)
        for r in (1, 10, 100)
    ),
    *(record("threads", replace(LARGE, threads=n), "native", 2 / n) for n in (1, 2)),
    {
        "group": "large", "provider": "triton", "case": LARGE.as_dict(), "threads": 2,
        "refused": "needs a | GPU", "machine": MACHINE,
    },
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    Results(tmp_path / "a-cpu.json").add(RECORDS)
    (tmp_path / "machine_code.json").write_text("[]")
    return tmp_path


def test_records_are_replaced_by_newer_ones_and_on_disk_at_once(tmp_path):
    path = tmp_path / "new" / "a.json"
    results = Results(path)
    results.add(RECORDS)
    results.add([record("large", LARGE, "native", 0.123456789)])
    assert len(read(path)) == len(RECORDS)
    medians = [
        r["seconds"]["both"]["median"]
        for r in read(path)
        if (r["group"], r["provider"]) == ("large", "native")
    ]
    assert medians == [0.12346]
    Results(path).add([record("new", LARGE, "native", 1.0)])  # a later run
    assert len(read(path)) == len(RECORDS) + 1


def test_another_schema_is_an_error(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema": 0, "records": []}')
    with pytest.raises(ValueError, match="expected results of schema 1, got 0"):
        read(path)


def test_tables(folder):
    report(folder, with_plots=False)
    page = (folder / "a-cpu.md").read_text()
    assert f"| native, large batch, {OVER_FLOOR} | 1.1 x | 1.05 x | yes |" in page
    assert "| native, large batch, over dense eager | 0.142857 x | 0.105 x | yes |" in page
    assert "| native, 10 or 100 rounds over one round | 1.02 x | 1.1 x | no |" in page
    assert "| native, paper's batches, over dense eager | 1 x | 2 x | no |" in page
    assert "| native, peak memory at any batch, default budget | 64 MiB | 16 MiB | yes |" in page
    assert f"| {LARGE.name} | 1.05 s (1.05, 0.105) | 10 s (10, 1) | 1 s |" in page
    assert f"| triton | needs a / GPU | {LARGE.name} |" in page
    assert "| native | 1.1 s | 1.099 |" in page


def test_plots(folder):
    pytest.importorskip("matplotlib")
    written = {path.name for path in report(folder)}
    kinds = ("time-batch", "memory-batch", "rounds", "threads")
    assert written == {"a-cpu.md", *(f"a-cpu-{kind}.svg" for kind in kinds)}
    before = {path: path.read_bytes() for path in folder.glob("*.svg")}
    report(folder)
    assert before == {path: path.read_bytes() for path in folder.glob("*.svg")}


def test_the_readme_gets_its_tables(folder):
    readme = folder / "README.md"
    readme.write_text(
        "before\n<!-- bench:begin a-cpu/targets -->\nold\n<!-- bench:end a-cpu/targets -->\nafter\n"
    )
    assert readme in report(folder, readme, with_plots=False)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "same run) | 1.1 x | 1.05 x |" in text
    assert readme not in report(folder, readme, with_plots=False)  # nothing new, nothing written


def test_a_mark_without_results_is_an_error():
    with pytest.raises(KeyError, match="b-cpu/speed"):
        fill("<!-- bench:begin b-cpu/speed -->\n<!-- bench:end b-cpu/speed -->", {})


def test_the_committed_pages_and_readme_are_those_of_the_committed_results():
    tables = {}
    for path in results_files(RESULTS):
        records = rated(path)
        tables |= {f"{path.stem}/{name}": make(records) for name, make in reports.TABLES.items()}
        for name in reports.TABLES:
            assert tables[f"{path.stem}/{name}"] in path.with_suffix(".md").read_text()
        for entry in records:
            assert {"group", "provider", "case", "threads", "machine"} <= set(entry)
            products_alone = entry["provider"] in (floor.NAME, floor.KEPT)
            assert "refused" in entry or products_alone or entry["gate"]
    assert fill(README.read_text(), tables) == README.read_text()
    assert json.loads((RESULTS / "machine_code.json").read_text())
