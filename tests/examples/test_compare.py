import json
import statistics

import pytest

from examples.studies.compare.__main__ import main, pair, summarise


def metrics(value):
    names = ("R@1", "R@5", "R@10", "NDCG")
    return {d: dict.fromkeys(names, value) for d in ("text_to_image", "image_to_text")}


def test_differences_are_paired():
    row = pair([3.0, 5.0, 10.0], [1.0, 4.0, 7.0])
    assert row["difference_mean"] == 2
    assert row["difference_stderr"] == pytest.approx(statistics.stdev([2, 1, 3]) / 3**0.5)
    assert (row["difference_min"], row["difference_max"]) == (1, 3)
    assert row["mfh_std"] == statistics.stdev([3, 5, 10])
    runs = [
        {"loss": loss, "after": metrics(value)}
        for loss, value in (("mfh", 3.0), ("clip", 1.0), ("mfh", 5.0), ("clip", 4.0))
    ]
    assert summarise(runs)["average R@1/5/10"]["difference_mean"] == 1.5


def test_a_tiny_comparison_is_written_and_goes_on(tiny, tmp_path, capsys):
    options = {**tiny, "max_steps": 2, "results_dir": str(tmp_path / "results")}
    command = [part for k, v in options.items() for part in (f"--{k}", str(v))]
    assert main([*command, "--seeds", "1", "2"]) == 0
    report = json.loads((tmp_path / "results" / "emoji_seeds.json").read_text())
    assert [(r["seed"], r["loss"]) for r in report["runs"]] == [
        (seed, loss) for seed in (1, 2) for loss in ("mfh", "clip")
    ]
    assert report["runs"][0]["before"] == report["runs"][1]["before"]
    assert report["machine"]["threads"] == 1
    table = (tmp_path / "results" / "emoji_seeds.md").read_text()
    assert "| average R@1/5/10 |" in table
    assert table in capsys.readouterr().out
    # Finished runs are read from their checkpoints, so the numbers are the same.
    assert main([*command, "--seeds", "1", "2"]) == 0
    again = json.loads((tmp_path / "results" / "emoji_seeds.json").read_text())
    assert again["summary"] == report["summary"]
