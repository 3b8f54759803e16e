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
from mxm_kernels.backends.tiles import GradientSum, Span, split, times

try:
    import mxm_kernels._native as _native
except ImportError as error:  # built without a compiler: the package is whole without it
    _native = None  # type: ignore[assignment]
    _missing = str(error)

TILE = 5 << 20  # floats in a tile: two tiles are 40 MiB
TILE_COLUMNS = 4608  # at D = 1024 their widened features are 18 MiB
KEPT = 4 << 20  # floats of S, and of T, up to which forward keeps them: two are 32 MiB
LARGE = 8 << 20  # bytes from which a workspace asks for large pages
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PAD = 16  # floats in the widest vector of the sweep


class _Plane:
    """Walks the M x N plane and multiplies features into its two tiles."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        rows, cols = problem.x.shape[0], problem.y.shape[0]
        self.columns = list(split(cols, TILE_COLUMNS))
        self.widest = max(hi - lo for lo, hi in self.columns)
        self.stride = _stride(self.widest)
        self.rows = list(split(rows, max(1, TILE // self.stride)))
        height = max(hi - lo for lo, hi in self.rows)
        shape = (2 if problem.has_teacher else 1, height, self.stride)
        self.buffers = problem.x.new_empty(shape, dtype=torch.float32)
        if self.buffers.nbytes > LARGE:
            # 20,000 faults on small pages take 4% of the largest benchmark.
            _native.advise_large_pages(self.buffers.data_ptr(), self.buffers.nbytes)

    def __iter__(self):
        """Tiles in row-block order, each with S and T multiplied out, not yet scaled."""
        p, S = self.problem, self.buffers[0]
        for rows in self.rows:
            for cols in self.columns:
                self._multiply(S, p.x, p.y, rows, cols)
                if p.teacher_x is not None and p.teacher_y is not None:
                    self._multiply(self.buffers[1], p.teacher_x, p.teacher_y, rows, cols)
                yield rows, cols

    def _multiply(self, out: Tensor, x: Tensor, y: Tensor, rows: Span, cols: Span) -> None:
        a, b = x[slice(*rows)].float(), y[slice(*cols)].float()
        torch.mm(a, b.T, out=self.cut(out, rows, cols))

    def cut(self, buffer: Tensor, rows: Span, cols: Span) -> Tensor:
        """The part of a buffer that a tile fills."""
        return buffer[: rows[1] - rows[0], : cols[1] - cols[0]]

    def addresses(self, rows: Span, cols: Span) -> tuple[int, ...]:
        """The tile as the extension takes it."""
        teacher = self.buffers[1].data_ptr() if self.problem.has_teacher else 0
        place = rows[0], rows[1] - rows[0], cols[0], cols[1] - cols[0]
        return self.buffers.data_ptr(), teacher, self.stride, *place


def _stride(width: int) -> int:
    """Floats from row to row: whole vectors, and not a multiple of 4 KiB.

    Rows a multiple of 4 KiB apart share the sets of the L1 cache.
    """
    stride = -(-width // _PAD) * _PAD
    return stride + _PAD if stride % 1024 == 0 else stride


def _native_problem(p: Problem):
    return _native.Problem.make(
        p.x.shape[0],
        p.y.shape[0],
        p.scale.item(),
        0.0 if p.teacher_scale is None else p.teacher_scale.item(),
        p.has_teacher,
        p.image_groups.data_ptr(),
        p.text_groups.data_ptr(),
        p.image_offsets.data_ptr(),
        p.pair_texts.data_ptr(),
        _threads(p.x.shape[0] * p.y.shape[0]),
    )


def _threads(elements: int) -> int:
    """Torch's number of threads, fewer where a thread has less to do than starting it costs."""
    return max(1, min(torch.get_num_threads(), elements >> 14))


class _Native:
    """The backend: see the module's docstring."""

    pair_parts = 1
    times = staticmethod(times)

    def __init__(self, level: str | None = None, unit: str | None = None) -> None:
        """By default the best level, with the best unit for bfloat16; a given level has none."""
        levels, units = ([], []) if _native is None else (_native.levels(), _native.units())
        self.level = level or next(iter(levels), "")
        self.unit = unit or next(iter(units if level is None else []), "")

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if _native is None:
            return f"this installation was built without a C++ compiler ({_missing})"
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in DTYPES:
            return f"it runs float32, bfloat16 and float16 features, not {dtype}"
        return None

    def _fuses(self, problem: Problem) -> bool:
        """Whether the extension does the products too, on a unit for bfloat16."""
        return self.unit != "" and problem.x.dtype == torch.bfloat16

    def kept_shape(self, problem: Problem) -> tuple[int, ...]:
        """(1 or 2, M, stride): one tile, which the products would fill again in backward."""
        rows, cols = problem.x.shape[0], problem.y.shape[0]
        keeps = not self._fuses(problem) and cols <= TILE_COLUMNS and rows * _stride(cols) <= KEPT
        return (2 if problem.has_teacher else 1, rows, _stride(cols)) if keeps else (0,)

    def forward(self, problem: Problem, diagnostics: bool = False) -> Statistics:
        result = problem.room(diagnostics)
        fuse, positives = self._fuses(problem), result.positives.data_ptr()
        plane = None if fuse else _Plane(problem)
        widest = _native.CHUNK if plane is None else plane.widest
        sweep = _native.ForwardPass(
            self.level, _native_problem(problem), positives, widest, diagnostics
        )
        if plane is None:
            packed = _packed(problem)  # named: the extension takes addresses
            sweep.fused(self.unit, _features(packed))
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
        sweep = _native.BackwardPass(
            self.level,
            _native_problem(problem),
            [v.data_ptr() for v in saved],
            [g.data_ptr() for g in upstream],
            1.0 if factor is None else factor.item(),
        )
        if s.kept.numel():
            gradients = _kept_gradients(problem, needs, sweep, s.kept)
        else:
            gradients = (
                _fused_gradients(problem, needs, sweep, self.unit)
                if self._fuses(problem)
                else _tiled_gradients(problem, needs, sweep)
            )
        dscale = sweep.dscale / _scale_of(problem) ** 2
        return gradients._replace(scale=problem.scale.new_tensor(dscale))

    # The sigmoid statistics take the tiled way for every dtype: fused they would be a second
    # pair of drivers of the matrix unit.
    def sigmoid_forward(self, problem: Problem, bias: Tensor) -> SigmoidStatistics:
        result = SigmoidStatistics(*problem.room(diagnostics=False)[:3])
        plane = _Plane(problem)
        sweep = _native.SigmoidForwardPass(
            self.level,
            _native_problem(problem),
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
        sweep = _native.SigmoidBackwardPass(
            self.level,
            _native_problem(problem),
            bias.item(),
            positives.data_ptr(),
            [g.data_ptr() for g in upstream],
        )
        gradients, scale = _tiled_gradients(problem, needs, sweep), _scale_of(problem)
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
        sweep = _native.SigmoidLossPass(
            self.level,
            _native_problem(problem),
            bias.item(),
            S.data_ptr(),
            [v.data_ptr() if len(v) else 0 for v in given],
        )
        gradients = _tiled_gradients(problem, needs, sweep, problem.gradient_dtype)
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
        _native.drawn_weights(
            int(draw.seed),
            [side.data_ptr() for side in offsets],
            lengths,
            draw.rounds,
            [side.data_ptr() for side in weights],
            _threads(4 * draw.rounds * sum(lengths)),  # a draw costs a few elements of a tile
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
    _native.mixed_rows(
        [v.data_ptr() if v.numel() else 0 for v in p],
        0 if slots is None else slots.data_ptr(),
        [0 if v is None else v.data_ptr() for v in out],
        p.n.shape[0],
        *form,
        hard,
        soft,
        columns,
        _threads(64 * p.S.shape[0]),  # a pair costs what dozens of elements of a tile cost
    )


def _kept_gradients(problem: Problem, needs: Needs, sweep, kept: Tensor) -> Gradients:
    """From the tile that forward kept, which a second backward may read again."""
    rows, cols, sums = len(problem.x), len(problem.y), GradientSum(problem, needs)
    dS, teacher = torch.empty_like(kept[0]), kept[-1].data_ptr() if problem.has_teacher else 0
    sweep.sweep_to(dS.data_ptr(), kept.data_ptr(), teacher, kept.shape[2], rows, cols)
    sums.add(dS[:, :cols], (0, rows), (0, cols))
    return sums.finish(problem.scale)


def _tiled_gradients(
    problem: Problem, needs: Needs, sweep, dtype: torch.dtype | None = None
) -> Gradients:
    plane, sums = _Plane(problem), GradientSum(problem, needs, dtype=dtype)
    for rows, cols in plane:
        sweep.sweep(*plane.addresses(rows, cols))
        sums.add(plane.cut(plane.buffers[0], rows, cols), rows, cols)
    return sums.finish(problem.scale)


def _fused_gradients(problem: Problem, needs: Needs, sweep, unit: str) -> Gradients:
    p = _packed(problem)
    dx = torch.empty_like(p.x) if needs.x else p.x.new_empty(0)
    dy = torch.empty_like(p.y) if needs.y else p.y.new_empty(0)
    places = (dx.data_ptr() if needs.x else 0, dy.data_ptr() if needs.y else 0)
    sweep.fused(unit, _features(p), *places)
    return Gradients(dx, dy, problem.scale)


def _packed(p: Problem) -> Problem:
    """The problem as the extension reads it: row after row, a float8 teacher in bfloat16."""
    if p.teacher_x is not None and p.teacher_y is not None:
        p = p._replace(teacher_x=p.teacher_x.to(p.x.dtype), teacher_y=p.teacher_y.to(p.x.dtype))
    return p.contiguous()


def _features(p: Problem):
    assert (p.teacher_x is None) == (p.teacher_y is None)
    if p.teacher_x is None or p.teacher_y is None:
        return _native.Features.make(p.x.data_ptr(), p.y.data_ptr(), p.x.shape[1], 0, 0, 0)
    return _native.Features.make(
        p.x.data_ptr(),
        p.y.data_ptr(),
        p.x.shape[1],
        p.teacher_x.data_ptr(),
        p.teacher_y.data_ptr(),
        p.teacher_x.shape[1],
    )


backend = _Native()
