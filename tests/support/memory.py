"""How much memory a computation takes: what autograd keeps, and the peak while it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Bytes that a backend may use beside features, rows and pairs. On triton the sigmoid's sums take
# 3 / 32 of the workspace; float32 sums of 16-bit gradients and temporaries of the products count
# with the features (``chunk_costs.backward_bytes``). A card of 40 GB has 1 GiB instead of 256 MiB.
WORKSPACE = {"blocked": 24 << 20, "native": 48 << 20, "triton": (256 << 20) * 35 // 32}


def saved_bytes(forward: Callable[[], torch.Tensor], known: list[torch.Tensor]) -> int:
    """Bytes that autograd keeps for backward, beyond the storages of ``known``."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    for tensor in known:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    assert result.requires_grad
    return sum(kept.values())


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes allocated at a time during ``run``, beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
