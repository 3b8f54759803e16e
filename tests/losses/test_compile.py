"""torch.compile(fullgraph=True) of every loss, and the gradients through it."""

import pytest
import torch
from torch.nn.functional import normalize

import mxm_kernels as mxm

FOLDS = mxm.Folds.from_ids(torch.arange(12) // 6, torch.arange(10) // 5)


def _teacher():
    return {
        "teacher_image_features": normalize(torch.randn(12, 16)),
        "teacher_text_features": normalize(torch.randn(10, 16)),
    }


CALLS = {
    "mfh": lambda x, y, t: mxm.fused_mfh_loss(x, y, FOLDS, logit_scale=9.0, rounds=None, **t),
    "soft share and weights": lambda x, y, t: mxm.fused_supcon_loss(
        x, y, FOLDS, logit_scale=9.0, soft_weight=0.5, image_weights=x.detach()[:, 0].abs(), **t
    ),
    "rows": lambda x, y, t: torch.cat(
        mxm.fused_supcon_loss(x, y, FOLDS, logit_scale=9.0, positives="in", reduction="none")
    ),
    "smoothing": lambda x, y, t: mxm.fused_info_nce_loss(
        x, y, FOLDS, logit_scale=9.0, label_smoothing=0.1, image_to_text_weight=0.75
    ),
    "queue": lambda x, y, t: mxm.fused_info_nce_loss(
        x, y, FOLDS, logit_scale=9.0, text_queue=t["teacher_text_features"]
    ),
    "scales of the rows": lambda x, y, t: mxm.fused_decoupled_loss(
        x, y, FOLDS, logit_scale=(torch.full((12,), 9.0), torch.full((10,), 8.0))
    ),
    "learned scales of the rows, and a teacher": lambda x, y, t: mxm.fused_mfh_loss(
        x, y, FOLDS, logit_scale=(9 + x[:, 0], 8 + y[:, 0]), rounds=None, **t
    ),
    "siglip, learned scales of the rows": lambda x, y, t: mxm.fused_siglip_loss(
        x, y, FOLDS, logit_scale=(9 + x[:, 0], 8 + y[:, 0]), logit_bias=-5.0
    ),
    "debiased, learned scales of the rows": lambda x, y, t: mxm.fused_debiased_loss(
        x, y, FOLDS, logit_scale=(9 + x[:, 0], 8 + y[:, 0])
    ),
    "debiased": lambda x, y, t: mxm.fused_debiased_loss(x, y, FOLDS, logit_scale=9.0),
    "siglip": lambda x, y, t: mxm.fused_siglip_loss(x, y, FOLDS, logit_scale=9.0, logit_bias=-5.0),
    "cwcl": lambda x, y, t: mxm.fused_cwcl_loss(x, y, logit_scale=9.0, **t),
    "soft": lambda x, y, t: mxm.fused_soft_loss(x, y, logit_scale=9.0, **t),
    "float8 teacher": lambda x, y, t: mxm.fused_mfh_loss(
        x, y, FOLDS, logit_scale=9.0, rounds=None, teacher_dtype=torch.float8_e4m3fn, **t
    ),
    "intra-modal": lambda x, y, t: mxm.fused_intra_modal_loss(x, 6, logit_scale=9.0),
    "intra-modal soft": lambda x, y, t: mxm.fused_intra_modal_loss(
        x, 6, logit_scale=9.0, soft_weight=0.5, teacher_features=t["teacher_image_features"]
    ),
    "aggregated": lambda x, y, t: mxm.fold_mean(x, 6)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_compiled(name):
    torch.compiler.reset()
    call, teacher = CALLS[name], _teacher()
    x, y = normalize(torch.randn(12, 16)), normalize(torch.randn(10, 16))
    results = []
    # aot_eager traces as inductor does, without waiting for a C++ compiler.
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        a = x.clone().requires_grad_()
        value = function(a, y, teacher)
        value.sum().backward()
        results += [value.detach(), a.grad]
    torch.testing.assert_close(results[:2], results[2:])


@pytest.mark.parametrize("loss", [mxm.fused_supcon_loss, mxm.fused_siglip_loss])
def test_a_scale_of_zero_shows_as_nan_where_nothing_can_be_looked_at(loss, backend):
    torch.compiler.reset()
    x, y = (normalize(torch.randn(n, 16)).to(backend.device) for n in (12, 10))
    x, s = x.requires_grad_(), torch.zeros((), device=backend.device, requires_grad=True)
    bias = {"logit_bias": -5.0} if loss is mxm.fused_siglip_loss else {}

    def run(x, s):
        return loss(x, y, (6, 5), logit_scale=s, backend=backend.name, **bias)

    value = torch.compile(run, fullgraph=True, backend="aot_eager")(x, s)
    value.backward()
    assert value.isnan() and s.grad.isnan() and bool(x.grad.isnan().any())


def test_diagnostics_of_a_compiled_loss():
    torch.compiler.reset()
    x, y = normalize(torch.randn(12, 16)), normalize(torch.randn(10, 16))
    eager, compiled = mxm.Diagnostics(), mxm.Diagnostics()

    def loss(seen):
        return mxm.fused_info_nce_loss(x, y, FOLDS, logit_scale=9.0, diagnostics=seen)

    loss(eager)
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled)
    assert eager.numbers() == pytest.approx(compiled.numbers())


@pytest.mark.parametrize("dynamic", [None, True])
def test_diagnostics_made_inside_of_what_is_compiled(dynamic):
    """Returned as they are, or read there."""
    torch.compiler.reset()
    x, y = normalize(torch.randn(12, 16)), normalize(torch.randn(10, 16))
    teacher = _teacher()

    def call(x, y):
        seen = mxm.Diagnostics()
        loss = mxm.fused_mfh_loss(
            x, y, FOLDS, logit_scale=9.0, rounds=None, diagnostics=seen, **teacher
        )
        return loss, seen, seen.positive_similarity * 2

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    eager, made = call(x, y), compiled(x, y)
    torch.testing.assert_close(made[::2], eager[::2])
    assert made[1].numbers() == pytest.approx(eager[1].numbers())
    assert len(made[1].numbers()) == 7
