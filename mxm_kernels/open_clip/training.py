"""Put the fused losses into open_clip's own training program, and take them out again."""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from mxm_kernels.open_clip import losses
from mxm_kernels.open_clip.captions import GroupedLoader, grouped

if TYPE_CHECKING:
    from argparse import Namespace


def patch() -> ExitStack:
    """Let open_clip's ``create_loss``, and so its training program, make the fused losses.

    ClipLoss, DistillClipLoss and SigLipLoss are replaced by those of this module; nothing else of
    the program changes. A CoCa model is an error: its loss has no fused form.

    Returns:
        What undoes it: use it in ``with``, or call its ``close()``; or never, to keep the patch.

    Raises:
        ImportError: open_clip is not installed, or has no such losses.

    Example:
        >>> from mxm_kernels.open_clip import patch
        >>> with patch():  # doctest: +SKIP
        ...     open_clip_train.main.main(["--model", "ViT-B-32", "--train-data", "pairs.csv"])
    """
    from open_clip import factory

    kinds = losses.ClipLoss, losses.DistillClipLoss, losses.SigLipLoss
    replacements: dict[str, Any] = {kind.__name__: kind for kind in kinds}
    return _replace(factory, {**replacements, "CoCaLoss": _no_coca})


def patch_mfh(hard_weight: float = 0.6, rounds: int | None = 10) -> ExitStack:
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
        ValueError: from the program: its data is neither csv nor shards, has too few images for
            a step, or it is called with ``--siglip`` or a CoCa model.
    """
    from open_clip_train import main as program

    losses.MFHLoss(hard_weight=hard_weight, rounds=rounds)  # checks them before data is read
    loaders: list[GroupedLoader] = []
    real_get_data = program.get_data

    def get_data(
        args: Namespace, transforms: Any, epoch: int = 0, tokenizer: Any = None
    ) -> dict[str, Any]:
        _check(args)
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

    return _replace(program, {"get_data": get_data, "create_loss": create_loss})


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


def _check(args: Namespace) -> None:
    problems = {
        "--siglip: MFH is a softmax loss": args.siglip,
        f"--model {args.model}: CoCa has a loss of its own": "coca" in args.model.lower(),
    }
    for problem, holds in problems.items():
        if holds:
            raise ValueError(f"MFH cannot train with {problem}")


def _no_coca(*_: Any, **__: Any) -> NoReturn:
    raise ValueError("the loss of a CoCa model has no fused form: train it without patch()")


def _replace(module: ModuleType, replacements: dict[str, Any]) -> ExitStack:
    missing = [name for name in replacements if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"{module.__name__} has no {', '.join(missing)}: open_clip_torch 3.3 or newer is needed"
        )
    undo = ExitStack()
    for name, replacement in replacements.items():
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, replacement)
    return undo
