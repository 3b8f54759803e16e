import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax, normalize, softmax

from examples.data.instances import Instance
from examples.data.multifold import aggregated
from examples.errors import CheckpointError, OptionError
from examples.files import digest_file
from examples.studies.ablation import __main__ as command
from examples.studies.ablation import features as frozen
from examples.studies.ablation.experiment import GRID, Lab, Plan, deal, lab
from examples.studies.ablation.features import FeatureSet, cached_features, read_features
from examples.studies.ablation.pages import pages
from examples.studies.ablation.rows import ROWS, TABLE_5, Row, Step, loss_of
from examples.studies.ablation.settings import Setting, Size, base_setting, sized
from examples.studies.ablation.studies import (
    DECAYS,
    HARD_WEIGHTS,
    LEVELS,
    STUDIES,
    batch_size,
    curves,
    named,
    observations,
    table,
    time_ratio,
)
from examples.studies.ablation.training import batches, evaluate, train
from examples.studies.protocol.runs import Point
from examples.studies.protocol.tuning import Tuning
from mxm_kernels import fused_intra_modal_loss
from mxm_kernels.data import MultifoldDataset, collate_multifold
from tests.support.captioned import draw, karpathy
from tests.support.damage import flip, restored

POINT = Point(lr=3e-3, temperature=0.1)
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


def row_named(name, side="none"):
    (row,) = (row for row in ROWS if (row.name, row.side) == (name, side))
    return row


def a_step(rounds=None, soft_weight=0.0, progress=0.0):
    return Step(torch.tensor(4.0), soft_weight, rounds, progress, torch.Generator())


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


@pytest.mark.parametrize("aggregate", ["none", "images", "texts", "both"])
@pytest.mark.parametrize(("name", "loss"), [("All", "all"), ("Hard (expectation)", "hard")])
def test_losses_are_those_of_the_matrix(data, name, loss, aggregate):
    batch = a_batch(data)
    x, y = (
        normalize(torch.randn(len(batch.image_ids), 5)),
        normalize(torch.randn(len(batch.text_ids), 5)),
    )
    row = Row(name, loss, aggregate=aggregate)
    got = loss_of(row, batch, (x, y), None, a_step())
    ids = batch.image_ids, batch.text_ids
    if aggregate in ("images", "both"):
        mean = torch.stack([x[ids[0] == i].mean(0) for i in ids[0].unique()])
        x, ids = normalize(mean), (ids[0].unique(), ids[1])
    if aggregate in ("texts", "both"):
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
        rounds = 3 if row.loss == "hard" else None
        return loss_of(row, batch, (x, y), teacher, a_step(rounds, 0.3))

    for name in ("CLIP on the group matrix", "CLIP, masked", "All", "Hard (1)", "CLIP on pairs"):
        torch.testing.assert_close(loss(name), clip)
    torch.testing.assert_close(loss("Soft"), soft)
    for name in ("Hard (m) + Soft", "CLIP on pairs + Soft"):
        torch.testing.assert_close(loss(name), 0.7 * clip + 0.3 * soft)


def test_robust_xr_moves_from_pairs_to_its_own_similarities(data):
    batch = a_batch(data)
    x, y = (normalize(torch.randn(len(ids), 5)) for ids in (batch.image_ids, batch.text_ids))
    row, pairs, soft = (row_named(n) for n in ("Robust-XR on pairs", "CLIP on pairs", "Soft"))
    start = loss_of(row, batch, (x, y), None, a_step())
    torch.testing.assert_close(start, loss_of(pairs, batch, (x, y), None, a_step()))
    most = loss_of(row, batch, (x, y), None, a_step(progress=1 / 0.9))
    torch.testing.assert_close(most, loss_of(soft, batch, (x, y), (x, y), a_step()))
    between = loss_of(row, batch, (x, y), None, a_step(progress=0.5))
    assert between not in (start, most)


def test_the_intra_modal_term_is_added(data):
    batch = a_batch(data)
    x, y = (normalize(torch.randn(len(ids), 5)) for ids in (batch.image_ids, batch.text_ids))
    row = replace(row_named("Hard (expectation)"), intra_modal=0.5)
    got = loss_of(row, batch, (x, y), None, a_step())
    across = loss_of(replace(row, intra_modal=0.0), batch, (x, y), None, a_step())
    inside = [
        fused_intra_modal_loss(features, ids, logit_scale=4.0)
        for features, ids in ((x, batch.image_ids), (y, batch.text_ids))
    ]
    torch.testing.assert_close(got, across + 0.25 * (inside[0] + inside[1]))


def test_masking_leaves_the_other_positives_out(data):
    batch = a_batch(data)
    x, y = (normalize(torch.randn(len(ids), 5)) for ids in (batch.image_ids, batch.text_ids))
    arguments = (batch, (x, y), None, a_step())
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
    assert len({(row.name, row.side) for row in ROWS}) == len(ROWS)
    assert {row.side for row in ROWS} == {"none", "both"}


def test_no_instance_is_in_two_sets():
    validation, tests = deal(torch.arange(100, 153), splits=4, seed=3)
    parts = [validation, *tests]
    assert sorted(torch.cat(parts).tolist()) == list(range(100, 153))
    assert len(validation) == 5
    assert max(map(len, tests)) - min(map(len, tests)) <= 1
    assert not torch.equal(deal(torch.arange(100, 153), 4, 4)[0], validation)


SIZE = Size(instances=30, images=2.0, texts=3.0)


def test_controls_have_equal_rows_and_equal_time():
    base = base_setting(row_named("CLIP on pairs, equal rows"), SIZE, batch_size=10, epochs=4)
    assert (base.batch_size, base.steps) == (10, 12)
    equal = sized(base, SIZE)
    assert (equal.batch_size, equal.views, equal.captions) == (25, 1, 1)
    assert SIZE.rows(equal) == SIZE.rows(base) == 50
    assert sized(base, replace(SIZE, instances=12)).batch_size == 12
    other = replace(base, row=row_named("Hard (10)"))
    assert sized(other, SIZE) == other
    tuned = {
        Setting(row_named(name, side), 10, 12): Tuning({}, seconds)
        for name, side, seconds in (
            ("CLIP on pairs", "none", [1.0, 2.0, 9.0]),
            ("CLIP on pairs + Soft", "none", [70.0]),
            ("Hard (10) + Soft", "none", [5.0, 5.0, 6.0]),
            ("Hard (10) + Soft of all observations", "both", [50.0]),
        )
    }
    assert time_ratio(tuned) == 2.5


def a_setting(name, steps, batch_size=12, **given):
    return sized(Setting(row_named(name), batch_size, steps, **given), Size(40, 2, 2.5))


def test_batches_have_all_observations_or_a_pair(data):
    groups = list(batches(a_setting("All", 7), data, seed=1))
    assert len(groups) == 7
    for batch in groups:
        instances = batch.image_ids.unique()
        assert len(instances) == 12
        assert len(batch.images) == int(torch.isin(data.image_ids, instances).sum())
        assert torch.equal(batch.text_ids.unique(), instances)
    pairs = list(batches(a_setting("CLIP on pairs", 7), data, seed=1))
    assert [len(p.images) for p in pairs] == [len(p.texts) for p in pairs] == [12] * 7
    for group, pair in zip(groups, pairs, strict=True):
        assert torch.equal(pair.image_ids.unique(), group.image_ids.unique())
    row = data.images[data.image_ids == pairs[0].image_ids[0]]
    assert (row == pairs[0].images[0]).all(1).any()


def test_observations_are_drawn_once_or_at_each_step(data):
    def captions_seen(**given):
        setting = Setting(row_named("All"), 40, 6, captions=1, **given)
        seen = {}
        for batch in batches(setting, data, seed=1):
            assert len(batch.texts) == 40
            assert len(batch.images) == len(data.images)
            for place, text in zip(batch.text_ids.tolist(), batch.texts, strict=True):
                seen.setdefault(place, set()).add(tuple(text.tolist()))
        return seen

    once, anew = captions_seen(drawn="once"), captions_seen(drawn="each step")
    assert {len(texts) for texts in once.values()} == {1}
    assert max(len(texts) for texts in anew.values()) > 2
    assert captions_seen(drawn="once") == once  # a function of the seed


@pytest.mark.parametrize("row", [r for r in ROWS if r.loss != "soft"], ids=lambda r: r.name)
def test_every_row_learns_and_is_a_function_of_its_seed(row, data):
    setting = sized(Setting(row, 20, 25, teacher_decay=0.9), Size(40, 2, 2.5))
    untrained, _ = train(replace(setting, steps=0), data, POINT, seed=5, width=8)
    heads, seconds = train(setting, data, POINT, seed=5, width=8)
    after = evaluate(row, heads, data)
    assert after["average recall"] > evaluate(row, untrained, data)["average recall"] + 10
    assert seconds > 0
    again, _ = train(setting, data, POINT, seed=5, width=8)
    assert all(
        torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True)
    )


def test_retrieval_of_aggregated_images_is_of_instances(data):
    x, y, image_ids, text_ids = aggregated(
        "images", data.images, data.texts, data.image_ids, data.text_ids
    )
    assert image_ids.tolist() == list(range(40))
    assert len(x) == 40
    assert y is data.texts
    assert text_ids is data.text_ids


class Tried(Lab):
    """A lab that tunes nothing: every setting's best point is one of the grid."""

    def __init__(self, plan):
        super().__init__(plan, SIZE, None)
        self.grids = {}

    def tune(self, settings, grid=None):
        self.grids |= dict.fromkeys(settings, grid or self.plan.grid)
        return {s: Tuning({Point(1e-3, 0.06): [1.0]}, [3.0]) for s in settings}


def cells_of(study):
    made = Tried(Plan(epochs=4, batch_size=10))
    return study(made), made


def test_batch_sizes_have_equal_epochs_or_equal_steps():
    cells, made = cells_of(batch_size)
    assert {cell.x for cell in cells} == {20}  # others are more than the training set has
    steps = {(c.panel, c.curve): c.setting.steps for c in cells}
    assert {n for (held, _), n in steps.items() if held == "equal steps"} == {12}
    assert {n for (held, _), n in steps.items() if held == "equal epochs"} == {4}
    swept = {s.batch_size: grid for s, grid in made.grids.items()}
    assert swept[20].lrs == GRID.lrs
    assert swept[20].temperatures == (0.06,)
    assert swept[10] == GRID


def test_fewer_observations_have_equal_steps_or_equal_rows():
    cells, made = cells_of(observations)
    assert len(cells) == 4 * len(LEVELS)
    assert {grid == GRID for grid in made.grids.values()} == {True}
    for cell in cells:
        setting = cell.setting
        drawn, held = cell.panel.split(", ")
        assert cell.curve == named((setting.views, setting.captions))
        if (setting.views, setting.captions) != (0, 0):
            assert setting.drawn == drawn
        rows = setting.steps * SIZE.rows(setting)
        assert (
            setting.steps == 12 if held == "equal steps" else rows == pytest.approx(600, rel=0.05)
        )
    assert named((1, 0)) == "1 image, all captions"


def test_curves_hold_the_point_of_the_hard_loss():
    cells, made = cells_of(curves)
    (tuned,) = made.grids
    assert not tuned.row.soft
    weights = [c for c in cells if c.panel == "hard_weight" and c.curve == "tuned temperature"]
    assert [c.x for c in weights] == list(HARD_WEIGHTS)
    assert all(c.setting.soft_weight == pytest.approx(1 - c.x) for c in weights)
    assert {c.point for c in weights} == {Point(1e-3, 0.06)}
    decays = [c for c in cells if c.panel == "teacher's decay"]
    assert [c.setting.teacher_decay for c in decays] == [*DECAYS, *DECAYS]
    assert {c.setting.steps for c in decays} == {12, 600}


@pytest.mark.parametrize("name", STUDIES)
def test_questions_are_about_cells_that_the_study_has(name, data):
    size = Size(900, 3, 4)
    made = Tried(Plan())
    made.size = size
    found = {(c.panel, c.curve, c.x) for c in STUDIES[name].cells(made)}
    assert STUDIES[name].questions
    for question in STUDIES[name].questions:
        assert {question.first, question.second} <= found
        assert question.first != question.second


def test_the_table_has_every_row():
    cells, _ = cells_of(table)
    assert [cell.setting.row for cell in cells] == ROWS


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


SHOWN = ("CLIP, masked", "Hard (10) + Soft", "CLIP on pairs", "CLIP on pairs, equal time")


@pytest.fixture
def arguments(data, tmp_path, monkeypatch):
    """Options of a study of seconds, on made up features."""
    monkeypatch.setattr(command, "load", lambda options: (instances(40), {"thing 40": "no image"}))
    monkeypatch.setattr(frozen, "encode", lambda some: data)
    sizes = {"epochs": 2, "batch_size": 8, "splits": 3, "seeds": 2, "embed_dim": 6, "workers": 1}
    options = {**sizes, "cache_dir": tmp_path, "results_dir": tmp_path}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_the_command_writes_report_tables_and_plot(arguments, tmp_path, monkeypatch, capsys):
    rows = [row_named(name) for name in SHOWN] + [row_named("CLIP, masked", "both")]
    monkeypatch.setattr("examples.studies.ablation.studies.ROWS", rows)
    assert command.main(arguments) == 0
    report = json.loads((tmp_path / "emoji.json").read_text())
    assert [r["curve"] for r in report["results"]] == [row.name for row in rows]
    for result in report["results"]:
        assert [len(split) for split in result["runs"]] == [2, 2, 2]
        assert [len(split) for split in result["seconds"]] == [2, 2, 2]
    page = (tmp_path / "emoji.md").read_text()
    made = pages(report, "emoji")
    assert page == made["emoji.md"]
    out = capsys.readouterr().out
    assert page in out
    assert "left out: thing 40: no image" in out
    assert report["data"]["left_out"] == {"thing 40": "no image"}
    assert "40 instances (1 more could not be rendered and are left out)" in page
    assert (tmp_path / "emoji_summary.md").read_text() == made["emoji_summary.md"]
    for row in rows:
        assert f"| {row.name} |" in page
    values = [run["text_to_image R@1"] for split in report["results"][0]["runs"] for run in split]
    assert f"| CLIP, masked | {np.mean(values):.2f} |" in page
    assert "| MFH instead of one fixed pair |" in page
    assert not (tmp_path / "emoji_all.runs.jsonl").exists()  # its runs are in the report
    plot = (tmp_path / "emoji.svg").read_bytes()
    assert b"<svg" in plot
    (tmp_path / "emoji.md").unlink()
    assert command.main(["--tables_only", "true", "--results_dir", str(tmp_path)]) == 0
    assert (tmp_path / "emoji.md").read_text() == page
    assert (tmp_path / "emoji.svg").read_bytes() == plot


def test_the_command_draws_curves(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("examples.studies.ablation.studies.LONGER", 9)
    assert command.main([*arguments, "--study", "curves"]) == 0
    report = json.loads((tmp_path / "emoji_curves.json").read_text())
    page = (tmp_path / "emoji_curves.md").read_text()
    assert page == pages(report, "emoji_curves")["emoji_curves.md"]
    for weight in HARD_WEIGHTS:
        assert f"| tuned temperature | {weight:g} |" in page
    assert "| decay 0.99 instead of 0.9, 600 steps |" not in page  # this study has 9
    assert "| hard_weight 0.6 instead of 1 |" in page
    assert b"<svg" in (tmp_path / "emoji_curves.svg").read_bytes()


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
    for argument in ("splits", "seeds", "batch_size"):
        assert command.main([f"--{argument}", "0"]) == 2
        assert f"--{argument} must be at least" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--study", "everything"])
    assert "--study: invalid choice: 'everything'" in capsys.readouterr().err
    assert command.main(["--tables_only", "true", "--results_dir", str(tmp_path)]) == 2
    assert "--tables_only: there is no" in capsys.readouterr().err
    monkeypatch.setattr(frozen, "encode", lambda some: data)
    path = tmp_path / "features.safetensors"
    cached_features(instances(40), path)
    with pytest.raises(ValueError, match="batch_size: 30, but a split trains on 18 instances"):
        lab(path, replace(Plan(), batch_size=30, splits=2))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_their_report(path):
    for name, text in pages(json.loads(path.read_text()), path.stem).items():
        assert (path.parent / name).read_text() == text
