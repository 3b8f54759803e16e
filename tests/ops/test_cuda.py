"""A training step on a GPU: it never waits for the device, and a CUDA graph captures it."""

import pytest
import torch

from mxm_kernels import Folds, fused_mfh_loss, memory_budget
from tests.support.mfh import RAGGED

cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _training_step(x, y, tx, ty, s, folds, **options):
    return fused_mfh_loss(
        x, y, folds, logit_scale=s, teacher_image_features=tx, teacher_text_features=ty, **options
    )


@cuda_only
@pytest.mark.parametrize("teacher_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_a_step_never_waits_for_the_gpu(teacher_dtype):
    x, y, tx, ty = (f.cuda() for f in RAGGED.features(torch.bfloat16))
    x, y = x.requires_grad_(), y.requires_grad_()
    s = torch.tensor(20.0, device="cuda", requires_grad=True)
    folds = Folds.from_ids(*RAGGED.ids).to("cuda")
    options = {"teacher_dtype": teacher_dtype}
    _training_step(x, y, tx, ty, s, folds, **options).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _training_step(x, y, tx, ty, s, folds, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda_only
@pytest.mark.parametrize("teacher_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_captured_in_a_cuda_graph(teacher_dtype):
    x, y, tx, ty = (f.cuda() for f in RAGGED.features(torch.bfloat16))
    s = torch.tensor(20.0, device="cuda")
    folds = Folds.from_ids(*RAGGED.ids).to("cuda")

    def step():
        return fused_mfh_loss(
            x, y, folds, logit_scale=s, rounds=None, teacher_image_features=tx,
            teacher_text_features=ty, teacher_dtype=teacher_dtype,
        )  # fmt: skip

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(x.roll(1, 0))
    graph.replay()
    assert torch.equal(captured, step())


@cuda_only
def test_a_cuda_graph_keeps_its_budget():
    """Captured under a budget, forward and backward; replayed under another, with its bits."""
    x, y, tx, ty = (f.cuda() for f in RAGGED.features(torch.bfloat16))
    x, y = x.requires_grad_(), y.requires_grad_()
    s = torch.tensor(20.0, device="cuda", requires_grad=True)
    folds = Folds.from_ids(*RAGGED.ids).to("cuda")
    for kept, other in ((1 << 30, 0), (0, 1 << 30)):

        def step():
            loss = _training_step(x, y, tx, ty, s, folds, rounds=None)
            return loss.detach(), *torch.autograd.grad(loss, (x, y, s))

        with memory_budget(kept):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
        with memory_budget(other), torch.no_grad():
            x.copy_(x.roll(1, 0))
            graph.replay()
        with memory_budget(kept):
            expected = step()
        for found, value in zip(captured, expected, strict=True):
            assert torch.equal(found, value)
