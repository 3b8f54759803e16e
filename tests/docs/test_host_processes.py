"""What docs/hosts says of two processes: which gradients are averaged, who shares batches."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from mxm_kernels import MFHLoss
from mxm_kernels.data import collate_multifold
from tests.support.processes import as_torchrun, results

pytest.importorskip("transformers")

from tests.support.clip import instances, small_clip


def scale_gradients(rank, world):
    """Of a scale that comes from a sharded module in four ways; what is refused."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    batch = collate_multifold(instances(4)[rank::world])
    criterion = MFHLoss(rounds=None, process_group=dist.group.WORLD)
    with pytest.raises(ValueError, match="doesn't support scalar parameters"):
        fully_shard(small_clip(), mesh=mesh)

    def gradient(scale_of, one_dimension=True, **options):
        model = small_clip()
        if one_dimension:
            model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().reshape(1))
        else:
            options["ignored_params"] = {model.logit_scale}
        fully_shard(model, mesh=mesh, **options)
        out = model(batch.texts, batch.images)
        scale = scale_of(model)
        criterion(out.image_embeds, out.text_embeds, batch.folds, logit_scale=scale).backward()
        grad = model.logit_scale.grad
        return float(grad.full_tensor() if hasattr(grad, "full_tensor") else grad)

    resharded = {"reshard_after_forward": True}
    with pytest.raises(TypeError, match="logit_scale must be a plain tensor, got DTensor"):
        gradient(lambda model: model.logit_scale.exp(), **resharded)
    return {
        "default": gradient(lambda model: model.logit_scale.exp()),
        "full_tensor": gradient(lambda model: model.logit_scale.full_tensor().exp(), **resharded),
        "ignored": gradient(lambda model: model.logit_scale.exp(), one_dimension=False),
    }


def test_the_scale_under_fsdp2():
    model, batch = small_clip(), collate_multifold(instances(4))
    out = model(batch.texts, batch.images)
    features = out.image_embeds, out.text_embeds
    MFHLoss(rounds=None)(*features, batch.folds, logit_scale=model.logit_scale.exp()).backward()
    expected = pytest.approx(float(model.logit_scale.grad), rel=1e-4)
    ranks = results(2, scale_gradients, timeout=200)
    for rank in ranks:
        assert rank["default"] == expected
        assert rank["full_tensor"] != expected and rank["ignored"] != expected
    assert sum(rank["ignored"] for rank in ranks) / 2 == expected


def ddp_gradients(rank, world):
    """Of the scale, with features that come through the wrapper and around it."""
    batch = collate_multifold(instances(4)[rank::world])
    criterion = MFHLoss(rounds=None, process_group=dist.group.WORLD)
    model = small_clip()
    ddp = torch.nn.parallel.DistributedDataParallel(model)

    def gradient(x, y):
        model.zero_grad()
        criterion(x, y, batch.folds, logit_scale=ddp.module.logit_scale.exp()).backward()
        return float(model.logit_scale.grad)

    out = ddp(batch.texts, batch.images)
    through = gradient(out.image_embeds, out.text_embeds)
    images = ddp.module.get_image_features(pixel_values=batch.images).pooler_output
    texts = ddp.module.get_text_features(input_ids=batch.texts).pooler_output
    return through, gradient(normalize(images), normalize(texts))


def test_ddp_averages_what_comes_through_it():
    (first, around), (second, other) = results(2, ddp_gradients, timeout=200)
    assert first == second and around != pytest.approx(other, rel=0.01)
    assert (around + other) / 2 == pytest.approx(first, rel=1e-4)


def shares_batches(rank, world):
    """Processes and batches of Accelerate, told that it is on CPUs and not."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from torch.utils.data import DataLoader

    as_torchrun(rank, world)
    seen = {}
    for cpu in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=cpu)
        loader = accelerator.prepare(DataLoader(list(range(8)), 2))
        seen[cpu] = accelerator.num_processes, [batch.tolist() for batch in loader]
    return seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_accelerate_has_to_be_told_that_it_is_on_cpus():
    pytest.importorskip("accelerate")
    first, second = results(2, shares_batches, timeout=200)
    every = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert first[False] == second[False] == (1, every)
    assert first[True] == (2, every[::2]) and second[True] == (2, every[1::2])
