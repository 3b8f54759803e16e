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
FilterStrategy: TypeAlias = Literal["absolute", "relative"]
IdPair: TypeAlias = tuple[Tensor, Tensor]
# What changes T and not the similarities that the filter compares.
_OF_T = "teacher_logit_scale", "teacher_image_offsets", "teacher_text_offsets"
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
        offsets: (K,) offsets of the queue's rows, added to S as ``text_offsets`` and
            ``image_offsets`` are; they get no gradient. None: 0.
        exclude_ids: (K,) int64 ids of the queue's rows beside those of the batch. None: -1.
        within_ids: (K,) int64, the same for ``within_ids``.
        teacher_features: (K, D'), the teacher's features of the queue's rows, for a soft loss and
            for the filter. None: ``features``, where D' = D.
    """

    features: Tensor
    folds: Folds | None = None
    offsets: Tensor | None = None
    exclude_ids: Tensor | None = None
    within_ids: Tensor | None = None
    teacher_features: Tensor | None = None


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
        filter_margin: m >= 0 turns the filter on: text j is no negative of image i where the
            teacher finds them more similar than image i and its own positives. With
            c_ij = <a_i, b_j> of the teacher's features and C_i the mean of c_ik over the positives
            k of i, that is where c_ij > C_i - m + 1e-4. A text has its own mean, so a pair may be
            left out in one direction alone. Positives are never left out, and the soft loss sees
            every pair. A row without a positive filters nothing. Needs the teacher's features.
            With one positive it is the filter of GISTEmbed (arXiv 2402.16829). None: no filter.
        filter_strategy: "absolute", or "relative" for C_i - |C_i| m instead of C_i - m.
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
    filter_margin: float | None
    filter_strategy: FilterStrategy
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
        image_offsets: (M,) finite b, added to S in logits: S_ij = s <x_i, y_j> + b_i + b'_j. They
            are not multiplied by s, and may require gradients. In a softmax over texts b_i cancels.
        text_offsets: (N,) b', the same for the texts: -log Q(text) corrects for a sampling of texts
            with probabilities Q (the positive's too), a class prior's logarithm adjusts logits.
        teacher_image_offsets: (M,) offsets of the teacher's similarities T, detached; 0 by default.
            They need a soft loss.
        teacher_text_offsets: (N,) the same for the texts; DINO's centring is -centre / temperature.
        exclude_ids: ((M,), (N,)) int64 ids. An image and a text with the same id are no negatives
            of each other. A negative id says nothing. Positives stay positives.
        within_ids: ((M,), (N,)) int64 ids. An image and a text with different ids are no negatives
            of each other, unless one of the ids is negative: the hard negatives of one image alone
            have its id, and texts that are for all have -1.
        filter_thresholds: ((M,), (N,)) similarities of the teacher, above which (by 1e-4) a pair is
            no negative of its image or of its text; instead of ``filter_margin``. They may be
            infinite.
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
    image_offsets: Tensor | None
    text_offsets: Tensor | None
    teacher_image_offsets: Tensor | None
    teacher_text_offsets: Tensor | None
    exclude_ids: IdPair | None
    within_ids: IdPair | None
    filter_thresholds: tuple[Tensor, Tensor] | None
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
    image_offsets: Tensor | None = None
    text_offsets: Tensor | None = None
    teacher_image_offsets: Tensor | None = None
    teacher_text_offsets: Tensor | None = None
    exclude_ids: IdPair | None = None
    within_ids: IdPair | None = None
    filter_margin: float | None = None
    filter_strategy: FilterStrategy = "absolute"
    filter_thresholds: tuple[Tensor, Tensor] | None = None
    diagnostics: Diagnostics | None = None
    reduction: Reduction = "mean"
    teacher_dtype: torch.dtype | None = None
    backend: str | None = None
    process_group: Any = None  # of a call, with the wrapper's Ranks around it
    gather: Literal["all", "ring"] = "all"


def filters(o: Resolved) -> bool:
    """Whether the teacher's similarities remove negatives."""
    return o.filter_margin is not None or o.filter_thresholds is not None


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
    pairs_of = {
        "pair_weights": "(P,)",
        "exclude_ids": "((M,), (N,)) int64",
        "within_ids": "((M,), (N,)) int64",
        "filter_thresholds": "((M,), (N,))",
    }
    for name, what in pairs_of.items():
        value = getattr(o, name)
        if value is not None and not (isinstance(value, (tuple, list)) and len(value) == 2):
            raise TypeError(f"{name} must be a pair of {what} tensors, got {type(value).__name__}")
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
    if taught and not soft and not reads_teacher and not filters(o):
        raise ValueError(
            "teacher features were given, but soft_weight is 0: nothing would read them"
        )
    _check_filter(o, taught=taught)
    _check_of_teacher(o, taught=taught, soft=soft or reads_teacher)
    return o


def _check_of_teacher(o: Resolved, *, taught: bool, soft: bool) -> None:
    """What is said of a teacher has to be read: its scale and its offsets by a soft loss alone."""
    for name in (*_OF_T, "teacher_dtype"):
        if getattr(o, name) is None:
            continue
        if not taught:
            raise ValueError(f"{name} was given without teacher features")
        if not soft and name in _OF_T:
            raise ValueError(f"{name} was given, but soft_weight is 0: nothing would read it")


def _check_filter(o: Resolved, *, taught: bool) -> None:
    """What the options of the filter ask of others."""
    if o.filter_margin is not None and o.filter_thresholds is not None:
        raise TypeError(
            "filter_margin and filter_thresholds both say which negatives are left out: give one"
        )
    name = "filter_margin" if o.filter_margin is not None else "filter_thresholds"
    if filters(o) and not taught:
        raise ValueError(f"{name} needs teacher_image_features and teacher_text_features")
    if filters(o) and o.gather == "ring":
        raise ValueError(f"{name} needs gather='all', got 'ring': it compares all texts at once")


def _in_floats(options: Options) -> Resolved:
    """Numbers of any kind, checked: a fractions.Fraction takes no part in tensor arithmetic."""
    o = Resolved(**options)
    share = o.soft_weight
    given: Any = {
        **options,
        "soft_weight": share if isinstance(share, (tuple, list)) else float(share),
        "image_to_text_weight": float(o.image_to_text_weight),
        "label_smoothing": float(o.label_smoothing),
        "filter_margin": None if o.filter_margin is None else float(o.filter_margin),
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
    checks.check_margin("filter_margin", values.filter_margin)
    checks.check_choice("filter_strategy", values.filter_strategy, ("absolute", "relative"))
    if values.filter_strategy == "relative" and values.filter_margin is None:
        raise ValueError("filter_strategy='relative' needs a filter_margin")
    return options
