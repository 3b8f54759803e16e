"""Put the fused losses into open_clip's own training program, and take them out again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mxm_kernels.open_clip import losses
from mxm_kernels.open_clip.captions import GroupedLoader, grouped
from mxm_kernels.open_clip.coca import CoCaLoss
from mxm_kernels.open_clip.flags import check_flags

if TYPE_CHECKING:
    from argparse import Namespace

HARD_WEIGHT, ROUNDS = 0.6, 10  # MXM-CLR's


def patch() -> ExitStack:
    """Let open_clip's ``create_loss``, and so its training program, make the fused losses.

    ClipLoss, CoCaLoss, DistillClipLoss and SigLipLoss are replaced by those of this module. The
    program looks at its flags as soon as it has parsed them, and refuses what these losses cannot
    do; nothing else of it changes.

    Returns:
        What undoes it: use it in ``with``, or call its ``close()``; or never, to keep the patch.

    Raises:
        ImportError: open_clip is not installed, or has no such losses.
        TypeError, ValueError: from the program, before it makes the model and reads the data:
            flags that do not go together, by name.

    Example:
        >>> from mxm_kernels.open_clip import patch
        >>> with patch():  # doctest: +SKIP
        ...     open_clip_train.main.main(["--model", "ViT-B-32", "--train-data", "pairs.csv"])
    """
    from open_clip import factory

    kinds = losses.ClipLoss, CoCaLoss, losses.DistillClipLoss, losses.SigLipLoss
    undo = replaced(factory, {kind.__name__: kind for kind in kinds})
    with suppress(ImportError):  # what the program needs is an extra of open_clip
        from open_clip_train import main as program

        undo.push(replaced(program, {"parse_args": _checking(program.parse_args)}))
    return undo


def patch_mfh(hard_weight: float = HARD_WEIGHT, rounds: int | None = ROUNDS) -> ExitStack:
    """Let open_clip's training program train with MFH, on all captions of each image.

    A batch is ``--batch-size`` images with all their captions. In a csv, which has a row for each
    caption as for open_clip, rows of the same image path are one instance; in webdataset shards
    the ``txt`` of a sample has a caption on each line, and samples with the same image are one
    instance. The loader gives their ids to the loss beside the program, which sees images and
    texts alone. With ``--distill-model`` that model is the teacher of the soft loss. Several
    processes need ``--gather-with-grad``. Under ``--accum-freq k`` the loss is that of k batches
    together.

    Args:
        hard_weight: a, the share of the hard loss where there is a teacher.
        rounds: R >= 1 random selections, or None for their exact expectation.

    Returns:
        What undoes it, as :func:`patch`.

    Raises:
        ImportError: open_clip, or what its training program needs, is not installed; or, from the
            program, it reads shards in another way.
        TypeError, ValueError: ``hard_weight`` or ``rounds``; or, from the program, as
            :func:`patch`: the data is neither csv nor shards, or has too few images for a step,
            as far as the flags and the csv say. What only the shards say comes later.
    """
    from open_clip_train import main as program

    losses.MFHLoss(hard_weight=hard_weight, rounds=rounds)  # checks them before data is read
    loaders: list[GroupedLoader] = []
    real_get_data = program.get_data

    def get_data(
        args: Namespace, transforms: Any, epoch: int = 0, tokenizer: Any = None
    ) -> dict[str, Any]:
        data = real_get_data(args, transforms, epoch=epoch, tokenizer=tokenizer)
        if "train" in data:
            data["train"] = grouped(args, data["train"], tokenizer)
            loaders[:] = [data["train"].dataloader]
        return data

    def create_loss(args: Namespace) -> nn.Module:
        loss = losses.MFHLoss(
            local_loss=args.local_loss,
            gather_with_grad=args.gather_with_grad,
            rank=args.rank,
            world_size=args.world_size,
            use_horovod=args.horovod,
            hard_weight=hard_weight,
            rounds=rounds,
        )
        return _WithFolds(loss, loaders[0], args.seed)

    parse_args = _checking(program.parse_args, mfh=True)
    replacements = {"parse_args": parse_args, "get_data": get_data, "create_loss": create_loss}
    return replaced(program, replacements)


class _WithFolds(nn.Module):
    """MFH of the batches that the loader gave last.

    Under ``--accum-freq k`` the program calls it k times for a step, each time for the gradient of
    other rows of the same batch. All k see one draw, or they would not be parts of one loss.
    """

    def __init__(self, loss: losses.MFHLoss, loader: GroupedLoader, seed: int) -> None:
        super().__init__()
        self.loss, self.loader = loss, loader
        self.seed, self.calls = seed, 0

    def forward(self, image_features: Tensor, **model_output: Any) -> Any:
        assert self.loader.folds is not None, "the loss is called after the loader"
        folds = self.loader.folds.to(image_features.device, non_blocking=True)
        generator, together = None, self.loader.together
        if together > 1:
            seed = (self.seed << 32) + self.calls // together  # of the step, on every rank
            generator = torch.Generator().manual_seed(seed % 2**63)
        self.calls += 1
        return self.loss(image_features, **model_output, folds=folds, generator=generator)


def _checking(parse_args: Callable[[Any], Namespace], mfh: bool = False) -> Any:
    """The program's own function, whose result is looked at."""

    def checked(arguments: Any) -> Namespace:
        args = parse_args(arguments)
        check_flags(args, mfh=mfh)
        return args

    return checked


def replaced(module: ModuleType, replacements: dict[str, Any]) -> ExitStack:
    """Set attributes of a module; the result takes them back.

    Raises:
        ImportError: the module lacks one of them.
    """
    missing = [name for name in replacements if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"{module.__name__} has no {', '.join(missing)}: open_clip_torch 2.32 to 3.3 is known "
            "to have it"
        )
    undo = ExitStack()
    for name, replacement in replacements.items():
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, replacement)
    return undo
