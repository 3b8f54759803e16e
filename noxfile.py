"""Checks in environments of their own: what a release ships, and the versions that it states.

``make dist`` and ``make supported`` run these sessions. The versions come from pyproject.toml: the
Pythons from its classifiers, the oldest packages from the lower bounds of its dependencies and of
the extra triton. What follows ``--`` goes to pytest: ``nox -s dist -- tests/folds/test_folds.py``.
Another Python than the oldest or the newest: ``nox -s supported_oldest --force-python 3.11``.
"""

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# The encoders and images of the examples are pinned by other packages, and so are their versions.
SUITE = ("--ignore=tests/examples", "--ignore=tests/test_packaging.py")
# nox would skip a session whose Python it does not find, and report success.
nox.options.error_on_missing_interpreters = True


def oldest() -> list[str]:
    """The oldest version of every dependency and of Triton: torch>=2.8 gives torch==2.8.*."""
    pins, project = [], PROJECT["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["triton"]]:
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", line
        where = f"; {requirement.marker}" if requirement.marker else ""
        pins.append(f"{requirement.name}=={bound.version}.*{where}")
    return pins


def archive() -> Path:
    """The source archive that ``python -m build`` made."""
    (path,) = DIST.glob("*.tar.gz")
    return path


def run_suite(session: nox.Session, arguments: list[str]) -> None:
    """The tests of the source archive, against the installed package.

    The package's own source is taken away: it would be imported instead.
    """
    folder = Path(session.create_tmp()).resolve() / "tested"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive()) as source:
        source.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    shutil.rmtree(unpacked / "mxm_kernels")
    with session.chdir(unpacked):
        session.run("python", "-m", "mxm_kernels")
        suite = ("-q", "-n", "2", "--dist", "worksteal", *SUITE, *arguments)
        session.run("python", "-m", "pytest", *suite)


@nox.session(python=False)
def build(session: nox.Session) -> None:
    """The source archive and the wheel, which is built from the archive, into dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    session.run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    archives = map(str, DIST.iterdir())
    session.run(sys.executable, "-m", "twine", "check", "--strict", *archives)


@nox.session
def dist(session: nox.Session) -> None:
    """Install the wheel and run the tests of the archive; ``-- --lend FOLDER`` lends packages.

    A lent folder of site-packages saves the download of PyTorch; the package itself is the
    wheel's.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--lend", type=Path)
    options, arguments = parser.parse_known_args(session.posargs)
    if options.lend:
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = session.run("python", "-c", ask, silent=True).strip()
        Path(site, "lent.pth").write_text(str(options.lend.resolve()))
    (wheel,) = DIST.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}[test]")
    run_suite(session, arguments)


@nox.session(python=PYTHONS[0])
def supported_oldest(session: nox.Session) -> None:
    """The oldest Python with the oldest versions of every dependency."""
    session.install(*oldest(), f"{archive()}[test]")
    run_suite(session, session.posargs)


@nox.session(python=PYTHONS[-1])
def supported_newest(session: nox.Session) -> None:
    """The newest Python with the newest release of every dependency."""
    session.install("--upgrade", f"{archive()}[test]")
    run_suite(session, session.posargs)
