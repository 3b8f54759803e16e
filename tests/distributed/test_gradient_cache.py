"""GradientCache with all of it at once: DDP, a loss over the ranks, autocast and a teacher."""

import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mxm_kernels import GradientCache, fused_mfh_loss
from tests.support.processes import results
from tests.support.towers import (
    FOLDS,
    Towers,
    Uncached,
    assert_close,
    batch,
    bfloat16,
    uncached_bfloat16,
)

SCALED = 2.0**10  # as a GradScaler does


def loss_over_ranks(output, teacher):
    return fused_mfh_loss(
        *output["features"],
        FOLDS,
        logit_scale=output["scale"],
        rounds=3,
        generator=torch.Generator().manual_seed(4),
        teacher_image_features=teacher["features"][0],
        teacher_text_features=teacher["features"][1],
        process_group=dist.group.WORLD,
    )


def step(cache, model, teacher, inputs, seed, autocast):
    torch.manual_seed(seed)
    with autocast():
        output = cache.encode(model, *inputs)
        with torch.no_grad():
            targets = cache.encode(teacher, *inputs)
        loss = loss_over_ranks(output, targets)
    (SCALED * loss).backward()
    cache.backward()
    return loss.detach()


def steps(rank, world):
    torch.manual_seed(1)
    towers, teacher = Towers(), Towers().eval()
    wrapped = DistributedDataParallel(copy.deepcopy(towers))
    cache = GradientCache(7)
    for number in range(2):  # the second runs on DDP's rebuilt buckets
        inputs = batch(4 - rank)  # 24 and 18 images: 4 and 3 micro-batches
        seed = 10 * rank + number
        towers.zero_grad()
        expected = step(Uncached(4 - rank), towers, teacher, inputs, seed, uncached_bfloat16)
        wanted = {name: p.grad for name, p in towers.named_parameters()}
        for grad in wanted.values():
            dist.all_reduce(grad)
            grad /= world
        wrapped.zero_grad()
        assert torch.equal(step(cache, wrapped, teacher, inputs, seed, bfloat16), expected)
        assert_close(
            {n: p.grad for n, p in wrapped.module.named_parameters()}, wanted, 1e-6 * SCALED
        )


def test_the_gradient_is_that_without_a_cache():
    results(2, steps)
