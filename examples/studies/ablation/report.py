"""Tables of an ablation, in Markdown, from its JSON report."""

import statistics
from typing import Any

from .contrasts import Contrast, contrast
from .experiment import SELECTED_BY
from .rows import Row

PM = "\N{PLUS-MINUS SIGN}"
COLUMNS = {
    "text \N{RIGHTWARDS ARROW} image": "text_to_image",
    "image \N{RIGHTWARDS ARROW} text": "image_to_text",
}
SIDES = {
    "": "Every image and every caption",
    "images": "Aggregated images: the mean feature of an instance's images, and its captions",
    "texts": "Aggregated texts: the mean feature of an instance's captions, and its images",
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
    ("MFH, CLIP with equal time", "Hard (10) + Soft", "CLIP on pairs, equal time"),
]


def key(row: dict[str, Any] | Row) -> tuple[str, str]:
    """Name and side of a row, which tell it from the others."""
    fields = row if isinstance(row, dict) else vars(row)
    return fields["name"], fields["aggregate"]


def values(result: dict[str, Any], metric: str = SELECTED_BY) -> list[float]:
    """A metric of every split."""
    return [run[metric] for run in result["runs"]]


def difference(results: dict, first: tuple[str, str], second: tuple[str, str]) -> Contrast:
    """Paired difference of two rows' average recall."""
    return contrast(values(results[first]), values(results[second]))


def tables(report: dict[str, Any]) -> str:
    """The whole page."""
    results = {key(result["row"]): result for result in report["results"]}
    parts = [introduction(report)]
    for side, title in SIDES.items():
        shown = [r for (_, aggregate), r in results.items() if aggregate == side]
        if shown:
            parts.append(f"**{title}**\n\n{side_table(shown, results, side)}")
    parts.append(f"**Questions**\n\n{question_table(results)}")
    parts.append(compute(report))
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> str:
    """The part for a first look: the table of all observations in short, and what it was given."""
    results = {key(result["row"]): result for result in report["results"]}
    lines = [
        f"| loss | text to image R@1 | image to text R@1 | average | difference from {BASELINE} "
        "| time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (name, aggregate), result in results.items():
        if aggregate:
            continue
        first = [statistics.fmean(values(result, f"{d} R@1")) for d in COLUMNS.values()]
        away = difference(results, (name, ""), (BASELINE, ""))
        shown = "" if name == BASELINE else f"{away.mean:+.2f} {PM} {away.stderr:.2f}"
        lines.append(
            f"| {name} | {first[0]:.2f} | {first[1]:.2f} "
            f"| {statistics.fmean(values(result)):.2f} | {shown} "
            f"| {statistics.median(result['seconds']):.1f} s |"
        )
    return "\n\n".join([introduction(report), "\n".join(lines), compute(report)]) + "\n"


def introduction(report: dict[str, Any]) -> str:
    """What was measured, and how to read it."""
    plan, data = report["plan"], report["data"]
    left_out = len(data.get("left_out", ()))  # reports of old have none
    without = f" ({left_out} more could not be rendered and are left out)" if left_out else ""
    return (
        f"Linear heads on frozen encoders, {data['name']}: {data['instances']} instances{without}, "
        f"{data['images']} images, {data['texts']} captions. Mean over {plan['splits']} splits, "
        f"in percent; *average* is the mean of R@1, R@5 and R@10 of both directions; "
        f"*{PM}* after a paired difference is its standard error, enlarged for overlapping "
        f"training sets. Each row has the best of {plan['trials']} settings on validation "
        f"instances that are in no test set."
    )


def side_table(shown: list[dict], results: dict, side: str) -> str:
    """The rows of one side: recalls, difference from the masked CLIP, time."""
    heads = [f"{title} R@{k}" for title in COLUMNS for k in (1, 5, 10)]
    lines = [
        "| loss | " + " | ".join([*heads, "average", f"difference from {BASELINE}", "time"]) + " |",
        "|---|" + "---:|" * (len(heads) + 3),
    ]
    for result in shown:
        recalls = [
            f"{statistics.fmean(values(result, f'{direction} R@{k}')):.2f}"
            for direction in COLUMNS.values()
            for k in (1, 5, 10)
        ]
        average = values(result)
        deviation = statistics.stdev(average) if len(average) > 1 else 0.0
        name = result["row"]["name"]
        away = difference(results, (name, side), (BASELINE, side))
        cells = [
            *recalls,
            f"{statistics.fmean(average):.2f} {PM} {deviation:.2f}",
            "" if name == BASELINE else f"{away.mean:+.2f} {PM} {away.stderr:.2f}",
            f"{statistics.median(result['seconds']):.1f} s",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def question_table(results: dict) -> str:
    """Paired differences that the rows are there to show."""
    lines = [
        "| question | difference in average | 95 % interval | so it is |",
        "|---|---:|---:|---|",
    ]
    for side in SIDES:
        for question, first, second in QUESTIONS:
            rows = (first, side), (second, side)
            if not all(row in results for row in rows):
                continue
            found = difference(results, *rows)
            where = {"": "", "images": ", aggregated images", "texts": ", aggregated texts"}[side]
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
    base = report["results"][0]["schedule"]
    lines = [
        f"Compute: every row trains for {base['steps']} steps of {base['batch_size']} instances, "
        f"about {data['images_in_batch']:.0f} images and {data['texts_in_batch']:.0f} captions; "
        "CLIP on pairs has one of each instance."
    ]
    for result in report["results"]:
        schedule = result["schedule"]
        if schedule != base:
            lines.append(
                f"*{result['row']['name']}*: {schedule['steps']} steps of "
                f"{schedule['batch_size']} instances."
            )
    lines.append(
        f"m = {data['m']}. Times are processor seconds of a training run (median), one thread of "
        f"{ran_on['processor']}, {plan['workers']} runs at a time, "
        f"torch {report['versions']['torch']}."
    )
    return " ".join(lines)
