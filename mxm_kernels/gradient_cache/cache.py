"""The cache: what it remembers between the first pass and the second."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from mxm_kernels.checks import as_count
from mxm_kernels.distributed.ranks import Ranks, groups_of, most_over
from mxm_kernels.gradient_cache.context import Autocast, RandomState
from mxm_kernels.gradient_cache.encoders import (
    modules_of,
    name_of,
    trainable,
    warn_of_batch_norm,
)
from mxm_kernels.gradient_cache.micro_batches import Inputs, MicroBatch, join
from mxm_kernels.gradient_cache.second_pass import Encoding, warn_of_changed

T = TypeVar("T")


class GradientCache:
    """Train on a batch that does not fit into memory: encode micro-batches, keep all negatives.

    The gradients are those of the whole batch. Three calls replace ``loss.backward()``: ``encode``
    with each encoder, ``loss.backward()`` on any loss of the features, ``cache.backward()``. The
    optimiser follows as usual. Every micro-batch is encoded twice; only the second time keeps
    activations, those of one micro-batch.

    **Micro-batches.** All tensors among the inputs are cut along their first dimension into the
    same number of parts, as few as keep every part at ``micro_batch`` rows or less. A tensor of
    M image rows and one of N text rows may go together. Inputs and outputs may be nested in any
    way that ``torch.utils._pytree`` knows: tuples, lists, dicts. Numbers, strings, None and 0-d
    tensors are passed on as they are. No part is empty. Where the rows of a tensor run out, its
    last row is repeated, with a gradient of zero. It is repeated once, or twice where a part of
    one row could be taken for a part of another input; only then a part exceeds
    ``micro_batch=1``.

    **Tensors that are not rows**, such as position ids (L,) or a mask (L, L), must not be cut. Bind
    them to the encoder, ``functools.partial(encoder, position_ids=ids)``, or name them in a
    function, ``lambda rows: encoder(rows, ids)``. If no output has as many rows as a tensor, that
    is an error. A tensor that has as many rows as the batch by chance is cut.

    **logit_scale.** A 0-d output, the same for every micro-batch, is not concatenated; its
    gradient goes back once. A parameter outside the encoders gets its gradient from
    ``loss.backward()`` as always. Under DDP and FSDP return the scale from the module, 0-d, or
    its gradient is not averaged.

    **Random state.** The default generators of the CPU and of every device are restored, so
    dropout draws the same twice. Other sources of random numbers (numpy, a generator of your own)
    are not restored. Draw from them before ``encode``.

    **State in forward.** An encoder that changes whenever it runs, as with spectral_norm in
    training mode, gives other outputs in the second pass. ``backward`` compares the outputs. It
    warns of an encoder whose outputs differ by more than rounding: by more than 16 eps of their
    dtype times the largest of them.

    **Autocast and GradScaler.** The second pass runs under the autocast state in which
    ``encode`` was called. Scale the loss: the scaled gradients go through the cache.

    **DDP and FSDP.** Only the last micro-batch of an encoding synchronises, through the module's
    ``no_sync()`` or ``set_requires_gradient_sync()``. If the same module encodes several times,
    only the last of these encodings does. Modules are found in the encoder: what it is, what it is
    a method of, what it binds, and what its code names. Name others in ``modules``. If one module
    holds both encoders, call it once, with both inputs, so that each micro-batch uses all of its
    parameters.

    **Ranks with different numbers of rows.** DDP takes them as they are. A sharded module (FSDP,
    tensor parallel) communicates in every forward pass. So its ranks agree on the largest number
    of micro-batches among them, and each cuts its rows into as many; every rank must have a row.
    ``process_group`` names the ranks of modules that communicate in another way. Under
    ``torch.no_grad()`` nothing is agreed, so that one rank may evaluate alone. Give the ranks of a
    sharded teacher equal numbers of micro-batches.

    **Skipped steps.** If a step is given up after ``encode``, for a loss of NaN or an exception,
    call :meth:`reset`, which forgets what was encoded. ``with cache:`` around a step does so by
    itself at its end. A copy of a cache, and a pickled one, starts empty.

    **Momentum teacher.** Encode with a teacher under ``torch.no_grad()``. Then ``encode`` only cuts
    into micro-batches and remembers nothing.

    **BatchNorm** in training mode normalises over a micro-batch instead of the batch, and updates
    its running statistics in both passes. Its gradients are not those of the whole batch, and
    ``encode`` warns. LayerNorm, GroupNorm, and BatchNorm in eval mode are exact.

    Args:
        micro_batch: number of rows that an encoder sees at most at once, at least 1.
        modules: wrapped (DDP, FSDP) modules that an encoder calls and its code does not name.
        process_group: ranks that call ``encode`` together. For sharded modules it is known.

    Raises:
        TypeError: an argument is of another type.
        ValueError: ``micro_batch`` is below 1, or this process is not in the group.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import GradientCache, fused_mfh_loss
        >>> _ = torch.manual_seed(0)
        >>> image_encoder, text_encoder = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
        >>> log_scale = torch.nn.Parameter(torch.tensor(3.0))
        >>> cache = GradientCache(micro_batch=5)
        >>> with cache:
        ...     images = cache.encode(image_encoder, torch.randn(12, 8))  # 4, 4 and 4 rows
        ...     texts = cache.encode(text_encoder, torch.randn(10, 6))  # 5 and 5 rows
        ...     loss = fused_mfh_loss(
        ...         normalize(images), normalize(texts), (6, 5), logit_scale=log_scale.exp()
        ...     )
        ...     if loss.isfinite():
        ...         loss.backward()  # as far as the features, and to log_scale
        ...         cache.backward()  # through the encoders
        >>> image_encoder.weight.grad.shape
        torch.Size([4, 8])
    """

    def __init__(
        self, micro_batch: int, modules: tuple[nn.Module, ...] = (), process_group: Any = None
    ) -> None:
        if isinstance(modules, nn.Module):  # a Sequential would be iterated over its children
            raise TypeError(f"modules must be a tuple of modules, got {type(modules).__name__}")
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"modules must hold modules, got {type(module).__name__}")
        if process_group is not None:
            Ranks(process_group)  # or an error
        self.micro_batch = as_count("micro_batch", micro_batch)
        self.modules = tuple(modules)
        self.process_group = process_group
        self._encodings: list[Encoding] = []
        self._outside: list[list[Encoding]] = []  # those from before each `with` that is open

    def encode(self, encoder: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Compute ``encoder(*args, **kwargs)`` in micro-batches: the features for the loss.

        Args:
            encoder: a module or another function. Its outputs are tensors with a row for every
                row of an input, or 0-d, in any nesting.
            args: inputs; every tensor is cut along its first dimension into micro-batches.
            kwargs: the same by name.

        Returns:
            What the encoder returns, for all rows. Its tensors are leaves whose ``.grad``
            :meth:`backward` reads; under ``torch.no_grad()`` they require no gradient.

        Raises:
            TypeError: an input is of a type that cannot be cut.
            ValueError: there is no tensor to cut; an input requires a gradient; the encoder
                returned a tensor that does not have a row for every row of an input; an input is
                not rows. Over ranks also: an input has no rows, or a rank has another number of
                tensors.
            RuntimeError: :meth:`backward` was not called after the last loss, or another rank has
                an error.

        Example:
            >>> import torch
            >>> from functools import partial
            >>> from mxm_kernels import GradientCache
            >>> table, scale = torch.nn.Embedding(10, 4), torch.ones(4)  # the scale is no rows
            >>> encoder = lambda ids, scale: table(ids).mean(1) * scale
            >>> cache = GradientCache(micro_batch=2)
            >>> cache.encode(partial(encoder, scale=scale), torch.arange(9).view(3, 3)).shape
            torch.Size([3, 4])
        """
        wanted = torch.is_grad_enabled()
        if wanted and any(encoding.has_gradient() for encoding in self._encodings):
            raise RuntimeError(
                "loss.backward() was called without cache.backward() after it: the encoders have "
                "no gradient of that loss; call cache.reset() to give it up, or put each step "
                "into a `with cache:`"
            )
        modules = tuple(dict.fromkeys(modules_of(encoder) + self.modules))
        if wanted:
            warn_of_batch_norm(modules)
        groups = self._groups(modules) if wanted else []
        inputs, parts = self._cut(args, kwargs, groups)
        autocast = Autocast.current()
        outputs, states = [], []
        with torch.no_grad():
            for part in parts:
                states.append(RandomState.current())
                outputs.append(inputs.first_pass(encoder, part))
        # Casts made without a graph must not serve a forward pass that needs one.
        torch.clear_autocast_cache()
        joined = join(outputs, parts)
        inputs.check_used({total for total in joined.totals if total is not None})
        if wanted and trainable(encoder, modules):
            for feature in joined.features:
                if feature is not None:
                    feature.requires_grad_(feature.is_floating_point())
            self._encodings.append(
                Encoding(encoder, parts, states, autocast, joined, modules, groups)
            )
        return tree_unflatten(joined.features, joined.spec)

    def backward(self, sync: bool = True) -> None:
        """Go back through the encoders with the gradients that the loss left at the features.

        Features without a gradient, for instance of a step that was skipped, are left out. Warns of
        an encoder whose outputs differ from those of ``encode``.

        Args:
            sync: whether the last micro-batch synchronises DDP and FSDP modules. To accumulate
                the gradients of several steps, pass False in all steps except the last.

        Raises:
            RuntimeError: no loss of the features has been differentiated, an input was changed
                in place since it was encoded, or an encoder returned another structure.
        """
        waiting, self._encodings = self._encodings, []
        encodings = [encoding for encoding in waiting if _goes_back(encoding)]
        if waiting and not encodings:
            raise RuntimeError(
                "the features have no gradient: call loss.backward() before cache.backward()"
            )
        distances: dict[str, list[Tensor]] = {}
        for k, encoding in enumerate(encodings):
            # A method or a function may call a part of what it names, so only a module that is
            # itself an encoder later is sure to synchronise there. Twice is the same average.
            later = [other.encoder for other in encodings[k + 1 :]]
            silent = {module for module in encoding.modules if not sync or module in later}
            of_encoder = distances.setdefault(name_of(encoding.encoder), [])
            of_encoder += encoding.backward(silent)
        warn_of_changed(distances)

    def reset(self) -> None:
        """Forget what was encoded, because the step was given up.

        Example:
            >>> import torch
            >>> from mxm_kernels import GradientCache
            >>> encoder, cache = torch.nn.Linear(8, 4), GradientCache(micro_batch=4)
            >>> loss = cache.encode(encoder, torch.full((6, 8), torch.nan)).sum()
            >>> if not loss.isfinite():
            ...     cache.reset()
        """
        self._encodings = []

    def __enter__(self) -> GradientCache:
        self._outside.append(self._encodings)
        self._encodings = []
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        left, self._encodings = self._encodings, self._outside.pop()
        if kind is None and any(encoding.has_gradient() for encoding in left):
            warnings.warn(
                "GradientCache: `with cache:` ended without cache.backward() after "
                "loss.backward(): the encoders have no gradient of that loss; cache.reset() gives "
                "it up without a warning",
                stacklevel=2,
            )

    def __copy__(self) -> GradientCache:
        other = object.__new__(type(self))
        vars(other).update(vars(self), _encodings=[], _outside=[])
        return other

    def __deepcopy__(self, memo: dict) -> GradientCache:
        other = copy.copy(self)  # the same process group: there is no other
        other.modules = copy.deepcopy(self.modules, memo)
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise TypeError(
                "a GradientCache with a process_group cannot be pickled, since a group belongs to "
                "its process: pickle one without, and set cache.process_group after loading"
            )
        return vars(copy.copy(self))

    def _groups(self, modules: tuple[nn.Module, ...]) -> list[Any]:
        """The process groups whose ranks encode together."""
        given = [] if self.process_group is None else [self.process_group]
        return list(dict.fromkeys(given + groups_of(modules)))

    def _cut(self, args: tuple, kwargs: dict, groups: list[Any]) -> tuple[Inputs, list[MicroBatch]]:
        """The inputs in micro-batches, as many on every rank of ``groups``."""
        given = []

        def own() -> tuple[int, dict[str, Any]]:
            given.append(Inputs(args, kwargs))
            if groups:
                given[0].check_has_rows()
            number = len(given[0].named)
            return given[0].parts_of(self.micro_batch), {"the number of encode's tensors": number}

        count = most_over(groups, own)
        return given[0], given[0].cut(count)


def _goes_back(encoding: Encoding) -> bool:
    """Whether it, or that of a rank it goes together with, has a gradient."""
    return bool(most_over(encoding.groups, lambda: (int(encoding.has_gradient()), {})))
