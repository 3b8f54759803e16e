"""open_clip's own training program, run with and without the fused losses."""

import re

import pytest
import torch

open_clip = pytest.importorskip("open_clip")
program = pytest.importorskip("open_clip_train.main", reason="open_clip_torch[training]")
pandas = pytest.importorskip("pandas")
from PIL import Image  # noqa: E402

from mxm_kernels import fused_mfh_loss  # noqa: E402
from mxm_kernels.open_clip import __main__ as command  # noqa: E402
from mxm_kernels.open_clip import losses, patch, patch_mfh  # noqa: E402
from mxm_kernels.open_clip.captions import GroupedLoader  # noqa: E402
from mxm_kernels.open_clip.coca import CoCaLoss  # noqa: E402
from tests.support.open_clip_program import CAPTIONS, logged  # noqa: E402
from tests.support.open_clip_program import arguments as program_arguments  # noqa: E402
from tests.support.open_clip_program import run as program_run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "models", "quiet")


def run(csv, name, *more):
    return program_run(csv, "csv", name, *more)


def arguments(csv, name):
    return program_arguments(csv, "csv", name)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ((), ["Contrastive_loss"]),
        (("--siglip",), ["Contrastive_loss"]),
        (("--accum-freq", "2"), ["Contrastive_loss"]),
        (("--distill-model", "tiny-for-tests"), ["Contrastive_loss", "Distill_loss"]),
        (("--model", "tiny-coca"), ["Contrastive_loss", "Caption_loss"]),
        (("--model", "tiny-coca", "--accum-freq", 2), ["Contrastive_loss", "Caption_loss"]),
        (
            ("--model", "tiny-coca", "--coca-contrastive-loss-weight", 0),
            ["Contrastive_loss", "Caption_loss"],
        ),
    ],
    ids=["clip", "siglip", "accum", "distill", "coca", "coca-accum", "caption"],
)
def test_the_same_losses_with_and_without(csv, models, exact, monkeypatch, more, names):
    if "--distill-model" in more:
        more = (*more, "--distill-pretrained", models)
    if "tiny-coca" in more:
        more = (*more, "--pretrained", models.with_name("coca.pt"))
    made = []
    for kind in (losses.ClipLoss, CoCaLoss, losses.DistillClipLoss, losses.SigLipLoss):
        real = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda *a, real=real, **k: made.append(1) or real(*a, **k)
        )
    theirs = run(csv, "theirs", *more)
    their_exact = exact[:]
    assert not made
    exact.clear()
    with patch():
        ours = run(csv, "ours", *more)
    assert len(made) == len(exact) == len(their_exact) >= 4
    assert len(ours) == len(theirs) >= 4
    for mine, other in zip(ours, theirs, strict=True):
        assert list(other) == [*names, "Loss"]
        assert mine == pytest.approx(other, rel=0, abs=1.01e-4)  # four decimals are logged
    assert exact[0] == pytest.approx(their_exact[0], rel=1e-6)
    for mine, other in zip(exact, their_exact, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)  # Adam's steps carry rounding on


@pytest.mark.parametrize("precision", ["amp", "amp_bf16"])
def test_under_amp_ours_is_nearer_to_float64(csv, monkeypatch, precision):
    """Of the same features, in every step of the program; the runs themselves part in the digits.

    ``rel`` is the rounding of a logit to bfloat16, 2 ** -8; float16 rounds by less.
    """
    errors = {"ours": 0.0, "theirs": 0.0}
    ours, theirs = losses.ClipLoss.forward, open_clip.ClipLoss()

    def both(self, image_features, text_features, logit_scale, output_dict):
        x, y, scale = image_features, text_features, logit_scale
        assert torch.is_autocast_enabled("cpu")
        assert x.dtype == y.dtype == torch.get_autocast_dtype("cpu")
        value = ours(self, x, y, scale, output_dict=output_dict)
        exact = theirs(x.double(), y.double(), scale.double()).item()
        errors["ours"] += abs(value["contrastive_loss"].item() - exact)
        errors["theirs"] += abs(theirs(x, y, scale).item() - exact)
        return value

    for seed in range(3):
        more = "--precision", precision, "--seed", seed
        expected = run(csv, f"theirs-{seed}", *more)
        with patch(), monkeypatch.context() as context:
            context.setattr(losses.ClipLoss, "forward", both)
            found = run(csv, f"ours-{seed}", *more)
        assert len(found) == len(expected) >= 4
        assert found[0] == pytest.approx(expected[0], rel=2**-8)
    assert errors["ours"] < 1e-6 * 3 * len(found)
    assert errors["theirs"] > 20 * errors["ours"]


def test_it_is_undone():
    from open_clip import factory

    before = dict(vars(factory)), dict(vars(program))
    with patch(), patch_mfh():
        assert factory.ClipLoss is losses.ClipLoss
        assert program.create_loss is not before[1]["create_loss"]
    assert (dict(vars(factory)), dict(vars(program))) == before
    patch().close()
    assert dict(vars(factory)) == before[0]


def test_mfh_on_all_captions(csv, exact, monkeypatch):
    batches = []

    def spied(x, y, folds, **options):
        value = fused_mfh_loss(x, y, folds, **options)
        batches.append((len(x), len(y), folds))
        return value

    monkeypatch.setattr(losses, "fused_mfh_loss", spied)
    with patch_mfh(rounds=None):
        steps = run(csv, "mfh", "--epochs", 8, "--workers", 1)
    assert len(steps) == len(exact) == 16
    assert all(list(step) == ["Contrastive_loss", "Loss"] for step in steps)
    assert sum(m for m, _, _ in batches[:2]) == len(CAPTIONS)
    assert sum(n for _, n, _ in batches[:2]) == sum(CAPTIONS)
    for (m, n, folds), value in zip(batches, exact, strict=True):
        assert m == 4
        image_rows, text_rows = folds.pairs(m, n)
        assert text_rows.sort().values.tolist() == list(range(n))  # each caption has its image
        assert set(image_rows.tolist()) == set(range(m))
        assert value["contrastive_loss"] > 0
    first, last = exact[:2], exact[-2:]
    assert sum(v["contrastive_loss"] for v in last) < sum(v["contrastive_loss"] for v in first)


def test_the_grouped_captions_are_those_of_the_image(csv):
    """Batches of the grouped loader against the table itself."""
    from open_clip_train.data import CsvDataset

    from mxm_kernels.open_clip.captions import GroupedCaptions, collate

    tokenizer = open_clip.get_tokenizer("tiny-for-tests")
    rows = CsvDataset(csv, torch.nn.Identity(), "filepath", "title", "\t", tokenizer)
    rows.transforms = lambda image: torch.tensor(image.getpixel((0, 0)))
    table = pandas.read_csv(csv, sep="\t")
    items = GroupedCaptions(rows)
    images, texts, folds = collate([items[k] for k in range(len(items))])
    image_rows, text_rows = folds.pairs(len(images), len(texts))
    found = {
        (tuple(images[i].tolist()), tuple(texts[j].tolist()))
        for i, j in zip(image_rows.tolist(), text_rows.tolist(), strict=True)
    }
    expected = {
        (Image.open(path).getpixel((0, 0)), tuple(tokenizer([title])[0].tolist()))
        for path, title in table.itertuples(index=False)
    }
    assert found == expected
    assert len(found) == sum(CAPTIONS)


def test_mfh_with_a_teacher(csv, models, monkeypatch):
    teachers = []

    def spied(*features, **options):
        teachers.append(options["teacher_image_features"])
        return fused_mfh_loss(*features, **options)

    monkeypatch.setattr(losses, "fused_mfh_loss", spied)
    more = "--distill-model", "tiny-for-tests", "--distill-pretrained", models
    with patch_mfh():
        assert len(run(csv, "mfh", *more)) == 4
    assert all(t.shape == (4, 16) and not t.requires_grad for t in teachers)


def test_mfh_on_accumulated_batches(csv, exact):
    """Two batches of 4 images together are the batch of 8, whatever their order."""
    with patch_mfh(rounds=None):
        run(csv, "whole", "--batch-size", 8)
        whole = [values["contrastive_loss"] for values in exact]
        exact.clear()
        run(csv, "halves", "--accum-freq", 2)
    halves = [values["contrastive_loss"] for values in exact]
    assert (len(whole), len(halves)) == (2, 4)  # two epochs of one step; a loss for each half
    assert halves[0] == pytest.approx(whole[0], rel=1e-6)
    assert halves[1] == pytest.approx(halves[0], rel=1e-6)
    assert halves[2:] == pytest.approx([whole[1]] * 2, rel=1e-4)


def test_the_losses_of_a_step_see_one_draw(csv, exact, monkeypatch):
    drawn = []

    def spied(*features, generator, **options):
        drawn.append(generator.initial_seed())
        return fused_mfh_loss(*features, generator=generator, **options)

    monkeypatch.setattr(losses, "fused_mfh_loss", spied)
    with patch_mfh(rounds=1):
        run(csv, "draws", "--accum-freq", 2, "--seed", 5)
    assert drawn == [5 << 32, 5 << 32, (5 << 32) + 1, (5 << 32) + 1]
    assert exact[0]["contrastive_loss"] == pytest.approx(exact[1]["contrastive_loss"], rel=1e-6)


def test_another_open_clip_is_an_error(monkeypatch):
    monkeypatch.delattr("open_clip.factory.SigLipLoss")
    with pytest.raises(ImportError, match=r"no SigLipLoss: open_clip_torch 2\.32 to 3\.3"):
        patch()


def test_the_command(csv):
    assert command.main(["--mfh", "--mfh-rounds", "0", *arguments(csv, "command")]) == 0
    assert len(logged(csv, "command")) == 4
    assert command.main(arguments(csv, "paired")) == 0
    assert len(logged(csv, "paired")) == 2 * (sum(CAPTIONS) // 4)


def test_the_command_shows_both_kinds_of_options(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert {"--mfh-rounds", "--train-data"} <= set(
        re.findall(r"--[a-z-]+", capsys.readouterr().out)
    )


def test_the_loader_has_what_the_program_reads():
    loader = GroupedLoader([(1, 2, 3)] * 2, num_batches=2, num_samples=4)
    assert (len(loader), loader.num_batches, loader.num_samples) == (2, 2, 4)
