"""A process outside a group, and tensors over a mesh: errors that say what to do instead."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import mxm_kernels as mxm
from mxm_kernels import retrieval
from tests.support.processes import results
from tests.support.public_losses import (
    FUNCTIONS,
    IDS,
    MODULES,
    PAIRS,
    TAUGHT,
    Features,
    call,
    call_module,
)

OUTSIDE = "process_group: this process is not in the group: only its members call the loss with it"


def _message(run):
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _outside(rank, world):
    """What every loss says in the process that a group leaves out; the other computes."""
    group, f = dist.new_group([0]), Features.make()
    told = {}
    for name, function in FUNCTIONS.items():
        told[name] = _message(lambda function=function: call(function, f, process_group=group))
    for name, kind in MODULES.items():
        told[name] = _message(lambda kind=kind: call_module(kind, f, process_group=group))
    dist.barrier()
    return told


def test_a_process_outside_the_group_is_told_so():
    member, outsider = results(2, _outside)
    assert set(member.values()) == {"no error"}
    for name, message in outsider.items():
        assert message.startswith(f"ValueError: {OUTSIDE}"), (name, message)


@pytest.mark.parametrize("number", [0, 1, -1, True])
def test_another_number_is_no_group(number):
    with pytest.raises(TypeError, match="process_group must be a torch.distributed.Process"):
        mxm.fused_info_nce_loss(torch.eye(2), torch.eye(2), logit_scale=1.0, process_group=number)


def _over_a_mesh(rank, world):
    """What is said of each tensor argument that is a DTensor, by its name."""
    mesh, f, told = init_device_mesh("cpu", (world,)), Features.make(), {}

    def over(tensor, placement=None):
        return distribute_tensor(tensor, mesh, [placement or Replicate()])

    rows, one = over(torch.ones(6), Shard(0)), over(torch.tensor([10.0]))
    ids = over(torch.tensor(IDS))
    sides = {"image_features": f.x, "text_features": f.y, "features": f.x}
    for name, function in FUNCTIONS.items():
        needed = f.arguments(function)
        made = {n: over(t.detach(), Shard(0)) for n, t in sides.items() if n in needed}
        made["logit_scale"] = one
        if "logit_bias" in needed:
            made["logit_bias"] = one
        for argument, value in made.items():
            told[name, argument] = _message(
                lambda function=function, given={argument: value}: call(function, f, **given)
            )
        if name in TAUGHT:
            for argument, value in f.teacher.items():
                given = {argument: over(value, Shard(0))}
                told[name, argument] = _message(
                    lambda function=function, given=given: call(function, f, **given)
                )
    plain = torch.ones(PAIRS)
    others = {
        "image_weights": rows,
        "logit_scale[1]": {"logit_scale": (torch.ones(6), rows)},
        "soft_weight[0]": {"soft_weight": (rows, torch.ones(6)), **f.teacher},
        "text_queue": over(f.y.detach()),
        "pair_weights[1]": {"pair_weights": (plain, over(plain))},
        "teacher_logit_scale": {"teacher_logit_scale": one, "soft_weight": 0.5, **f.teacher},
        "image_ids": {"folds": (ids, ids)},
        "selection[0]": {"selection": (ids[None], ids[None])},
    }
    for argument, value in others.items():
        given = value if isinstance(value, dict) else {argument: value}
        told["hard", argument] = _message(lambda given=given: call(mxm.fused_hard_loss, f, **given))
    x = over(f.x.detach(), Shard(0))
    told["mean", "features"] = _message(lambda: mxm.fold_mean(x, 2))
    told["metrics", "image_features"] = _message(lambda: retrieval.retrieval_metrics(x, x, (1, 1)))
    told["draw", "image_features"] = _message(lambda: mxm.draw_selection((1, 1), x, x, rounds=1))
    return told


def test_a_tensor_over_a_mesh_is_named_with_what_to_give_instead():
    for told in results(2, _over_a_mesh):
        assert len(told) > 40
        for (call_of, argument), message in told.items():
            start = (
                f"TypeError: {argument} must be a plain tensor, got DTensor: give its full_tensor"
            )
            assert message.startswith(start), (call_of, argument, message)
            assert "to_local()" in message and "fully_shard" in message
