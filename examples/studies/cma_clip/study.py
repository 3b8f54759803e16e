"""Table 6 on the emoji set: `python -m examples.studies.cma_clip.study` (or `make cma`).

CMA-CLIP with and without modality-wise attention, sequence-wise attention and contrastive loss,
with and without noise in the captions, over several seeds. A seed fixes the split, the aligned
encoders, the noise, the batches and the initial weights, so differences between the models of a
seed are paired. Finished parts are kept, and a study that was interrupted goes on from them.
"""

import copy
import json
import multiprocessing
import platform
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

import mxm_kernels
from examples.errors import OptionError, exit_status
from examples.files import is_kept, read_json, require_kept, write_json, write_kept, write_whole
from examples.options import (
    OptionGroup,
    Seed,
    Workers,
    option,
    parse,
    require_one_process,
    require_seeds,
    require_writable,
)
from examples.studies.machine import machine

from .config import StudyConfig
from .encoders import token_encoder
from .experiment import Experiment
from .folder import require_same_options
from .prepare import DataSet, aligned_encoders, kept_encoders, load_data
from .sources import CachedTokens, LiveTokens

RESULTS = Path(__file__).parent / "results"
CONDITIONS = ("clean", "noisy")
FULL = "CMA-CLIP"
# The contrastive loss acts in the end-to-end stage only: without it the warm-up is the same.
NO_CONTRASTIVE = "without contrastive loss"
NO_MA = "w/o MA"
# Not in Table 6: the modality-wise attention over tokens that have not seen the other modality.
NO_SA = "w/o SA"
NO_MA_SA = "w/o (MA + SA)"
VARIANTS = (FULL, NO_CONTRASTIVE, NO_MA, NO_SA, NO_MA_SA)
PACKAGES = ("torch", "open_clip_torch", "transformers", "torchmetrics", "safetensors")


@dataclass
class Study(OptionGroup):
    """Options of the study, beside those of its runs."""

    seeds: list[Seed] = field(
        default_factory=lambda: [2022, 2023, 2024, 2025, 2026], metadata={"help": "seeds"}
    )
    workers: Workers = option(2, "processes, of one thread each")
    results_dir: str = option(str(RESULTS), "folder of the JSON file, the report and the figures")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seeds(self.seeds)


def align(config: StudyConfig) -> None:
    """Align the encoders of a seed, and keep them and the tokens of everything."""
    torch.set_num_threads(1)
    options = config.encoder_config()
    if is_kept(tokens_file(config)):
        return
    data = shared_data(config)
    encoders = token_encoder(aligned_encoders(config, data, progress=False))
    cache = LiveTokens(encoders, data.observations).cache()
    options.output_path.mkdir(parents=True, exist_ok=True)  # there already if they were aligned
    write_kept(tokens_file(config), lambda path: torch.save(cache.state(), path))


def tokens_file(config: StudyConfig) -> Path:
    """Where the tokens of the aligned encoders of a seed are."""
    return config.encoder_config().output_path / "tokens.pt"


def shared_data(config: StudyConfig) -> DataSet:
    """Return the data set; the file was written before the workers started."""
    return load_data(config, config.output_path / "observations.pt", progress=False)


def compare(config: StudyConfig, condition: str) -> dict[str, Any]:
    """All variants of a seed in one condition; the outcome is kept in a file."""
    torch.set_num_threads(1)
    if condition == "clean":
        config = replace(config, noise="none")
    file = config.output_path / f"{condition}_{config.seed}.json"
    if file.is_file():
        return read_json(file)
    data, start = shared_data(config), time.perf_counter()
    runs = variants(config, data, config.output_path / f"{condition}_{config.seed}")
    outcome = {
        "seed": config.seed,
        "condition": condition,
        "seconds": time.perf_counter() - start,
        "variants": runs,
    }
    write_json(file, outcome)
    return outcome


def variants(config: StudyConfig, data: DataSet, folder: Path) -> dict[str, Any]:
    """Train and test the variants."""
    cache = CachedTokens.load(torch.load(require_kept(tokens_file(config)), weights_only=True))
    aligned = kept_encoders(config)

    def start(name: str, **options: Any) -> Experiment:
        changed = replace(config, output_dir=str(folder / name), **options)
        return Experiment(changed, data, copy.deepcopy(aligned), cache)

    full = start("full")
    warm_up, *rest = full.stages()
    full.train([warm_up])
    no_contrastive = start("no_contrastive", contrastive_weight=0.0)
    no_contrastive.model.load_state_dict(full.model.state_dict())
    no_contrastive.results = copy.deepcopy(full.results)
    for experiment in (full, no_contrastive):
        experiment.train(rest)
    weights = folder / "model.safetensors"
    write_kept(weights, lambda path: save_model(full.model, str(path)))
    no_ma = start("no_ma", modality_attention=False)
    no_sa = start("no_sa", sequence_attention=False)
    no_ma_sa = start("no_ma_sa", modality_attention=False, sequence_attention=False)
    for experiment in (no_ma, no_sa, no_ma_sa):
        experiment.train(experiment.stages())
    experiments = (full, no_contrastive, no_ma, no_sa, no_ma_sa)
    return {name: e.summary() for name, e in zip(VARIANTS, experiments, strict=True)}


def run_study(config: StudyConfig, study: Study) -> dict[str, Any]:
    """Run everything, in processes, and collect it."""
    require_writable("output_dir", config.output_path)
    require_writable("results_dir", Path(study.results_dir))
    wanted = {k: v for k, v in config.numeric_options().items() if k != "seed"}
    require_same_options(config.output_path, wanted, "study")
    load_data(config, config.output_path / "observations.pt")
    seeds = [replace(config, seed=seed) for seed in study.seeds]
    jobs = [(seed, condition) for seed in seeds for condition in CONDITIONS]
    runs = []
    with processes(study.workers) as run_all:
        for done, _ in enumerate(run_all(align, seeds), 1):
            print(f"aligned encoders of {done} of {len(seeds)} seeds", flush=True)
        for outcome in run_all(compare, *zip(*jobs, strict=True)):
            runs.append(outcome)
            print(f"{outcome['condition']} {outcome['seed']}: done", flush=True)
    return {
        "seeds": study.seeds,
        "options": {k: v for k, v in config.numeric_options().items() if k != "seed"},
        "classes": shared_data(config).labels.counts,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "runs": runs,
    }


@contextmanager
def processes(workers: Workers) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a `map` over worker processes; with one worker, in this process.

    An exception, Ctrl-C among them, ends the workers rather than wait hours for what they have
    begun. They leave Ctrl-C to this process, which a terminal sends it to as well.
    """
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=ignore_interrupts)
    try:
        yield pool.map
    except BaseException:
        for process in list(pool._processes.values()):  # Python 3.14: pool.terminate_workers()
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def ignore_interrupts() -> None:
    """Do nothing on SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def checked(config: StudyConfig) -> None:
    """Refuse options that the study sets itself, or that its report cannot be written for."""
    if config.noise == "none":
        raise OptionError("--noise must be image or text: it is the noisy condition's modality")
    if not 0 < config.noise_rate < 1:
        raise OptionError(
            f"--noise_rate must lie strictly between 0 and 1, not {config.noise_rate}: the report "
            "compares pairs with noise and without"
        )
    for name in ("sequence_attention", "modality_attention", "contrastive_weight"):
        if not getattr(config, name):
            raise OptionError(
                f"--{name} must not be {str(getattr(config, name)).lower()}: the study leaves it "
                f"out itself, and compares with {FULL}, which has it"
            )


def main(arguments: list[str] | None = None) -> int:
    """Run the study, and write its results, report and figures."""

    def work() -> None:
        prog = "python -m examples.studies.cma_clip.study"
        config, study = parse(arguments, [StudyConfig, Study], prog, __doc__)
        require_one_process(prog)
        checked(config)
        save(run_study(config, study), config, study)

    again = "Finished parts are kept; run the same command again to go on from them."
    return exit_status(work, again)


def save(report: dict[str, Any], config: StudyConfig, study: Study) -> None:
    """Write the results, the report and the figures."""
    from .figures import save_figures
    from .relevance import save_relevance
    from .report import markdown

    folder = Path(study.results_dir)
    text = json.dumps(report, indent=1) + "\n"
    write_whole(folder / "study.json", lambda path: path.write_text(text))
    (folder / "study.md").write_text(markdown(report), encoding="utf-8")
    save_figures(report, folder)
    first = replace(config, seed=study.seeds[0])
    model = config.output_path / f"clean_{first.seed}" / "model.safetensors"
    maps = config.output_path / "relevance.png"  # with the emoji's art: not among the results
    print(f"Results, report and figures: {folder}")
    save_relevance(first, shared_data(first), model, maps)
    print(f"Relevance maps: {maps}")


if __name__ == "__main__":
    raise SystemExit(main())
