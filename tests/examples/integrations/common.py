"""Data that two towers learn, and the environment of a process that torchrun has started."""

from functools import partial

import torch

from mxm_kernels import MFHLoss
from mxm_kernels.data import MultifoldDataset
from tests.support.distributed import D_IN

INSTANCES, CAPTIONS = 8, 2
WORLD = 2
# The exact expectation: the same loss in every process, whatever was drawn before.
EXPECTED_MFH = partial(MFHLoss, rounds=None)


class Items(torch.utils.data.Dataset):
    """Instances: an image and two captions, vectors that have something in common."""

    def __init__(self, count=INSTANCES):
        draw = torch.Generator().manual_seed(5)
        self.images = torch.randn(count, D_IN, generator=draw)
        noise = torch.randn(count, CAPTIONS, D_IN, generator=draw)
        self.texts = self.images[:, None] + 0.1 * noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.texts[index], index


def rows(items):
    images, texts, ids = zip(*items, strict=True)
    image_ids = torch.tensor(ids)
    return torch.stack(images), torch.cat(texts), image_ids, image_ids.repeat_interleave(CAPTIONS)


def drawn(count=INSTANCES):
    """The same as a multifold dataset, which draws one of the captions in every epoch."""
    items = Items(count)
    ids = torch.arange(count)
    texts = items.texts.flatten(0, 1)
    return MultifoldDataset(items.images, texts, ids, ids.repeat_interleave(CAPTIONS), captions=1)


def weights(model):
    """A model's parameters, to compare."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
