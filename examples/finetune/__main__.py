"""Command line: `python -m examples.finetune --help`."""

import sys

from .config import Config, OptionError, parse
from .interrupt import InterruptedRunError


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune a dual encoder, print the metrics before and after, and save a figure."""
    try:
        (config,) = parse(arguments, [Config], "python -m examples.finetune", main.__doc__)
        return fine_tune(config)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as stop:
        print(f"\n{stop}. Run the same command again to go on from there.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        again = "Run the same command again to go on from the last checkpoint."
        print(f"\nInterrupted. {again}", file=sys.stderr)
        return 130


def fine_tune(config: Config) -> int:
    """Run, and show the outcome."""
    # These imports take seconds, which --help and a mistyped option need not wait for.
    from .checkpoint import CheckpointError
    from .figure import save_figure
    from .retrieval import metrics_table
    from .train import run

    try:
        result = run(config)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result.is_main_process:
        figure = save_figure(result, config)
        print(metrics_table(result.before, result.after))
        print(f"Training took {result.seconds:.0f} s. Figure: {figure}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
