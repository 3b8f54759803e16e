"""The base classes of the modules: a function, its hyper-parameters, and the kinds of calls."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from mxm_kernels.core.options import (
    FoldsLike,
    HyperParameters,
    Inputs,
    Scale,
    check_hyper_parameters,
)
from mxm_kernels.losses.loss_function import refuse


class Loss(nn.Module):
    """A loss function with some of its arguments fixed; no parameters, no state.

    ``hyper_parameters`` of the constructor are those of this loss alone, ``options`` those that
    the losses share.
    """

    function: ClassVar[Any]  # a loss, wrapped by loss_function

    def __init__(self, hyper_parameters: dict[str, Any], options: HyperParameters) -> None:
        super().__init__()
        of_a_batch = {*inspect.signature(type(self).forward).parameters, *Inputs.__annotations__}
        for name in options:
            if name in of_a_batch:
                raise TypeError(
                    f"{name} comes with each batch: give it to the call of {type(self).__name__}, "
                    "not to its constructor"
                )
        refuse(type(self).__name__, self.function.not_taken, options)
        check_hyper_parameters(options, tuple(HyperParameters.__annotations__))
        if self.function.check is not None:
            self.function.check(**hyper_parameters)
        self.hyper_parameters: dict[str, Any] = {**hyper_parameters, **options}

    def __copy__(self) -> Self:
        """A module with the same hyper-parameters."""
        made = type(self).__new__(type(self))
        made.__setstate__(self.__dict__.copy())
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with the same process group, which cannot be copied."""
        group = self.hyper_parameters.get("process_group")
        memo[id(group)] = group
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__setstate__(deepcopy(self.__dict__, memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """The state that pickle saves.

        Raises:
            TypeError: there is a process group, which no other process could use.
        """
        if self.hyper_parameters.get("process_group") is not None:
            raise TypeError(
                f"{type(self).__name__} with a process_group cannot be pickled or saved whole: "
                "save state_dict(), or set hyper_parameters['process_group'] to None before and "
                "to a group of the loading process afterwards"
            )
        return self.__dict__

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self.hyper_parameters.items())

    def _run(self, *features: Any, **inputs: Any) -> Tensor:
        for name in inputs:
            if name in self.hyper_parameters or name in HyperParameters.__annotations__:
                raise TypeError(
                    f"{name} is fixed by the constructor of {type(self).__name__}: give it there, "
                    "not to the call"
                )
        return self.function(*features, **self.hyper_parameters, **inputs)


class DrawnLoss(Loss):
    """A loss whose positives are drawn: a generator or a selection comes with the batch."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike,
        *,
        logit_scale: Scale,
        generator: torch.Generator | None = None,
        selection: tuple[Tensor, Tensor] | None = None,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            generator=generator,
            selection=selection,
            **inputs,
        )


class PairedLoss(Loss):
    """A loss of paired rows, which may say which of them show the same instance."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike | None = None,
        *,
        logit_scale: Scale,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(image_features, text_features, folds, logit_scale=logit_scale, **inputs)
