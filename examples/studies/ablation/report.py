"""Tables of the ablation's rows, in Markdown, from its JSON report."""

import statistics
from typing import Any

from examples.studies.protocol.contrasts import Contrast, contrast
from examples.studies.protocol.runs import PRIMARY
from examples.studies.protocol.tables import PM, question_table

from .studies import STUDIES

COLUMNS = {
    "text \N{RIGHTWARDS ARROW} image": "text_to_image",
    "image \N{RIGHTWARDS ARROW} text": "image_to_text",
}
SIDES = {
    "none": "Every image and every caption",
    "images": "Aggregated images: the mean feature of an instance's images, and its captions",
    "texts": "Aggregated texts: the mean feature of an instance's captions, and its images",
    "both": "Both aggregated: the two mean features of an instance",
}
BASELINE = "CLIP, masked"
QUESTIONS = [
    # (question, first row, second row): the difference is first - second
    ("Masking the other positives", "CLIP, masked", "CLIP on the group matrix"),
    ("MFH instead of one fixed pair", "Hard (10) + Soft", "CLIP, masked"),
    ("All positives instead of one", "All", "CLIP, masked"),
    ("Drawing the positive", "Hard (1)", "CLIP, masked"),
    ("Ten rounds instead of one", "Hard (10)", "Hard (1)"),
    ("The expectation instead of ten rounds", "Hard (expectation)", "Hard (10)"),
    ("The expectation instead of all positives", "Hard (expectation)", "All"),
    ("Soft beside 1 round", "Hard (1) + Soft", "Hard (1)"),
    ("Soft beside m rounds", "Hard (m) + Soft", "Hard (m)"),
    ("Soft beside 10 rounds", "Hard (10) + Soft", "Hard (10)"),
    ("Soft beside the expectation", "Hard (expectation) + Soft", "Hard (expectation)"),
    ("MFH instead of CLIP on pairs", "Hard (10) + Soft", "CLIP on pairs"),
    ("MFH, CLIP with equal rows", "Hard (10) + Soft", "CLIP on pairs, equal rows"),
    ("Soft beside both means", "CLIP + Soft", "CLIP, masked"),
    ("Training on all, not on means", "Hard (10) + Soft of all observations", "CLIP, masked"),
]

Key = tuple[str, str, float]


def key(result: dict[str, Any]) -> Key:
    """Panel, curve and place of a cell, which tell it from the others."""
    return result["panel"], result["curve"], result["x"]


def values(result: dict[str, Any], metric: str = PRIMARY) -> list[list[float]]:
    """A metric of every split and seed."""
    return [[run[metric] for run in split] for split in result["runs"]]


def mean(result: dict[str, Any], metric: str = PRIMARY) -> float:
    """Mean of a metric over all runs."""
    return statistics.fmean(map(statistics.fmean, values(result, metric)))


def seconds(result: dict[str, Any]) -> float:
    """Median of the training times."""
    return statistics.median(second for split in result["seconds"] for second in split)


def difference(results: dict[Key, dict[str, Any]], first: Key, second: Key) -> Contrast:
    """Paired difference of two cells' average recall."""
    return contrast(values(results[first]), values(results[second]))


def keyed(report: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """Results by panel, curve and place."""
    return {key(result): result for result in report["results"]}


def primary_table(report: dict[str, Any]) -> str:
    """The differences that were asked for before the runs, of those whose cells are there."""
    results = keyed(report)
    return question_table(
        [
            (q.name, difference(results, q.first, q.second))
            for q in STUDIES[report["study"]].questions
            if q.first in results and q.second in results
        ]
    )


def tables(report: dict[str, Any]) -> str:
    """The whole page."""
    results = keyed(report)
    parts = [introduction(report)]
    for side, title in SIDES.items():
        shown = [r for (panel, *_), r in results.items() if panel == side]
        if shown:
            parts.append(f"**{title}**\n\n{side_table(shown, results, side)}")
    if report["asked_first"]:
        parts.append(f"**Questions asked before the runs**\n\n{primary_table(report)}")
    parts.append(f"**More differences**\n\n{more_table(results)}")
    parts.append(compute(report))
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> str:
    """The part for a first look: the table of all observations in short, and what it was given."""
    results = keyed(report)
    lines = [
        f"| loss | text to image R@1 | image to text R@1 | average | difference from {BASELINE} "
        "| time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (side, name, _), result in results.items():
        if side != "none":
            continue
        first = [mean(result, f"{d} R@1") for d in COLUMNS.values()]
        lines.append(
            f"| {name} | {first[0]:.2f} | {first[1]:.2f} | {mean(result):.2f} "
            f"| {away(results, result)} | {seconds(result):.1f} s |"
        )
    return "\n\n".join([introduction(report), "\n".join(lines), compute(report)]) + "\n"


def away(results: dict[Key, dict[str, Any]], result: dict[str, Any]) -> str:
    """Difference of a row from the baseline of its side, for a table."""
    baseline = (result["panel"], BASELINE, 0.0)
    if key(result) == baseline:
        return ""
    found = difference(results, key(result), baseline)
    return f"{found.mean:+.2f} {PM} {found.stderr:.2f}"


def introduction(report: dict[str, Any]) -> str:
    """What was measured, and how to read it."""
    plan, data = report["plan"], report["data"]
    left_out = len(data["left_out"])
    without = f" ({left_out} more could not be rendered and are left out)" if left_out else ""
    seeds = f" with {plan['seeds']} seeds each" if plan["seeds"] > 1 else ""
    return (
        f"Linear heads on frozen encoders, {data['name']}: {data['instances']} instances{without}, "
        f"{data['images']} images, {data['texts']} captions. Mean over {plan['splits']} "
        f"splits{seeds}, in percent; *average* is the mean of R@1, R@5 and R@10 of both "
        f"directions; *{PM}* after a paired difference is its standard error over the splits, "
        f"enlarged for overlapping training sets. {report['tuning']}"
    )


def side_table(shown: list[dict], results: dict[Key, dict[str, Any]], side: str) -> str:
    """The rows of one side: recalls, difference from the masked CLIP, what was chosen, time."""
    heads = [f"{title} R@{k}" for title in COLUMNS for k in (1, 5, 10)]
    more = ["average", f"difference from {BASELINE}", "rate", "temperature", "time"]
    lines = [
        "| loss | " + " | ".join([*heads, *more]) + " |",
        "|---|" + "---:|" * (len(heads) + len(more)),
    ]
    for result in shown:
        recalls = [
            f"{mean(result, f'{direction} R@{k}'):.2f}"
            for direction in COLUMNS.values()
            for k in (1, 5, 10)
        ]
        point = result["point"]
        cells = [
            *recalls,
            f"{mean(result):.2f}",
            away(results, result),
            f"{point['lr']:.2g}{'*' if result['at_edge'] else ''}",
            f"{point['temperature']:.2g}",
            f"{seconds(result):.1f} s",
        ]
        lines.append(f"| {result['curve']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def more_table(results: dict[Key, dict[str, Any]]) -> str:
    """More paired differences, without a correction for their number."""
    lines = [
        "| question | difference in average | 95 % interval | so it is |",
        "|---|---:|---:|---|",
    ]
    for side in SIDES:
        for question, first, second in QUESTIONS:
            rows = (side, first, 0.0), (side, second, 0.0)
            if not all(row in results for row in rows):
                continue
            found = difference(results, *rows)
            where = f", {SIDES[side].split(':')[0].lower()}" if side != "none" else ""
            lines.append(
                f"| {question}{where} | {found.mean:+.2f} {PM} {found.stderr:.2f} "
                f"| {found.low:+.2f} to {found.high:+.2f} | {found.verdict} |"
            )
    asked = len(lines) - 2
    return (
        "\n".join(lines)
        + f"\n\nOf {asked} such intervals about {asked * 0.05:.1f} miss 0 by chance alone."
    )


def compute(report: dict[str, Any]) -> str:
    """What every row was given."""
    plan, data, ran_on = report["plan"], report["data"], report["machine"]
    base = report["results"][0]["setting"]
    images, texts = (data[k] / data["instances"] * base["batch_size"] for k in ("images", "texts"))
    lines = [
        f"Compute: every row trains for {base['steps']} steps of {base['batch_size']} instances, "
        f"about {images:.0f} images and {texts:.0f} captions; "
        "rows on pairs have one of each instance."
    ]
    for result in report["results"]:
        setting = result["setting"]
        if (setting["batch_size"], setting["steps"]) != (base["batch_size"], base["steps"]):
            lines.append(
                f"*{result['curve']}*: {setting['steps']} steps of "
                f"{setting['batch_size']} instances."
            )
    if any(result["at_edge"] for result in report["results"]):
        lines.append("An asterisk: the best rate or temperature is the last that was tried.")
    lines.append(
        f"m = {data['m']}. Heads of width {plan['width']}. Times are processor seconds of a "
        f"training run (median), one thread of {ran_on['processor']}, {plan['workers']} runs at "
        f"a time, torch {report['versions']['torch']}."
    )
    return " ".join(lines)
