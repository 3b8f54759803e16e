"""What open_clip's training program is asked for, looked at before it builds anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mxm_kernels.checks import as_count
from mxm_kernels.open_clip.gathered import DIST_IMPLS

if TYPE_CHECKING:
    from argparse import Namespace


def check_flags(args: Namespace, *, mfh: bool = False) -> None:
    """Refuse what would end the program after it has made the model and read the data.

    Args:
        args: what ``open_clip_train.params.parse_args`` returns.
        mfh: whether it is to train with MFH.

    Raises:
        TypeError, ValueError: the flags of the program that do not go together, by name.
    """
    if args.horovod:
        raise ValueError(
            "--horovod: these losses gather over torch.distributed; leave it out and start the "
            "processes with torchrun"
        )
    as_count("--batch-size", args.batch_size)
    as_count("--accum-freq", args.accum_freq)
    _check_loss(args)
    if mfh:
        _check_mfh(args)


def _check_loss(args: Namespace) -> None:
    """What open_clip itself has no loss for, and would notice at the first step."""
    teacher = args.distill_model is not None and args.distill_pretrained is not None
    if args.siglip and is_coca(args):
        raise ValueError(
            f"--siglip with --model {args.model}: a CoCa model has a loss of its own, which takes "
            "no bias; leave --siglip out"
        )
    if args.siglip and teacher:
        raise ValueError(
            "--siglip with --distill-model: the loss with a teacher is CLIP's, which takes no "
            "bias; leave one of them out"
        )
    if teacher and is_coca(args):
        raise ValueError(
            f"--distill-model with --model {args.model}: open_clip has no loss of a CoCa model "
            "with a teacher; leave --distill-model out"
        )
    if teacher and args.accum_freq > 1:
        raise ValueError(
            f"--distill-model with --accum-freq {args.accum_freq}: open_clip's program has no "
            "teacher in accumulated batches; leave one of them out"
        )
    if args.siglip and args.loss_dist_impl and args.loss_dist_impl not in DIST_IMPLS:
        raise ValueError(
            f"--loss-dist-impl must be one of {', '.join(DIST_IMPLS)}, got {args.loss_dist_impl}"
        )


def _check_mfh(args: Namespace) -> None:
    """What MFH needs of the flags, and of the data as far as it is known."""
    if args.siglip:
        raise ValueError("--mfh with --siglip: MFH is a softmax loss; leave one of them out")
    if is_coca(args):
        raise ValueError(
            f"--mfh with --model {args.model}: MFH has no loss of captions' tokens; train a CoCa "
            "model without --mfh"
        )
    if (args.distill_model is None) != (args.distill_pretrained is None):
        raise ValueError(
            "--distill-model and --distill-pretrained need each other: with one of them alone "
            "open_clip's program trains without a teacher"
        )
    world = world_size()
    if world > 1 and not args.gather_with_grad:
        raise ValueError(
            f"--mfh over {world} processes needs --gather-with-grad: the encoders of each process "
            "get the gradients of the whole batch"
        )
    kind = kind_of_data(args)
    if kind == "csv":
        images = _images_of_csv(args)
        check_size(args, math.ceil(images / world) // args.batch_size, images, world)
    elif args.train_num_samples is not None:
        batches = math.ceil(args.train_num_samples / (args.batch_size * world))
        workers = max(1, args.workers)  # each gives as many batches
        batches = math.ceil(batches / workers) * workers
        check_size(args, batches, args.train_num_samples, world)


def is_coca(args: Namespace) -> bool:
    """Whether open_clip's ``create_loss`` makes a CoCaLoss: it asks the model's name."""
    return "coca" in args.model.lower()


def world_size() -> int:
    """How many processes the launcher started, as open_clip's program will find."""
    from open_clip_train.distributed import is_using_distributed, world_info_from_env

    return int(world_info_from_env()[2]) if is_using_distributed() else 1


def kind_of_data(args: Namespace) -> str:
    """Which of csv and webdataset, as open_clip's ``get_dataset_fn`` decides.

    Raises:
        ValueError: it is neither.
    """
    if args.dataset_type == "synthetic":
        raise ValueError(
            "--mfh with --dataset-type synthetic: it has no images with several captions; give "
            "a csv or webdataset shards"
        )
    if not args.train_data:
        raise ValueError("--mfh needs --train-data: a csv or webdataset shards to train on")
    if args.dataset_type != "auto":
        return str(args.dataset_type)
    kinds = {"csv": "csv", "tsv": "csv", "tar": "webdataset"}
    ending = args.train_data.split(".")[-1]
    if ending not in kinds:
        raise ValueError(
            f"--train-data {args.train_data} ends in none of .{', .'.join(kinds)}: give "
            "--dataset-type csv or --dataset-type webdataset"
        )
    return kinds[ending]


def check_size(args: Namespace, batches: int, images: int, world: int) -> None:
    """``batches`` of each process fill a step; ``images`` are all that there are.

    Raises:
        ValueError: they do not.
    """
    if batches < args.accum_freq:
        needed = args.batch_size * args.accum_freq
        raise ValueError(
            f"a step takes {needed} images of each process, --batch-size times --accum-freq, and "
            f"{args.train_data} has {images} images in all (processes: {world})"
        )


def _images_of_csv(args: Namespace) -> int:
    """How many images the csv names; the same pandas call as the program's, on one column."""
    import pandas

    path, separator = args.train_data, args.csv_separator
    try:
        columns = list(pandas.read_csv(path, sep=separator, nrows=0))
    except (OSError, ValueError) as error:
        raise ValueError(f"--train-data {path} cannot be read: {error}") from error
    for flag, key in (
        ("--csv-img-key", args.csv_img_key),
        ("--csv-caption-key", args.csv_caption_key),
    ):
        if key not in columns:
            raise ValueError(
                f"{flag} {key}: {path} has no such column, with --csv-separator {separator!r} it "
                f"has {', '.join(columns)}"
            )
    images = pandas.read_csv(path, sep=separator, usecols=[args.csv_img_key])
    return int(images[args.csv_img_key].astype(str).nunique())
