"""What one rank does wrong is at once an error of every rank, naming rank and argument."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import mxm_kernels as mxm
from tests.support.processes import results, run_ranks

WORLD = 3
X = normalize(torch.arange(12.0).reshape(4, 3) + 1, dim=1)  # of every rank: 2 instances, 2 x 2
PAIRS = WORLD * 8
TEACHER = {"teacher_image_features": X, "teacher_text_features": X}
SOFT = TEACHER | {"soft_weight": (torch.full((4,), 0.5), torch.full((4,), 0.5))}
BIAS = {"logit_bias": -1.0}
BLOCKED = {"backend": "blocked"}
IDS = torch.zeros(4, dtype=torch.int64)


def selection(rounds: int = 2):
    whole = torch.cat([X] * WORLD)
    generator = torch.Generator().manual_seed(0)
    return mxm.draw_selection((2, 2), whole, whole, rounds=rounds, generator=generator)


def other_entry():
    rows, columns = selection()
    rows[1, 0] = 1 - rows[1, 0]
    return rows, columns


# name -> (function, what every rank is given, what the last rank is given instead, the message of
# that rank, or of all where it is a mismatch between them)
CASES = {
    "weights below zero": (
        mxm.fused_mfh_loss,
        {"image_weights": torch.ones(4)},
        {"image_weights": torch.tensor([1.0, -2.0, 1.0, 1.0])},
        "image_weights must not be negative or NaN, got -2.0",
    ),
    "weights of other rows": (
        mxm.fused_supcon_loss,
        {"text_weights": torch.ones(4)},
        {"text_weights": torch.ones(5)},
        "text_weights must have shape (4,), got (5,)",
    ),
    "weights that are integers": (
        mxm.fused_siglip_loss,
        BIAS | {"text_weights": torch.ones(4)},
        {"text_weights": torch.ones(4).long()},
        "text_weights must be a floating-point tensor, got torch.int64",
    ),
    "weights on one rank": (
        mxm.fused_mfh_loss,
        {},
        {"image_weights": torch.ones(4)},
        "agree on image_weights, got None on rank 0 and torch.float32 tensor",
    ),
    "trained weights": (
        mxm.fused_mfh_loss,
        {"image_weights": torch.ones(4)},
        {"image_weights": torch.ones(4).requires_grad_()},
        "agree on which arguments require a gradient, got [] on rank 0 and ['image_weights'] on "
        "rank 2",
    ),
    "shares above one": (
        mxm.fused_hard_loss,
        SOFT,
        {"soft_weight": (torch.ones(4), 2 * torch.ones(4))},
        "soft_weight[1] must be between 0 and 1, got 2.0",
    ),
    "shares of other rows": (
        mxm.fused_hard_loss,
        SOFT,
        {"soft_weight": (torch.ones(5), torch.ones(4))},
        "soft_weight[0] must have shape (4,), got (5,)",
    ),
    "another queue": (
        mxm.fused_info_nce_loss,
        {"text_queue": X},
        {"text_queue": X[:3]},
        "agree on text_queue, got torch.float32 tensor of shape (4, 3) on rank 0",
    ),
    "a queue of another width": (
        mxm.fused_info_nce_loss,
        {"text_queue": X},
        {"text_queue": X[:, :2]},
        "text_queue must have the dimension D of the features, 3, got 2",
    ),
    "a queue of another dtype": (
        mxm.fused_siglip_loss,
        BIAS | {"image_queue": X},
        {"image_queue": X.double()},
        "image_queue must have the dtype of image_features",
    ),
    "a queue with folds of other rows": (
        mxm.fused_info_nce_loss,
        {"text_queue": mxm.Queue(X, mxm.Folds.from_ids([1] * 4, [2] * 4))},
        {"text_queue": mxm.Queue(X, mxm.Folds.from_ids([1] * 3, [2] * 4))},
        "text_queue: expected ids for 4 rows of image_features and 4 rows of the queue, got 3",
    ),
    "offsets of other rows": (
        mxm.fused_mfh_loss,
        BLOCKED | {"text_offsets": torch.ones(4)},
        {"text_offsets": torch.ones(5)},
        "text_offsets must have shape (4,), got (5,)",
    ),
    "offsets on one rank": (
        mxm.fused_siglip_loss,
        BLOCKED | BIAS,
        {"image_offsets": torch.ones(4)},
        "agree on image_offsets, got None on rank 0 and torch.float32 tensor",
    ),
    "trained offsets": (
        mxm.fused_mfh_loss,
        BLOCKED | {"image_offsets": torch.ones(4)},
        {"image_offsets": torch.ones(4).requires_grad_()},
        "agree on which arguments require a gradient, got [] on rank 0 and ['image_offsets'] on "
        "rank 2",
    ),
    "ids that are floats": (
        mxm.fused_supcon_loss,
        BLOCKED | {"exclude_ids": (IDS, IDS)},
        {"exclude_ids": (IDS, IDS.double())},
        "exclude_ids[1] must be an int64 tensor, got torch.float64",
    ),
    "ids on one rank": (
        mxm.fused_supcon_loss,
        BLOCKED,
        {"within_ids": (IDS, IDS)},
        "agree on within_ids, got None on rank 0",
    ),
    "another margin": (
        mxm.fused_info_nce_loss,
        BLOCKED | TEACHER | {"filter_margin": 0.1},
        {"filter_margin": 0.2},
        "agree on filter_margin, got 0.1 on rank 0 and 0.2 on rank 2",
    ),
    "thresholds that are NaN": (
        mxm.fused_info_nce_loss,
        BLOCKED | TEACHER | {"filter_thresholds": (torch.ones(4), torch.ones(4))},
        {"filter_thresholds": (torch.ones(4), torch.full((4,), torch.nan))},
        "filter_thresholds[1] must not be NaN, got nan",
    ),
    "a filter in a ring": (
        mxm.fused_mfh_loss,
        BLOCKED | TEACHER,
        {"filter_margin": 0.1, "gather": "ring"},
        "filter_margin needs gather='all', got 'ring': it compares all texts at once",
    ),
    "a queue with other ids": (
        mxm.fused_info_nce_loss,
        BLOCKED | {"exclude_ids": (IDS, IDS), "text_queue": mxm.Queue(X, exclude_ids=IDS)},
        {"text_queue": mxm.Queue(X, exclude_ids=IDS + 1)},
        "agree on text_queue",
    ),
    "a selection of other rows": (
        mxm.fused_mfh_loss,
        {"selection": selection()},
        {"selection": tuple(side[:, :4] for side in selection())},
        "agree on selection, got ['torch.int64 tensor of shape (2, 12) with digest",
    ),
    "a selection of other entries": (
        mxm.fused_hard_loss,
        {"selection": selection()},
        {"selection": other_entry()},
        "agree on selection",
    ),
    "a selection on one rank": (
        mxm.fused_hard_loss,
        {},
        {"selection": selection()},
        "agree on selection, got None on rank 0",
    ),
    "a selection that is a word": (
        mxm.fused_mfh_loss,
        {"selection": selection()},
        {"selection": "all"},
        "selection must be a pair (image_to_text, text_to_image), got str",
    ),
    "a selection beside weights": (
        mxm.fused_mfh_loss,
        {},
        {"selection": selection(), "pair_weights": (torch.ones(PAIRS), torch.ones(PAIRS))},
        "selection and pair_weights both say what was drawn",
    ),
    "pair weights of other pairs": (
        mxm.fused_supcon_loss,
        {"pair_weights": (torch.ones(PAIRS), torch.ones(PAIRS))},
        {"pair_weights": (torch.ones(PAIRS), torch.ones(8))},
        "agree on pair_weights, got ['torch.float32 tensor of shape (24,)', 'torch.float32 tensor "
        "of shape (24,)'] on rank 0",
    ),
    "pair weights that are integers": (
        mxm.fused_siglip_loss,
        BIAS | {"pair_weights": (torch.ones(PAIRS), torch.ones(PAIRS))},
        {"pair_weights": (torch.ones(PAIRS), torch.ones(PAIRS).long())},
        "agree on pair_weights",
    ),
    "a vector of pair weights": (
        mxm.fused_info_nce_loss,
        {},
        {"pair_weights": torch.ones(PAIRS)},
        "pair_weights must be a pair of (P,) tensors, got Tensor",
    ),
    "a bias that is a word": (
        mxm.fused_siglip_loss,
        BIAS,
        {"logit_bias": "x"},
        "logit_bias must be a number or a tensor, got str",
    ),
    "a bias that is not finite": (
        mxm.fused_siglip_loss,
        BIAS,
        {"logit_bias": float("nan")},
        "logit_bias must be finite, got nan",
    ),
    "a bias for each row": (
        mxm.fused_siglip_loss,
        {"logit_bias": torch.tensor(-1.0)},
        {"logit_bias": -torch.ones(4)},
        "logit_bias must be 0-d or of shape [1], got shape (4,)",
    ),
    "a bias elsewhere": (
        mxm.fused_siglip_loss,
        {"logit_bias": torch.tensor(-1.0)},
        {"logit_bias": torch.tensor(-1.0, device="meta")},
        "agree on logit_bias, got torch.float32 tensor of shape () on rank 0",
    ),
    "a scale below zero": (
        mxm.fused_mfh_loss,
        {},
        {"logit_scale": -1.0},
        "logit_scale must be positive and finite (1 / temperature, not its logarithm), got -1.0",
    ),
    "smoothing": (
        mxm.fused_supcon_loss,
        {},
        {"label_smoothing": 2.0},
        "label_smoothing must be at least 0 and below 1, got 2.0",
    ),
    "an unknown option": (
        mxm.fused_decoupled_loss,
        {},
        {"weights": 1},
        "unexpected option 'weights'",
    ),
    "an option of other losses": (
        mxm.fused_cwcl_loss,
        TEACHER,
        {"label_smoothing": 0.1},
        "fused_cwcl_loss takes no label_smoothing",
    ),
    "no teacher": (
        mxm.fused_soft_loss,
        TEACHER,
        {"teacher_image_features": None, "teacher_text_features": None},
        "the soft loss needs teacher_image_features and teacher_text_features",
    ),
    "a reduction": (mxm.fused_mfh_loss, {}, {"reduction": "sum"}, "reduction must be 'mean' or"),
    "a backend": (mxm.fused_mfh_loss, {}, {"backend": "cuda"}, "backend must be one of"),
    "diagnostics": (
        mxm.fused_mfh_loss,
        {"diagnostics": mxm.Diagnostics()},
        {"diagnostics": 1},
        "diagnostics must be Diagnostics or None, got int",
    ),
    "folds": (mxm.fused_mfh_loss, {}, {"folds": None}, "folds must be Folds, a pair"),
    "ids of other rows": (
        mxm.fused_mfh_loss,
        {"folds": ([1] * 4, [1] * 4)},
        {"folds": ([1] * 3, [1] * 4)},
        "folds: expected ids for 4 rows of image_features and 4 rows of text_features, got 3",
    ),
    "rounds": (mxm.fused_hard_loss, {}, {"rounds": 0}, "rounds must be at least 1"),
    "hard_weight": (mxm.fused_mfh_loss, {}, {"hard_weight": 2.0}, "hard_weight must be between"),
    "a seed": (mxm.fused_mfh_loss, {}, {"generator": 3}, "generator must be a torch.Generator"),
    "a flag": (
        mxm.fused_info_nce_loss,
        {},
        {"mask_false_negatives": 1},
        "mask_false_negatives must be True or False, got int",
    ),
    "positives": (mxm.fused_supcon_loss, {}, {"positives": "all"}, "positives must be 'out' or"),
    "a prior": (
        mxm.fused_debiased_loss,
        {},
        {"positive_prior": 1.0},
        "positive_prior must be at least 0 and below 1",
    ),
    "a share": (
        mxm.fused_self_distillation_loss,
        {"soft_share": 0.5},
        {"soft_share": 1.5},
        "soft_share must be between 0 and 1, got 1.5",
    ),
    "rows of one modality": (
        mxm.fused_intra_modal_loss,
        {"row_weights": torch.ones(4)},
        {"row_weights": -torch.ones(4)},
        "row_weights must not be negative or NaN, got -1.0",
    ),
    "rows of one modality, trained": (
        mxm.fused_intra_modal_loss,
        {"row_weights": torch.ones(4)},
        {"row_weights": torch.ones(4).requires_grad_()},
        "agree on which arguments require a gradient, got [] on rank 0",
    ),
    "ids of one modality": (
        mxm.fused_intra_modal_loss,
        BLOCKED | {"exclude_ids": IDS},
        {"exclude_ids": (IDS, IDS)},
        "exclude_ids must be an int64 tensor, got tuple",
    ),
    "folds of one modality": (
        mxm.fused_intra_modal_loss,
        {},
        {"folds": True},
        "folds must be a number of rows or the ids of the rows, got bool",
    ),
    "features of one modality": (
        mxm.fused_intra_modal_loss,
        {},
        {"features": X[0]},
        "features must have shape (rows, D), got (3,)",
    ),
}


def arguments(function):
    call = {"logit_scale": 5.0, "process_group": dist.group.WORLD}
    if function is mxm.fused_intra_modal_loss:
        return call | {"features": X, "folds": 2}
    call |= {"image_features": X, "text_features": X}
    return call if function is mxm.fused_cwcl_loss else call | {"folds": (2, 2)}


def wrong_on_the_last(rank, world):
    """Kind and message of this rank's error in every case; the group stays usable."""
    seen = {}
    for name, (function, every, last, _) in CASES.items():
        call = arguments(function) | every
        function(**call)  # is valid
        try:
            function(**(call | last if rank == world - 1 else call))
        except Exception as error:
            seen[name] = type(error).__name__, str(error)
    return seen


@pytest.fixture(scope="module")
def seen():
    start = time.monotonic()
    every = results(WORLD, wrong_on_the_last)
    assert time.monotonic() - start < 45  # nobody waited for the group's timeout of 60 s
    return every


@pytest.mark.parametrize("name", CASES)
def test_every_rank_raises(name, seen):
    message = CASES[name][3]
    (first, told), (second, repeated), (own, said) = (rank[name] for rank in seen)
    assert message in said
    assert (first, told) == (second, repeated)
    if "agree on" in message:
        assert (first, told) == (own, said) == ("ValueError", said)
        assert "on rank 2" in said
    else:
        assert own in ("TypeError", "ValueError")
        assert (first, told) == (
            "RuntimeError",
            f"process_group: rank 2 has an error: {own}: {said}",
        )


def wrong_in_a_drop_in(rank, world):
    """As above, of the losses that other libraries call."""
    from mxm_kernels import open_clip
    from mxm_kernels.sentence_transformers import MultifoldLoss

    made = {"rank": rank, "world_size": world, "gather_with_grad": True}
    trained = X.clone().requires_grad_()
    teacher = {"dist_image_features": X, "dist_text_features": X, "dist_logit_scale": 9.0}
    group = dist.group.WORLD

    def sentences(columns=2, labels=None):
        loss = MultifoldLoss(lambda c: {"sentence_embedding": c}, mxm.MFHLoss(process_group=group))
        return loss([X] * columns, labels)

    wrong = rank == world - 1
    calls = [
        lambda: open_clip.ClipLoss(**made)(X, X, 5.0, "x" if wrong else None),
        lambda: open_clip.MFHLoss(**made)(X, X, 5.0, folds=None if wrong else (1, 1)),
        lambda: open_clip.MFHLoss(**made)(X, X, 5.0, "x" if wrong else None, folds=(1, 1)),
        lambda: open_clip.DistillClipLoss(**made)(
            X, X, 5.0, **teacher | ({"dist_text_features": trained} if wrong else {})
        ),
        lambda: sentences(1 if wrong else 2),
        lambda: sentences(labels=torch.ones(4) if wrong else torch.ones(4).long()),
    ]
    seen = []
    for call in calls:
        try:
            call()
        except Exception as error:
            seen.append(str(error))
    return seen


def test_drop_ins():
    start = time.monotonic()
    *others, own = results(WORLD, wrong_in_a_drop_in)
    assert time.monotonic() - start < 45
    parts = ("logit_bias", "MFHLoss needs folds", "logit_bias", "dist_text_features requires a")
    for part, message in zip((*parts, "a column of anchors", "integers"), own, strict=True):
        assert part in message
    for messages in others:
        for message, said in zip(messages, own, strict=True):
            assert message.startswith("process_group: rank 2 has an error: ")
            assert message.endswith(said)


def wrong_on_all(rank, world, options):
    mxm.fused_mfh_loss(**arguments(mxm.fused_mfh_loss) | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": tuple(side[:, :4] for side in selection())}, r"shape \(rounds, 12\)"),
        ({"selection": tuple(side * 0 for side in selection())}, r"selection\[0\]: expected a pos"),
        ({"pair_weights": (torch.ones(8), torch.ones(8))}, r"pair_weights\[0\] must have shape"),
    ],
)
def test_what_all_do_wrong_is_an_error_of_each(options, message):
    for error in run_ranks(WORLD, wrong_on_all, options):
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match=message):
            raise error
