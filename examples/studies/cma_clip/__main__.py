"""Command line: `python -m examples.studies.cma_clip --help`."""

import json

from examples.errors import exit_status
from examples.options import parse, require_one_process, require_writable

from .config import Config

PROG = "python -m examples.studies.cma_clip"
KEPT = (
    "Run the same command again to go on with the alignment of the encoders. Aligned encoders that "
    "are finished stay in --output_dir: the command takes them, and begins the stages anew."
)


def main(arguments: list[str] | None = None) -> int:
    """Train CMA-CLIP in its three stages on the emoji set, and print its test metrics.

    The defaults are the paper's options, for millions of products: on the emoji set they take hours
    and learn next to nothing. The study's learn it in minutes: --layers 2 --width 128 --heads 4
    --stage_epochs 40 6 2 --lr 1e-3 --encoder_lr 1e-4 --batch_size 32 --embed_dim 128 --dropout 0.1
    """

    def work() -> None:
        (config,) = parse(arguments, [Config], PROG, main.__doc__)
        require_one_process(PROG)
        require_writable("output_dir", config.output_path)
        classify(config)

    return exit_status(work, KEPT)


def classify(config: Config) -> None:
    """Run, and write the model and the results."""
    from safetensors.torch import save_model

    from examples.files import write_whole

    from .experiment import Experiment
    from .folder import require_same_options
    from .prepare import aligned_encoders, load_data

    data = load_data(config)  # refuses a wrong --model, which the folder need not remember
    require_same_options(config.output_path, config.alignment_options(), "run")
    encoders = aligned_encoders(config, data)
    experiment = Experiment(config, data, encoders)
    experiment.train(experiment.stages(), verbose=True)
    weights, path = (config.output_path / n for n in ("model.safetensors", "results.json"))
    write_whole(weights, lambda file: save_model(experiment.model, str(file)))
    summary = {"options": config.numeric_options(), **experiment.summary()}
    text = json.dumps(summary, indent=1) + "\n"
    write_whole(path, lambda file: file.write_text(text))
    for name, test in summary["test"].items():
        for task, accuracy in test["accuracy"].items():
            print(
                f"{name} test, {task}: accuracy {accuracy:.1f}, recall at "
                f"{100 * config.precision:g} % precision {test['recall'][task]:.1f}"
            )
    print(f"Results: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
