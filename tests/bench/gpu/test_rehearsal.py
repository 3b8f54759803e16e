"""``bench/gpu.sh`` rehearsed on a CPU, without the packages that a GPU machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.gpu import right

ROOT = Path(__file__).parents[3]
FILES = {f"{n}.json" for n in ("ceilings", "right", "headline", "sweep", "again", "peers", "tune")}
LACKING = (
    *("sybil", "open_clip", "accelerate", "transformers", "datasets", "sentence_transformers"),
    *("pytorch_lightning", "lightning", "torchmetrics", "pytorch_metric_learning", "lightly"),
    *("matplotlib", "scipy", "PIL", "tqdm", "pytest_timeout", "mxm_kernels._native"),
    *("memeff", "inf_cl", "cut_cross_entropy", "liger_kernel", "siglip_kernel"),
)
BLOCKER = """
import sys


class Without:
    NAMES = {names!r}

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        lacking = name in self.NAMES or name.partition(".")[0] in self.NAMES
        return None if lacking else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Without, sys.meta_path)
"""


def _environment(tmp_path: Path, *, xdist: bool) -> dict[str, str]:
    """Of a machine that has none of the packages of LACKING, and perhaps not pytest-xdist."""
    names = {*LACKING} if xdist else {*LACKING, "xdist"}
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER.format(names=names))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    return environment | {
        "BENCH_DEVICE": "cpu",
        "BENCH_SUITE": "smoke",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path / "site"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins import what is to be lacking
        "PYTEST_PLUGINS": "xdist.plugin" if xdist else "",
    }


def _assert_tests_ran(out: Path, *, xdist: bool) -> None:
    counts = json.loads((out / "right.json").read_text())["tests"]
    listed = right.names((Path(right.__file__).parent / "rehearsed.txt").read_text())
    assert counts["listed"] == len(listed) and counts["failed"] == 0 and counts["missing"] == []
    assert counts["ran"] > 0
    assert ("bringing up nodes" in (out / "all.log").read_text()) == xdist


def test_every_phase_passes_and_leaves_its_file(tmp_path):
    out = tmp_path / "out"
    command = ["bash", "bench/gpu.sh", str(out)]
    environment = _environment(tmp_path, xdist=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = (out / "all.log").read_text() if (out / "all.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert {path.name for path in out.iterdir()} == FILES | {"all.log"}
    assert len(done.stdout) + len(done.stderr) < 12_000
    assert done.stdout.rstrip().endswith("nothing failed and nothing was wrong")
    _assert_tests_ran(out, xdist=True)

    ended = {
        name.removesuffix(" ended"): how
        for path in FILES - {"tune.json"}
        for name, how in json.loads((out / path).read_text()).items()
        if name.endswith(" ended")
    }
    assert set(ended) == {
        *("ceilings", "compile", "right", "headline", "sweep", "again", "peers", "million"),
        *("memcheck", "counters"),
    }
    assert all(how.startswith(("done", "cut off")) for how in ended.values()), ended
    tuned = json.loads((out / "tune.json").read_text())
    assert {entry["gpu"] for entry in tuned["entries"]} <= {"interpreter"}
    if ended["sweep"].startswith("done"):
        assert tuned["entries"]


def test_the_phase_of_the_tests_needs_no_xdist(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    environment = _environment(tmp_path, xdist=False) | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "bench.gpu", str(out), "--device=cpu", "--smoke"]
    command += ["--phase=right", "--seconds=45"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (out / "all.log").read_text()
    _assert_tests_ran(out, xdist=False)
