"""Results are kept, and every number of the README comes from them."""

import json
from dataclasses import replace

import pytest

from bench import floor, summary
from bench import report as reports
from bench.cases import KEPT, LARGE, PAPER, Case, pairs
from bench.report import fill, rated, report, results_files
from bench.results_file import RESULTS, Results, read
from bench.words import PRODUCTS

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
    native, slowest = "| `native`, large batch |", "the slowest of the paper's batches"
    assert f"{native} at most 10 % more time | 5.0 % more time than {PRODUCTS} | yes |" in page
    assert f"{native} at least 7 x faster | 9.5 x faster than PyTorch eager | yes |" in page
    rounds = "10 or 100 rounds, whichever is slower"
    assert f"| `native`, {rounds} | at most 2 % more time | 9.9 % more time than one round" in page
    assert f"| `native`, {slowest} | not slower | 2.0 x slower than PyTorch eager | no |" in page
    peak = "peak memory of any batch, default budget"
    assert f"| `native`, {peak} | at most 64 MiB | 16 MiB | yes |" in page
    assert f"| {LARGE.name} | 1.05 s, 9.5 x faster | 10 s |\n" in page
    assert f"| {LARGE.name} | 6 | 1 s | 5.0 % more time | 10 x the time |\n" in page
    assert f"| triton | needs a / GPU | {LARGE.name} |" in page
    assert "| native | 1.1 s | 9.9 % more time |" in page
    large = "| a large batch: 4,920 images, 4,100 texts, float32 "
    assert f"{large}| 10 s | - | 1.05 s | 9.5 x faster | 3.00 GiB / 16.0 MiB |" in page


def test_a_case_with_room_for_its_products_is_beside_those_of_each_kind(tmp_path):
    path = tmp_path / "kept.json"
    ours = record("kept", KEPT, "native", 1.2) | {"to_kept_floor": {"both": 1.5}}
    kept = record("kept", KEPT, floor.KEPT, 0.8) | {"copy_rate": 15.52e9}
    Results(path).add([ours, record("kept", KEPT, floor.NAME, 1.0), kept])
    report(tmp_path, with_plots=False)
    page = path.with_suffix(".md").read_text()
    assert f"| {KEPT.name} | 6 | 1 s | 20 % more time |\n" in page
    assert f"| {KEPT.name} | 4 | 800 ms, copies 15.5 GB/s | 50 % more time |\n" in page


def test_the_summary_has_clips_loss_and_only_what_was_timed(tmp_path):
    path, case = tmp_path / "pairs.json", pairs(2048, 512, teacher=False)
    Results(path).add(
        [
            record("pairs", case, "native", 0.1, dense=0.25),
            record("pairs", case, "dense eager", 0.25, dense=0.25),
            record("pairs", case, "open_clip ClipLoss", 0.05, dense=0.25),
        ]
    )
    report(tmp_path, with_plots=False)
    page = path.with_suffix(".md").read_text()
    line = (
        "| CLIP's loss: 2,048 images with one text each | 250 ms; open_clip's ClipLoss 50 ms | - "
    )
    assert f"{line}| 100 ms | 2.5 x faster; 2.0 x slower than ClipLoss |" in page
    assert "large batch:" not in page and summary.table(RECORDS[:0]) == ""


def test_a_case_of_two_groups_is_taken_from_one_run():
    providers = "native", "dense eager", "dense torch.compile"
    other = [record("other", LARGE, provider, 0.5) for provider in providers]
    made = summary.table([*RECORDS, *other])
    assert made == summary.table(RECORDS) and "| 10 s | - | 1.05 s |" in made


def test_plots(folder):
    pytest.importorskip("matplotlib")
    written = {path.name for path in report(folder)}
    kinds = ("time-batch", "memory-batch", "rounds", "threads")
    assert written == {"a-cpu.md", *(f"a-cpu-{kind}.svg" for kind in kinds)}
    before = {path: path.read_bytes() for path in folder.glob("*.svg")}
    report(folder)
    assert before == {path: path.read_bytes() for path in folder.glob("*.svg")}


def test_the_pages_get_their_tables(folder):
    readme, other = folder / "README.md", folder / "performance.md"
    readme.write_text(
        "before\n<!-- bench:begin a-cpu/targets -->\nold\n<!-- bench:end a-cpu/targets -->\nafter\n"
    )
    other.write_text("<!-- bench:begin a-cpu/summary -->\nold\n<!-- bench:end a-cpu/summary -->\n")
    written = report(folder, [readme, other], with_plots=False)
    assert readme in written and other in written
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| at most 10 % more time | 5.0 % more time than" in text
    assert "9.5 x faster" in other.read_text() and "old" not in other.read_text()
    again = report(folder, [readme, other], with_plots=False)
    assert readme not in again and other not in again  # nothing new, nothing written


def test_a_mark_without_results_is_an_error():
    with pytest.raises(KeyError, match="b-cpu/speed"):
        fill("<!-- bench:begin b-cpu/speed -->\n<!-- bench:end b-cpu/speed -->", {})


def test_the_committed_tables_are_those_of_the_committed_results():
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
    for marked in reports.PAGES:
        assert fill(marked.read_text(), tables) == marked.read_text(), "run `make bench-report`"
    assert json.loads((RESULTS / "machine_code.json").read_text())
