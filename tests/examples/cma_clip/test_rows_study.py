import json

import pytest

from examples.studies.cma_clip.rows.__main__ import main
from examples.studies.cma_clip.rows.plan import CELLS, PRIMARY, TRAINED
from examples.studies.cma_clip.rows.report import markdown, reached, verdict
from examples.studies.cma_clip.rows.study import RESULTS, Rows, RowsConfig

from .tiny import TINY, command


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    options = {
        **TINY,
        "output_dir": folder / "run",
        "results_dir": folder / "results",
        "workers": 1,
        "seeds": 1,
    }
    arguments = command(options, "--splits", "1", "2", "--stage_epochs", "1", "0", "0")
    assert main(arguments) == 0
    return folder, arguments


def test_a_tiny_study_writes_everything_and_goes_on(rows, capsys):
    folder, arguments = rows
    results = folder / "results"
    assert {path.name for path in results.iterdir()} == {"rows.json", "rows.md", "rows.svg"}
    report = json.loads((results / "rows.json").read_text())
    assert [(c["condition"], c["row"]) for c in report["cells"]] == list(CELLS)
    assert len(report["primary"]) == len(PRIMARY)
    assert set(report["tuning"]) == set(TRAINED)
    assert (results / "rows.md").read_text() == markdown(report)
    before = {p: p.read_bytes() for p in results.iterdir()}
    assert main(arguments) == 0  # everything is there already
    assert {p: p.read_bytes() for p in before} == before
    assert main([*arguments, "--width", "8"]) == 2
    assert "has parts of a study with another width" in capsys.readouterr().err


def test_what_is_trained_and_tested_in_every_cell(rows):
    folder, _ = rows
    cells = json.loads((folder / "results" / "rows.json").read_text())["cells"]
    for cell in cells:
        tests = cell["tests"]
        noisy = cell["condition"].endswith("noise")
        names = ["right", "noise"] if noisy else ["own", "right name", "wrong name"]
        assert list(tests) == ["all", *names]
        assert cell["epochs"] == (0 if cell["row"] == "prompts" else 1)
        assert bool(cell["text_weights"]) == (cell["row"] in ("CMA-CLIP", "w/o SA"))
        whole = tests["all"]["pairs"]
        if noisy:  # the pairs without and with noise are all pairs
            parts = [[a + b for a, b in zip(*s, strict=True)] for s in pairs_of(tests, names)]
            assert parts == whole
        else:
            assert tests["own"]["pairs"] == tests["wrong name"]["pairs"] != whole
    images = {c["row"]: c for c in cells if c["condition"] == "clean"}["image only"]["tests"]
    assert images["own"]["accuracy"] == images["wrong name"]["accuracy"]


def pairs_of(tests, names):
    return list(zip(*(tests[name]["pairs"] for name in names), strict=True))


def test_the_committed_page_says_what_is_in_its_json():
    report = json.loads((RESULTS / "rows.json").read_text())
    assert (RESULTS / "rows.md").read_text(encoding="utf-8") == markdown(report)
    assert (RESULTS / "rows.json").stat().st_size < 300_000
    assert len(report["splits"]) == 5
    assert report["seeds"] == 3


def test_a_finding_needs_holms_p_value():
    assert verdict({"holm": 0.05, "p": 0.01, "mean": 9.0}) == "within noise"
    assert verdict({"holm": 0.049, "p": 0.01, "mean": 9.0}) == "first is better"
    assert verdict({"holm": 0.049, "p": 0.01, "mean": -9.0}) == "second is better"


def test_the_precision_that_was_reached_is_of_the_runs_that_accepted_something():
    assert reached({"precision": {"t": [[80.0, None], [90.0, 100.0]]}}, "t") == "88 (80 to 95)"
    assert reached({"precision": {"t": [[None], [None]]}}, "t") == "nothing accepted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage_epochs", "3", "1", "0"], "--stage_epochs: the encoders stay frozen here"),
        (["--noise_rate", "1"], "--noise_rate must lie strictly between 0 and 1, not 1.0"),
        (["--splits", "1"], "--splits must name 2 seeds or more, not 1"),
        (["--lr", "0.5"], "--lr has no effect in this study"),
        (["--contrastive_weight", "0"], "--contrastive_weight has no effect in this study"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_wrong_command_lines_end_with_a_message(options, message, capsys, tmp_path):
    assert main([*options, "--output_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_studys_options():
    config, study = RowsConfig(), Rows()
    assert config.stage_epochs[1:] == [0, 0]
    assert len(study.splits) == 5
    assert study.seeds == 3
