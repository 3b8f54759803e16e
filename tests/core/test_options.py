"""The options that all losses share: bad ones are errors that name them."""

from fractions import Fraction

import pytest
import torch

import mxm_kernels as mxm
from mxm_kernels import Folds, Queue

X, Y = torch.eye(4, 3) + 0.1, torch.eye(6, 3) + 0.1
TEACHER = {"teacher_image_features": X, "teacher_text_features": Y}
SOFT = TEACHER | {"soft_weight": 0.5}
LOSSES = [
    mxm.fused_info_nce_loss,
    mxm.fused_supcon_loss,
    mxm.fused_hard_loss,
    mxm.fused_decoupled_loss,
    mxm.fused_debiased_loss,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"imag_weights": 1},
            TypeError,
            "unexpected option 'imag_weights': expected an arg",
        ),
        ({"soft_weight": 0.5}, ValueError, "soft_weight=0.5 needs teacher_image_features"),
        (TEACHER, ValueError, "teacher features were given, but soft_weight is 0"),
        (SOFT | {"soft_weight": 2}, ValueError, "soft_weight must be between 0 and 1, got 2"),
        (SOFT | {"soft_weight": "x"}, TypeError, "soft_weight must be a number, got str"),
        (SOFT | {"soft_weight": (X[:, 0],)}, TypeError, "soft_weight must be a number or a pair"),
        (
            SOFT | {"soft_weight": (torch.ones(5), torch.ones(6))},
            ValueError,
            r"soft_weight\[0\] must have shape \(4,\), got \(5,\)",
        ),
        (
            SOFT | {"soft_weight": (torch.ones(4), 2 * torch.ones(6))},
            ValueError,
            r"soft_weight\[1\] must be between 0 and 1",
        ),
        ({"image_to_text_weight": -0.1}, ValueError, "image_to_text_weight must be between 0 and"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be at least 0 and below 1"),
        ({"label_smoothing": None}, TypeError, "label_smoothing must be a number, got NoneType"),
        ({"reduction": "sum"}, ValueError, "reduction must be 'mean' or 'none', got 'sum'"),
        ({"image_weights": [1.0] * 4}, TypeError, "image_weights must be a tensor, got list"),
        ({"image_weights": torch.ones(3)}, ValueError, r"image_weights must have shape \(4,\)"),
        ({"text_weights": torch.ones(6).long()}, TypeError, "text_weights must be a floating"),
        (
            {"text_weights": -torch.ones(6)},
            ValueError,
            "text_weights must not be negative or NaN, got -1",
        ),
        ({"image_weights": torch.zeros(4)}, ValueError, "image_weights: expected a positive w"),
        ({"image_weights": torch.ones(4, device="meta")}, ValueError, "image_weights must be on"),
        (
            {"image_weights": torch.full((4,), torch.nan)},
            ValueError,
            "image_weights must not be negative or NaN, got nan",
        ),
        (
            {"image_weights": torch.ones(4).to_sparse()},
            TypeError,
            "image_weights must be a dense tensor, got layout torch.sparse_coo",
        ),
        (
            SOFT | {"teacher_image_features": X.to_sparse()},
            TypeError,
            "teacher_image_features must be a dense tensor",
        ),
        ({"pair_weights": torch.ones(12)}, TypeError, r"pair_weights must be a pair of \(P,\)"),
        (
            {"pair_weights": (torch.ones(12), torch.ones(11))},
            ValueError,
            r"pair_weights\[1\] must have shape \(12,\), one for each of Folds.pairs, got \(11,\)",
        ),
        ({"pair_weights": ([1], [1])}, TypeError, r"pair_weights\[0\] must be a floating-point"),
        ({"text_queue": 3}, TypeError, "text_queue must be a tensor of features or Queue"),
        ({"text_queue": (X, 3)}, TypeError, "text_queue: the folds of a queue must be Folds"),
        (
            {"text_queue": Queue(X, (2, 2))},
            TypeError,
            "text_queue: the folds of a queue must",
        ),
        ({"text_queue": X[0]}, ValueError, r"text_queue must have shape \(rows, D\), got \(3,\)"),
        ({"text_queue": X[:, :2]}, ValueError, "text_queue must have the dimension D of the feat"),
        ({"image_queue": X.double()}, TypeError, "image_queue must have the dtype"),
        ({"image_queue": X.to("meta")}, ValueError, "image_queue must be on the device"),
        (
            {"image_queue": Queue(X, Folds.from_ids([1] * 4, [1] * 4))},
            ValueError,
            "image_queue: expected ids for 6 rows of text_features and 4 rows of the queue",
        ),
        (
            SOFT
            | {"text_queue": X, "teacher_image_features": X[:, :2]}
            | {"teacher_text_features": Y[:, :2]},
            ValueError,
            "teacher's features must have the dimension D of text_queue, 3, got 2: a soft loss",
        ),
        ({"logit_scale": (torch.ones(4),)}, TypeError, "logit_scale must be a number, a tensor"),
        (
            {"logit_scale": (torch.ones(4), torch.ones(4))},
            ValueError,
            r"logit_scale\[1\] must have shape \(6,\)",
        ),
        (
            {"logit_scale": (torch.ones(4), -torch.ones(6))},
            ValueError,
            r"logit_scale\[1\] must be positive and finite",
        ),
        (
            SOFT | {"teacher_dtype": torch.float16},
            ValueError,
            "teacher_dtype must be torch.float8_e4m3fn or None, got torch.float16",
        ),
        (
            SOFT | {"teacher_dtype": "float8"},
            ValueError,
            "teacher_dtype must be torch.float8_e4m3fn or None, got 'float8'",
        ),
        (
            {"teacher_dtype": torch.float8_e4m3fn},
            ValueError,
            "teacher_dtype was given without teacher features",
        ),
        ({"diagnostics": 1}, TypeError, "diagnostics must be Diagnostics or None, got int"),
    ],
)
def test_bad_options(loss, change, error, message):
    with pytest.raises(error, match=message):
        loss(X, Y, (2, 3), **{"logit_scale": 5.0} | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mxm.fused_supcon_loss(X, Y, (2, 3), logit_scale=1.0, positives="mean"),
            "'out' or",
        ),
        (lambda: mxm.fused_soft_loss(X, Y, logit_scale=1.0), "the soft loss needs teacher_image"),
        (lambda: mxm.fused_info_nce_loss(X, Y, logit_scale=1.0), "row i of both sides is a pair"),
        (
            lambda: mxm.fused_debiased_loss(X, Y, (2, 3), logit_scale=1.0, positive_prior=1.0),
            "positive_prior must be at least 0 and below 1, got 1.0",
        ),
        (
            lambda: mxm.fused_self_distillation_loss(X, X, logit_scale=1.0, soft_share=1.5),
            "soft_share must be between 0 and 1, got 1.5",
        ),
    ],
)
def test_bad_values_of_one_loss(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mxm.fused_mfh_loss(X, Y, (2, 3), logit_scale=1.0, soft_weight=0.1), "hard_weight"),
        (
            lambda: mxm.fused_hard_loss(
                X,
                Y,
                (2, 3),
                logit_scale=1.0,
                selection=mxm.draw_selection((2, 3), X, Y, rounds=1),
                pair_weights=(torch.ones(12), torch.ones(12)),
            ),
            "selection and pair_weights both say",
        ),
        (
            lambda: mxm.fused_supcon_loss(
                X, Y, (2, 3), logit_scale=1.0, positives="in", pair_weights=(X, X)
            ),
            'positives="in" takes no pair_weights',
        ),
        (
            lambda: mxm.fused_soft_loss(X, Y, logit_scale=1.0, label_smoothing=0.1, **TEACHER),
            "fused_soft_loss takes no label_smoothing",
        ),
        (
            lambda: mxm.fused_self_distillation_loss(
                X, X, logit_scale=1.0, soft_share=0.5, soft_weight=0.5
            ),
            "takes soft_share instead of soft_weight",
        ),
        (lambda: mxm.fused_cwcl_loss(X, X, folds=(1, 1), logit_scale=1.0), "takes no folds"),
    ],
)
def test_options_that_do_not_go_together(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_soft_loss_needs_no_folds():
    """Every pair has its target from the teacher; M and N may differ."""
    scale = {"logit_scale": 6.0}
    free = mxm.fused_soft_loss(X, Y, **scale, **TEACHER)
    with_folds = mxm.fused_soft_loss(X, Y, (2, 3), **scale, **TEACHER)
    torch.testing.assert_close(free, with_folds)


def test_self_distillation_takes_a_teacher_of_both_sides_or_none(backend):
    x, y = X.to(backend.device), X.flip(0).to(backend.device)
    options = {"logit_scale": 7.0, "soft_share": 1.0, "backend": backend.name}
    own = mxm.fused_self_distillation_loss(x, y, **options)
    none = {"teacher_image_features": None, "teacher_text_features": None}
    assert torch.equal(mxm.fused_self_distillation_loss(x, y, **none, **options), own)
    for name in none:
        with pytest.raises(ValueError, match="teacher_text_features go together, got teacher_"):
            mxm.fused_self_distillation_loss(x, y, **none | {name: x}, **options)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_self_distillation_mixes_the_rows(share, backend):
    x = torch.nn.functional.normalize(torch.randn(8, 5)).to(backend.device)
    y = torch.nn.functional.normalize(torch.randn(8, 5)).to(backend.device)
    options = {"logit_scale": 7.0, "reduction": "none", "backend": backend.name}
    mixed = mxm.fused_self_distillation_loss(
        x, y, soft_share=share, generator=torch.Generator().manual_seed(1), **options
    )
    hard = mxm.fused_info_nce_loss(x, y, **options)
    soft = mxm.fused_soft_loss(x, y, teacher_image_features=x, teacher_text_features=y, **options)
    for m, h, q in zip(mixed, hard, soft, strict=True):
        is_soft = torch.isclose(m, q)
        assert int(is_soft.sum()) == round(share * 8)
        torch.testing.assert_close(m, torch.where(is_soft, q, h))


@pytest.mark.parametrize(
    ("loss", "own"),
    [
        (mxm.fused_mfh_loss, {"hard_weight": 0.25, "rounds": None}),
        (mxm.fused_soft_loss, {"teacher_logit_scale": 0.25}),
        (mxm.fused_supcon_loss, {"label_smoothing": 0.25, "soft_weight": 0.25}),
        (mxm.fused_hard_loss, {"label_smoothing": 0.25, "soft_weight": 0.25, "rounds": None}),
        (mxm.fused_debiased_loss, {"positive_prior": 0.25, "soft_weight": 0.25}),
        (mxm.fused_self_distillation_loss, {"soft_share": 0.0, "label_smoothing": 0.25}),
        (mxm.fused_siglip_loss, {"logit_bias": -0.25}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fractions_are_numbers(loss, own):
    own = {"logit_scale": 10.0, "image_to_text_weight": 0.75} | own
    exact = {k: Fraction(v) if isinstance(v, float) else v for k, v in own.items()}
    teacher = {} if loss is mxm.fused_siglip_loss else TEACHER
    assert torch.equal(loss(X, Y, (2, 3), **exact, **teacher), loss(X, Y, (2, 3), **own, **teacher))
