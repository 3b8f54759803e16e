"""The operator in C++ for the CPU: products by the BLAS behind torch, the rest in one sweep.

The plane is walked in tiles. torch.mm multiplies features into two preallocated buffers; the
extension (``mxm_kernels/csrc``) then reads a tile once, with all threads, for everything that
``blocked`` needs a dozen PyTorch calls for. torch.mm cannot return float32 from 16-bit factors
on a CPU, so these are widened tile by tile; where the CPU multiplies bfloat16 itself (AMX, or
AVX-512's dot products), those products are the extension's own, with dS rounded to bfloat16 as a
factor of the gradients. S and T are float32 on either way. Two runs with the same number of
threads give the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxm_kernels.backends.native.extension import MISSING, cpp, features_of, problem_of, threads
from mxm_kernels.backends.native.plane import (
    Plane,
    fused_gradients,
    kept_gradients,
    kept_shape,
    packed,
    tiled_gradients,
)
from mxm_kernels.backends.pairs import both_sides, scale_gradient, soft_gradient
from mxm_kernels.backends.problem import (
    Draw,
    Form,
    Gradients,
    Needs,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    SigmoidGradients,
    SigmoidLoss,
    SigmoidStatistics,
    SigmoidWeights,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.tiles import times

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Native:
    """The backend: see the module's docstring."""

    pair_parts = 1
    times = staticmethod(times)

    def __init__(self, level: str | None = None, unit: str | None = None) -> None:
        """By default the best level, with the best unit for bfloat16; a given level has none."""
        levels, units = ([], []) if cpp is None else (cpp.levels(), cpp.units())
        self.level = level or next(iter(levels), "")
        self.unit = unit or next(iter(units if level is None else []), "")

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
        return self.unit != "" and problem.x.dtype == torch.bfloat16

    def kept_shape(self, problem: Problem) -> tuple[int, ...]:
        return (0,) if self._fuses(problem) else kept_shape(problem)

    def forward(self, problem: Problem, diagnostics: bool = False) -> Statistics:
        result = problem.room(diagnostics)
        fuse, positives = self._fuses(problem), result.positives.data_ptr()
        plane = None if fuse else Plane(problem)
        widest = cpp.CHUNK if plane is None else plane.widest
        sweep = cpp.ForwardPass(self.level, problem_of(problem), positives, widest, diagnostics)
        if plane is None:
            rowwise = packed(problem)  # named: the extension takes addresses
            sweep.fused(self.unit, features_of(rowwise))
        else:
            for rows, cols in plane:
                sweep.sweep(*plane.addresses(rows, cols))
        n_rows, n_cols, _, *averages = (s.data_ptr() for s in result)
        sweep.finish(n_rows, n_cols, *averages[:4])
        if diagnostics:
            sweep.finish_diagnostics(*averages[4:8])
        if plane is not None and len(self.kept_shape(problem)) > 1:
            plane.buffers[..., plane.widest :].zero_()  # for the same bits from the same features
            result = result._replace(kept=plane.buffers)
        return result

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        factor: Tensor | None = None,
    ) -> Gradients:
        s = statistics
        saved = s.n_rows, s.n_cols, s.positives, s.t_rows, s.t_cols
        # The pass scales the upstream gradients by s: dS is the gradient of x y^T, and the
        # products need no scaling.
        sweep = cpp.BackwardPass(
            self.level,
            problem_of(problem),
            [v.data_ptr() for v in saved],
            [g.data_ptr() for g in upstream],
            1.0 if factor is None else factor.item(),
        )
        if s.kept.numel():
            gradients = kept_gradients(problem, needs, sweep, s.kept)
        else:
            gradients = (
                fused_gradients(problem, needs, sweep, self.unit)
                if self._fuses(problem)
                else tiled_gradients(problem, needs, sweep)
            )
        dscale = sweep.dscale / _scale_of(problem) ** 2
        return gradients._replace(scale=problem.scale.new_tensor(dscale))

    # The sigmoid statistics take the tiled way for every dtype: fused they would be a second
    # pair of drivers of the matrix unit.
    def sigmoid_forward(self, problem: Problem, bias: Tensor) -> SigmoidStatistics:
        result = SigmoidStatistics(*problem.room(diagnostics=False)[:3])
        plane = Plane(problem)
        sweep = cpp.SigmoidForwardPass(
            self.level,
            problem_of(problem),
            bias.item(),
            result.positives.data_ptr(),
            plane.widest,
        )
        for rows, cols in plane:
            sweep.sweep(*plane.addresses(rows, cols))
        sweep.finish(result.r_rows.data_ptr(), result.r_cols.data_ptr())
        return result

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
    ) -> SigmoidGradients:
        sweep = cpp.SigmoidBackwardPass(
            self.level,
            problem_of(problem),
            bias.item(),
            positives.data_ptr(),
            [g.data_ptr() for g in upstream],
        )
        gradients, scale = tiled_gradients(problem, needs, sweep), _scale_of(problem)
        return SigmoidGradients(
            gradients.x,
            gradients.y,
            problem.scale.new_tensor(sweep.dscale / scale**2),
            bias.new_tensor(sweep.dbias / scale),
        )

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs
    ) -> SigmoidLoss:
        if not problem.scale.item() > 0:
            problem = problem._replace(scale=torch.full_like(problem.scale, torch.nan))
        S = problem.x.new_empty(len(problem.pair_images), dtype=torch.float32)
        given = [v.contiguous() for v in weights]  # named: the extension takes addresses
        sweep = cpp.SigmoidLossPass(
            self.level,
            problem_of(problem),
            bias.item(),
            S.data_ptr(),
            [v.data_ptr() if len(v) else 0 for v in given],
        )
        gradients = tiled_gradients(problem, needs, sweep, problem.gradient_dtype)
        scale = problem.scale.item()  # which the upstream gradients carry
        dscale, dbias = sweep.dscale / scale**2, sweep.dbias / scale
        # What is not finite among the features may vanish from the loss, but not from dS S.
        loss = bias.new_tensor(sweep.loss / scale + 0 * dscale)
        return SigmoidLoss(loss, gradients.x, gradients.y, bias.new_tensor([dscale, dbias]))

    def mixed_rows(
        self, problem: RowProblem, form: Form, hard: float, soft: float, columns: int
    ) -> RowLosses:
        p = RowProblem(*(v.contiguous() for v in problem))
        losses, dn = torch.empty_like(p.n), torch.empty_like(p.n)
        out = RowLosses(losses, dn, torch.zeros_like(p.S), _dscale(p.n, form))
        _mixed_rows(p, None, out, form, hard, soft, columns)
        return out

    def mixed_loss(
        self,
        problem: Problem,
        statistics: Statistics,
        sides: Sides,
        form: Form,
        shares: Shares,
    ) -> tuple[Tensor, Upstream, Tensor | None]:
        p, s, dS = problem, statistics, torch.zeros_like(statistics.positives)
        if not p.scale.item() > 0 or (
            p.teacher_scale is not None and not p.teacher_scale.item() > 0
        ):
            s = s._replace(positives=torch.full_like(s.positives, torch.nan))
        rows, cols = (torch.empty_like(n) for n in (s.n_rows, s.n_cols))
        upstream = Upstream(
            torch.empty_like(rows),
            torch.empty_like(cols),
            dS[None],
            soft_gradient(s.u_rows, sides.row_soft_weights, shares.soft_rows),
            soft_gradient(s.u_cols, sides.col_soft_weights, shares.soft_cols),
        )
        outs = (
            RowLosses(rows, upstream.n_rows, dS, _dscale(rows, form)),
            RowLosses(cols, upstream.n_cols, dS, _dscale(cols, form)),
        )
        both = both_sides(p, s, (s.positives, s.positives), sides, shares)
        for side, slots, out in zip(both, (None, sides.text_slots), outs, strict=True):
            _mixed_rows(side.problem, slots, out, form, *side.numbers)
        return rows.sum() + cols.sum(), upstream, scale_gradient(*outs)

    def drawn_weights(self, draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert dtype == torch.float32, "the backend takes no float64"
        offsets = draw.image_offsets, draw.text_offsets
        lengths = [len(side) - 1 for side in offsets]
        weights = [draw.seed.new_empty(draw.pairs, dtype=dtype) for _ in offsets]
        cpp.drawn_weights(
            int(draw.seed),
            [side.data_ptr() for side in offsets],
            lengths,
            draw.rounds,
            [side.data_ptr() for side in weights],
            threads(4 * draw.rounds * sum(lengths)),  # a draw costs a few elements of a tile
        )
        return weights[0], weights[1]


def _scale_of(problem: Problem) -> float:
    """The scale, which the upstream gradients carry; NaN for 0, by which Python does not divide."""
    return problem.scale.item() or math.nan


def _dscale(n: Tensor, form: Form) -> Tensor | None:
    """Room for the derivatives of the rows by the scale, where the form has them."""
    return torch.empty_like(n) if form.name == "debiased" else None


def _mixed_rows(
    p: RowProblem,
    slots: Tensor | None,
    out: RowLosses,
    form: Form,
    hard: float,
    soft: float,
    columns: int,
) -> None:
    """Losses of the rows and dn into ``out``, dS added to it."""
    cpp.mixed_rows(
        [v.data_ptr() if v.numel() else 0 for v in p],
        0 if slots is None else slots.data_ptr(),
        [0 if v is None else v.data_ptr() for v in out],
        p.n.shape[0],
        *form,
        hard,
        soft,
        columns,
        threads(64 * p.S.shape[0]),  # a pair costs what dozens of elements of a tile cost
    )


backend = _Native()
