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
    """Encode a batch in micro-batches, with the gradients of the whole batch.

    Three steps replace ``loss.backward()``: ``encode`` with each encoder, ``loss.backward()`` on
    any loss of the features, ``cache.backward()``. The optimiser follows as usual.

    **Micro-batches.** All tensors among the inputs are cut along their first dimension into the
    same number of parts, as few as keep every part at ``micro_batch`` rows or less; a tensor of
    M image rows and one of N text rows may go together. No part is empty: where the rows of one
    run out, its last row is repeated, with a gradient of zero (once, or twice where one row would
    not tell it from another input, the only case that exceeds ``micro_batch=1``). Inputs and
    outputs may be nested in any way that ``torch.utils._pytree`` knows: tuples, lists, dicts.
    Numbers, strings, None and 0-d tensors are passed on as they are.

    **Tensors that are not rows**, such as position ids (L,) or a mask (L, L), must not be cut:
    bind them to the encoder, ``functools.partial(encoder, position_ids=ids)``, or name them in a
    function, ``lambda rows: encoder(rows, ids)``. A tensor with rows that no output has is an
    error; one that has as many rows as the batch by chance cannot be told from rows.

    **logit_scale.** A 0-d output, the same for every micro-batch, is not concatenated; its
    gradient goes back once. A parameter outside the encoders gets its gradient from
    ``loss.backward()`` as always. Under DDP and FSDP return the scale from the module, 0-d, or
    its gradient is not averaged.

    **Random state.** The default generators of the CPU and of every device are restored, so
    dropout draws the same twice. Other sources of randomness (numpy, a generator of your own) are
    not: draw from them before ``encode``.

    **State in forward.** What changes an encoder whenever it runs, as spectral_norm does in
    training mode, makes the second pass another than the first. Their outputs are compared, and
    ``backward`` warns of an encoder whose outputs differ by more than rounding: by 16 eps of
    their dtype times the largest of them.

    **Autocast and GradScaler.** The second pass runs under the autocast state in which
    ``encode`` was called. Scale the loss: the scaled gradients go through the cache.

    **DDP and FSDP.** Only the last micro-batch synchronises, through the module's ``no_sync()``
    or ``set_requires_gradient_sync()``: that of each encoding, or of the last of several by the
    same module. Modules are found in the encoder: what it
    is, what it is a method of, what it binds, and what its code names. Name others in
    ``modules``. Call a module that holds both encoders once, with both inputs, so that each
    micro-batch uses all of its parameters.

    **Ranks with different numbers of rows.** DDP takes them as they are. A sharded module (FSDP,
    tensor parallel) communicates in every forward pass, so ``encode`` agrees on the largest
    number of micro-batches among its ranks, and cuts the rows of all into as many; every rank
    must have a row. ``process_group`` names the ranks of modules that communicate in another way.
    Under ``torch.no_grad()`` nothing is agreed, so that one rank may evaluate alone: give the
    ranks of a sharded teacher equal numbers of micro-batches.

    **Skipped steps.** :meth:`reset` forgets what was encoded, for a step that is given up after
    ``encode``: a loss of NaN, an exception. As a context manager a cache does so by itself:
    ``with cache:`` around a step forgets at its end what was not used. A copy of a cache, and a
    pickled one, starts empty.

    **Momentum teacher.** Under ``torch.no_grad()``, ``encode`` only cuts into micro-batches and
    remembers nothing, which is how to encode with a teacher.

    **BatchNorm** in training mode normalises over a micro-batch instead of the batch and updates
    its running statistics in both passes, so its gradients are not those of the whole batch;
    ``encode`` warns. LayerNorm, GroupNorm, or BatchNorm in eval mode are exact.

    Args:
        micro_batch: most rows that an encoder sees at once, at least 1.
        modules: wrapped (DDP, FSDP) modules that an encoder calls and its code does not name.
        process_group: ranks that call ``encode`` together; of sharded modules it is known.

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
        """``encoder(*args, **kwargs)`` in micro-batches: features to put into the loss.

        Args:
            encoder: a module or another function. Its outputs are tensors with a row for every
                row of an input, or 0-d, in any nesting.
            args: inputs, cut into micro-batches along the first dimension of every tensor.
            kwargs: the same by name.

        Returns:
            What the encoder returns, for all rows. Its tensors are leaves whose ``.grad``
            :meth:`backward` reads; under ``torch.no_grad()`` they want no gradient.

        Raises:
            TypeError: an input is of a type that cannot be cut.
            ValueError: there is no tensor to cut, an input wants a gradient, the encoder
                returned a tensor that has not a row for every row of an input, or an input is
                not rows; over ranks also: one has no rows, or another number of tensors.
            RuntimeError: :meth:`backward` was forgotten after the last loss, or another rank has
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

        What was encoded and has no gradient, in a step that was skipped for instance, is left
        out. Warns of an encoder whose outputs are not those of ``encode``.

        Args:
            sync: whether the last micro-batch synchronises DDP and FSDP modules; False where
                the gradients of several steps are accumulated, except in the last of them.

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
        """Forget what was encoded: the step was given up.

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
