"""CWCL: a contrastive loss in which every pair is a positive, weighted by a given similarity."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.core.batch import make_batch
from mxm_kernels.core.formulas import Formula, logsumexp
from mxm_kernels.core.mean import row_factors
from mxm_kernels.core.options import HyperParameters, Inputs, Options, Scale, has_teacher
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.core.rows import Rows
from mxm_kernels.losses.cwcl_targets import is_linear, less_target, row_targets, with_target
from mxm_kernels.losses.loss_function import FILTER, IDS, TEACHER_OFFSETS, loss_function
from mxm_kernels.losses.module import Loss

_NOT_TAKEN = (
    "folds",
    "soft_weight",
    "pair_weights",
    "label_smoothing",
    "teacher_logit_scale",
    "teacher_dtype",
    "image_queue",
    "text_queue",
    *TEACHER_OFFSETS,
    *IDS,
    *FILTER,
)


@loss_function(not_taken=dict.fromkeys(_NOT_TAKEN, ""))
def fused_cwcl_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Continuously weighted contrastive loss (CWCL): every pair is a positive with a weight w_ij.

        w_ij = (1 + <a_i, b_j>) / 2
        l_i  = logsumexp_j S_ij - sum_j w_ij S_ij / sum_j w_ij

    (arXiv 2309.14580, equations 3 and 4). S = s x y^T are the similarities of the features. a and
    b are given features, whose similarity is the weight; in the paper a = b are the features
    of the modality whose encoder is frozen. A row whose weights are all 0 has target 0.

    w needs no M x N matrix: sum_j w_ij S_ij = s/2 x_i^T (sum_j y_j (1, b_j)^T) (1, a_i), which
    costs (M + N) D D' operations. Where the matrix w is cheaper, and takes at most 16 MiB, it is
    made.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`. ``teacher_image_features`` a (M, D') and
            ``teacher_text_features`` b (N, D'), L2-normalised, are needed. ``soft_weight``,
            ``pair_weights``, ``label_smoothing``, ``teacher_logit_scale``, ``teacher_dtype``,
            queues, the teacher's offsets, ids and the filter are not taken.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_cwcl_loss
        >>> speech, text = normalize(torch.randn(6, 8)), normalize(torch.randn(6, 8))
        >>> frozen = normalize(torch.randn(6, 5))
        >>> loss = fused_cwcl_loss(speech, text, logit_scale=10.0,
        ...     teacher_image_features=frozen, teacher_text_features=frozen)
        >>> loss.shape
        torch.Size([])
    """
    if not has_teacher(options):
        raise ValueError("CWCL needs teacher_image_features and teacher_text_features")
    batch = make_batch(
        image_features, text_features, None, logit_scale, options, reads_teacher=True
    )
    if is_linear(batch):
        batch, target = with_target(batch, row_factors(batch, of_every_row=True))
        return less_target(batch, loss_of(batch, logsumexp), target)
    targets = row_targets(batch)

    def weighted(rows: Rows, weights: object) -> Tensor:
        return logsumexp(rows, None) - targets

    return loss_of(batch, Formula("cwcl", weighted, of_every_row=True))


class CWCLLoss(Loss):
    """:func:`fused_cwcl_loss` as a module, with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``, ``label_smoothing`` and
            ``teacher_dtype``.

    Example:
        >>> from mxm_kernels import CWCLLoss
        >>> CWCLLoss(image_to_text_weight=1.0)
        CWCLLoss(image_to_text_weight=1.0)
    """

    function = staticmethod(fused_cwcl_loss)

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__({}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        logit_scale: Scale,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(image_features, text_features, logit_scale=logit_scale, **inputs)
