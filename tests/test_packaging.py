"""The wheel: what it holds, what it needs, and that the version comes from one place."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mxm_kernels

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the backend that is installed beside the tests."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_holds_the_package_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"mxm_kernels", f"mxm_kernels-{mxm_kernels.__version__}.dist-info"}
    assert "mxm_kernels/py.typed" in wheel.namelist()
    assert "mxm_kernels/backends/triton/statistics.py" in wheel.namelist()


def test_needs_little(wheel):
    name = f"mxm_kernels-{mxm_kernels.__version__}.dist-info/METADATA"
    metadata = Parser().parsestr(wheel.read(name).decode())
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    names = {r.split(">")[0].split(";")[0].strip() for r in needed}
    assert names == {"torch", "triton", "numpy", "typing_extensions"}
    assert metadata["Version"] == mxm_kernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
