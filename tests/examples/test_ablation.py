import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ttest_rel
from torch.nn.functional import log_softmax, normalize, softmax

from examples.data.instances import Instance
from examples.errors import CheckpointError, OptionError
from examples.files import digest_file
from examples.studies.ablation import __main__ as command
from examples.studies.ablation import features as frozen
from examples.studies.ablation.contrasts import contrast
from examples.studies.ablation.experiment import (
    BOUNDS,
    Outcome,
    Plan,
    best,
    deal,
    run_all,
    sized,
    time_ratio,
    trial_points,
)
from examples.studies.ablation.features import FeatureSet, cached_features, read_features
from examples.studies.ablation.report import summary, tables
from examples.studies.ablation.rows import ROWS, TABLE_5, Row, aggregated, loss_of
from examples.studies.ablation.training import Hyperparameters, Schedule, batches, evaluate, train
from mxm_kernels.data import MultifoldDataset, collate_multifold
from tests.support.captioned import draw, karpathy
from tests.support.damage import flip, restored

HYPERPARAMETERS = Hyperparameters(lr=3e-3, temperature=0.1, soft_weight=0.4, teacher_decay=0.9)
RESULTS = Path(command.__file__).parent / "results"


@pytest.fixture(scope="module")
def data():
    """Two views of what 40 instances are, with noise: 1 to 3 images and 1 to 4 captions each."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(40, 6, generator=generator)
    image_ids = torch.arange(40).repeat_interleave(torch.arange(40) % 3 + 1)
    text_ids = torch.arange(40).repeat_interleave(torch.arange(40) % 4 + 1)

    def seen(ids, width):
        features = latent[ids] @ torch.randn(6, width, generator=generator)
        return features + 0.1 * torch.randn(len(ids), width, generator=generator)

    return FeatureSet(seen(image_ids, 12), seen(text_ids, 9), image_ids, text_ids)


def row_named(name, aggregate=""):
    (row,) = (row for row in ROWS if (row.name, row.aggregate) == (name, aggregate))
    return row


def a_batch(data):
    dataset = MultifoldDataset(data.images, data.texts, data.image_ids, data.text_ids)
    return collate_multifold([dataset[index] for index in (11, 4, 26)])


def dense(x, y, image_ids, text_ids, scale, loss):
    """Losses of one positive or all, as the paper's Table 5 has them, with the matrix."""
    s = scale * x @ y.T
    positive = image_ids[:, None] == text_ids

    def half(s, positive):
        terms = []
        for row, right in zip(s, positive, strict=True):
            if loss == "all":
                terms.append(-log_softmax(row, 0)[right].mean())
            elif loss == "hard":
                each = [torch.cat([row[~right], v[None]]).logsumexp(0) - v for v in row[right]]
                terms.append(torch.stack(each).mean())
        return torch.stack(terms).mean()

    return (half(s, positive) + half(s.T, positive.T)) / 2


@pytest.mark.parametrize("aggregate", ["", "images", "texts"])
@pytest.mark.parametrize(("name", "loss"), [("All", "all"), ("Hard (expectation)", "hard")])
def test_losses_are_those_of_the_matrix(data, name, loss, aggregate):
    batch = a_batch(data)
    x, y = (
        normalize(torch.randn(len(batch.image_ids), 5)),
        normalize(torch.randn(len(batch.text_ids), 5)),
    )
    row = Row(name, loss, aggregate=aggregate)
    got = loss_of(row, batch, (x, y), None, torch.tensor(4.0), 0.0, None, torch.Generator())
    ids = batch.image_ids, batch.text_ids
    if aggregate == "images":
        mean = torch.stack([x[ids[0] == i].mean(0) for i in ids[0].unique()])
        x, ids = normalize(mean), (ids[0].unique(), ids[1])
    if aggregate == "texts":
        mean = torch.stack([y[ids[1] == i].mean(0) for i in ids[1].unique()])
        y, ids = normalize(mean), (ids[0], ids[1].unique())
    torch.testing.assert_close(got, dense(x, y, *ids, 4.0, loss), rtol=1e-5, atol=1e-6)


def test_group_masked_and_soft_on_one_pair_each():
    """With one image and one text of each instance they are CLIP and its distillation."""
    x, y, a, b = (normalize(torch.randn(3, 5)) for _ in range(4))
    items = [(i, [torch.zeros(1)], [torch.zeros(1)]) for i in range(3)]
    batch = collate_multifold(
        [SimpleNamespace(instance_id=i, images=m, texts=n) for i, m, n in items]
    )
    s, t = 4 * x @ y.T, 4 * a @ b.T
    clip = -(log_softmax(s, 1).diag() + log_softmax(s, 0).diag()).mean() / 2
    rows, cols = softmax(t, 1) * log_softmax(s, 1), softmax(t, 0) * log_softmax(s, 0)
    soft = -(rows.sum(1) + cols.sum(0)).mean() / 2

    def loss(name):
        row = row_named(name)
        teacher = (a, b) if row.has_teacher else None
        generator, rounds = torch.Generator(), 3 if row.loss == "hard" else None
        return loss_of(row, batch, (x, y), teacher, torch.tensor(4.0), 0.3, rounds, generator)

    for name in ("CLIP on the group matrix", "CLIP, masked", "All", "Hard (1)", "CLIP on pairs"):
        torch.testing.assert_close(loss(name), clip)
    torch.testing.assert_close(loss("Soft"), soft)
    torch.testing.assert_close(loss("Hard (m) + Soft"), 0.7 * clip + 0.3 * soft)


def test_masking_leaves_the_other_positives_out(data):
    batch = a_batch(data)
    x, y = (normalize(torch.randn(len(ids), 5)) for ids in (batch.image_ids, batch.text_ids))
    arguments = (batch, (x, y), None, torch.tensor(4.0), 0.0, None, torch.Generator())
    group, masked = (
        loss_of(row_named(n), *arguments) for n in ("CLIP on the group matrix", "CLIP, masked")
    )
    assert masked < group


def test_the_rows_are_those_of_the_paper():
    assert [row.name for row in TABLE_5] == [
        "CLIP on the group matrix",
        "CLIP, masked",
        "All",
        "Soft",
        "Hard (1)",
        "Hard (1) + Soft",
        "Hard (m)",
        "Hard (m) + Soft",
        "Hard (10)",
        "Hard (10) + Soft",
        "Hard (expectation)",
        "Hard (expectation) + Soft",
    ]
    assert len({(row.name, row.aggregate) for row in ROWS}) == len(ROWS)
    assert {row.aggregate for row in ROWS} == {"", "images", "texts"}


def test_no_instance_is_in_two_sets():
    validation, tests = deal(torch.arange(100, 153), splits=4, seed=3)
    parts = [validation, *tests]
    assert sorted(torch.cat(parts).tolist()) == list(range(100, 153))
    assert len(validation) == 5
    assert max(map(len, tests)) - min(map(len, tests)) <= 1
    assert not torch.equal(deal(torch.arange(100, 153), 4, 4)[0], validation)


def test_tuning_points_are_within_bounds_and_the_same_for_all():
    points = trial_points(6, seed=0)
    assert points == trial_points(6, seed=0)
    assert len(set(points)) == 6
    for point in points:
        given = {**vars(point), "teacher_memory": 1 - point.teacher_decay}
        assert all(low <= given[name] <= high for name, (low, high) in BOUNDS.items())
    outcomes = [
        Outcome(SimpleNamespace(hyperparameters=point), {"average recall": score}, 1.0)
        for point, score in zip(points, (3, 9, 4, 1, 0, 8), strict=True)
    ]
    assert best(outcomes) == points[1]


def test_controls_have_equal_rows_and_equal_time(data):
    base = Schedule(batch_size=10, steps=40)
    images_and_texts = (len(data.images) + len(data.texts)) / data.instances
    equal = sized(row_named("CLIP on pairs, equal rows"), base, data, most=30)
    assert 2 * equal.batch_size == pytest.approx(10 * images_and_texts, abs=1)
    assert equal.steps == base.steps
    assert sized(row_named("CLIP on pairs, equal rows"), base, data, most=12).batch_size == 12
    assert sized(row_named("Hard (10)"), base, data, most=30) == base
    trials = {
        row_named(name, side): [Outcome(None, {}, s) for s in seconds]
        for name, side, seconds in (
            ("CLIP on pairs", "", (1.0, 2.0, 9.0)),
            ("Hard (10) + Soft", "", (5.0, 5.0, 6.0)),
            ("Hard (10) + Soft", "texts", (50.0,)),
        )
    }
    assert time_ratio(trials) == 2.5


def test_batches_have_all_observations_or_a_pair(data):
    schedule = Schedule(batch_size=12, steps=7)
    groups = list(batches(row_named("All"), data, schedule, seed=1))
    assert len(groups) == 7
    for batch in groups:
        instances = batch.image_ids.unique()
        assert len(instances) == 12
        assert len(batch.images) == int(torch.isin(data.image_ids, instances).sum())
        assert torch.equal(batch.text_ids.unique(), instances)
    pairs = list(batches(row_named("CLIP on pairs"), data, schedule, seed=1))
    assert [len(p.images) for p in pairs] == [len(p.texts) for p in pairs] == [12] * 7
    for group, pair in zip(groups, pairs, strict=True):
        assert torch.equal(pair.image_ids.unique(), group.image_ids.unique())
    row = data.images[data.image_ids == pairs[0].image_ids[0]]
    assert (row == pairs[0].images[0]).all(1).any()


@pytest.mark.parametrize("row", [r for r in ROWS if r.loss != "soft"], ids=lambda r: r.name)
def test_every_row_learns_and_is_a_function_of_its_seed(row, data):
    untrained, _ = train(row, data, Schedule(20, 0), HYPERPARAMETERS, seed=5, width=8)
    heads, seconds = train(row, data, Schedule(20, 25), HYPERPARAMETERS, seed=5, width=8)
    after = evaluate(row, heads, data)
    assert after["average recall"] > evaluate(row, untrained, data)["average recall"] + 15
    assert seconds > 0
    again, _ = train(row, data, Schedule(20, 25), HYPERPARAMETERS, seed=5, width=8)
    assert all(
        torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True)
    )


def test_retrieval_of_aggregated_images_is_of_instances(data):
    row = row_named("All", "images")
    x, y, image_ids, text_ids = aggregated(
        row, data.images, data.texts, data.image_ids, data.text_ids
    )
    assert image_ids.tolist() == list(range(40))
    assert len(x) == 40
    assert y is data.texts
    assert text_ids is data.text_ids


def test_standard_errors_are_those_of_overlapping_training_sets():
    first, second = [3.0, 5.0, 10.0, 4.0], [1.0, 4.0, 7.0, 4.0]
    got, plain = contrast(first, second), ttest_rel(first, second)
    assert got.mean == 1.5
    enlarged = np.sqrt((1 / 4 + 1 / 3) / (1 / 4))
    assert got.stderr == pytest.approx(1.5 / plain.statistic * enlarged)
    low, high = plain.confidence_interval()
    assert (got.low - 1.5, got.high - 1.5) == pytest.approx(
        (enlarged * (low - 1.5), enlarged * (high - 1.5))
    )
    assert got.verdict == "within noise"
    assert contrast([5.0, 5.1, 5.2], [1.0, 1.0, 1.0]).verdict == "higher"
    assert contrast([1.0, 1.0, 1.0], [5.0, 5.1, 5.2]).verdict == "lower"


def instances(count):
    return [Instance(f"thing {i}", (None,) * 2, (f"a {i}", f"b {i}")) for i in range(count)]


def test_features_are_made_once_for_a_set(data, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(frozen, "encode", lambda some: made.append(len(some)) or data)
    path = tmp_path / "folder" / "features.safetensors"
    for count in (3, 3, 4, 4):
        got = cached_features(instances(count), path)
        assert all(
            torch.equal(a, b) for a, b in zip(vars(got).values(), vars(data).values(), strict=True)
        )
    assert made == [3, 4]
    part = read_features(path).of(torch.tensor([7, 2]))
    assert part.instances == 2
    assert part.text_ids.tolist() == [2, 2, 2, 7, 7, 7, 7]
    assert torch.equal(part.texts[:3], data.texts[data.text_ids == 2])


def test_the_command_writes_report_tables_and_plot(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda options: (instances(40), {"thing 40": "no image"}))
    monkeypatch.setattr(frozen, "encode", lambda some: data)
    sizes = {"epochs": 2, "batch_size": 8, "splits": 3, "trials": 2, "embed_dim": 6, "workers": 1}
    options = {**sizes, "cache_dir": tmp_path, "results_dir": tmp_path}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert command.main(arguments) == 0
    report = json.loads((tmp_path / "emoji.json").read_text())
    assert [r["row"]["name"] for r in report["results"]] == [row.name for row in ROWS]
    for result in report["results"]:
        assert len(result["runs"]) == len(result["seconds"]) == 3
        scores = [trial["average recall"] for trial in result["trials"]]
        chosen = result["trials"][scores.index(max(scores))]
        assert result["hyperparameters"].items() <= chosen.items()
    page = (tmp_path / "emoji.md").read_text()
    assert page == tables(report)
    out = capsys.readouterr().out
    assert page in out
    assert "left out: thing 40: no image" in out
    assert report["data"]["left_out"] == {"thing 40": "no image"}
    assert "40 instances (1 more could not be rendered and are left out)" in page
    assert (tmp_path / "emoji_summary.md").read_text() == summary(report)
    for row in ROWS:
        assert f"| {row.name} |" in page
    values = report["results"][0]["runs"]
    mean = np.mean([run["text_to_image R@1"] for run in values])
    assert f"| CLIP on the group matrix | {mean:.2f} |" in page
    plot = (tmp_path / "emoji.svg").read_bytes()
    assert b"<svg" in plot
    (tmp_path / "emoji.md").unlink()
    assert command.main(["--tables_only", "true", "--results_dir", str(tmp_path)]) == 0
    assert (tmp_path / "emoji.md").read_text() == page
    assert (tmp_path / "emoji.svg").read_bytes() == plot


def test_flickr30k_and_coco_are_their_training_instances(tmp_path):
    """Samples in the formats of the data sets, through the frozen encoders."""
    names = {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg", "e.jpg"]}
    draw(tmp_path / "flickr30k-images", *names["train"], *names["val"])
    entries = [("a.jpg", "train", 5), ("d.jpg", "val", 5), ("b.jpg", "train", 4)]
    entries += [("e.jpg", "test", 5), ("c.jpg", "train", 5)]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(karpathy(entries)))
    (tmp_path / "annotations").mkdir()
    for part, files in names.items():
        draw(tmp_path / f"{part}2017", *files)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(files)],
            "annotations": [
                {"image_id": i, "caption": f"{j} of {name}"}
                for i, name in enumerate(files)
                for j in range(5 + i)
            ],
        }
        (tmp_path / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(content))
    for name, captions in (("flickr30k", (5, 4, 5)), ("coco", (5, 6, 7))):
        options = command.Options(data=name, data_root=str(tmp_path))
        got, left_out = command.load(options)
        assert [i.name for i in got] == names["train"]
        assert tuple(len(i.captions) for i in got) == captions
        assert not left_out
        assert command.load(replace(options, limit=2))[0] == got[:2]
        features = cached_features(got, tmp_path / f"{name}.safetensors")
        assert features.image_ids.tolist() == [0, 1, 2]
        assert features.text_ids.bincount().tolist() == list(captions)
        assert features.texts.isfinite().all()
        assert len(features.images.unique(dim=0)) == 3


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_errors_of_a_folder_of_captions_name_the_argument(name, tmp_path, capsys):
    folders = ["--cache_dir", str(tmp_path / "cache"), "--results_dir", str(tmp_path / "results")]
    for root, said in (("", "name the folder"), ("nowhere", "nowhere"), (tmp_path, "has none of")):
        given = ["--data", name, "--data_root", str(root)]
        assert command.main([*given, *folders]) == 2
        message = capsys.readouterr().err
        assert "error: --data_root: " in message
        assert said in message


def test_a_data_set_without_training_instances_is_named(tmp_path):
    draw(tmp_path / "images", "a.jpg")
    content = json.dumps(karpathy([("a.jpg", "test", 5)]))
    (tmp_path / "dataset_flickr30k.json").write_text(content)
    with pytest.raises(OptionError, match="--data flickr30k: the train split is empty"):
        command.load(command.Options(data="flickr30k", data_root=str(tmp_path)))


def test_an_interrupted_experiment_goes_on_from_its_finished_runs(data, tmp_path, capsys):
    path = tmp_path / "features.safetensors"
    save_file(vars(data), path, {"instances": "digest"})
    plan = Plan(epochs=2, batch_size=8, splits=2, trials=2, width=6, workers=1)
    rows = [row_named("All"), row_named("Hard (10)")]
    journal = path.with_suffix(".runs.jsonl")
    with pytest.raises(ValueError, match="rounds must be .*, got 0"):
        run_all([*rows, Row("Broken", "hard", rounds=0)], path, plan)
    lines = journal.read_text().splitlines()
    assert len(lines) == 4
    journal.write_text("\n".join([*lines[:2], lines[2][:50]]))  # the third line was cut
    results = run_all(rows, path, plan)
    assert "going on from 2 finished runs" in capsys.readouterr().out
    assert not journal.exists()  # its runs are in the results
    assert all(len(result.trials) == len(result.runs) == 2 for result in results)
    first = [trial.seconds for trial in results[0].trials]
    assert first == [json.loads(line)["seconds"] for line in lines[:2]]
    again = [json.loads(line)["metrics"] for line in lines[2:]]
    assert [trial.metrics for trial in results[1].trials] == again


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.8])
def test_a_damaged_journal_is_refused(data, tmp_path, place):
    path = tmp_path / "features.safetensors"
    save_file(vars(data), path, {"instances": "digest"})
    plan = Plan(epochs=1, batch_size=8, splits=2, trials=1, width=6, workers=1)
    with pytest.raises(ValueError, match="rounds must be .*, got 0"):
        run_all([row_named("All"), Row("Broken", "hard", rounds=0)], path, plan)
    journal = path.with_suffix(".runs.jsonl")
    flip(journal, place)
    with pytest.raises(CheckpointError, match=r"runs.jsonl is not what was written .*; remove it"):
        run_all([row_named("All")], path, plan)


def test_damaged_features_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "encode", lambda some: data)
    path = tmp_path / "features.safetensors"
    cached_features(instances(40), path)
    for place in (0, 0.4, 0.9):
        with restored(path):
            flip(path, place)
            with pytest.raises(CheckpointError, match=r"features.safetensors is not what was"):
                cached_features(instances(40), path)
    # Features of an older version have no digest; they are made anew.
    digest_file(path).unlink()
    flip(path, 0.9)
    assert torch.equal(cached_features(instances(40), path).texts, data.texts)


def test_errors_name_the_argument(data, tmp_path, monkeypatch, capsys):
    for argument in ("splits", "trials", "batch_size"):
        assert command.main([f"--{argument}", "0"]) == 2
        assert f"--{argument} must be at least" in capsys.readouterr().err
    assert command.main(["--tables_only", "true", "--results_dir", str(tmp_path)]) == 2
    assert "--tables_only: there is no" in capsys.readouterr().err
    monkeypatch.setattr(frozen, "encode", lambda some: data)
    path = tmp_path / "features.safetensors"
    cached_features(instances(40), path)
    with pytest.raises(ValueError, match="batch_size: 30, but a split trains on 18 instances"):
        run_all(ROWS, path, replace(Plan(), batch_size=30, splits=2))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_their_report(path):
    report = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == tables(report)
    assert (path.parent / f"{path.stem}_summary.md").read_text() == summary(report)
