"""open_clip's training program on webdataset shards: paired, and with all captions of an image."""

from io import BytesIO

import pytest
import torch

from mxm_kernels import fused_mfh_loss
from mxm_kernels.open_clip import losses, patch, patch_mfh
from mxm_kernels.open_clip.shards import Captions, FullBatches, group_shards, identify
from tests.support.open_clip_program import CAPTIONS, COLOURS, run

Image = pytest.importorskip("PIL.Image")
wds = pytest.importorskip("webdataset")
open_clip = pytest.importorskip("open_clip")
program = pytest.importorskip("open_clip_train.main", reason="open_clip_torch[training]")

pytestmark = pytest.mark.usefixtures("one_thread", "models", "quiet")
SIZE = "--train-num-samples", len(COLOURS)


def png(colour):
    buffer = BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def captions(index):
    return [f"{COLOURS[index]} square number {k}" for k in range(CAPTIONS[index])]


def write(folder, samples):
    """Two shards of (image, text); the pattern that names them."""
    for shard in range(2):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as sink:
            for index, (image, text) in enumerate(samples):
                if index % 2 == shard:
                    sink.write({"__key__": f"{index:05d}", "png": image, "txt": text})
    return folder / "{0..1}.tar"


@pytest.fixture
def shards(tmp_path):
    """A sample for each image, its captions on the lines of one text."""
    return write(tmp_path, [(png(c), "\n".join(captions(i))) for i, c in enumerate(COLOURS)])


@pytest.fixture
def repeated(tmp_path):
    """A sample for each caption, images again and again."""
    pairs = [(png(c), text) for i, c in enumerate(COLOURS) for text in captions(i)]
    return write(tmp_path, pairs)


@pytest.fixture
def spied(monkeypatch):
    """What MFH is called with."""
    calls = []

    def spy(x, y, folds, **options):
        calls.append((len(x), len(y), folds))
        return fused_mfh_loss(x, y, folds, **options)

    monkeypatch.setattr(losses, "fused_mfh_loss", spy)
    return calls


def counts(m, n, folds):
    """Images by how many captions they have, ascending."""
    rows, _ = folds.pairs(m, n)
    return sorted(rows.bincount(minlength=m).tolist())


def test_the_same_losses_with_and_without(shards, exact):
    """A batch is all the images, since the program shuffles by the clock."""
    more = *SIZE, "--batch-size", len(COLOURS), "--epochs", 3
    theirs = run(shards, "webdataset", "theirs", *more)
    their_exact = exact[:]
    exact.clear()
    with patch():
        ours = run(shards, "webdataset", "ours", *more)
    assert len(ours) == len(theirs) == len(exact) == 3
    assert exact[0] == pytest.approx(their_exact[0], rel=1e-6)
    for mine, other in zip(exact, their_exact, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_mfh_on_all_captions(shards, spied, exact, workers):
    more = *SIZE, "--epochs", 8, "--workers", workers
    with patch_mfh(rounds=None):
        steps = run(shards, "webdataset", "mfh", *more)
    assert len(steps) == len(spied) == 16
    assert all(m == 4 for m, _, _ in spied)
    if workers == 0:  # with two, each reads its own shard
        assert sorted(counts(*spied[0]) + counts(*spied[1])) == sorted(CAPTIONS)
    for m, n, folds in spied:
        _, text_rows = folds.pairs(m, n)
        assert text_rows.sort().values.tolist() == list(range(n))  # each caption has its image
    first, last = (sum(v["contrastive_loss"] for v in part) for part in (exact[:2], exact[-2:]))
    assert last < first


def test_mfh_on_accumulated_batches(shards, exact, spied):
    """Two batches of 4 images together are the batch of 8, whatever their order."""
    with patch_mfh(rounds=None):
        run(shards, "webdataset", "one", *SIZE, "--batch-size", 8, "--epochs", 1)
        run(shards, "webdataset", "two", *SIZE, "--accum-freq", 2, "--epochs", 1)
    assert counts(*spied[0]) == sorted(CAPTIONS)
    losses_ = [v["contrastive_loss"] for v in exact]
    assert losses_[1:] == pytest.approx(losses_[:1] * 2, rel=1e-6)


def test_an_image_that_is_repeated_is_one_instance(repeated, spied):
    total = sum(CAPTIONS)
    size = "--train-num-samples", total, "--batch-size", total, "--epochs", 1
    with patch_mfh():
        run(repeated, "webdataset", "mfh", *size)
    ((m, n, folds),) = spied
    assert (m, n) == (total, total)
    assert counts(m, n, folds) == sorted(k for k in CAPTIONS for _ in range(k))


def test_the_captions_are_those_of_the_image(shards):
    """Batches of the pipeline against what was written."""
    from argparse import Namespace

    from open_clip_train.data import get_wds_dataset

    from mxm_kernels.open_clip.captions import grouped

    tokenizer = open_clip.get_tokenizer("tiny-for-tests")
    given = {"train_data": str(shards), "train_num_samples": 8, "dataset_resampled": False}
    given |= {"train_data_upsampling_factors": None, "seed": 0, "batch_size": 4, "workers": 0}
    args = Namespace(**given, world_size=1, accum_freq=1, dataset_type="webdataset")

    def colour(image):
        return torch.tensor(image.getpixel((0, 0)))

    data = get_wds_dataset(args, colour, is_train=True, tokenizer=tokenizer)
    loader = grouped(args, data, tokenizer).dataloader
    found = set()
    for images, texts in loader:
        rows = loader.folds.pairs(len(images), len(texts))
        for i, j in zip(*(row.tolist() for row in rows), strict=True):
            found.add((tuple(images[i].tolist()), tuple(texts[j].tolist())))
    pixel = [Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in COLOURS]
    expected = {
        (pixel[i], tuple(tokenizer([text])[0].tolist()))
        for i in range(len(COLOURS))
        for text in captions(i)
    }
    assert found == expected


def test_more_images_in_a_batch_than_in_the_shards(shards):
    """The program alone would read the shards again, for ever."""
    more = *SIZE, "--batch-size", 9
    with patch_mfh(), pytest.raises(ValueError, match="a batch takes 9 images, .* have 8: lower"):
        run(shards, "webdataset", "mfh", *more)


def test_too_few_batches_for_a_step(shards):
    more = *SIZE, "--accum-freq", 3
    with patch_mfh(), pytest.raises(ValueError, match="a step takes 12 images of each process"):
        run(shards, "webdataset", "mfh", *more)


def test_another_pipeline_is_an_error():
    stages = wds.DataPipeline(wds.SimpleShardList("x"), wds.to_tuple("image", "text"))
    loader = wds.WebLoader(stages, batch_size=None)
    with pytest.raises(ImportError, match=r"than open_clip_torch 2\.32 to 3\.3: install"):
        group_shards(loader, tokenize=list, batch_size=4)


def test_parts():
    ids = {identify({kind: b"image", "txt": b""})["__instance__"] for kind in ("jpg", "webp")}
    assert len(ids) == 1
    assert 0 <= ids.pop() < 2**63
    assert identify({"jpg": b"other"})["__instance__"] not in ids
    seen = Captions(lambda texts: texts)
    assert seen("a dog\n\n the dog \n") == ["a dog", "the dog"]
    assert seen("\n") == [""]
    with pytest.raises(ValueError, match="have 1"):
        list(FullBatches(2)([(torch.ones(1), torch.ones(1, 1), 3)]))
