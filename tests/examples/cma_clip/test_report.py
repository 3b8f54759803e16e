import copy
import json

import pytest

from examples.studies.cma_clip.differences import encoder_text
from examples.studies.cma_clip.report import markdown
from examples.studies.cma_clip.study import FULL, NO_MA, RESULTS
from examples.studies.cma_clip.summary import PM, Mean, Runs


def test_the_report_says_what_is_in_the_json(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    text = (folder / "results" / "study.md").read_text()
    assert text == markdown(report)
    assert "Size: 1 layers, 16 wide, 2 heads" in text
    mean = Mean.of(Runs(report).values("noisy", NO_MA, "recall", "average"))
    assert mean.plain() in text


def test_the_committed_report_says_what_is_in_its_json():
    report = json.loads((RESULTS / "study.json").read_text())
    assert (RESULTS / "study.md").read_text(encoding="utf-8") == markdown(report)


def test_the_report_of_one_seed_has_no_errors(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    report["seeds"] = [1]
    text = markdown(report)
    assert "One seed, in percent" in text
    assert PM not in text and "*" not in text.split("## Without noise")[1].split("## What dif")[0]


def test_the_report_tells_the_best_epochs_and_counts_its_comparisons(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    for run in report["runs"]:
        for variant in run["variants"].values():
            for stage in variant["stages"]:
                stage["validation"] = [0.0] * 8
                stage["best_epoch"] = 3
    full = {r["seed"]: r["variants"][FULL]["stages"] for r in report["runs"][::2]}
    full[1][0]["best_epoch"], full[2][0]["best_epoch"], full[2][2]["best_epoch"] = 2, 7, 7
    text = markdown(report)
    assert "| model | warm-up of 7, clean | warm-up of 7, noisy | end-to-end of 7, clean" in text
    assert f"| {FULL} | 4.5 (2 to 7) | 3 (3 to 3) | 3 (3 to 3) | 3 (3 to 3) | 5 (3 to 7) |" in text
    assert "Of 20 runs" in text
    assert "warm-up stage in 1, of the end-to-end stage in 0, of the tuning stage in 1;" in text
    tables = [line for line in text.splitlines() if line.startswith(f"| {FULL} minus")]
    cells = sum(line.count(PM) for line in tables)
    # Of the weights' table: two models, two tasks, two differences.
    assert f"The tables hold {cells + 8} comparisons, of which these 4 lines tell 16." in text


def test_the_report_describes_other_encoders(study):
    folder, _ = study
    options = json.loads((folder / "results" / "study.json").read_text())["options"]
    assert "releases the last block of each, and the projections" in encoder_text(options)
    assert "releases all of both" in encoder_text({**options, "unfreeze": "all"})
    clip = encoder_text({**options, "model": "ViT-B-32", "alignment_epochs": 0})
    assert clip.startswith("open_clip's ViT-B-32 (random weights), not aligned. ")
    assert "releases the last block and the projection of each tower" in clip
    assert "starts at examples.finetune's 0.03" in clip


def test_only_large_differences_are_findings(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    report["seeds"] = [1, 2, 3]
    report["runs"] += [{**copy.deepcopy(run), "seed": 3} for run in report["runs"][:2]]
    for run in report["runs"]:
        for name, variant in run["variants"].items():
            test = variant["test"][run["condition"]]
            value = 50.0 + run["seed"] + (20 if name == FULL else 0)
            jitter = 0.1 * run["seed"] * (name == NO_MA)
            test["recall"] = dict.fromkeys(report["classes"], value + jitter)
            test["accuracy"] = dict.fromkeys(report["classes"], float(7 * run["seed"] % 5))
    text = markdown(report)
    assert "Average R@90, with noise: CMA-CLIP has 20.0 points more than without contr" in text
    assert "; 19.8 points more than w/o MA;" in text
    line = next(x for x in text.splitlines() if x.startswith("- Average accuracy, with noise"))
    assert "CMA-CLIP has a difference within chance from without contrastive loss (+0.0" in line
    assert "more" not in line


def test_means_and_intervals():
    mean = Mean.of([1.0, 2.0, 3.0])
    assert (mean.value, mean.error) == (2.0, pytest.approx(1 / 3**0.5))
    assert not mean.outside_noise  # 2 against 4.30 standard errors of 0.58
    assert Mean.of([2.0, 2.1, 1.9]).outside_noise
    assert not Mean.of([5.0]).outside_noise
    assert Mean.of([2.0, 2.1, 1.9]).signed() == "+2.0 ± 0.1*"
