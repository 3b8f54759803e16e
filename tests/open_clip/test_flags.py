"""What the program is asked for and cannot do: said before it builds, by the names of its flags."""

import argparse
import inspect
import re
import sys
from pathlib import Path

import pytest

open_clip = pytest.importorskip("open_clip")
program = pytest.importorskip("open_clip_train.main", reason="open_clip_torch[training]")
pytest.importorskip("pandas")

from mxm_kernels.open_clip import __main__ as command  # noqa: E402
from mxm_kernels.open_clip import patch, patch_mfh  # noqa: E402
from tests.support.open_clip_program import arguments  # noqa: E402

pytestmark = pytest.mark.usefixtures("nothing_is_built")

TEACHER = "--distill-model", "tiny-for-tests", "--distill-pretrained", "teacher.pt"
COCA = "--model", "tiny-coca"

ANY = [
    (["--horovod"], "--horovod: .*torchrun"),
    (["--siglip", *COCA], "--siglip with --model tiny-coca: .*leave --siglip out"),
    (["--siglip", *TEACHER], "--siglip with --distill-model: "),
    ([*TEACHER, *COCA], "--distill-model with --model tiny-coca: "),
    ([*TEACHER, "--accum-freq", 2], "--distill-model with --accum-freq 2: "),
    (["--siglip", "--loss-dist-impl", "tree"], "--loss-dist-impl must be one of bidir.*got tree"),
    (["--accum-freq", 0], "--accum-freq must be at least 1, got 0"),
    (["--batch-size", 0], "--batch-size must be at least 1, got 0"),
]
MFH = [
    (["--siglip"], "--mfh with --siglip: "),
    ([*COCA], "--mfh with --model tiny-coca: .*without --mfh"),
    (TEACHER[:2], "--distill-model and --distill-pretrained need each other"),
    (TEACHER[2:], "--distill-model and --distill-pretrained need each other"),
    (["--dataset-type", "synthetic"], "--mfh with --dataset-type synthetic: .*webdataset shards"),
    (["--train-data", ""], "--mfh needs --train-data: "),
    (["--dataset-type", "auto", "--train-data", "a.txt"], r"a\.txt ends in none of \.csv, \.tsv"),
    (["--train-data", "none.csv"], r"--train-data none\.csv cannot be read: .*No such file"),
    (["--csv-separator", ","], "--csv-img-key filepath: .* has no such column, with --csv-sep"),
    (["--csv-caption-key", "text"], "--csv-caption-key text: .* it has filepath, title$"),
    (
        ["--batch-size", 9],
        r"a step takes 9 images of each process, .* has 8 images in all \(processes: 1\)",
    ),
    (
        ["--accum-freq", 3],
        r"a step takes 12 images of each process, .* has 8 images in all \(processes: 1\)",
    ),
    (
        ["--dataset-type", "webdataset", "--train-num-samples", 8, "--accum-freq", 3],
        r"a step takes 12 images of each process, .* has 8 images in all \(processes: 1\)",
    ),
]
OURS = [
    (["--mfh-rounds", "3"], "--mfh-rounds needs --mfh$"),
    (["--mfh-rounds", "0"], "--mfh-rounds needs --mfh$"),
    (["--mfh-hard-weight", "0.5"], "--mfh-hard-weight needs --mfh$"),
    (["--mfh", "--mfh-rounds", "-1"], "--mfh-rounds must be at least 0, got -1"),
    (["--mfh", "--mfh-rounds", 1 << 25], "--mfh-rounds must be at most 16777216, got 33554432"),
    (["--mfh", "--mfh-hard-weight", "2"], "--mfh-hard-weight must be between 0 and 1, got 2.0"),
    (["--mfh", "--mfh-hard-weight", "nan"], "--mfh-hard-weight must be between 0 and 1, got nan"),
    (["--mfh", "--mfh-hard-weight", "0.5"], "--mfh-hard-weight needs a teacher"),
    (["--mfh", "--mfh-round", "3"], "--mfh-round: there are --mfh, --mfh-rounds and --mfh-hard"),
    (["--mfh", "--mfh-rounds", "ten"], "argument --mfh-rounds: invalid int value: 'ten'"),
]


@pytest.fixture
def nothing_is_built(monkeypatch, tmp_path):
    """The program comes to none of its own work; not even to the folder of its logs."""

    def built(*_, **__):
        pytest.fail("the program has started")

    for name in "init_distributed_device", "create_model_and_transforms", "get_data", "create_loss":
        monkeypatch.setattr(program, name, built)
    yield
    assert not (tmp_path / "logs").exists()


def refused(capsys, words):
    """The last line of stderr, of a command that ends with code 2."""
    with pytest.raises(SystemExit) as ended:
        command.main([str(word) for word in words])
    assert ended.value.code == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m mxm_kernels.open_clip: error: ")
    assert usage[0].startswith("usage: python -m mxm_kernels.open_clip [-h]")
    assert len(usage) < 4
    return line.removeprefix("python -m mxm_kernels.open_clip: error: ")


@pytest.mark.parametrize(("more", "message"), ANY)
@pytest.mark.parametrize("patched", [patch, patch_mfh])
def test_flags_that_no_loss_can_do(csv, capsys, patched, more, message):
    given = arguments(csv, "csv", "refused", *more)
    with patched(), pytest.raises(ValueError, match=message):
        program.main(given)
    ours = ["--mfh"] if patched is patch_mfh else []
    assert re.search(message, refused(capsys, [*ours, *given]))


@pytest.mark.parametrize(("more", "message"), MFH)
def test_flags_that_mfh_cannot_do(csv, capsys, more, message):
    given = arguments(csv, "csv", "refused", *more)
    with patch_mfh(), pytest.raises(ValueError, match=message):
        program.main(given)
    assert re.search(message, refused(capsys, ["--mfh", *given]))


@pytest.mark.parametrize(("more", "message"), OURS)
def test_flags_of_mfh(csv, capsys, more, message):
    assert re.search(message, refused(capsys, [*more, *arguments(csv, "csv", "refused")]))


def test_mfh_over_processes_needs_the_gradients_of_all(csv, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = arguments(csv, "csv", "refused")
    message = "--mfh over 2 processes needs --gather-with-grad"
    with patch_mfh(), pytest.raises(ValueError, match=message):
        program.main(given)
    assert message in refused(capsys, ["--mfh", *given])
    more = "--gather-with-grad", "--batch-size", 5  # 8 images are 4 of each process
    message = r"a step takes 5 images of each process, .* has 8 images in all \(processes: 2\)"
    assert re.search(message, refused(capsys, ["--mfh", *given, *more]))


def test_without_mfh_the_data_is_the_program_s(csv):
    """What only MFH asks for is not looked at."""
    given = arguments(csv, "csv", "starts", "--batch-size", 9, "--train-data", "none.csv")
    with patch(), pytest.raises(pytest.fail.Exception, match="the program has started"):
        program.main(given)


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip_train", None)
    assert "pip install open_clip_torch[training]" in refused(capsys, [])


def test_the_command_says_which_versions_it_knows(csv, monkeypatch, capsys):
    monkeypatch.delattr("open_clip.factory.SigLipLoss")
    given = arguments(csv, "csv", "old")
    assert "no SigLipLoss: open_clip_torch 2.32 to 3.3" in refused(capsys, given)


def test_the_page_names_every_flag_that_the_loss_reads():
    """``create_loss`` reads them; a new version of open_clip may read another one."""
    read = set(re.findall(r"args\.(\w+)", inspect.getsource(open_clip.create_loss)))
    read -= {"rank", "world_size"}  # of the launcher
    read = {{"distill": "distill_model"}.get(name, name) for name in read}
    assert {"siglip", "local_loss"} <= read
    page = (Path(__file__).parents[2] / "docs" / "hosts" / "open_clip.md").read_text()
    table = page.partition("| flag |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`--([a-z-]+)", table))
    assert {name.replace("_", "-") for name in read} <= named


def test_the_page_knows_the_program_s_flags(monkeypatch):
    """Every flag that it names is one of the program's, or of this package's."""
    added = []
    real = argparse.ArgumentParser.add_argument

    def add_argument(self, *names, **options):
        added.extend(names)
        return real(self, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    program.parse_args([])
    command._parser()
    page = (Path(__file__).parents[2] / "docs" / "hosts" / "open_clip.md").read_text()
    ours = page.partition("## The example's program")[0]
    assert set(re.findall(r"`(--[a-z-]+)", ours)) <= {*added}
