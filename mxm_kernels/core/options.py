"""The keyword options that the losses share: their names, defaults and checks.

One list: public functions pass ``**options`` on, and only ``resolve`` fills in what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from mxm_kernels import backends, checks
from mxm_kernels.checks import check_fraction
from mxm_kernels.core.diagnostics import Diagnostics
from mxm_kernels.folds import Folds, Ids

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FoldsLike: TypeAlias = "Folds | tuple[int, int] | tuple[Ids, Ids]"
Scale: TypeAlias = "float | Tensor | tuple[Tensor, Tensor]"
Reduction: TypeAlias = Literal["mean", "none"]
_Given = TypeVar("_Given", bound="HyperParameters | Options")


class Queue(NamedTuple):
    """Features of past batches: more negatives for the rows of the other modality.

    With a soft loss the queue's features also extend the teacher's similarities, as in MoCo and
    ALBEF, whose queues hold the features of the momentum encoder.

    Attributes:
        features: (K, D); they get no gradient.
        folds: which rows of the batch and of the queue show the same instance, made by
            ``Folds.from_ids(row_ids, queue_ids)``. ``row_ids`` are the ids of the rows that the
            queue is compared with: the images' for ``text_queue``, the texts' for
            ``image_queue``. A row of the queue that shows the instance of a row is left out for
            that row. None: every row of the queue is a negative.
    """

    features: Tensor
    folds: Folds | None = None


class HyperParameters(TypedDict, total=False):
    """Options that stay the same from step to step: a module's constructor takes them.

    Attributes:
        soft_weight: share b of the soft loss, the cross-entropy against the teacher. The result
            is (1 - b) times the loss plus b times the soft loss. A number in [0, 1], or a pair of
            tensors ((M,), (N,)) with a share for each row. Needs the teacher's features.
        image_to_text_weight: l in l L_image_to_text + (1 - l) L_text_to_image, in [0, 1]; 0.5
            by default (ConVIRT, arXiv 2010.00747, has 0.75).
        label_smoothing: e in [0, 1): a target keeps 1 - e, and e is spread evenly over the
            columns of its denominator. The soft loss is not smoothed.
        reduction: "mean", or "none" for the losses of the rows, a pair ((M,), (N,)). With "none"
            each loss is multiplied by the weight of its row, a row without a positive has hard
            loss 0, and ``image_to_text_weight`` is not applied.
        teacher_dtype: torch.float8_e4m3fn rounds the teacher's features to float8. Targets and
            their gradient lose precision; a rank sends one byte for each of these numbers. None
            reads the features as they are.
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: a torch.distributed.ProcessGroup, whose ranks make up the batch together.
            Each rank passes its own rows; their number may differ from rank to rank and may be 0.
            Equal instance ids are one instance on every rank; with uniform folds no instance is on
            two ranks. Every rank returns the loss of the whole batch, and DDP or FSDP average
            the gradients to those of one process. With reduction="none" a rank returns the
            losses of its own rows. Options have to be the same on every rank. Row weights, row
            scales and row shares are those of the rank's rows. ``pair_weights`` and ``selection``
            are those of the whole batch, rank after rank. Queues are the same on every rank. A
            ``generator`` must be in the same state on every rank. Without one a call that draws
            takes one number from the CPU's default generator on every rank, and the number of
            rank 0 is the seed of all. A call that draws nothing takes none.
        gather: how the text features of the other ranks come to a rank: "all" at once, or block
            by block around a "ring", for batches whose features do not fit on one rank.
    """

    soft_weight: float | tuple[Tensor, Tensor]
    image_to_text_weight: float
    label_smoothing: float
    reduction: Reduction
    teacher_dtype: torch.dtype | None
    backend: str | None
    process_group: ProcessGroup | None
    gather: Literal["all", "ring"]


class Inputs(TypedDict, total=False):
    """Options that come with each batch: a module's forward takes them.

    Attributes:
        teacher_image_features: (M, D'), the teacher's features of the images, which the loss
            detaches. They need ``teacher_text_features``.
        teacher_text_features: (N, D'), the teacher's features of the texts.
        teacher_logit_scale: t, the teacher's scale; by default ``logit_scale``, detached.
        pair_weights: ((P,), (P,)) weights w of the positive pairs, from images to texts and from
            texts to images, in the order of ``Folds.pairs``. They replace those of the loss (a
            draw, the paired positive, or all positives alike). The weights of a row should sum to
            1. They may require gradients.
        image_weights: (M,) finite, non-negative weights of the image rows in the image-to-text
            mean, which becomes sum w loss / sum w. At least one row that counts must have a
            positive weight, on some rank. Otherwise it is an error on a CPU; on a GPU, where a
            check would make the step wait, the loss is NaN.
        text_weights: (N,) the same for the text rows.
        image_queue: (K, D) features of past images, or :class:`Queue`: more negatives of the texts.
        text_queue: (K, D) features of past texts, or :class:`Queue`: more negatives of the images.
        diagnostics: a :class:`Diagnostics`, which the call fills in from the same pass.
    """

    teacher_image_features: Tensor | None
    teacher_text_features: Tensor | None
    teacher_logit_scale: float | Tensor | None
    pair_weights: tuple[Tensor, Tensor] | None
    image_weights: Tensor | None
    text_weights: Tensor | None
    image_queue: Tensor | Queue | None
    text_queue: Tensor | Queue | None
    diagnostics: Diagnostics | None


class Options(HyperParameters, Inputs, total=False):
    """The options of every loss: those of :class:`HyperParameters` and of :class:`Inputs`.

    They may be combined. What has no meaning for a loss is an error.
    """


class Resolved(NamedTuple):
    """Every option, given or by default, checked as far as it can be without the features."""

    teacher_image_features: Tensor | None = None
    teacher_text_features: Tensor | None = None
    teacher_logit_scale: float | Tensor | None = None
    soft_weight: float | tuple[Tensor, Tensor] = 0.0
    pair_weights: tuple[Tensor, Tensor] | None = None
    image_weights: Tensor | None = None
    text_weights: Tensor | None = None
    image_to_text_weight: float = 0.5
    label_smoothing: float = 0.0
    image_queue: Tensor | Queue | None = None
    text_queue: Tensor | Queue | None = None
    diagnostics: Diagnostics | None = None
    reduction: Reduction = "mean"
    teacher_dtype: torch.dtype | None = None
    backend: str | None = None
    process_group: Any = None  # of a call, with the wrapper's Ranks around it
    gather: Literal["all", "ring"] = "all"


def has_teacher(options: Options) -> bool:
    """Whether any teacher features were given."""
    images = options.get("teacher_image_features")
    return images is not None or options.get("teacher_text_features") is not None


def resolve(options: Options, *, reads_teacher: bool = False) -> Resolved:
    """Fill in defaults and check what needs no features.

    ``reads_teacher``: the loss reads the teacher whatever ``soft_weight`` is.

    Raises:
        TypeError, ValueError: an option is unknown or not as described.
    """
    o = _in_floats(check_hyper_parameters(options, Resolved._fields))
    if o.pair_weights is not None and not (
        isinstance(o.pair_weights, (tuple, list)) and len(o.pair_weights) == 2
    ):
        raise TypeError(
            f"pair_weights must be a pair of (P,) tensors, got {type(o.pair_weights).__name__}"
        )
    if o.diagnostics is not None and not isinstance(o.diagnostics, Diagnostics):
        raise TypeError(
            f"diagnostics must be Diagnostics or None, got {type(o.diagnostics).__name__}"
        )
    pair = isinstance(o.soft_weight, (tuple, list))
    taught, soft = has_teacher(options), pair or o.soft_weight != 0
    if soft and not taught:
        share = "a pair" if pair else o.soft_weight
        raise ValueError(
            f"soft_weight={share} needs teacher_image_features and teacher_text_features"
        )
    if o.teacher_logit_scale is not None and not taught:
        raise ValueError("teacher_logit_scale was given without teacher features")
    if o.teacher_dtype is not None and not taught:
        raise ValueError("teacher_dtype was given without teacher features")
    if taught and not soft and not reads_teacher:
        raise ValueError(
            "teacher features were given, but soft_weight is 0: nothing would read them"
        )
    return o


def _in_floats(options: Options) -> Resolved:
    """Numbers of any kind, checked: a fractions.Fraction takes no part in tensor arithmetic."""
    o = Resolved(**options)
    share = o.soft_weight
    given: Any = {
        **options,
        "soft_weight": share if isinstance(share, (tuple, list)) else float(share),
        "image_to_text_weight": float(o.image_to_text_weight),
        "label_smoothing": float(o.label_smoothing),
    }
    return Resolved(**given)


def check_hyper_parameters(options: _Given, known: tuple[str, ...]) -> _Given:
    """Check the names, and the values that stay the same from step to step.

    Raises:
        TypeError, ValueError: an option is unknown or not as described.
    """
    for name in options:
        if name not in known:
            raise TypeError(
                f"unexpected option {name!r}: expected an argument of the loss itself or one of "
                f"{', '.join(known)}"
            )
    values = Resolved(**options)
    check_fraction("image_to_text_weight", values.image_to_text_weight)
    check_fraction("label_smoothing", values.label_smoothing, below_one=True)
    if not isinstance(values.soft_weight, (tuple, list)):
        check_fraction("soft_weight", values.soft_weight)
    elif len(values.soft_weight) != 2:
        raise TypeError(
            "soft_weight must be a number or a pair of tensors ((M,), (N,)), "
            f"got {len(values.soft_weight)} values"
        )
    backends.check_name(values.backend)
    checks.check_choice("gather", values.gather, ("all", "ring"))
    if values.gather == "ring" and values.process_group is None:
        raise ValueError("gather='ring' needs a process_group")
    checks.check_choice("reduction", values.reduction, ("mean", "none"))
    checks.check_teacher_dtype(values.teacher_dtype)
    return options
