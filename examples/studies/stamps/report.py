"""Tables of the stamps, in Markdown, from the JSON report; `reading.md` says how they are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.studies.protocol.contrasts import Contrast, contrast
from examples.studies.protocol.runs import PRIMARY
from examples.studies.protocol.tables import PM, question_table

from .rows import ALL, EXPECTATION, MASKED, MFH, ONE_PAIR

HELD = {
    "steps": "Equal steps",
    "rows": "Equal rows",
    "time": "Equal time",
}
NAMES = {"pt": "Portuguese", "sv": "Swedish", "it": "Italian", "uk": "Ukrainian"}
NAMES |= {"nl": "Dutch", "ca": "Catalan"}
Key = tuple[str, int, str]  # name of the loss, training languages, what is held fixed


@dataclass(frozen=True)
class Question:
    """A contrast of two losses, or of all languages and one.

    Args:
        first: name of a loss.
        second: name of the one that it is compared with.
        held: what is held fixed.
        fewer: training languages of the second; None: all, as of the first.

    """

    first: str
    second: str
    held: str
    fewer: int | None = None


QUESTIONS = [  # the primary contrasts, in the order of reading.md
    Question(MFH.name, ONE_PAIR.name, "steps"),
    Question(ALL.name, ONE_PAIR.name, "steps"),
    Question(EXPECTATION.name, ONE_PAIR.name, "steps"),
    Question(MASKED.name, ONE_PAIR.name, "steps"),
    Question(MFH.name, ONE_PAIR.name, "time"),
    Question(MFH.name, EXPECTATION.name, "steps"),
    Question(ONE_PAIR.name, ONE_PAIR.name, "steps", fewer=1),
]


def by_key(report: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """The results by loss, number of languages, and what is held fixed."""
    return {(r["row"]["name"], r["languages"], r["held"]): r for r in report["results"]}


def interval(result: dict[str, Any], metric: str = PRIMARY) -> Contrast:
    """Mean over draws and seeds, with its interval over the draws."""
    values = np.array(result["metrics"][metric])
    return contrast(values, np.zeros_like(values))


def losses(report: dict[str, Any]) -> list[str]:
    """Names of the losses, in the order of the runs."""
    return list(dict.fromkeys(result["row"]["name"] for result in report["results"]))


def languages(report: dict[str, Any], held: str) -> list[int]:
    """Numbers of training languages."""
    return sorted({r["languages"] for r in report["results"] if r["held"] == held})


def tables(report: dict[str, Any]) -> str:
    """The whole page."""
    parts = [f"# Recall in languages never trained on\n\n{introduction(report)}"]
    parts.append(f"![Recall against the number of training languages](stamps.svg)\n\n{CAPTION}")
    parts.append(f"## Primary contrasts\n\n{primary_table(report)}")
    for held, title in HELD.items():
        parts.append(f"## {title}\n\n{fixed(report, held)}\n\n{recall_table(report, held)}")
    parts.append(f"## The six languages\n\n{language_table(report)}")
    parts.append(f"## What was chosen\n\n{chosen(report)}")
    parts.append(f"## Compute\n\n{compute(report)}")
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> str:
    """The part for a first look."""
    parts = [introduction(report), recall_table(report, "steps"), primary_table(report)]
    return "\n\n".join([*parts, compute(report)]) + "\n"


CAPTION = (
    "Average recall of the image, for captions in six languages that nothing was trained on. "
    "Bars are 95 % intervals of the difference from CLIP on one pair, over the draws of the "
    "training languages, which are the same for every loss. Equal steps; the dashed line is CLIP "
    "on one pair with as many steps as take the time of MFH."
)


def introduction(report: dict[str, Any]) -> str:
    """What was measured, and how to read it."""
    plan, data = report["plan"], report["data"]
    return (
        f"{data['stamps']} photographs and drawings, {data['captions']} captions in "
        f"{data['languages']} languages ({data['source']}). A text encoder of character n-grams "
        "and a linear head on frozen image features are trained on captions in k of "
        f"{len(data['train'])} languages, and images are looked up with captions in six others: "
        f"{', '.join(NAMES[name] for name in data['test'])}. Nothing is trained on these, on "
        f"their near relatives, or on the languages that chose rate and temperature. "
        f"Numbers are percent, means over {plan['draws']} draws of the training languages with "
        f"{plan['seeds']} seeds each; *average recall* is the mean of R@1, R@5 and R@10 among "
        f"{data['stamps']} images; *{PM}* is the standard error over the draws."
    )


def cell(found: Contrast) -> str:
    """Mean and standard error."""
    return f"{found.mean:.1f} {PM} {found.stderr:.1f}"


def recall_table(report: dict[str, Any], held: str) -> str:
    """Average recall of every loss with every number of languages."""
    results, columns = by_key(report), languages(report, held)
    lines = [
        "| loss | " + " | ".join(map(str, columns)) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in losses(report):
        cells = [cell(interval(results[name, count, held])) for count in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fixed(report: dict[str, Any], held: str) -> str:
    """What is the same for all numbers of languages, and what is not."""
    plan, results = report["plan"], by_key(report)
    few = ", ".join(map(str, languages(report, held)))
    if held == "steps":
        return (
            f"Every run has {plan['steps']} steps of {plan['stamps']} stamps, with all of their "
            "captions in the k languages and both images; CLIP on one pair draws one of each."
        )
    if held == "rows":
        return (
            f"Every step has {plan['rows']} captions, so stamps in a batch are {plan['rows']} / k; "
            f"CLIP on one pair has {plan['rows']} stamps. {plan['steps']} steps; k is {few}."
        )
    steps = {
        name: [results[name, count, held]["schedule"]["steps"] for count in languages(report, held)]
        for name in losses(report)
    }
    counts = "; ".join(f"{name} {', '.join(map(str, n))}" for name, n in steps.items())
    return (
        f"{plan['stamps']} stamps in a batch, and as many steps as take the processor time of MFH "
        f"with equal steps. Steps for k = {few}: {counts}."
    )


def contrasts(report: dict[str, Any]) -> list[tuple[Question, Contrast]]:
    """The primary contrasts."""
    results, most = by_key(report), max(languages(report, "steps"))

    def values(name: str, count: int, held: str) -> list[list[float]]:
        return results[name, count, held]["metrics"][PRIMARY]

    return [
        (q, contrast(values(q.first, most, q.held), values(q.second, q.fewer or most, q.held)))
        for q in QUESTIONS
    ]


def primary_table(report: dict[str, Any]) -> str:
    """The primary contrasts, Holm's correction, and what may be said."""
    most = max(languages(report, "steps"))

    def words(q: Question) -> str:
        if q.fewer:
            return f"{q.first}: {most} languages against {q.fewer}, equal {q.held}"
        return f"{q.first} against {q.second}, equal {q.held}"

    return question_table([(words(q), found) for q, found in contrasts(report)]) + (
        f" Average recall with {most} languages, in points. With all {most} languages the draws "
        "have the same languages, so that intervals there are over weights, batches and "
        "selections alone."
    )


def language_table(report: dict[str, Any]) -> str:
    """Average recall of each test language, with all training languages and equal steps."""
    results, tested = by_key(report), report["data"]["test"]
    most = max(languages(report, "steps"))
    lines = [
        "| loss | " + " | ".join(NAMES[name] for name in tested) + " |",
        "|---|" + "---:|" * len(tested),
    ]
    for name in losses(report):
        metrics = results[name, most, "steps"]["metrics"]
        cells = [f"{np.mean(metrics[language]):.1f}" for language in tested]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return f"Average recall with {most} training languages, equal steps.\n\n" + "\n".join(lines)


def chosen(report: dict[str, Any]) -> str:
    """Rate and temperature of every loss, and how they were found."""
    tuned = {(t["row"]["name"], t["languages"]): t for t in report["tuning"]}
    counts = sorted({count for _, count in tuned})
    lines = [
        "| loss | "
        + " | ".join(f"{count} languages: rate, temperature, recall, trials" for count in counts)
        + " |",
        "|---|" + "---|" * len(counts),
    ]
    for name in losses(report):
        cells = []
        for count in counts:
            trials, best = tuned[name, count]["trials"], tuned[name, count]["chosen"]
            (own,) = (t[PRIMARY] for t in trials if {**t, **best} == t)
            rate, temperature = (marked(best, trials, axis) for axis in ("lr", "temperature"))
            cells.append(f"{rate}, {temperature}, {np.mean(own):.1f}, {len(trials)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    grid = report["grid"]
    rates, temperatures = (
        ", ".join(f"{value:g}" for value in grid[axis]) for axis in ("lrs", "temperatures")
    )
    return (
        f"Rates {rates} with temperatures {temperatures}, each run once; the best three on "
        "two draws with three seeds; up to three more points on a side where the best was at an "
        "edge. A star marks a value that still is. The temperature is that of the start, and is "
        "trained. Captions in German, Romanian, Czech and Bulgarian chose. The values at "
        f"{counts[0]} languages serve up to {counts[0]}, those at {counts[-1]} serve more; both "
        "were found with equal steps, and serve equal rows and equal time too. MFH's weight of "
        "the hard part, 0.6, and its teacher's decay, 0.99, were not tuned.\n\n" + "\n".join(lines)
    )


def marked(best: dict[str, float], trials: list[dict[str, Any]], axis: str) -> str:
    """A chosen value, with a star where it is the least or the most that was tried."""
    tried = {trial[axis] for trial in trials}
    return f"{best[axis]:g}{'*' if best[axis] in (min(tried), max(tried)) else ''}"


def compute(report: dict[str, Any]) -> str:
    """What a run costs."""
    results, most = by_key(report), max(languages(report, "steps"))
    times = ", ".join(
        f"{name} {results[name, most, 'steps']['seconds']:.1f}" for name in losses(report)
    )
    return (
        f"Processor seconds of a run with {most} languages and equal steps (median), one thread "
        f"of {report['machine']['processor']}, torch {report['versions']['torch']}: {times}."
    )
