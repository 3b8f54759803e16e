"""The arguments and results of a backend.

Symbols as in the operator: x (M, D) image features, y (N, D) text features, X and Y those of
their momentum teacher, s and t the two scales, P positive pairs.

    S_ij = s <x_i, y_j> + b_i + b_j          T_ij = t <X_i, Y_j> + c_i + c_j

with offsets b and c, 0 by default. The negatives Neg(r) of a row are the rows of other groups, less
those that are removed for it (:func:`mxm_kernels.backends.rules.removed`). The removed pairs are
neither positives nor negatives of the row. A filter may remove a pair in one direction alone.

The M rows of S and the N rows of its transpose are one list of R = M + N rows, images first.
For row r of the list, with S_r. its row of S or of the transpose:

    n_r = logsumexp_{j in Neg(r)} S_rj               neg_lse
    t_r = logsumexp_j T_rj                           teacher_lse
    u_r = sum_j softmax_j(T_r.) S_rj                 teacher_mean
    sum_{j in Neg(r)} S_rj                           neg_sum, where it is asked for
    e_r = logsumexp_{j removed} S_rj                 excluded_lse, for a soft loss
    |Neg(r)|                                         num_negatives, where pairs are removed
    sum_{j in Neg(r)} exp(S_rj - n_r) S_rj           neg_mean

``neg_mean`` has no gradient: of it the gradient of the scale is made without another sum over
the matrix, sum_r dn_r neg_mean_r + sum dS_pos S_pos + sum_r du_r u_r + sum_r dneg_sum_r neg_sum_r
over s. A backend that sums it in backward leaves it empty. And for diagnostics, not differentiable:

    max_{j in Neg(r)} S_rj                           hardest
    t_r - sum_j softmax_j(T_r.) T_rj                 entropy, of the teacher's targets

The positives are S of every pair in slot order (P,), then again in text-major order (P,).

The sigmoid statistics have a bias b instead of a teacher:

    sum_{j in Neg(r)} softplus(S_rj + b)             softplus_sum

and the sigmoid loss has weights a of the R rows and w of the P pairs; z is 1 at positives and
-1 at negatives, where w_ij is a_i + a_j:

    L = sum_ij w_ij softplus(-z_ij (S_ij + b))           over positives and negatives
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold


class PairRules(NamedTuple):
    """What is said of pairs beyond their groups: numbers and ids of the R rows, or None."""

    logit_offsets: Tensor | None = None  # (R,) b, accumulator's dtype, differentiable
    teacher_offsets: Tensor | None = None  # (R,) c
    exclude_ids: Tensor | None = None  # (R,) int64, a negative one says nothing
    within_ids: Tensor | None = None  # (R,) int64, a negative one says nothing
    thresholds: Tensor | None = None  # (R,) of the teacher's products <X_i, Y_j>, not of T


class Problem(NamedTuple):
    """One batch: features, scales and where its positive pairs are."""

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher_x: Tensor | None  # (M, D'), in the dtype of x or in float8 (e4m3fn)
    teacher_y: Tensor | None  # (N, D')
    scale: Tensor  # (), float32 (float64 for float64 features)
    teacher_scale: Tensor | None  # ()
    image_groups: Tensor  # (M,) int32
    text_groups: Tensor  # (N,) int32
    offsets: Tensor  # (R + 1,) int64, row r owns positives offsets[r] : offsets[r + 1]
    owners: Tensor  # (2 P,) int64, row of the list of each positive
    pair_texts: Tensor  # (P,) int64, text row of each slot
    slot_places: Tensor  # (P,) int64, place in text-major order of each slot
    logit_offsets: Tensor | None = None  # these are PairRules
    teacher_offsets: Tensor | None = None
    exclude_ids: Tensor | None = None
    within_ids: Tensor | None = None
    thresholds: Tensor | None = None

    @property
    def pairs(self) -> int:
        """P, the number of positive pairs."""
        return self.pair_texts.shape[0]

    @property
    def pair_images(self) -> Tensor:
        """(P,) int64, image row of each slot."""
        return self.owners[: self.pairs]

    @property
    def accumulator(self) -> torch.dtype:
        """Dtype of everything after the products: float32, or float64 for float64 features."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Dtype of gradients that are yet to be multiplied by an upstream gradient.

        float16 could not hold what loss scaling has not raised: a mean's gradients are below 6e-8.
        """
        return torch.float32 if self.x.dtype == torch.float16 else self.x.dtype

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's features are there, for T's sums or for the filter alone."""
        return self.teacher_x is not None

    @property
    def has_soft(self) -> bool:
        """Whether T's sums are wanted: without a scale of T the filter alone reads its features."""
        return self.teacher_scale is not None

    @property
    def rules(self) -> PairRules:
        """What is said of the pairs beyond their groups."""
        return PairRules(*self[-len(PairRules._fields) :])

    @property
    def told(self) -> bool:
        """Whether anything is said of the pairs beyond their groups."""
        return any(rule is not None for rule in self.rules)

    @property
    def filters(self) -> bool:
        """Whether the teacher's products remove pairs."""
        return self.thresholds is not None

    @property
    def removes(self) -> bool:
        """Whether pairs are removed from the negatives."""
        return any(rule is not None for rule in self.rules[2:])

    def every_rule(self) -> list[Tensor]:
        """The rules, (R,) each; one that is not given has values of no effect."""
        rows = self.x.shape[0] + self.y.shape[0]
        numbers, ids = self.accumulator, torch.int64
        plain = (0.0, numbers), (0.0, numbers), (-1, ids), (-1, ids), (math.inf, numbers)
        made = []
        for rule, (value, dtype) in zip(self.rules, plain, strict=True):
            made.append(self.x.new_full((rows,), value, dtype=dtype) if rule is None else rule)
        return made

    @property
    def feature_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The features that S is a product of, and where there is a teacher those of T."""
        if self.teacher_x is None or self.teacher_y is None:
            return [(self.x, self.y)]
        return [(self.x, self.y), (self.teacher_x, self.teacher_y)]

    @property
    def is_float8(self) -> bool:
        """Whether the teacher is in float8: a NaN among its features is one of its scale too."""
        return self.teacher_x is not None and self.teacher_x.dtype == torch.float8_e4m3fn

    def halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) -> (M,) of the images, (N,) of the texts; an empty vector gives two."""
        images = self.x.shape[0] if len(rows) else 0
        return rows[:images], rows[images:]

    def to_list(self, slots: Tensor) -> Tensor:
        """(P,) in slot order -> (2 P,), in slot order and then in text-major order."""
        pairs = len(slots)
        made = slots.new_empty(2 * pairs)
        made[:pairs] = slots
        self.fill_list(made)
        return made

    def fill_list(self, positives: Tensor) -> None:
        """(2 P,) whose first half is in slot order: fill in the second, in text-major order."""
        pairs = self.pairs
        positives[pairs:].index_copy_(0, self.slot_places, positives[:pairs])

    def from_list(self, positives: Tensor) -> Tensor:
        """(2 P,) -> (P,) in slot order, the sum over both places of each pair: its adjoint."""
        slots, again = positives.tensor_split(2)
        return slots + again.index_select(0, self.slot_places)

    def allocate(
        self,
        diagnostics: bool,
        neg_sum: bool = False,
        *,
        neg_mean: bool = False,
        stride: int | None = None,
    ) -> Statistics:
        """Uninitialised statistics; those that do not exist here have no element.

        ``stride``: rows of what is kept have room for so many numbers. None: nothing is kept.
        """
        M, N, dtype = self.x.shape[0], self.y.shape[0], self.accumulator
        rows = M + N
        taught, removes = rows if self.has_soft else 0, rows if self.removes else 0
        positives = self.owners.shape[0]  # not len, which torch.compile fixes
        sizes = [rows, positives, taught, rows if neg_sum else 0, min(taught, removes), taught]
        sizes += [rows, taught] if diagnostics else [0, 0]
        sizes += [removes, rows if neg_mean else 0]
        made = [self.x.new_empty(size, dtype=dtype) for size in sizes]
        shape = (0,) if stride is None else (self.matrices, M, stride)
        kept = self.x.new_empty(shape, dtype=self.kept_dtype)
        fixed = stride is not None and kept.dtype == torch.int16
        units = self.x.new_empty((self.matrices, rows) if fixed else (0,), dtype=dtype)
        return Statistics._make([*made, kept, units])

    def contiguous(self) -> Problem:
        """The problem with every feature matrix laid out row after row."""
        teacher_x, teacher_y = self.teacher_x, self.teacher_y
        return self._replace(
            x=self.x.contiguous(),
            y=self.y.contiguous(),
            teacher_x=None if teacher_x is None else teacher_x.contiguous(),
            teacher_y=None if teacher_y is None else teacher_y.contiguous(),
        )

    @property
    def matrices(self) -> int:
        """How many matrices are kept: S, and T where there is a teacher."""
        return 1 if self.teacher_x is None else 2

    @property
    def kept_dtype(self) -> torch.dtype:
        """Dtype of what is kept: the accumulator's, or 16-bit fixed point for 16-bit features."""
        return torch.int16 if self.x.dtype.itemsize == 2 else self.accumulator

    def has_negative(self) -> Tensor:
        """(R,) whether a row has one: a column of another group."""
        images, texts = self.image_groups.long(), self.text_groups.long()
        groups = int(torch.cat([images, texts]).max()) + 1
        same = (
            torch.bincount(texts, minlength=groups)[images],
            torch.bincount(images, minlength=groups)[texts],
        )
        return torch.cat([same[0] < len(texts), same[1] < len(images)])

    def with_valid_scales(self) -> Problem:
        """The problem with NaN for a scale that is not positive, so that the loss is NaN."""
        t = self.teacher_scale
        return self._replace(
            scale=threshold(self.scale, 0, torch.nan),
            teacher_scale=None if t is None else threshold(t, 0, torch.nan),
        )


class Statistics(NamedTuple):
    """The result of forward: O(R + P) numbers, and what is kept of S and T.

    Without a teacher ``teacher_mean``, ``teacher_lse``, ``entropy`` and ``excluded_lse`` are empty.
    So are ``hardest`` and ``entropy`` where no diagnostics are wanted, ``neg_sum`` where it is not
    asked for, ``excluded_lse`` and ``num_negatives`` where no pair is removed, and ``kept`` and
    ``units`` where nothing is kept. A row that has a negative and ``neg_lse`` -inf, and a positive
    that is infinite, come from features that are not finite: both are NaN here, and ``hardest`` is
    where ``neg_lse`` is (:meth:`checked`).
    """

    neg_lse: Tensor  # (R,) n, -inf without a negative
    positives: Tensor  # (2 P,) S of every positive pair, in slot order, then in text-major order
    teacher_mean: Tensor  # (R,) u
    neg_sum: Tensor  # (R,) sum of S over the negatives, 0 without one
    excluded_lse: Tensor  # (R,) e, -inf where no pair is removed
    teacher_lse: Tensor  # (R,) t, for backward
    hardest: Tensor  # (R,) greatest S over the negatives, -inf without one
    entropy: Tensor  # (R,) of the teacher's softmax, in nats
    num_negatives: Tensor  # (R,) how many negatives remain
    neg_mean: Tensor  # (R,) mean of S by softmax over the negatives, 0 without one; or empty
    kept: Tensor  # (1 or 2, M, stride) S and T for backward as the backend reads them, or empty
    units: Tensor  # (1 or 2, R) of 16-bit ``kept``: entry (i, j) is in units of u_i u_j

    def checked(self, p: Problem) -> Statistics:
        """NaN where a feature is not finite and the sums do not show it.

        A feature of -inf can make exp(S) vanish instead of overflow, and its row would silently
        drop out of every sum. It makes a positive infinite, or leaves a row with nothing.
        """
        n, S = self.neg_lse, self.positives
        if not math.isfinite(S.sum().item()):
            S = S.masked_fill(S.isinf(), torch.nan)
        if n.min().item() == -math.inf:
            some = self.num_negatives > 0 if p.removes else p.has_negative()
            n = n.masked_fill((n == -torch.inf) & some, torch.nan)
        hardest = self.hardest
        if len(hardest):  # a maximum leaves NaN out
            hardest = hardest.masked_fill(n.isnan(), torch.nan)
        return self._replace(neg_lse=n, positives=S, hardest=hardest)


class Memory(NamedTuple):
    """Bytes that a call may take for the M x N similarities, and whether a backward follows."""

    budget: int  # bytes; 0 keeps nothing, with the workspace of the default
    keep: bool = False  # whether forward may keep S and T


class Upstream(NamedTuple):
    """Gradients of the loss with respect to the differentiable statistics."""

    neg_lse: Tensor  # (R,)
    positives: Tensor  # (2 P,)
    teacher_mean: Tensor  # (R,), or empty without a teacher
    neg_sum: Tensor  # (R,), or empty where forward had none
    excluded_lse: Tensor  # (R,), or empty where forward had none


class SigmoidStatistics(NamedTuple):
    """The result of the sigmoid statistics' forward, and its upstream gradients."""

    softplus_sum: Tensor  # (R,) sum of softplus(S + b) over the negatives of each row
    positives: Tensor  # (2 P,) S of every positive pair, as in Statistics


class Needs(NamedTuple):
    """Which gradients are wanted; an encoder that is frozen costs no product."""

    x: bool
    y: bool
    scale: bool
    bias: bool = False
    logit_offsets: bool = False


class Gradients(NamedTuple):
    """The result of backward; empty where a gradient is not wanted."""

    x: Tensor  # (M, D), dtype of the features
    y: Tensor  # (N, D)
    scale: Tensor  # ()
    logit_offsets: Tensor  # (R,)


class SigmoidGradients(NamedTuple):
    """The result of the sigmoid statistics' backward; empty where not wanted."""

    x: Tensor  # (M, D), dtype of the features
    y: Tensor  # (N, D)
    scale: Tensor  # ()
    bias: Tensor  # ()
    logit_offsets: Tensor  # (R,)


class SigmoidWeights(NamedTuple):
    """The weights of the terms of the sigmoid loss."""

    rows: Tensor  # (R,) a: a term of a negative has a_i + a_j
    pairs: Tensor  # (P,) of the positives in slot order, or empty: a_i + a_j too


class SigmoidLoss(NamedTuple):
    """The sigmoid loss and its gradients, which one pass gives; empty where not wanted."""

    loss: Tensor  # ()
    dx: Tensor  # (M, D), in the problem's ``gradient_dtype``
    dy: Tensor  # (N, D)
    dscalars: Tensor  # (2,) by the scale and by the bias
    doffsets: Tensor  # (R,)
