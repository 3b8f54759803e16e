"""The study of a step's peak memory: what is measured, and the page that is made of it."""

import json
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from examples.studies.memory import study as memory
from examples.studies.memory.study import Case, Options, forget_peak, measure, status_bytes, table

MIB = 2**20
RESULTS = memory.RESULTS


def test_the_peak_is_over_what_was_occupied():
    kept = np.ones(32 * MIB, np.uint8)
    baseline = forget_peak()
    assert baseline > 32 * MIB
    assert status_bytes("VmHWM") - baseline < 4 * MIB
    given_back = np.ones(96 * MIB, np.uint8)
    del given_back
    assert 90 * MIB < status_bytes("VmHWM") - baseline < 110 * MIB
    assert kept.sum() == 32 * MIB
    baseline = forget_peak()
    assert status_bytes("VmHWM") - baseline < 4 * MIB


def test_a_step_of_more_instances_takes_more():
    cases = [Case("all", loss, size, 12, 2, 32) for loss, size in (("mfh", 2), ("mfh", 12))]
    with get_context("spawn").Pool(1) as pool:
        small, large = pool.map(measure, cases, chunksize=1)
    assert large["peak"] > small["peak"] + 20 * MIB
    assert small["peak"] > 100 * MIB  # Adam's averages of both encoders are 26 M numbers each
    assert large["images"] > 5 * small["images"] > 5
    assert large["texts"] > 12


def report(sizes=(20, 50)):
    """Peaks of 1 MiB and so on, in the order of the table."""
    cases = [(size, *column) for size in sizes for column in memory.COLUMNS]
    return {
        "options": {"sizes": list(sizes), "repeats": 3, "steps": 2, "image_size": 64},
        "machine": {"processor": "a processor", "threads": 1},
        "versions": {"torch": "2.0"},
        "results": [
            memory.summary(
                Case(part, loss, size, max(sizes), 2, 64),
                [
                    {
                        "peak": (1000 * place + more) * MIB,
                        "baseline": (500 + 50 * place) * MIB,
                        "images": 3.0 * size,
                        "texts": 4.0 * size,
                    }
                    for more in (7, 5, 20)
                ],
            )
            for place, (size, part, loss) in enumerate(cases, 1)
        ],
    }


def test_the_table_has_the_medians():
    page = table(report())
    assert (
        "| instances | images, captions of MFH | MFH, top | CLIP, top | MFH, all | CLIP, all |"
        in page
    )
    assert "| 20 | 60, 80 | 1,007 | 2,007 | 3,007 | 4,007 |" in page
    assert "| 50 | 150, 200 | 5,007 | 6,007 | 7,007 | 8,007 |" in page
    occupied = "550 to 800 MiB with `--unfreeze top` and 650 to 900 MiB with `--unfreeze all`"
    assert occupied in page
    assert "differ by at most 1.5 % of its median" in page
    assert "64 x 64 pixels" in page


def test_every_case_has_its_repeats(monkeypatch, tmp_path):
    """In the order in which they ran: one repeat of all, then the next."""

    class Pool:
        def __init__(self, *_, **options):
            assert options == {"maxtasksperchild": 1}  # a process of its own for each

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap(self, function, cases, chunksize):
            assert chunksize == 1
            for number, case in enumerate(cases):
                yield {"peak": number, "baseline": case.size, "images": 1.0, "texts": 1.0}

    context = get_context("forkserver")
    monkeypatch.setattr(type(context), "Pool", lambda self, *a, **k: Pool(*a, **k))
    got = memory.run(Options(sizes=[3, 7], repeats=2, results_dir=str(tmp_path)))
    assert [(r["size"], r["unfreeze"], r["loss"]) for r in got["results"]] == [
        (size, *column) for size in (3, 7) for column in memory.COLUMNS
    ]
    assert [r["peaks"] for r in got["results"]] == [[i, i + 8] for i in range(8)]
    assert {r["instances"] for r in got["results"]} == {7}
    assert "results_dir" not in got["options"]


def test_the_command_writes_report_and_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "run", lambda options: report(options.sizes))
    assert memory.main(["--sizes", "4", "9", "--results_dir", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "memory.json").read_text())
    assert written["options"]["sizes"] == [4, 9]
    assert (tmp_path / "memory.md").read_text() == table(written)
    assert table(written) in capsys.readouterr().out


def test_where_the_kernel_keeps_no_peak_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "PROCESS", Path("/nowhere"))
    assert memory.main(["--results_dir", str(tmp_path)]) == 2
    assert "needs Linux: there is no /nowhere/clear_refs" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("memory.json")), ids=lambda path: path.stem)
def test_the_committed_table_is_that_of_its_report(path):
    assert path.with_suffix(".md").read_text() == table(json.loads(path.read_text()))
