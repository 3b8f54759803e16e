"""The wheel and the source archive: what they hold and need; the version comes from one place."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mxm_kernels

ROOT = Path(__file__).parents[1]


def build(kind, out):
    """The path of a wheel or source archive, built by the backend installed beside the tests."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files of the source archive, below its one folder."""
    path = build("sdist", tmp_path_factory.mktemp("sdist"))
    assert path.name == f"mxm_kernels-{mxm_kernels.__version__}.tar.gz"
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


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


def test_the_source_archive_builds_and_is_tested_by_itself(sources):
    for needed in ("CMakeLists.txt", "Makefile", "README.md", "LICENSE", "noxfile.py"):
        assert needed in sources
    for folder in ("mxm_kernels", "tests", "reference", "bench", "examples", "docs"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert here
        assert here <= sources
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "mxm_kernels/csrc").iterdir()} <= sources


def test_the_source_archive_holds_no_build_products(sources):
    tops = {name.split("/")[0] for name in sources}
    assert tops.isdisjoint({".git", ".venv", "build", "dist", "site", ".nox", "runs"})
    assert not [name for name in sources if name.endswith((".so", ".pyc"))]


def test_the_version_is_written_in_one_place():
    """And it is a release number of semantic versioning."""
    version = mxm_kernels.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version)
    for path in ("pyproject.toml", "CMakeLists.txt", "README.md"):
        assert f'"{version}"' not in (ROOT / path).read_text().replace("==", "")


def test_the_supported_versions_are_the_same_everywhere():
    """pyproject.toml's bounds and classifiers, and the first page of the site."""
    project = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "index.md").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)\"", project)
    assert re.search(rf'requires-python = ">={re.escape(pythons[0])}"', project)
    assert f"Python {pythons[0]} or newer" in page
    for name, shown in (("torch", "PyTorch"), ("triton", "Triton")):
        bound = re.search(rf'"{name}>=([\d.]+)', project)[1]
        assert f"{shown} {bound} or newer" in page


def test_wheels_are_built_for_the_supported_pythons():
    """And once for all later ones from the version on that the stable ABI begins with."""
    project = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r"Python :: 3\.(\d+)\"", project)
    (build,) = re.findall(r'^build = "(.*)"', project, re.MULTILINE)
    assert build.split() == [f"cp3{minor}-*" for minor in pythons]
    (stable,) = re.findall(r'^wheel.py-api = "cp3(\d+)"', project, re.MULTILINE)
    assert stable in pythons


def test_the_wheels_are_those_that_contributing_names():
    pytest.importorskip("cibuildwheel", reason="the release extra is not installed")
    made = {}
    for platform in ("linux", "macos", "windows"):
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
        done = subprocess.run(
            [*command, "--platform", platform, "--allow-empty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made[platform] = {name.partition("-")[2] for name in done.stdout.split()}
    assert made == {
        "linux": {"manylinux_x86_64", "manylinux_aarch64"},
        "macos": {"macosx_arm64"},
        "windows": set(),
    }


def test_the_oldest_versions_are_the_lower_bounds():
    pytest.importorskip("nox", reason="the release extra is not installed")
    import noxfile

    assert "numpy==1.26.*" in noxfile.oldest()
    assert noxfile.PYTHONS[0] == "3.10"
