"""``python -m mxm_kernels tune`` as a user runs it, and what it says where it cannot."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("triton")
from mxm_kernels import __main__
from mxm_kernels.backends.triton import tuned
from mxm_kernels.environment import report
from mxm_kernels.tuning import command, tune

CPU = torch.device("cpu")
SMALL = ["--dim", "16", "--rows", "20"]


@pytest.fixture
def instant(monkeypatch):
    """Every cell is measured at once."""

    def found(cells, device, seconds, report):
        for cell in cells:
            report("measuring")
            shipped = cell.shipped("interpreter")
            of = tune.Found(cell, shipped, 3, [shipped])
            of.races.append({shipped: 2e-3})
            yield of

    monkeypatch.setattr(tune, "tune", lambda *arguments: list(found(*arguments)))


def run(*arguments, **environment):
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mxm_kernels", "tune", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_measures_writes_and_the_report_says_so(folder):
    """One cell, everything real."""
    done = run(*SMALL, "--teacher", "without", "--diagnostics", "--seconds", "40")
    assert done.returncode == 0, done.stderr
    assert (
        "statistics, bfloat16, no teacher, diagnostics, D up to 256, 0 to 1,023 rows" in done.stdout
    )
    assert f"written to {folder / 'launch.json'}" in done.stdout
    assert "of 40 s" in done.stderr  # how far along
    facts = report.gather(check=False)["triton"][0]["measured"]
    assert facts["digest"] and len(facts["launches"]) == 1
    assert f"from {folder / 'launch.json'} (sha256 {facts['digest']}): 1" in report.text(
        report.gather(check=False)
    )


def test_by_default_both_phases_with_and_without_a_teacher(instant, capsys):
    assert __main__.main(["tune"]) == 0
    entries, _ = tuned.read(tuned.path())
    assert {(e.key.phase, e.key.teacher) for e in entries} == {
        (phase, teacher)
        for phase in ("statistics", "stored_gradient", "gradient")
        for teacher in (True, False)
    }
    assert {(e.key.dtype, e.key.D, e.key.rows) for e in entries} == {("bfloat16", 1024, 16_384)}
    printed = capsys.readouterr().out
    assert "2.000 ms (table 2.000 ms): tile 16 x 16" in printed and "1 of 3 candidates" in printed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--teacher", "with"],
            {(p, True, False) for p in ("statistics", "stored_gradient", "gradient")},
        ),
        (["--diagnostics"], {("statistics", True, True), ("statistics", False, True)}),
        (
            ["--loss", "sigmoid", "--dtype", "float32"],
            {(f"stored_sigmoid_{p}", False, False) for p in ("statistics", "gradient")},
        ),
    ],
)
def test_options_choose_the_cells(instant, options, expected):
    assert __main__.main(["tune", *options, *SMALL]) == 0
    entries, _ = tuned.read(tuned.path())
    assert {(e.key.phase, e.key.teacher, e.key.diagnostics) for e in entries} == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "0"], "--rows: must be at least 1, got 0"),
        (["--dim", "-3"], "--dim: must be at least 1, got -3"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--seconds", "0"], "--seconds: must be more than 0, got 0"),
        (["--device", "nowhere"], "--device"),
        (["--loss", "sigmoid", "--diagnostics"], "--diagnostics are of the softmax losses"),
        (["--loss", "sigmoid", "--teacher", "with"], "--teacher: SigLIP has none"),
    ],
)
def test_wrong_options(options, words, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["tune", *options])
    assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = run(TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert "tune: no GPU to measure: it needs tensors on a CUDA or ROCm device" in done.stderr


def test_reset(instant, capsys):
    assert __main__.main(["tune", "--reset"]) == 0
    assert "nothing was measured: there is no" in capsys.readouterr().out
    assert __main__.main(["tune", *SMALL]) == 0
    assert __main__.main(["tune", "--reset"]) == 0
    assert "removed" in capsys.readouterr().out and not tuned.path().exists()
    tuned.path().mkdir()
    assert __main__.main(["tune", "--reset"]) == 1
    assert "cannot be removed" in capsys.readouterr().err


def test_a_corrupt_file_is_named_before_anything_is_measured_and_reset_forgets_it(capsys):
    tuned.path().write_text("{")
    assert __main__.main(["tune", *SMALL]) == 1
    words = capsys.readouterr().err
    assert "launch.json is not a file of measured settings" in words and "tune --reset" in words
    assert "ignored: " in report.text(report.gather(check=False)) or "launch.json is not" in (
        report.text(report.gather(check=False))
    )
    assert __main__.main(["tune", "--reset"]) == 0
    assert not tuned.path().exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(tuned.FOLDER, str(tmp_path / "file" / "folder"))
    assert __main__.main(["tune", *SMALL]) == 1
    words = capsys.readouterr().err
    assert "settings cannot be written" in words and "MXM_KERNELS_TUNED names another" in words


def test_a_disk_that_is_full_at_the_end(instant, monkeypatch, capsys):
    def full(entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned, "write", full)
    assert __main__.main(["tune", *SMALL]) == 1
    streams = capsys.readouterr()
    assert "No space left on device" in streams.err
    assert "2.000 ms" in streams.out  # what was measured is not lost


def test_nothing_measured_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(tune, "tune", lambda cells, *_: [tune.Found(cells[0], None, 3)])
    assert __main__.main(["tune", *SMALL]) == 1
    assert "no candidate was compiled, checked and timed" in capsys.readouterr().err
    assert not tuned.path().exists()


def test_an_interrupt_writes_nothing_and_leaves_no_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "mxm_kernels", "tune", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore the interrupt, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = process.stderr.readline()  # it compiles
    assert "compiling" in line
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; nothing was written" in err
    assert list(folder.iterdir()) == []
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker is still there")


def test_the_file_is_for_the_gpu_that_it_was_measured_on(instant):
    assert __main__.main(["tune", *SMALL]) == 0
    raw = json.loads(tuned.path().read_text())
    assert {entry["gpu"] for entry in raw["entries"]} == {"interpreter"}
    assert tuned.load("NVIDIA H100", "sm_90", 1 << 17).launches == {}


def test_sizes_by_default_are_those_of_the_help():
    assert (command.D, command.ROWS, command.SECONDS) == (768, 16_384, 60.0)
