"""What a backend is called with: the memory of every call, and what its forward kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from torch.multiprocessing.reductions import StorageWeakRef

from mxm_kernels import backends
from mxm_kernels.backends.interface import Memory, Problem, Statistics

# Methods that are given the memory, by whether they come before or after the loss is known.
FORWARD = ("forward", "sigmoid_forward", "sigmoid_loss")
BACKWARD = ("backward", "sigmoid_backward")


@dataclass
class Watched:
    """The calls of a backend's operators, in order."""

    forward: list[Memory] = field(default_factory=list)
    backward: list[Memory] = field(default_factory=list)
    # The shapes of what each forward kept, and of what its ``kept_stride`` said that it would.
    kept: list[tuple[int, ...]] = field(default_factory=list)
    promised: list[tuple[int, ...]] = field(default_factory=list)
    storages: list[StorageWeakRef] = field(default_factory=list)  # of what was kept

    @property
    def budgets(self) -> set[int]:
        """Those of all calls."""
        return {memory.budget for memory in [*self.forward, *self.backward]}

    @property
    def keeps(self) -> bool:
        """Whether any call kept something."""
        return any(len(shape) == 3 for shape in self.kept)

    def clear(self) -> None:
        """Forget the calls."""
        for calls in vars(self).values():
            calls.clear()


def watch(name: str, patch: pytest.MonkeyPatch) -> Watched:
    """Note the calls of the backend of that name, which run as ever."""
    backend, seen = backends.load(name), Watched()

    def note(method: str, calls: list[Memory]) -> None:
        run = getattr(backend, method)

        def noted(*arguments):
            (memory,) = (a for a in arguments if isinstance(a, Memory))
            calls.append(memory)
            made = run(*arguments)
            if isinstance(made, Statistics):
                _note_kept(seen, arguments[0], memory, made)
            return made

        patch.setattr(backend, method, noted)

    def _note_kept(seen: Watched, problem: Problem, memory: Memory, made: Statistics) -> None:
        stride = backend.kept_stride(problem, memory)
        shape = (0,) if stride is None else (problem.matrices, len(problem.x), stride)
        seen.promised.append(shape)
        seen.kept.append(tuple(made.kept.shape))
        if made.kept.numel():
            seen.storages.append(StorageWeakRef(made.kept.untyped_storage()))

    for method in FORWARD:
        note(method, seen.forward)
    for method in BACKWARD:
        note(method, seen.backward)
    return seen
