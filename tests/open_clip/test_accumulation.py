"""What open_clip's --accum-freq computes, beside GradientCache on the same batch."""

from types import SimpleNamespace

import pytest
import torch

from mxm_kernels import Folds, GradientCache, fused_mfh_loss
from mxm_kernels.open_clip import ClipLoss, MFHLoss
from mxm_kernels.open_clip.captions import GroupedLoader
from mxm_kernels.open_clip.training import _WithFolds

open_clip = pytest.importorskip("open_clip")
train = pytest.importorskip("open_clip_train.train")

VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
PARTS, IMAGES = 3, 4  # batches of a step, images of a batch


@pytest.fixture
def model():
    return open_clip.CLIP(16, VISION, TEXT, output_dict=True).double()


def batches(captions):
    """(images, texts, folds) of each batch; ``captions`` of each image."""
    made = []
    for part in range(PARTS):
        ids = torch.arange(IMAGES) + part * IMAGES
        counts = torch.tensor(captions)
        texts = torch.randint(1, 50, (int(counts.sum()), 8))
        images = torch.randn(IMAGES, 3, 16, 16).double()
        made.append((images, texts, Folds.from_ids(ids, ids.repeat_interleave(counts))))
    return made


def accumulated(model, given, loss):
    """Gradients of one step of open_clip's own loop, which leaves the weights as they are."""
    args = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=PARTS, skip_scheduler=True
    )
    vars(args).update(horovod=False, grad_clip_norm=None, rank=0, local_rank=0, log_local=False)
    vars(args).update(log_every_n_steps=10, batch_size=IMAGES, world_size=1, wandb=False)
    loader = GroupedLoader(given, PARTS, PARTS * IMAGES, PARTS)
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    still = torch.optim.SGD(model.parameters(), lr=0)
    train.train_one_epoch(model, data, loss(loader), 0, still, None, None, None, args)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return grads


def cached(model, given, **options):
    """Gradients of the same step through a GradientCache."""
    cache = GradientCache(micro_batch=IMAGES)
    images, texts, _ = zip(*given, strict=True)
    x = cache.encode(model.encode_image, torch.cat(images), normalize=True)
    y = cache.encode(model.encode_text, torch.cat(texts), normalize=True)
    fused_mfh_loss(x, y, logit_scale=model.logit_scale.exp(), **options).backward()
    cache.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_alike(theirs, ours):
    theirs["logit_scale"] /= PARTS  # each of their losses differentiates the whole of it
    assert theirs.keys() == ours.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [open_clip.ClipLoss, ClipLoss])
def test_clip(model, kind):
    given = batches([1] * IMAGES)
    assert_alike(
        accumulated(model, given, lambda loader: kind()),
        cached(model, given, folds=(1, 1), rounds=None),
    )


@pytest.mark.parametrize("rounds", [None, 2])
def test_mfh_on_all_captions(model, rounds):
    given = batches([1, 3, 2, 2])
    theirs = accumulated(model, given, lambda loader: _WithFolds(MFHLoss(rounds=rounds), loader, 7))
    ids = torch.arange(PARTS * IMAGES)
    folds = ids, ids.repeat_interleave(torch.tensor([1, 3, 2, 2] * PARTS))
    generator = torch.Generator().manual_seed(7 << 32)
    assert_alike(theirs, cached(model, given, folds=folds, rounds=rounds, generator=generator))
