"""Command line: `python -m examples.finetune --help`."""

import sys

from ..options import OptionError, parse
from .config import CheckpointError, Config, InterruptedRunError


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune a dual encoder, print the metrics before and after, and save a figure."""
    try:
        (config,) = parse(arguments, [Config], "python -m examples.finetune", main.__doc__)
        fine_tune(config)
    except (OptionError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        again = "Run the same command again to go on from the last checkpoint."
        print(f"\n{str(stop) or 'Interrupted'}. {again}", file=sys.stderr)
        return 130
    return 0


def fine_tune(config: Config) -> None:
    """Run, and show the outcome."""
    # These imports take seconds, which --help and a mistyped option need not wait for.
    from . import figure, train
    from .retrieval import metrics_table

    result = train.run(config)
    if result.is_main_process:
        path = figure.save_figure(result, config)
        print(metrics_table(result.before, result.after))
        print(f"Training took {result.seconds:.0f} s. Figure: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
