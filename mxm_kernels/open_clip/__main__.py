"""``python -m mxm_kernels.open_clip``: open_clip's training program with the fused losses.

Takes the program's arguments, and ``--mfh``. With torchrun: ``torchrun -m mxm_kernels.open_clip``.
"""

from __future__ import annotations

import argparse
import sys

from mxm_kernels import checks
from mxm_kernels.open_clip import patch, patch_mfh
from mxm_kernels.open_clip.flags import check_flags
from mxm_kernels.open_clip.training import HARD_WEIGHT, ROUNDS, replaced


def main(arguments: list[str]) -> int:
    """Run the program; its own exit code, or 2 and one line where it cannot start as asked."""
    parser = _parser()
    ours, theirs = parser.parse_known_args(arguments)
    try:
        _check_ours(ours, theirs)
    except ValueError as error:
        parser.error(str(error))
    try:
        from open_clip_train import main as program
    except ImportError as error:
        parser.error(
            f"open_clip's training program cannot start: {error}; "
            "pip install open_clip_torch[training]"
        )
    if ours.help:
        parser.print_help()
        program.parse_args(["--help"])
    args = program.parse_args(theirs)
    try:
        check_flags(args, mfh=ours.mfh)
        _check_teacher(ours, args)
        undo = _patched(ours)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    with undo, replaced(program, {"parse_args": lambda _: args}):  # parsed and looked at already
        return program.main(theirs) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxm_kernels.open_clip",
        description="open_clip's training program with fused losses; "
        "all other arguments are the program's.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="these, then the program's")
    parser.add_argument("--mfh", action="store_true", help="MFH on all captions of each image")
    parser.add_argument(
        "--mfh-hard-weight",
        type=float,
        metavar="SHARE",
        help=f"of the hard loss beside a teacher, from 0 to 1 (default: {HARD_WEIGHT})",
    )
    parser.add_argument(
        "--mfh-rounds",
        type=int,
        metavar="R",
        help=f"random selections; 0 for their exact expectation (default: {ROUNDS})",
    )
    return parser


def _check_ours(ours: argparse.Namespace, theirs: list[str]) -> None:
    """The three arguments that are not the program's."""
    for word in theirs:
        if word.startswith("--mfh"):  # argparse would give it to the program
            raise ValueError(
                f"{word}: there are --mfh, --mfh-rounds and --mfh-hard-weight, not abbreviated"
            )
    given = {"--mfh-rounds": ours.mfh_rounds, "--mfh-hard-weight": ours.mfh_hard_weight}
    for flag, value in given.items():
        if value is not None and not ours.mfh:
            raise ValueError(f"{flag} needs --mfh")
    if ours.mfh_rounds is not None:
        checks.as_count("--mfh-rounds", ours.mfh_rounds, 0)
        if ours.mfh_rounds > checks.MOST_ROUNDS:
            raise ValueError(
                f"--mfh-rounds must be at most {checks.MOST_ROUNDS}, got {ours.mfh_rounds}"
            )
    if ours.mfh_hard_weight is not None:
        checks.check_fraction("--mfh-hard-weight", ours.mfh_hard_weight)


def _check_teacher(ours: argparse.Namespace, args: argparse.Namespace) -> None:
    if ours.mfh_hard_weight is not None and args.distill_model is None:
        raise ValueError(
            "--mfh-hard-weight needs a teacher, --distill-model and --distill-pretrained: without "
            "one the loss is the hard loss alone"
        )


def _patched(ours: argparse.Namespace):
    if not ours.mfh:
        return patch()
    hard_weight = HARD_WEIGHT if ours.mfh_hard_weight is None else ours.mfh_hard_weight
    rounds = ROUNDS if ours.mfh_rounds is None else ours.mfh_rounds
    return patch_mfh(hard_weight, rounds or None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
