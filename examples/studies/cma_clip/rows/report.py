"""The page, written from the study's JSON file alone."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from examples.studies.cma_clip.differences import encoder_text
from examples.studies.cma_clip.summary import table

from .naming import spoken
from .numbers import average, secondary
from .plan import CONDITIONS, FUSED, NAMED_SHARE, Difference
from .texts import TEMPLATES
from .tuning import FIRST_RATES, LADDER, TUNING_SPLITS

NAMES = ("own", "right name", "wrong name")
NAMING_CONDITIONS = ("clean", "names put in")


def markdown(report: dict[str, Any]) -> str:
    """Write the page."""
    parts = [
        introduction(report),
        "![Average accuracy of the rows, with the intervals over the test emoji](rows.svg)",
        "## Primary differences",
        primary_text(report),
    ]
    for condition in CONDITIONS:
        parts += [f"## {condition[0].upper()}{condition[1:]}", condition_text(report, condition)]
    parts += ["## Captions that name the class", captions_text(report)]
    parts += ["## Class names put into captions that lack them", naming_text(report)]
    parts += ["## Learning rates", rates_text(report)]
    parts += ["## What was held fixed, and what is smaller than elsewhere", fixed_text(report)]
    return "\n\n".join(parts) + "\n"


def introduction(report: dict[str, Any]) -> str:
    """Say what was run and how it is read."""
    sizes = ", ".join(f"{task} ({count} classes)" for task, count in report["classes"].items())
    return (
        "# Rows beside CMA-CLIP's tables, on the emoji set\n\n"
        f"Tasks: {sizes}. {len(report['splits'])} splits x {report['seeds']} seeds, in percent. "
        "*Accuracy* in brackets is the middle 95 % of 2000 resamples of the test emoji, each with "
        "all of its pairs; another training run is not in it. *Recall* is at the threshold that "
        f"has {percent(report)} % precision on the validation split, and *reached* is the "
        "precision that this threshold has on the test split: mean of the splits, lowest and "
        "highest. The rule that says which difference is a finding was fixed "
        "before the runs, in `examples/studies/cma_clip/reading.md`. Made by `make cma-rows`."
    )


def percent(report: dict[str, Any]) -> str:
    """Precision in percent."""
    return f"{100 * report['options']['precision']:g}"


def primary_text(report: dict[str, Any]) -> str:
    """Table of the primary differences, and a sentence for each."""
    rows = [
        [
            title(row),
            signed(row["mean"], row["low"], row["high"]),
            signed(row["mean"], *row["over_instances"]),
            p_value(row["p"]),
            p_value(row["holm"]),
            f"{row['smallest']:.1f}",
            verdict(row),
        ]
        for row in report["primary"]
    ]
    titles = [
        "average accuracy, first minus second",
        "over splits",
        "over test emoji",
        "p",
        f"p, Holm of {len(rows)}",
        "smallest to be seen",
        "reading",
    ]
    return table(titles, rows)


def title(row: dict[str, Any]) -> str:
    """Name a difference."""
    where = row["condition"] if row["test"] == "all" else f"{row['condition']}, captions that lack"
    return f"{where}: {row['first']} minus {row['second']}"


def verdict(row: dict[str, Any]) -> str:
    """Read a primary difference."""
    if row["holm"] >= 0.05:
        return "within noise"
    return "first is better" if row["mean"] > 0 else "second is better"


def signed(mean: float, low: float, high: float) -> str:
    """Write a difference with its interval."""
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def p_value(value: float) -> str:
    """Write a p value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def condition_text(report: dict[str, Any], condition: str) -> str:
    """Say what a condition is, and its table."""
    rate, share = 100 * report["options"]["noise_rate"], 100 * NAMED_SHARE
    lines = [CONDITIONS[condition].format(rate=rate, share=share)]
    chosen = [c for c in report["cells"] if c["condition"] == condition]
    lines.append(results_table(report, chosen))
    if condition.endswith("noise"):
        lines += [
            "On the pairs without and with noise, average accuracy, and the mean weight of the "
            "text, which modality-wise attention gives (1 without the image, 0 without the text).",
            noise_table(report, chosen),
        ]
    return "\n\n".join(lines)


def results_table(report: dict[str, Any], chosen: Sequence[dict[str, Any]]) -> str:
    """Metrics of the rows on all test pairs."""
    tasks = list(report["classes"])
    titles = ["row", *(f"{task} accuracy" for task in tasks), "average accuracy"]
    titles += [*(f"{task} recall, reached" for task in tasks), "average recall"]
    rows = []
    for cell in chosen:
        test = cell["tests"]["all"]
        low, high = test["interval"]["accuracy"]
        row = [cell["row"], *(f"{overall(test['accuracy'][task]):.1f}" for task in tasks)]
        row.append(f"{average(test).mean():.1f} [{low:.1f}, {high:.1f}]")
        for task in tasks:
            recall = overall(test["recall"][task])
            row.append(f"{recall:.1f}, {reached(test, task)}")
        low, high = test["interval"]["recall"]
        rows.append([*row, f"{average(test, 'recall').mean():.1f} [{low:.1f}, {high:.1f}]"])
    return table(titles, rows)


def reached(test: dict[str, Any], task: str) -> str:
    """Precision on the test split: mean of the splits, lowest and highest."""
    splits = [[v for v in split if v is not None] for split in test["precision"][task]]
    means = [fmean(split) for split in splits if split]
    if not means:
        return "nothing accepted"
    return f"{fmean(means):.0f} ({min(means):.0f} to {max(means):.0f})"


def overall(values: Sequence[Sequence[float]]) -> float:
    """Mean over splits and seeds."""
    return fmean(fmean(split) for split in values)


def noise_table(report: dict[str, Any], chosen: Sequence[dict[str, Any]]) -> str:
    """Accuracy and text weights on pairs without and with noise."""
    tasks = list(report["classes"])
    titles = ["row", "pairs without noise", "pairs with noise"]
    titles += [f"text weight, {task}, without / with noise" for task in tasks]
    rows = []
    for cell in chosen:
        tests, weights = cell["tests"], cell["text_weights"]
        row = [cell["row"], *(f"{average(tests[t]).mean():.1f}" for t in ("right", "noise"))]
        for task in tasks:
            given = [f"{weights[t][task]:.3f}" for t in ("right", "noise")] if weights else []
            row.append(" / ".join(given))
        rows.append(row)
    return table(titles, rows)


def captions_text(report: dict[str, Any]) -> str:
    """Share of the captions that name the class."""
    captions = report["captions"]
    rows = [
        [name, f"{share['a word']:.1f}", f"{share['all words']:.1f}"]
        for name, share in captions["shares"].items()
    ]
    return (
        f"Percent of the {captions['number']} captions of the labelled emoji that hold a word of "
        "the class name, or all of its words. Names are taken apart at hyphens, *and* and *other* "
        "do not count, and a final s does not matter. The paper's titles name color, pattern and "
        f"style in 67, 25 and 15 %. {captions['lacking']} captions hold no word of either class "
        "name; they are the ones that lack it.\n\n"
        + table(["task", "a word of the name", "all words of the name"], rows)
    )


def naming_text(report: dict[str, Any]) -> str:
    """The paper's Table 5 as numbers."""
    example = f"*{spoken('Food & Drink')}, {spoken('food-fruit')}*"
    sections = [
        "The paper picks three products whose title lacks the attribute's value, and which the "
        "model without modality-wise attention (MA) gets wrong; with the value put into the title, "
        "both models get them right. Here it is done for all test pairs whose caption lacks its "
        f"class names. They get both names behind the caption, as in {example}, or those of "
        "another emoji whose category and subcategory are others. Average accuracy."
    ]
    by_cell = {(c["condition"], c["row"]): c for c in report["cells"]}
    titles = ["trained on", "row", "own caption", "right name", "wrong name"]
    titles += ["right minus own", "wrong minus own"]
    rows = []
    for condition in NAMING_CONDITIONS:
        for row in FUSED:
            tests = by_cell[condition, row]["tests"]
            values = {name: average(tests[name]).mean() for name in NAMES}
            cells = [with_interval(values[n], tests[n]["interval"]["accuracy"]) for n in NAMES]
            gaps = [f"{values[n] - values['own']:+.1f}" for n in NAMES[1:]]
            rows.append([condition, row, *cells, *gaps])
    sections.append(table(titles, rows))
    sections.append(
        "With MA minus without, over splits; descriptions, but for the one that is primary."
    )
    differences = [
        [condition, f"{first} minus {second}"]
        + [
            signed(found.mean, found.low, found.high)
            for name in NAMES
            if (found := secondary(report["cells"], Difference(condition, first, second, name)))
        ]
        for condition in NAMING_CONDITIONS
        for first, second in (("CMA-CLIP", "w/o MA"), ("w/o SA", "w/o (MA + SA)"))
    ]
    sections.append(table(["trained on", "difference", *NAMES], differences))
    sections.append(weights_table(report))
    return "\n\n".join(sections)


def with_interval(value: float, interval: Sequence[float]) -> str:
    """Write a mean with its interval."""
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def weights_table(report: dict[str, Any]) -> str:
    """Mean weight of the text with and without names."""
    tasks = list(report["classes"])
    rows = []
    for cell in report["cells"]:
        if cell["condition"] in NAMING_CONDITIONS and cell["text_weights"]:
            row = [cell["condition"], cell["row"]]
            for task in tasks:
                row += [f"{cell['text_weights'][name][task]:.3f}" for name in NAMES]
            rows.append(row)
    titles = ["trained on", "row", *(f"{task}, {name}" for task in tasks for name in NAMES)]
    return "Mean weight of the text on the same pairs.\n\n" + table(titles, rows)


def rates_text(report: dict[str, Any]) -> str:
    """What was tried, what was chosen, and how long it trained."""
    rows = []
    for row, trials in report["tuning"].items():
        means = {rate: fmean(values) for rate, values in trials.items()}
        best = max(means, key=means.__getitem__)
        edge = " (at an end)" if best in (next(iter(means)), list(means)[-1]) else ""
        epochs = [c["best_epoch"] for c in report["cells"] if c["row"] == row]
        flat = [epoch for cell in epochs for epoch in cell]
        last = sum(epoch == report["options"]["stage_epochs"][0] for epoch in flat)
        seconds = [c["seconds"] for c in report["cells"] if c["row"] == row]
        tried = ", ".join(f"{rate}: {mean:.1f}" for rate, mean in means.items())
        shown = [f"{median(flat):g}", f"{last} of {len(flat)}", f"{median(seconds):.1f}"]
        rows.append([row, tried, best + edge, *shown])
    titles = ["row", "rate: validation accuracy", "chosen", "median best epoch"]
    titles += ["last epoch best", "seconds"]
    first = ", ".join(f"{rate:g}" for rate in FIRST_RATES)
    return (
        f"Validation accuracy, mean of the tasks and of {TUNING_SPLITS} splits with one seed each, "
        "without noise; the best rate is taken under all conditions. Where the best rate was at an "
        f"end of {first}, the next one was tried, down to {LADDER[0]:g} and up to "
        f"{LADDER[-1]:g}. *Seconds* are a run's processor seconds of training.\n\n"
        + table(titles, rows)
    )


def fixed_text(report: dict[str, Any]) -> str:
    """What a reader must know before comparing with study.md or with the paper."""
    options = report["options"]
    pairs = options["batch_size"] * options["pairs_per_instance"]
    lines = [
        f"The encoders are {encoder_text(options).partition('. ')[0]}. Here they stay frozen: all "
        "rows train for the warm-up stage alone, so the contrastive loss beside the "
        "classification, the end-to-end stage and the tuning stage of [study.md](study.md) have no "
        "part in these numbers, and the two pages' numbers cannot be compared.",
        f"{options['layers']} layer of sequence-wise attention, {options['width']} wide, "
        f"{options['heads']} heads; study.md has 2 layers, the paper 12.",
        f"{options['stage_epochs'][0]} epochs for every trained row, {pairs} pairs in a batch, "
        f"Adam with weight decay {options['weight_decay']:g}, dropout {options['dropout']:g}, the "
        "best epoch on validation.",
        "*Image only* and *text only* classify from the encoder's class token of that modality, "
        "with the heads and the width of the others. They are *w/o (MA + SA)* without the other "
        "modality, so they have no attention over their own tokens.",
        "*Prompts* compares the image's feature with features of the class names, each the "
        f"mean of {len(TEMPLATES)} prompts ({', '.join(TEMPLATES)}). The encoders were aligned on "
        "the training split's images and captions, so this is not zero-shot, though no label was "
        "used. *Prompts, trained* adds a linear map of the image's feature and a temperature, "
        "trained on the labels.",
        "The paper's Table 5 shows three chosen products. It does not train with names put in: "
        "its titles have them already. *Names put in* is made here for that.",
        "The rows have the rates of their own that the table above names, so a difference between "
        "two rows holds the difference between their rates as well.",
        "The interval over splits takes the ratio of test to training size as 1 / (splits - 1) = "
        f"{1 / (len(report['splits']) - 1):.2f}; these splits have 0.29.",
    ]
    ran_on = report["machine"]
    lines.append(f"Ran on {ran_on['processor']}, torch {report['versions']['torch']}, one thread.")
    return "\n".join(f"- {line}" for line in lines)
