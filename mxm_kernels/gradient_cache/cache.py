"""The cache: what it remembers between the first pass and the second."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mxm_kernels.checks import as_count
from mxm_kernels.gradient_cache.context import Autocast, RandomState, no_sync
from mxm_kernels.gradient_cache.micro_batches import MicroBatch, cut, join

T = TypeVar("T")


class GradientCache:
    """Encode a batch in micro-batches, with the gradients of the whole batch.

    Three steps replace ``loss.backward()``: ``encode`` with each encoder, ``loss.backward()`` on
    any loss of the features, ``cache.backward()``. The optimiser follows as usual.

    **Micro-batches.** All tensors among the inputs are cut along their first dimension into the
    same number of parts, as few as keep every part at ``micro_batch`` rows or less; a tensor of
    M image rows and one of N text rows may go together. Inputs and outputs may be nested in any
    way that ``torch.utils._pytree`` knows: tuples, lists, dicts. Numbers, strings, None and 0-d
    tensors are passed on as they are.

    **logit_scale.** A 0-d output, the same for every micro-batch, is not concatenated; its
    gradient goes back once. A parameter outside the encoders gets its gradient from
    ``loss.backward()`` as always. Under DDP and FSDP return the scale from the module, 0-d, or
    its gradient is not averaged.

    **Random state.** The default generators of the CPU and of the devices of the inputs and of
    the encoder are restored, so dropout draws the same twice. Other sources of randomness
    (numpy, a generator of your own) are not: draw from them before ``encode``.

    **Autocast and GradScaler.** The second pass runs under the autocast state in which
    ``encode`` was called. Scale the loss: the scaled gradients go through the cache.

    **DDP and FSDP.** Only the last micro-batch of a module synchronises, through its
    ``no_sync()`` or ``set_requires_gradient_sync()``. Pass the wrapped module itself, or name it
    in ``modules`` if it is called from another function; and call a module that holds both
    encoders once, with both inputs, so that each micro-batch uses all of its parameters.

    **Momentum teacher.** Under ``torch.no_grad()``, ``encode`` only cuts into micro-batches and
    remembers nothing, which is how to encode with a teacher.

    **BatchNorm** in training mode normalises over a micro-batch instead of the batch and updates
    its running statistics in both passes, so its gradients are not those of the whole batch;
    ``encode`` warns. LayerNorm, GroupNorm, or BatchNorm in eval mode are exact.

    Args:
        micro_batch: most rows that an encoder sees at once, at least 1.
        modules: wrapped (DDP, FSDP) modules that an encoder calls without being one itself.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import GradientCache, fused_mfh_loss
        >>> _ = torch.manual_seed(0)
        >>> image_encoder, text_encoder = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
        >>> log_scale = torch.nn.Parameter(torch.tensor(3.0))
        >>> cache = GradientCache(micro_batch=5)
        >>> images = cache.encode(image_encoder, torch.randn(12, 8))  # parts of 4, 4 and 4 rows
        >>> texts = cache.encode(text_encoder, torch.randn(10, 6))  # parts of 5 and 5 rows
        >>> loss = fused_mfh_loss(
        ...     normalize(images), normalize(texts), (6, 5), logit_scale=log_scale.exp()
        ... )
        >>> loss.backward()  # as far as the features, and to log_scale
        >>> cache.backward()  # through the encoders
        >>> image_encoder.weight.grad.shape
        torch.Size([4, 8])
    """

    def __init__(self, micro_batch: int, modules: tuple[nn.Module, ...] = ()) -> None:
        if isinstance(modules, nn.Module):  # a Sequential would be iterated over its children
            raise TypeError(f"modules must be a tuple of modules, got {type(modules).__name__}")
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"modules must hold modules, got {type(module).__name__}")
        self.micro_batch = as_count("micro_batch", micro_batch)
        self.modules = tuple(modules)
        self._calls: list[_Call] = []

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
            ValueError: there is no tensor to cut, an input wants a gradient, or the encoder
                returned a tensor that has not a row for every row of an input.
            RuntimeError: :meth:`backward` was forgotten after the last loss.
        """
        if any(call.has_gradient() for call in self._calls):
            raise RuntimeError(
                "loss.backward() was called without cache.backward() after it: the encoders have "
                "no gradient of that loss"
            )
        wanted = torch.is_grad_enabled()
        modules = _modules_of(encoder) + self.modules
        _warn_of_batch_norm(modules, wanted)
        parts = cut(args, kwargs, self.micro_batch)
        autocast = Autocast.current(parts[0].devices(modules))
        outputs, states = [], []
        with torch.no_grad():
            for part in parts:
                states.append(RandomState.current(part.devices(modules)))
                outputs.append(part.run(encoder))
        # Casts made without a graph must not serve a forward pass that needs one.
        torch.clear_autocast_cache()
        features, spec = join(outputs, parts)
        if wanted and _trainable(encoder, modules):
            for feature in features:
                if feature is not None:
                    feature.requires_grad_(feature.is_floating_point())
            self._calls.append(_Call(encoder, parts, states, autocast, features, modules))
        return tree_unflatten(features, spec)

    def backward(self, sync: bool = True) -> None:
        """Go back through the encoders with the gradients that the loss left at the features.

        Args:
            sync: whether the last micro-batch synchronises DDP and FSDP modules; False where
                the gradients of several steps are accumulated, except in the last of them.

        Raises:
            RuntimeError: no loss of the features has been differentiated, or an input was changed
                in place since it was encoded.
        """
        calls, self._calls = self._calls, []
        if calls and not any(call.has_gradient() for call in calls):
            raise RuntimeError(
                "the features have no gradient: call loss.backward() before cache.backward()"
            )
        last = {module: call for call in calls for module in call.modules}
        for call in calls:
            final = {m for m, user in last.items() if user is call} if sync else set()
            call.backward(final)


@dataclass
class _Call:
    """One encoding that waits for the gradient of its features."""

    encoder: Callable[..., Any]
    parts: list[MicroBatch]
    states: list[RandomState]
    autocast: Autocast
    features: list[Tensor | None]  # leaves, all rows
    modules: tuple[nn.Module, ...]

    def has_gradient(self) -> bool:
        return any(feature.grad is not None for feature in self._tensors())

    def backward(self, final: set[nn.Module]) -> None:
        """Second pass; the modules in ``final`` synchronise at its last micro-batch."""
        for part in self.parts:
            part.check_unchanged()
        starts = [0] * len(self.features)
        for index, (part, state) in enumerate(zip(self.parts, self.states, strict=True)):
            is_last = index == len(self.parts) - 1
            silent = [m for m in self.modules if not (is_last and m in final)]
            with ExitStack() as stack:
                for module in silent:
                    stack.enter_context(no_sync(module))
                with torch.enable_grad(), state.restored(), self.autocast.restored():
                    outputs, _ = tree_flatten(part.run(self.encoder))
                grads = [
                    self._gradient(k, output, starts, is_last) for k, output in enumerate(outputs)
                ]
                used = [
                    k
                    for k, (output, grad) in enumerate(zip(outputs, grads, strict=True))
                    if grad is not None and output.requires_grad
                ]
                if used:
                    torch.autograd.backward([outputs[k] for k in used], [grads[k] for k in used])
        for feature in self._tensors():
            feature.grad = None

    def _tensors(self) -> list[Tensor]:
        return [feature for feature in self.features if feature is not None]

    def _gradient(
        self, k: int, output: Tensor | None, starts: list[int], is_last: bool
    ) -> Tensor | None:
        """The rows of feature ``k``'s gradient that belong to ``output``."""
        feature = self.features[k]
        if output is None or feature is None:
            return None
        grad = feature.grad
        if output.ndim == 0:
            return grad if is_last else None
        start = starts[k]
        starts[k] += len(output)
        return None if grad is None else grad[start : start + len(output)]


def _modules_of(encoder: Callable) -> tuple[nn.Module, ...]:
    """The module that an encoder is, or that it is a method of."""
    owner = getattr(encoder, "__self__", encoder)
    return (owner,) if isinstance(owner, nn.Module) else ()


def _trainable(encoder: Callable, modules: tuple[nn.Module, ...]) -> bool:
    """Whether a gradient can arrive anywhere; of a plain function it is not known."""
    known = isinstance(getattr(encoder, "__self__", encoder), nn.Module)
    return not known or any(p.requires_grad for m in modules for p in m.parameters())


def _warn_of_batch_norm(modules: tuple[nn.Module, ...], wanted: bool) -> None:
    kinds = nn.modules.batchnorm._BatchNorm
    layers = (layer for module in modules for layer in module.modules())
    if wanted and any(isinstance(layer, kinds) and layer.training for layer in layers):
        warnings.warn(
            "GradientCache: BatchNorm in training mode normalises over a micro-batch and counts "
            "it twice in its running statistics; the gradients are not those of the whole batch",
            stacklevel=3,
        )
