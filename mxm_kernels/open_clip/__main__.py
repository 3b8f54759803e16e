"""``python -m mxm_kernels.open_clip``: open_clip's training program with the fused losses.

Takes the program's arguments, and ``--mfh``. With torchrun: ``torchrun -m mxm_kernels.open_clip``.
"""

from __future__ import annotations

import argparse
import sys

from mxm_kernels.open_clip import patch, patch_mfh


def main(arguments: list[str]) -> int:
    """Run the program; its own exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mxm_kernels.open_clip",
        description="open_clip's training program with fused losses; "
        "all other arguments are the program's.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="these, then the program's")
    parser.add_argument("--mfh", action="store_true", help="MFH on all captions of each image")
    parser.add_argument("--mfh-hard-weight", type=float, default=0.6, help="beside a teacher")
    parser.add_argument("--mfh-rounds", type=int, default=10, help="0 for the exact expectation")
    ours, theirs = parser.parse_known_args(arguments)
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
    undo = patch_mfh(ours.mfh_hard_weight, ours.mfh_rounds or None) if ours.mfh else patch()
    with undo:
        return program.main(theirs) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
