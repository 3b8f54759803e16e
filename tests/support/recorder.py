"""What backward computes on a GPU, recorded without one: fake CUDA tensors, kernels left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mxm_kernels.backends import tiles
from mxm_kernels.backends.interface import Memory, Needs, Problem, Statistics, Upstream

aten = torch.ops.aten
SMALL = 64 << 10  # bytes of a storage that is counted, and not looked at again


@dataclass(frozen=True)
class Product:
    """One matrix product (rows x depth) (depth x cols)."""

    name: str  # "dx", or "dy" of a transposed chunk
    rows: int
    depth: int
    cols: int


@dataclass
class Recorder(TorchDispatchMode):
    """Every product, the bytes that additions to matrices move, and the most bytes alive."""

    products: list[Product] = field(default_factory=list)
    added_bytes: int = 0
    peak: int = 0
    launches: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: list[torch.UntypedStorage] = []
        self._small = 0

    def given(self, arguments: Any) -> None:
        """Tensors whose memory is not counted."""
        leaves = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
        self._given = [t.untyped_storage() for t in leaves]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._record(func, args, kwargs)
        if func is aten.addmm.dtype_out:  # PyTorch 2.11 has no fake implementation of it
            return kwargs["out"]
        result = func(*args, **kwargs)
        self._allocated(result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in (aten.mm.default, aten.mm.dtype, aten.mm.out, aten.mm.dtype_out):
            self._product(args[0], args[1])
        elif func is aten.addmm.dtype_out:
            assert args[0] is kwargs["out"]
            assert kwargs.get("beta", 1) == 1
            self._product(args[1], args[2])
            self.added_bytes += 2 * args[0].nbytes
        elif func is aten.addmm_.default:
            self._product(args[1], args[2])
            self.added_bytes += 2 * args[0].nbytes if kwargs.get("beta", 1) else 0
        elif func is aten.add_.Tensor and args[0].ndim == 2:
            self.added_bytes += 3 * args[0].nbytes
        elif func is aten.copy_.default and args[0].ndim == 2:
            assert args[0].dtype != args[1].dtype, "a copy of a product"
        else:
            assert not {"mm", "addmm", "bmm", "matmul"} & {func.__name__.split(".")[0]}, func

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> None:
        name = "dy" if a.stride(0) == 1 else "dx"
        self.products.append(Product(name, *a.shape, b.shape[1]))

    def _allocated(self, result: Any) -> None:
        self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._live or any(storage._cdata == g._cdata for g in self._given):
                continue
            if storage.nbytes() < SMALL:
                self._small += storage.nbytes()
            else:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self._small + sum(size for _, size in self._live.values()))

    def kernel(self, name: str) -> Any:
        """A kernel that does nothing but be counted."""

        class Kernel:
            def __getitem__(_, grid: tuple[int, ...]) -> Any:  # noqa: N805
                def launch(*args: Any, **kwargs: Any) -> None:
                    self.launches[name] = self.launches.get(name, 0) + 1

                return launch

        return Kernel()


def record_backward(
    rows: int,
    cols: int,
    D: int,
    workspace: int,
    accumulates: bool,
    dtype: torch.dtype = torch.bfloat16,
    needs: Needs | None = None,
    kept: bool = False,
) -> Recorder:
    """Record ``triton.gradient.backward`` of a loss with a teacher, on a device of sm_90.

    ``workspace`` bytes are what its budget leaves beside what is ``kept``.
    """
    from mxm_kernels.backends.triton import (
        fixed_point,
        gradient,
        launch,
        positives,
        scale_gradient,
        tile,
        unit,
    )

    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "target", lambda device: "sm_90")
        patch.setattr(launch, "in_force", lambda device: {})
        patch.setattr(tile, "operand", lambda matrix, height, width: matrix)  # by address
        patch.setattr(tiles, "accumulates", lambda device, dtype: accumulates)
        patch.setattr(gradient, "gradient_kernel", recorder.kernel("gradient"))
        patch.setattr(gradient, "stored_gradient_kernel", recorder.kernel("stored_gradient"))
        patch.setattr(fixed_point, "tops_kernel", recorder.kernel("tops"))
        patch.setattr(scale_gradient, "scale_gradient_kernel", recorder.kernel("scale"))
        patch.setattr(positives, "pair_gradient_kernel", recorder.kernel("positives"))
        patch.setattr(unit, "raise_kernel", recorder.kernel("raise"))
        patch.setattr(unit, "lower_kernel", recorder.kernel("lower"))
        with FakeTensorMode():
            arguments = _fake_batch(rows, cols, D, dtype, kept)
            recorder.given(arguments)
            memory = Memory(workspace + arguments[1].kept.nbytes)
            with recorder:
                gradient.backward(*arguments, needs or Needs(True, True, True), memory)
    return recorder


def _fake_batch(
    rows: int, cols: int, D: int, dtype: torch.dtype, kept: bool
) -> tuple[Problem, Statistics, Upstream]:
    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    x, y, tx, ty = (numbers(n, D, dtype=dtype) for n in (rows, cols, rows, cols))
    groups = [numbers(n, dtype=torch.int32) for n in (rows, cols)]
    # Offsets, owners, texts and places of a positive in each row of x.
    lengths = rows + cols + 1, 2 * rows, rows, rows
    pairs = (numbers(n, dtype=torch.int64) for n in lengths)
    problem = Problem(x, y, tx, ty, numbers(), numbers(), *groups, *pairs)
    statistics = problem.allocate(diagnostics=False, neg_mean=True, stride=cols if kept else None)
    return problem, statistics, Upstream(*statistics[: len(Upstream._fields)])
