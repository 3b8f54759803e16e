"""Command line: `python -m examples.finetune --help`."""

import sys

from .config import Config, OptionError, parse
from .figure import save_figure
from .retrieval import metrics_table
from .train import InterruptedRunError, run


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune, print the metrics before and after, and save the figure."""
    try:
        (config,) = parse(arguments, [Config], "python -m examples.finetune", main.__doc__)
        config.output_path.mkdir(parents=True, exist_ok=True)
        result = run(config)
    except InterruptedRunError as stop:
        print(f"\n{stop}. Run the same command again to go on from there.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Run the same command again to go on from the last checkpoint.",
            file=sys.stderr,
        )
        return 130
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figure = save_figure(result, config)
    print(metrics_table(result.before, result.after))
    print(f"Training took {result.seconds:.0f} s. Figure: {figure}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
