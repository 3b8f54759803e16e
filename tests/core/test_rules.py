"""Offsets, ids and the filter: bad ones are errors that name them, and nothing is left unread."""

import pytest
import torch
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import Queue
from mxm_kernels.core.options import resolve

X, Y = torch.eye(4, 3) + 0.1, torch.eye(6, 3) + 0.1
TEACHER = {"teacher_image_features": X, "teacher_text_features": Y}
FILTER = TEACHER | {"filter_margin": 0.1}
M, N = torch.zeros(4), torch.zeros(6)
IDS = torch.zeros(4, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
LOSSES = [
    mxm.fused_mfh_loss,
    mxm.fused_hard_loss,
    mxm.fused_supcon_loss,
    mxm.fused_info_nce_loss,
    mxm.fused_decoupled_loss,
]
NAN, INFINITE = torch.full((4,), torch.nan), torch.full((6,), -torch.inf)

OFFSETS = [
    ({"image_offsets": [0.0] * 4}, TypeError, "image_offsets must be a tensor, got list"),
    ({"text_offsets": 0.5}, TypeError, "text_offsets must be a tensor, got float"),
    ({"text_offsets": (M, N)}, TypeError, "text_offsets must be a tensor, got tuple"),
    ({"image_offsets": M.long()}, TypeError, "image_offsets must be a floating-point tensor, got"),
    ({"image_offsets": N}, ValueError, r"image_offsets must have shape \(4,\), got \(6,\)"),
    ({"text_offsets": N[:, None]}, ValueError, r"text_offsets must have shape \(6,\), got \(6, 1"),
    ({"text_offsets": N.to("meta")}, ValueError, "text_offsets must be on the device of the fe"),
    ({"text_offsets": N.to_sparse()}, TypeError, "text_offsets must be a dense tensor, got la"),
    (
        {"text_offsets": INFINITE},
        ValueError,
        "text_offsets must be finite, got -inf: to leave pairs out of the negatives give exclude",
    ),
    ({"image_offsets": M.double() + 1e39}, ValueError, "image_offsets must be finite, got inf"),
    (
        {"text_queue": Queue(Y, offsets=[0.0] * 6)},
        TypeError,
        "text_queue.offsets must be a tensor, got list",
    ),
    (
        {"image_queue": Queue(X, offsets=N)},
        ValueError,
        r"image_queue.offsets must have shape \(4,\), got \(6,\)",
    ),
    (
        {"text_queue": Queue(Y, offsets=INFINITE)},
        ValueError,
        "text_queue.offsets must be finite, got -inf",
    ),
]

PAIRS = [
    *((f"{name}_ids", value) for name in ("exclude", "within") for value in (IDS[0], IDS[:1])),
    ("exclude_ids", (*IDS, IDS[0])),
    ("within_ids", "xy"),
    ("filter_thresholds", M),
]

OF_IDS = [
    ((IDS[0].tolist(), IDS[1]), TypeError, r"\[0\] must be an int64 tensor, got list"),
    ((IDS[0], None), TypeError, r"\[1\] must be an int64 tensor, got NoneType"),
    ((IDS[0].int(), IDS[1]), TypeError, r"\[0\] must be an int64 tensor, got torch.int32"),
    ((IDS[0], N), TypeError, r"\[1\] must be an int64 tensor, got torch.float32"),
    ((IDS[1], IDS[0]), ValueError, r"\[0\] must have shape \(4,\), got \(6,\)"),
    ((IDS[0], IDS[1].to("meta")), ValueError, r"\[1\] must be on the device of the features, cpu"),
]

FILTERS = [
    ({"filter_margin": 0.1}, ValueError, "filter_margin needs teacher_image_features and teach"),
    ({"filter_thresholds": (M, N)}, ValueError, "filter_thresholds needs teacher_image_features"),
    (FILTER | {"filter_margin": "x"}, TypeError, "filter_margin must be a number or None, got st"),
    (FILTER | {"filter_margin": True}, TypeError, "filter_margin must be a number or None, got b"),
    (FILTER | {"filter_margin": M[0]}, TypeError, "filter_margin must be a number or None, got T"),
    (FILTER | {"filter_margin": -0.1}, ValueError, "filter_margin must be at least 0 and finite,"),
    (FILTER | {"filter_margin": torch.inf}, ValueError, "at least 0 and finite, got inf"),
    (FILTER | {"filter_margin": torch.nan}, ValueError, "at least 0 and finite, got nan"),
    (
        FILTER | {"filter_strategy": "ratio"},
        ValueError,
        "filter_strategy must be 'absolute' or 'relative', got 'ratio'",
    ),
    (
        TEACHER | {"filter_strategy": "relative", "filter_thresholds": (M, N)},
        ValueError,
        "filter_strategy='relative' needs a filter_margin",
    ),
    (
        FILTER | {"filter_thresholds": (M, N)},
        TypeError,
        "filter_margin and filter_thresholds both say which negatives are left out: give one",
    ),
    (
        TEACHER | {"filter_thresholds": (M, [0.0] * 6)},
        TypeError,
        r"filter_thresholds\[1\] must be a tensor, got list",
    ),
    (
        TEACHER | {"filter_thresholds": (M, N.long())},
        TypeError,
        r"filter_thresholds\[1\] must be a floating-point tensor",
    ),
    (
        TEACHER | {"filter_thresholds": (N, M)},
        ValueError,
        r"filter_thresholds\[0\] must have shape \(4,\), got \(6,\)",
    ),
    (
        TEACHER | {"filter_thresholds": (NAN, N)},
        ValueError,
        r"filter_thresholds\[0\] must not be NaN, got nan",
    ),
    (
        FILTER | {"text_queue": Queue(Y, teacher_features=[0])},
        TypeError,
        "text_queue.teacher_features must be a tensor, got list",
    ),
    (
        FILTER | {"text_queue": Queue(Y, teacher_features=X)},
        ValueError,
        r"text_queue.teacher_features must have shape \(6, D\), a row for each row of text_queue",
    ),
    (
        FILTER | {"text_queue": Queue(Y, teacher_features=Y.double())},
        TypeError,
        "text_queue.teacher_features must have the dtype of text_queue, torch.float32",
    ),
    (
        FILTER | {"text_queue": Queue(Y, teacher_features=Y[:, :2])},
        ValueError,
        "teacher's features must have the dimension D of text_queue.teacher_features, 2, got 3",
    ),
]


def call(loss, **options):
    return loss(X, Y, (2, 3), logit_scale=5.0, backend="blocked", **options)


def raises(error, message):
    return pytest.raises(error, match=message)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("change", "error", "message"), OFFSETS + FILTERS)
def test_bad_offsets_and_filters(loss, change, error, message):
    with raises(error, message):
        call(loss, **change)


@pytest.mark.parametrize(("name", "value"), PAIRS)
def test_what_is_no_pair(name, value):
    given = TEACHER if name.startswith("filter") else {}
    with raises(TypeError, rf"{name} must be a pair of \(\(M,\), \(N,\)\).* tensors, got"):
        call(mxm.fused_hard_loss, **given, **{name: value})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["exclude_ids", "within_ids"])
@pytest.mark.parametrize(("value", "error", "message"), OF_IDS)
def test_bad_ids(loss, name, value, error, message):
    with raises(error, name + message):
        call(loss, **{name: value})


@pytest.mark.parametrize("name", ["exclude_ids", "within_ids"])
def test_bad_ids_of_a_queue(name):
    of_batch = {name: IDS}
    with raises(TypeError, rf"text_queue.{name} must be an int64 tensor, got torch.int32"):
        call(LOSSES[0], **of_batch, text_queue=Queue(Y, **{name: IDS[1].int()}))
    with raises(ValueError, rf"image_queue.{name} must have shape \(4,\), got \(6,\)"):
        call(LOSSES[0], **of_batch, image_queue=Queue(X, **{name: IDS[1]}))
    with raises(ValueError, rf"text_queue.{name} was given without {name}: nothing would read it"):
        call(LOSSES[0], text_queue=Queue(Y, **{name: IDS[1]}))


def test_a_queues_teacher_that_nothing_reads():
    message = "text_queue.teacher_features was given without teacher features: nothing would read"
    with raises(ValueError, message):
        call(LOSSES[0], text_queue=Queue(Y, teacher_features=Y))


def test_a_queue_of_no_tensor():
    with raises(TypeError, "text_queue must be a tensor, got list"):
        call(LOSSES[0], text_queue=Queue([0.0], offsets=N))


OF_T = {"teacher_image_offsets": M, "teacher_text_offsets": N, "teacher_logit_scale": 2.0}


@pytest.mark.parametrize("name", OF_T)
def test_what_only_a_soft_part_reads(name):
    given = {name: OF_T[name]}
    for loss in LOSSES:
        with raises(ValueError, f"{name} was given without teacher features"):
            call(loss, **given)
    for loss in LOSSES[1:]:  # MFH's soft part has a weight that may be 0 for a while
        with raises(ValueError, f"{name} was given, but soft_weight is 0: nothing would read it"):
            call(loss, **FILTER, **given)
        assert call(loss, **FILTER, soft_weight=0.5, **given).isfinite()


def test_bad_offsets_of_the_teacher():
    for change, error, message in OFFSETS:
        name, value = next(iter(change.items()))
        if name.endswith("offsets"):
            with raises(error, f"teacher_{message}"):
                call(mxm.fused_soft_loss, **TEACHER, **{f"teacher_{name}": value})


def test_a_filter_in_a_ring():
    """``resolve`` is what a loss asks first; tests/distributed does it over ranks."""
    ring = {"gather": "ring", "process_group": object()}
    for given in ({"filter_margin": 0.1}, {"filter_thresholds": (M, N)}):
        (name,) = given
        with raises(ValueError, f"{name} needs gather='all', got 'ring': it compares all texts"):
            resolve({**TEACHER, **given, **ring})


def of_pairs(loss, **options):
    return loss(X, X, logit_scale=5.0, backend="blocked", **options)


def sigmoid(**options):
    return of_pairs(mxm.fused_siglip_loss, logit_bias=0.0, **options)


def soft(**options):
    return of_pairs(
        mxm.fused_soft_loss, teacher_image_features=X, teacher_text_features=X, **options
    )


def continuous(**options):
    return of_pairs(
        mxm.fused_cwcl_loss, teacher_image_features=X, teacher_text_features=X, **options
    )


def debiased(**options):
    return of_pairs(mxm.fused_debiased_loss, **options)


RULES = {
    "image_offsets": M,
    "text_offsets": M,
    "teacher_image_offsets": M,
    "teacher_text_offsets": M,
    "exclude_ids": IDS[:1] * 2,
    "within_ids": IDS[:1] * 2,
    "filter_margin": 0.1,
    "filter_strategy": "relative",
    "filter_thresholds": (M, M),
}
STUDENT, OF_TEACHER = list(RULES)[:2], list(RULES)[2:4]
IDS_NAMES, OF_FILTER = list(RULES)[4:6], list(RULES)[6:]


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        *((sigmoid, name) for name in OF_TEACHER + OF_FILTER),
        *((soft, name) for name in IDS_NAMES + OF_FILTER),
        *((continuous, name) for name in OF_TEACHER + IDS_NAMES + OF_FILTER),
        *((debiased, name) for name in STUDENT + OF_TEACHER),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_losses_that_do_not_take_them(loss, name):
    with raises(TypeError, rf"fused_\w+_loss takes no {name}"):
        loss(**{name: RULES[name]})


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_queue_with_offsets_beside_a_loss_without(side):
    with raises(TypeError, f"fused_debiased_loss takes no offsets of a queue, got {side}_queue.o"):
        debiased(**{f"{side}_queue": Queue(X, offsets=M)})


def test_a_module_takes_hyper_parameters_in_its_constructor_and_inputs_in_its_call():
    with raises(TypeError, "text_offsets comes with each batch: give it to the call of MFHLoss"):
        mxm.MFHLoss(text_offsets=N)
    with raises(TypeError, "filter_margin is fixed by the constructor of MFHLoss: give it there"):
        mxm.MFHLoss()(X, Y, (2, 3), logit_scale=5.0, **FILTER)
    with raises(ValueError, "filter_margin must be at least 0 and finite, got -1"):
        mxm.IntraModalLoss(filter_margin=-1)
    with raises(TypeError, "SigLipLoss takes no filter_margin"):
        mxm.SigLipLoss(filter_margin=0.1)


def inside(**options):
    return mxm.fused_intra_modal_loss(Y, 3, logit_scale=5.0, backend="blocked", **options)


GUIDE = {"teacher_features": Y}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": [0.0] * 6}, TypeError, "^offsets must be a tensor, got list"),
        ({"offsets": N.long()}, TypeError, "^offsets must be a floating-point tensor, got"),
        ({"offsets": M}, ValueError, r"^offsets must have shape \(6,\), got \(4,\)"),
        ({"offsets": INFINITE}, ValueError, "^offsets must be finite, got -inf"),
        ({"teacher_offsets": N}, ValueError, "^teacher_offsets was given without teacher feat"),
        (
            GUIDE | {"teacher_offsets": N, "filter_margin": 0.1},
            ValueError,
            "^teacher_offsets was given, but soft_weight is 0: nothing would read it",
        ),
        (
            GUIDE | {"teacher_logit_scale": 2.0, "filter_margin": 0.1},
            ValueError,
            "^teacher_logit_scale was given, but soft_weight is 0: nothing would read it",
        ),
        (
            GUIDE | {"soft_weight": 0.5, "teacher_offsets": M},
            ValueError,
            r"^teacher_offsets must have shape \(6,\), got \(4,\)",
        ),
        ({"exclude_ids": IDS}, TypeError, "^exclude_ids must be an int64 tensor, got tuple"),
        ({"exclude_ids": IDS[0]}, ValueError, r"^exclude_ids must have shape \(6,\), got \(4,\)"),
        ({"within_ids": N}, TypeError, "^within_ids must be an int64 tensor, got torch.float32"),
        ({"within_ids": IDS[1].to("meta")}, ValueError, "^within_ids must be on the device of"),
        ({"filter_margin": 0.1}, ValueError, "^filter_margin needs teacher_features"),
        ({"filter_thresholds": N}, ValueError, "^filter_thresholds needs teacher_features"),
        (GUIDE | {"filter_margin": -0.1}, ValueError, "^filter_margin must be at least 0 and fin"),
        ({"filter_strategy": "relative"}, ValueError, "^filter_strategy='relative' needs a filt"),
        (
            GUIDE | {"filter_thresholds": N, "filter_margin": 0.1},
            TypeError,
            "^filter_margin and filter_thresholds both say",
        ),
        (
            GUIDE | {"filter_thresholds": (N, N)},
            TypeError,
            "^filter_thresholds must be a tensor, got tuple",
        ),
        (
            GUIDE | {"filter_thresholds": N * torch.nan},
            ValueError,
            "^filter_thresholds must not be NaN, got nan",
        ),
        ({"text_offsets": N}, TypeError, "unexpected keyword argument 'text_offsets'"),
    ],
)
def test_bad_arguments_of_one_modality(change, error, message):
    with raises(error, message):
        inside(**change)


def test_what_may_be_infinite_or_absent():
    """Thresholds may be infinite: one filters nothing, the other every negative."""
    nothing, everything = torch.full((4,), torch.inf), torch.full((6,), -torch.inf)
    per_row = {"reduction": "none"}
    plain = call(mxm.fused_info_nce_loss, **per_row)
    of_images, of_texts = call(
        mxm.fused_info_nce_loss, filter_thresholds=(nothing, everything), **TEACHER, **per_row
    )
    assert torch.equal(of_images, plain[0]) and not of_texts.any()
    one_side = call(mxm.fused_info_nce_loss, text_offsets=N + 3, **per_row)
    torch.testing.assert_close(one_side[0], plain[0])  # a shift of all texts cancels there


@pytest.mark.parametrize(
    "change",
    [
        {"text_offsets": N * torch.nan},
        {"text_queue": Queue(Y, offsets=N * torch.nan)},
        FILTER | {"text_queue": Queue(Y, teacher_features=Y * torch.nan)},
        FILTER | {"teacher_text_features": Y * torch.nan},
        TEACHER | {"soft_weight": 0.5, "teacher_text_offsets": N * torch.nan},
    ],
)
def test_nan_shows_in_the_loss(change):
    assert call(mxm.fused_info_nce_loss, **change).isnan()


def test_no_gradient_through_the_choice():
    taught = {name: f.clone().requires_grad_() for name, f in TEACHER.items()}
    thresholds = M.clone().requires_grad_(), N.clone().requires_grad_()
    x = normalize(X).requires_grad_()
    for given in ({"filter_margin": 0.1}, {"filter_thresholds": thresholds}):
        loss = mxm.fused_info_nce_loss(
            x, Y, (2, 3), logit_scale=5.0, backend="blocked", **taught, **given
        )
        loss.backward()
    assert x.grad is not None
    assert all(leaf.grad is None for leaf in (*taught.values(), *thresholds))
