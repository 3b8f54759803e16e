"""Command line: `python -m examples.studies.cma_clip --help`."""

import json
import sys

from examples.finetune.config import CheckpointError, InterruptedRunError
from examples.options import OptionError, parse

from .config import Config

KEPT = (
    "Aligned encoders that are finished stay in --output_dir: the same command takes them, and "
    "begins the stages anew."
)


def main(arguments: list[str] | None = None) -> int:
    """Train CMA-CLIP in its three stages on the emoji set, and print its test metrics.

    The defaults are the paper's options, for millions of products: on the emoji set they take hours
    and learn next to nothing. The study's learn it in minutes: --layers 2 --width 128 --heads 4
    --stage_epochs 40 6 2 --lr 1e-3 --encoder_lr 1e-4 --batch_size 32 --embed_dim 128 --dropout 0.1
    """
    try:
        (config,) = parse(arguments, [Config], "python -m examples.studies.cma_clip", main.__doc__)
        return classify(config)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as stop:
        print(f"\n{stop}. Run the same command again to go on from there.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"\nInterrupted. {KEPT}", file=sys.stderr)
        return 130


def classify(config: Config) -> int:
    """Run, and write the model and the results."""
    from safetensors.torch import save_model

    from .experiment import Experiment
    from .folder import require_same_options
    from .prepare import aligned_encoders, load_data

    data = load_data(config)  # refuses a wrong --model, which the folder need not remember
    require_same_options(config.output_path, config.alignment_options(), "run")
    try:
        encoders = aligned_encoders(config, data)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    experiment = Experiment(config, data, encoders)
    experiment.train(experiment.stages(), verbose=True)
    save_model(experiment.model, str(config.output_path / "model.safetensors"))
    summary = {"options": config.numeric_options(), **experiment.summary()}
    path = config.output_path / "results.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    for name, test in summary["test"].items():
        for task, accuracy in test["accuracy"].items():
            print(
                f"{name} test, {task}: accuracy {accuracy:.1f}, recall at "
                f"{100 * config.precision:g} % precision {test['recall'][task]:.1f}"
            )
    print(f"Results: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
