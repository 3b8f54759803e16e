"""The second part: a memory checker over forced loops, and counters of the slowest kernels."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys

from bench.gpu.phases import Run, WrongError

METRICS = (
    "gpu__time_duration.sum",
    "lts__t_bytes.sum",
    "dram__bytes.sum",
    "sm__inst_executed_pipe_tensor.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
)
# What the counters are read of, by the part of a step that ``parts`` names.
KERNELS = {
    "statistics": "statistics_kernel",
    "dS": "gradient_kernel",
    "dS of kept products": "stored_gradient_kernel",
    "merge": "merge_kernel",
    "positives of dS": "pair_gradient_kernel",
}


def memcheck(run: Run) -> None:
    """Every kernel of a step, with loops forced and tails in every tile."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        run.keep({"memcheck": "not run: there is no compute-sanitizer"})
        return
    program = [sys.executable, "-m", "bench.gpu.forced", str(run.device)]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", *program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=run.left)
    except subprocess.TimeoutExpired:
        run.keep({"memcheck": f"stopped after {run.left:.0f} s"})
        return
    print(done.stdout, done.stderr)
    words = (done.stdout + done.stderr)[-2000:]
    run.keep({"memcheck": "no error" if done.returncode == 0 else words})
    if done.returncode != 0:
        raise WrongError(f"compute-sanitizer ended with status {done.returncode}")


def counters(run: Run) -> None:
    """Hardware counters of the two kernels that a step of MFH 32k spends most of its time in."""
    tool = shutil.which("ncu")
    if tool is None:
        run.keep({"counters": "not run: there is no ncu"})
        return
    found: dict[str, dict[str, str] | str] = {}
    for part in slowest(run):
        kernel = KERNELS[part]
        command = [
            *(tool, "--clock-control", "none", "--csv", "--page", "raw", "--launch-count", "1"),
            *("--kernel-name", f"regex:^{kernel}$", "--metrics", ",".join(METRICS)),
            *(sys.executable, "-m", "bench.gpu.step", "mfh", str(run.device), "--rows", "32768"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=run.left / 2)
        except subprocess.TimeoutExpired:
            found[kernel] = "stopped: no time was left"
        else:
            print(done.stdout, done.stderr)
            found[kernel] = read(done.stdout) or (done.stdout + done.stderr)[-1000:]
        run.keep({"counters": found})


def slowest(run: Run) -> list[str]:
    """The two parts, from the headline where it was measured."""
    line = run.other("headline.json").get("lines", {}).get("MFH 32k", {})
    parts = {
        name: milliseconds
        for phase in line.get("parts_milliseconds", {}).values()
        for name, milliseconds in phase.items()
        if name in KERNELS
    }
    return sorted(parts, key=lambda name: -parts[name])[:2] or ["statistics", "dS"]


def read(text: str) -> dict[str, str]:
    """The counters of ncu's CSV: a line of names, one of units, one of values."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > len(METRICS)]
    if len(rows) < 3:
        return {}
    names, units, values = rows[0], rows[1], rows[-1]
    return {
        name: f"{value} {unit}".strip()
        for name, unit, value in zip(names, units, values, strict=True)
        if name in METRICS
    }
