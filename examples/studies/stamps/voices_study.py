"""The study of image, text and voice: tuned, trained on five splits of the stamps, and its page."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.data.stamps import Stamp
from examples.files import is_kept, write_kept
from examples.studies.protocol.contrasts import contrast
from examples.studies.protocol.journal import Journal
from examples.studies.protocol.runs import PRIMARY, Run, Runner, by_split, repeated
from examples.studies.protocol.tables import PM
from examples.studies.protocol.tuning import Effort, Grid, tune

from .features import StampSet, metadata, read_features
from .voices import LOSSES, VOICE_RATE, Voices, VoiceSetting, evaluate, train

SPOKEN = ("ro", "ca", "bg", "ru", "fr", "es")
SPLITS, SEEDS = 5, 3
TITLES = {
    "text alone": "CLIP: image and text",
    "pairwise": "Pairwise InfoNCE: image, text and voice",
    "symile": "Symile: image, text and voice",
}
QUESTIONS = [("symile", "pairwise"), ("pairwise", "text alone"), ("symile", "text alone")]


def cached_voices(stamps: Sequence[Stamp], data: StampSet, path: Path) -> Voices:
    """Read the spectrograms from a file, or make them and write it."""
    if not is_kept(path):
        from .sound import spectrograms

        found = [
            (row, stamps[stamp].voices[data.languages[spoken]])
            for row, (stamp, spoken) in enumerate(
                zip(data.stamps.tolist(), data.spoken.tolist(), strict=True)
            )
            if data.languages[spoken] in set(SPOKEN) & set(stamps[stamp].voices)
        ]
        made = {
            "sounds": spectrograms([file for _, file in found]),
            "captions": torch.tensor([row for row, _ in found]),
        }
        write_kept(path, lambda file: save_file(made, file))
    return read_voices(path)


def read_voices(path: Path) -> Voices:
    """Voices of a file that :func:`cached_voices` wrote."""
    tensors = load_file(path)
    return Voices(**{field.name: tensors[field.name] for field in fields(Voices)})


def deal(count: int, splits: int) -> tuple[Tensor, list[Tensor]]:
    """A tenth of the stamps for validation, and the test stamps of every split."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count // 10], list(order[count // 10 :].tensor_split(splits))


_worker: tuple[StampSet, Voices]


def start(features: Path, sounds: Path) -> None:
    """Read the features and the voices, in a worker."""
    global _worker
    _worker = read_features(features), read_voices(sounds)


def execute(run: Run) -> tuple[dict[str, float], float]:
    """Train and measure, in a worker."""
    data, voices = _worker
    validation, tests = deal(len(data.images), run.setting.splits)
    spoken = data.stamps[voices.captions]
    measured = tests[run.split] if run.on == "test" else validation
    unseen = torch.cat([validation, tests[run.split]])
    rows = torch.isin(spoken, unseen, invert=True).nonzero()[:, 0]
    model, seconds = train(run.setting, data, voices, rows, run)
    rows = torch.isin(spoken, measured).nonzero()[:, 0]
    return evaluate(run.setting, model, data, voices, rows), seconds


def run_voices(features: Path, sounds: Path, workers: int, grid: Grid) -> dict[str, Any]:
    """The whole study; its part of a report. Finished runs are kept until all are."""
    journal = Journal(sounds.with_suffix(".runs.jsonl"), {"features": metadata(features)})
    settings = [VoiceSetting(loss, SPLITS) for loss in LOSSES]
    with Runner(execute, journal, workers, start, (features, sounds)) as runner:
        tuning = tune(runner, settings, grid, Effort(2, SEEDS))
        wanted = {s: repeated(s, tuning[s].best, SPLITS, SEEDS) for s in settings}
        runs = {s: runner.outcomes(r, s.loss) for s, r in wanted.items()}
    journal.finish()
    names = runs[settings[0]][0].metrics
    return {
        "results": [
            {
                **asdict(s),
                "chosen": asdict(tuning[s].best),
                "trials": [{**asdict(p), PRIMARY: v} for p, v in tuning[s].trials.items()],
                "metrics": {name: by_split(runs[s], name) for name in names},
                "seconds": median(outcome.seconds for outcome in runs[s]),
            }
            for s in settings
        ]
    }


def voice_tables(report: dict[str, Any]) -> str:
    """The page."""
    results = {result["loss"]: result for result in report["results"]}
    first = report["results"][0]
    names = list(first["metrics"])
    lines = [
        "| trained with | " + " | ".join(names) + " | rate, temperature | seconds |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for loss, result in results.items():
        cells = [f"{np.mean(result['metrics'][name]):.1f}" for name in names]
        chosen = result["chosen"]
        cells += [f"{chosen['lr']:g}, {chosen['temperature']:g}", f"{result['seconds']:.1f}"]
        lines.append(f"| {TITLES[loss]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| contrast | difference in average recall | 95 % interval | p | smallest to be seen "
        "| so it is |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for one, other in QUESTIONS:
        c = contrast(results[one]["metrics"][PRIMARY], results[other]["metrics"][PRIMARY])
        lines.append(
            f"| {TITLES[one]} against {TITLES[other]} | {c.mean:+.1f} {PM} "
            f"{c.stderr:.1f} | {c.low:+.1f} to {c.high:+.1f} | {c.p:.2g} | {c.smallest:.1f} "
            f"| {c.verdict} |"
        )
    return (
        "# Image, text and voice\n\n"
        f"{report['stamps']} stamps, {report['voices']} descriptions in {len(SPOKEN)} languages, "
        "written and spoken. A tenth of the stamps chose rate and temperature, on two splits with "
        "three seeds; the others are dealt into five test sets, and the numbers are percent, "
        "means over five splits with three seeds each. Images of the test stamps are looked up "
        "with a text and its voice: the pairwise losses add the two similarities, Symile "
        "multiplies the features. The row of image and text alone looks up with the text alone. "
        f"{first['steps']} steps of {first['stamps']} stamps, with one description of each drawn "
        f"in every step; the rate of the voice encoder is {VOICE_RATE} of the others'. "
        "Intervals are over the splits, with the variance enlarged for overlapping training sets. "
        "The first contrast is the one that was named before the "
        "runs; the other two describe.\n\n" + "\n".join(lines) + "\n"
    )
