"""``python -m mxm_kernels``: the environment report, and a self-check of every backend.

Exit status: 0, or 1 if a backend that can run here computes something wrong.
``python -m mxm_kernels tune`` measures launch settings on this GPU: ``tuning.command``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mxm_kernels.environment import report
from mxm_kernels.tuning import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mxm_kernels",
        description="Versions, devices, backends and a self-check of about ten seconds.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="")
    command.add_options(
        commands.add_parser(
            "tune",
            help="measure launch settings of the Triton kernels on this GPU, in about a minute",
            description="Measure launch settings of the Triton kernels on this GPU and keep the "
            "fastest in a file beside Triton's cache, which later processes read.",
        )
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--no-check", action="store_true", help="leave the self-check out")
    options = parser.parse_args(arguments)
    if options.command == "tune":
        return command.run(options)
    facts = report.gather(check=not options.no_check)
    print(json.dumps(facts, indent=1, allow_nan=False) if options.json else report.text(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
