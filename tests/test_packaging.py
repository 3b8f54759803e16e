"""The wheel and the source archive: what they hold and need; the version comes from one place."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import mxm_kernels

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]*)[^)]*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
SOURCE = re.compile(r"""\b(?:href|src|srcset)=["']?([^"'\s>]*)""")


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


@pytest.fixture(scope="module")
def metadata(wheel):
    name = f"mxm_kernels-{mxm_kernels.__version__}.dist-info/METADATA"
    return Parser().parsestr(wheel.read(name).decode())


def test_needs_little(metadata):
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    names = {r.split(">")[0].split(";")[0].strip() for r in needed}
    assert names == {"torch", "numpy", "typing_extensions"}  # a user without a GPU gets no Triton
    assert metadata["Version"] == mxm_kernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    triton = [r for r in metadata.get_all("Requires-Dist") if r.startswith("triton")]
    assert [re.findall(r'extra == "(\w+)"', r) for r in triton] == [["triton"]]


def test_the_long_description_leads_nowhere_into_the_repository(metadata):
    """A package index shows the README alone: neither its neighbours nor its pictures."""
    text, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
    links = [*LINK.findall(text), *REFERENCE.findall(text), *SOURCE.findall(text)]
    assert [link for link in links if not link.startswith(("https://", "http://"))] == []
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    whole = [line for line in readme.splitlines() if not re.search(r"\]\(|\]:|<img|\[|\)", line)]
    assert len(whole) > 20 and {*whole} <= {*text.splitlines()}


@pytest.mark.parametrize(
    ("text", "found"),
    [("[a](b.md)", "b.md"), ("![a](b.svg)", "b.svg"), ("[a]: b.md", "b.md"), ('<a href="b">', "b")],
)
def test_a_link_into_the_repository_is_found(text, found):
    assert [*LINK.findall(text), *REFERENCE.findall(text), *SOURCE.findall(text)] == [found]


def test_a_wheel_is_tagged_for_the_machine_that_built_it(wheel, metadata):
    """With the native backend; without it, for any."""
    name = f"mxm_kernels-{mxm_kernels.__version__}.dist-info/WHEEL"
    (tag,) = Parser().parsestr(wheel.read(name).decode()).get_all("Tag")
    extensions = [n for n in wheel.namelist() if "/_native" in n]
    if not extensions:
        assert tag == "py3-none-any"
    elif sys.version_info < (3, 12):
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        assert tag.startswith(f"{python}-{python}-")
    else:
        assert tag.startswith("cp312-abi3-")
        assert all(".abi3." in name or name.endswith(".pyd") for name in extensions)


def test_what_to_cite_is_the_same_everywhere():
    """Citation File Format 1.2.0: its required keys; and the entry of the site."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff.keys() >= {"cff-version", "message", "title", "authors"}
    assert cff["cff-version"] == "1.2.0" and cff["type"] == "software"
    assert cff["authors"] == [{"name": "mxm_kernels authors"}]
    paper, page = cff["preferred-citation"], (ROOT / "docs" / "citation.md").read_text()
    assert paper.keys() >= {"type", "title", "authors"}
    names = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    assert f"author = {{{' and '.join(names)}}}" in page
    assert paper["title"] in page.replace("{MXM-CLR}", "MXM-CLR")
    assert f"journal = {{{paper['journal']}}}" in page
    assert f"year = {{{paper['year']}}}" in page


def test_the_source_archive_builds_and_is_tested_by_itself(sources):
    needed = {"CMakeLists.txt", "Makefile", "README.md", "LICENSE", "CITATION.cff", "noxfile.py"}
    assert needed <= sources
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
    """pyproject.toml's bounds and classifiers, and the pages of the site about installing."""
    project = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)\"", project)
    assert re.search(rf'requires-python = ">={re.escape(pythons[0])}"', project)
    for page in ("index.md", "install.md"):
        text = (ROOT / "docs" / page).read_text()
        assert f"Python {pythons[0]} or newer" in text
        for name, shown in (("torch", "PyTorch"), ("triton", "Triton")):
            bound = re.search(rf'"{name}>=([\d.]+)', project)[1]
            assert f"{shown} {bound} or newer" in text


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

    pins = {line.partition(";")[0] for line in noxfile.oldest()}
    assert {"numpy==1.26.*", "torch==2.8.*", "triton==3.4.*"} <= pins
    assert noxfile.PYTHONS[0] == "3.10"
