"""Features of inference mode train like others; derivatives that are not there are errors."""

import pytest
import torch
from torch.autograd import forward_ad

from mxm_kernels import Queue, fused_hard_loss, fused_mfh_loss, fused_siglip_loss

X, Y = torch.linspace(0, 3, 24).sin().view(6, 4), torch.linspace(1, 2, 16).cos().view(4, 4)


def test_a_teacher_a_queue_and_a_frozen_tower_of_inference_mode():
    with torch.inference_mode():
        seen = [t.clone() for t in (X, Y, X, Y)]
    gradients = []
    for images, teacher_x, teacher_y, queue in ((X, X, Y, Y), (seen[0], seen[2], seen[1], seen[3])):
        texts = Y.clone().requires_grad_()
        fused_mfh_loss(
            images,
            texts,
            (3, 2),
            logit_scale=2.0,
            rounds=None,
            teacher_image_features=teacher_x,
            teacher_text_features=teacher_y,
            image_queue=Queue(queue),
        ).backward()
        gradients.append(texts.grad)
    assert torch.equal(*gradients)


def test_inference_mode_itself():
    with torch.inference_mode():
        inside = fused_hard_loss(X, Y, (3, 2), logit_scale=2.0, rounds=None)
    assert float(inside) == float(fused_hard_loss(X, Y, (3, 2), logit_scale=2.0, rounds=None))


LOSSES = {
    "images": lambda v: fused_hard_loss(v, Y, (3, 2), logit_scale=2.0),
    "texts": lambda v: fused_siglip_loss(Y, v, (2, 3), logit_scale=2.0, logit_bias=-1.0),
    "scale": lambda v: fused_hard_loss(X, Y, (3, 2), logit_scale=v.sum()),
}


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd], ids=["grad", "jacfwd"])
@pytest.mark.parametrize("name", LOSSES)
def test_transforms_are_refused(name, transform):
    with pytest.raises(RuntimeError, match="reverse-mode derivatives only"):
        transform(LOSSES[name])(X)


def test_forward_mode_is_refused():
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="reverse-mode derivatives"):
        LOSSES["images"](forward_ad.make_dual(X, X))
