"""Command line: `python -m examples.finetune --help`."""

from ..errors import exit_status
from ..options import parse
from .config import Config
from .presets import PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune a dual encoder, print the metrics before and after, and save a figure."""

    def work() -> None:
        prog = "python -m examples.finetune"
        (config,) = parse(arguments, [Config], prog, main.__doc__, PRESETS)
        fine_tune(config)

    return exit_status(work, "Run the same command again to go on from the last checkpoint.")


def fine_tune(config: Config) -> None:
    """Run, and show the outcome."""
    # These imports take seconds, which --help and a mistyped option need not wait for.
    import torch.distributed as dist

    from . import figure, train
    from .retrieval import metrics_table

    result = train.run(config)
    if result.is_main_process:
        path = figure.save_figure(result, config)
        print(metrics_table(result.before, result.after, config.aggregate))
        print(f"Training took {result.seconds:.0f} s. Figure: {path}")
    if dist.is_initialized():
        dist.barrier()  # nobody leaves while another still works
        dist.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())
