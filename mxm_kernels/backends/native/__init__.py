"""The operator in C++ for the CPU: products by the BLAS behind torch, the rest in one sweep.

The plane is walked in tiles. torch.mm multiplies features into two preallocated buffers, or into
what is kept of S and T; the extension (``mxm_kernels/csrc``) then reads a tile once, with all
threads, for everything that ``blocked`` needs a dozen PyTorch calls for. torch.mm cannot return
float32 from 16-bit factors on a CPU, so these are widened tile by tile; where the CPU multiplies
bfloat16 itself (AMX, or AVX-512's dot products), those products are the extension's own, with dS
rounded to bfloat16 as a factor of the gradients, and nothing is kept. S and T are float32 on either
way; of 16-bit features they are kept in fixed point. Two runs with the same number of threads give
the same bits, and so does forward with any budget.

Where rules tell of pairs (offsets, ids, thresholds), the sweeps read the rules beside the products.
Without rules other functions run, which know nothing of them. A filter compares float32 products
with its thresholds, in forward and again in backward: 16-bit products are not kept for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxm_kernels.backends import fixed_point
from mxm_kernels.backends.base import Backend
from mxm_kernels.backends.interface import (
    Gradients,
    Memory,
    Needs,
    Problem,
    SigmoidGradients,
    SigmoidLoss,
    SigmoidStatistics,
    SigmoidWeights,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.native.extension import MISSING, cpp, features_of, problem_of, threads
from mxm_kernels.backends.native.plane import (
    Plane,
    addresses_of,
    fused_gradients,
    kept_gradients,
    packed,
    prepare_kept,
    tiled_gradients,
)
from mxm_kernels.backends.native.rows import row_losses
from mxm_kernels.backends.native.tiling import kept_stride, tiles_that_fit
from mxm_kernels.backends.row_interface import Draw, FusedFormula, RowLosses, RowProblem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Native(Backend):
    """The backend: see the module's docstring."""

    def __init__(self, level: str | None = None, isa: str | None = None) -> None:
        """By default the best level, with the best unit for bfloat16; a given level has none."""
        levels, units = ([], []) if cpp is None else (cpp.levels(), cpp.units())
        self.level = level or next(iter(levels), "")
        self.isa = isa or next(iter(units if level is None else []), "")

    @property
    def fused_formulas(self) -> frozenset[str]:
        """The formulas of the extension, which works in float32."""
        return frozenset() if cpp is None else frozenset(cpp.FORMULAS)

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if cpp is None:
            return f"this installation was built without a C++ compiler ({MISSING})"
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in DTYPES:
            return f"it runs float32, bfloat16 and float16 features, not {dtype}"
        return None

    def _fuses(self, problem: Problem) -> bool:
        """Whether the extension does the products too, on a unit for bfloat16."""
        return self.isa != "" and problem.x.dtype == torch.bfloat16

    def kept_stride(self, problem: Problem, memory: Memory) -> int | None:
        return None if self._fuses(problem) else kept_stride(problem, memory)

    def forward(
        self, problem: Problem, memory: Memory, diagnostics: bool = False, neg_sum: bool = False
    ) -> Statistics:
        problem = problem.with_valid_scales()
        made = problem.allocate(diagnostics, neg_sum, stride=self.kept_stride(problem, memory))
        positives = made.positives.data_ptr()  # (P,) of them by the extension
        sweep = cpp.ForwardPass(self.level, problem_of(problem), positives, diagnostics, neg_sum)
        if self._fuses(problem):
            rowwise = packed(problem)  # named: the extension takes addresses
            sweep.fused(self.isa, features_of(rowwise))
        else:
            self._sweep(sweep, problem, made, memory)
        sweep.finish(
            *_addresses(problem, made.neg_lse),
            *_addresses(problem, made.teacher_mean),
            *_addresses(problem, made.teacher_lse),
        )
        if neg_sum:
            sweep.finish_sums(*_addresses(problem, made.neg_sum))
        if problem.removes:
            sweep.finish_removed(
                *_addresses(problem, made.num_negatives),
                *_addresses_or_none(problem, made.excluded_lse),
            )
        if diagnostics:
            sweep.finish_diagnostics(
                *_addresses(problem, made.hardest), *_addresses(problem, made.entropy)
            )
        problem.fill_list(made.positives)
        return made.checked(problem)

    def _sweep(self, sweep, problem: Problem, made: Statistics, memory: Memory) -> None:
        """Sweep the tiles, and keep them where ``made`` has room."""
        keeps, place, inverse = made.kept.numel() > 0, None, None
        if keeps:
            prepare_kept(problem, made)
            if made.kept.dtype == torch.float32:
                place = made.kept
            elif fixed_point.too_coarse(problem, made.units):
                made.kept.zero_()
            else:
                inverse = fixed_point.inverse(made.units)  # named: as above
                sweep.keep(*addresses_of(problem, made.kept, inverse))
        tiles = tiles_that_fit(problem, memory, keeps=keeps)
        for tile in Plane(problem, tiles, place).multiplied():
            sweep.sweep(*tile.addresses)

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        memory: Memory,
    ) -> Gradients:
        s, d, dS = statistics, upstream, problem.from_list(upstream.positives)
        # The pass scales the upstream gradients by s: dS is the gradient of x y^T, and the
        # products need no scaling.
        sweep = cpp.BackwardPass(
            self.level,
            problem_of(problem),
            [
                *_addresses(problem, s.neg_lse),
                s.positives.data_ptr(),
                *_addresses(problem, s.teacher_lse),
                *_addresses_or_none(problem, s.neg_sum),
                *_addresses_or_none(problem, s.excluded_lse),
            ],
            [
                *_addresses(problem, d.neg_lse),
                dS.data_ptr(),
                *_addresses(problem, d.teacher_mean),
                *_addresses_or_none(problem, d.neg_sum),
                *_addresses_or_none(problem, d.excluded_lse),
            ],
            needs.logit_offsets,
        )
        if self._reads(problem, s):
            tiles = tiles_that_fit(problem, memory, keeps=True)
            gradients = kept_gradients(problem, tiles, needs, sweep, s)
        elif self._fuses(problem):
            gradients = fused_gradients(problem, needs, sweep, self.isa)
        else:
            # What was kept and is too coarse is still there, beside the tiles.
            tiles = tiles_that_fit(problem, memory, keeps=s.kept.numel() > 0)
            gradients = tiled_gradients(problem, tiles, needs, sweep)
        dscale = sweep.dscale / _scale_of(problem) ** 2
        return gradients._replace(scale=problem.scale.new_tensor(dscale))

    def _reads(self, problem: Problem, made: Statistics) -> bool:
        """Whether backward reads what forward kept."""
        if not made.kept.numel():
            return False
        return made.kept.dtype != torch.int16 or not fixed_point.too_coarse(problem, made.units)

    # The sigmoid statistics take the tiled way for every dtype: fused they would be a second
    # pair of drivers of the matrix unit.
    def sigmoid_forward(self, problem: Problem, bias: Tensor, memory: Memory) -> SigmoidStatistics:
        problem = problem.with_valid_scales()
        made, S = problem.allocate(diagnostics=False), _slots(problem)
        sweep = cpp.SigmoidForwardPass(self.level, problem_of(problem), bias.item(), S.data_ptr())
        for tile in Plane(problem, tiles_that_fit(problem, memory)).multiplied():
            sweep.sweep(*tile.addresses)
        sweep.finish(*_addresses(problem, made.neg_lse))
        return SigmoidStatistics(made.neg_lse, problem.to_list(S))

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
        memory: Memory,
    ) -> SigmoidGradients:
        problem = problem.with_valid_scales()
        dS = problem.from_list(upstream.positives)
        sweep = cpp.SigmoidBackwardPass(
            self.level,
            problem_of(problem),
            bias.item(),
            positives.data_ptr(),
            [*_addresses(problem, upstream.softplus_sum), dS.data_ptr()],
            needs.logit_offsets,
        )
        gradients = tiled_gradients(problem, tiles_that_fit(problem, memory), needs, sweep)
        scale = _scale_of(problem)
        return SigmoidGradients(
            gradients.x,
            gradients.y,
            problem.scale.new_tensor(sweep.dscale / scale**2),
            bias.new_tensor(sweep.dbias / scale),
            gradients.logit_offsets,
        )

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs, memory: Memory
    ) -> SigmoidLoss:
        problem = problem.with_valid_scales()
        S, pairs = _slots(problem), weights.pairs
        sweep = cpp.SigmoidLossPass(
            self.level,
            problem_of(problem),
            bias.item(),
            S.data_ptr(),
            [*_addresses(problem, weights.rows), pairs.data_ptr() if len(pairs) else 0],
            needs.logit_offsets,
        )
        tiles = tiles_that_fit(problem, memory)
        gradients = tiled_gradients(problem, tiles, needs, sweep, problem.gradient_dtype)
        scale = problem.scale.item()  # which the upstream gradients carry
        dscale, dbias = sweep.dscale / scale**2, sweep.dbias / scale
        # What is not finite among the features may vanish from the loss, but not from dS S.
        loss = bias.new_tensor(sweep.loss / scale + 0 * dscale)
        dscalars = bias.new_tensor([dscale, dbias])
        return SigmoidLoss(loss, gradients.x, gradients.y, dscalars, gradients.logit_offsets)

    def row_losses(self, rows: RowProblem, formula: FusedFormula) -> RowLosses:
        return row_losses(self.level, rows, formula)

    def drawn_weights(self, draw: Draw, dtype: torch.dtype) -> Tensor:
        assert dtype == torch.float32, "the backend takes no float64"
        weights = draw.seed.new_empty(draw.positives, dtype=dtype)
        rows = len(draw.offsets) - 1
        cpp.drawn_weights(
            int(draw.seed),
            draw.offsets.data_ptr(),
            rows,
            draw.rounds,
            weights.data_ptr(),
            threads(4 * draw.rounds * rows),  # a draw costs a few elements of a tile
        )
        return weights


def _slots(problem: Problem) -> Tensor:
    """(P,) uninitialised numbers of the pairs in slot order."""
    return problem.x.new_empty(problem.pairs, dtype=torch.float32)


def _addresses(problem: Problem, rows: Tensor) -> tuple[int, int]:
    """Addresses of the M image rows and of the N text rows in a (R,) float32 vector."""
    first = rows.data_ptr()
    return first, first + 4 * problem.x.shape[0]


def _addresses_or_none(problem: Problem, rows: Tensor) -> tuple[int, int]:
    """Addresses as of ``_addresses``, or 0 for an empty vector."""
    return _addresses(problem, rows) if len(rows) else (0, 0)


def _scale_of(problem: Problem) -> float:
    """The scale as a number; NaN for 0, since Python raises on a division by 0."""
    return problem.scale.item() or math.nan


backend = _Native()
