"""What a study keeps is refused where it is not what was written."""

import shutil

import pytest

from examples.studies.cma_clip.study import main
from tests.support.damage import flip, restored

# In the order in which a study that has its outcomes, or has them no more, reads them.
READ = ["options.json", "observations.pt", "clean_1.json", "noisy_2.json"]
READ_AGAIN = ["alignment_1/tokens.pt", "alignment_1/model.safetensors"]
DRAWN = ["clean_1/model.safetensors"]


@pytest.fixture
def copied(study, tmp_path):
    """A finished study of its own, to be damaged."""
    folder, arguments = study
    shutil.copytree(folder, tmp_path / "study")
    return tmp_path / "study", [
        str(a).replace(str(folder), str(tmp_path / "study")) for a in arguments
    ]


def refused(arguments, path, capsys):
    results = {p: p.read_bytes() for p in (path.parents[1] / "results").glob("*")}
    assert main(arguments) == 1
    assert f"error: {path} is not what was written there, by its SHA-256" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in results} == results


def test_damaged_files_of_a_study(copied, capsys):
    folder, arguments = copied
    for name in READ + DRAWN:
        with restored(folder / "run" / name):
            flip(folder / "run" / name, 0.5)
            refused(arguments, folder / "run" / name, capsys)
    assert main(arguments) == 0
    (folder / "run" / "clean_1.json").unlink()
    for name in READ_AGAIN:
        with restored(folder / "run" / name):
            flip(folder / "run" / name, 0.7)
            refused(arguments, folder / "run" / name, capsys)


def test_a_digest_that_is_missing(copied, capsys):
    """Of an older version, or a crash between the two: what can be made anew is."""
    folder, arguments = copied
    (folder / "run" / "observations.pt.sha256").unlink()
    assert main(arguments) == 0
    assert (folder / "run" / "observations.pt.sha256").is_file()
    (folder / "run" / "clean_1" / "model.safetensors.sha256").unlink()
    assert main(arguments) == 1
    assert "model.safetensors is missing, or has no SHA-256" in capsys.readouterr().err
