"""The study's markdown, written from its JSON file alone."""

from typing import Any

from .differences import differences
from .epochs import epochs_section
from .study import CONDITIONS, FULL, NO_SA
from .summary import PM, Mean, Runs, table

WEIGHED = (FULL, NO_SA)  # variants with modality-wise attention that its table shows
METRICS = {"recall": "R@{precision:g}", "accuracy": "accuracy"}


def markdown(report: dict[str, Any]) -> str:
    """Write the report."""
    runs = Runs(report)
    parts = [introduction(report, runs)]
    for condition in CONDITIONS:
        parts += [heading(condition, report), results_table(runs, condition, report)]
        parts.append(difference_table(runs, condition, report))
    parts += ["## What the noise costs", noise_table(runs, report)]
    parts += ["## Weight of the text", weight_text(runs, report), findings(runs, report)]
    parts.append(epochs_section(runs, CONDITIONS))
    parts += ["## What differs from the paper", differences(report), colophon(report)]
    return "\n\n".join(parts) + "\n"


def introduction(report: dict[str, Any], runs: Runs) -> str:
    """Say what was run."""
    options, classes = report["options"], report["classes"]
    sizes = ", ".join(f"{task} ({count} classes)" for task, count in classes.items())
    pairs = runs.summaries("clean", FULL)[0]["pairs"]
    seeds = len(report["seeds"])
    shown = f"Mean {PM} standard error over {seeds} seeds" if seeds > 1 else "One seed"
    return (
        f"# CMA-CLIP on the emoji set\n\n"
        f"Tasks: {sizes}, from an image and a caption together; about {pairs} test pairs. "
        f"{shown}, in percent; a seed is a split, aligned encoders, noise and initial weights. "
        f"R@{precision(report):g} is the recall at {precision(report):g} % precision, the paper's "
        "metric. Differences are paired by seed; * marks those whose 95 % interval (Student's t) "
        "excludes zero, and no other is a finding. The seeds split the same emoji, and any two "
        "training splits share most of theirs, so the intervals are somewhat optimistic. "
        f"Size: {options['layers']} layers, {options['width']} wide, "
        f"{options['heads']} heads; the paper's, and the class's default, is 12, 512 and 8. "
        f"Made by `make cma`."
    )


def precision(report: dict[str, Any]) -> float:
    """Precision in percent."""
    return 100 * report["options"]["precision"]


def heading(condition: str, report: dict[str, Any]) -> str:
    """Say what a condition is."""
    if condition == "clean":
        return "## Without noise"
    options = report["options"]
    return (
        f"## With noise\n\nOf every split, {100 * options['noise_rate']:g} % of the "
        f"{'captions' if options['noise'] == 'text' else 'images'} are another emoji's, in "
        f"training, validation and test; a few are of the same class by chance."
    )


def columns(runs: Runs, report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, metric and task of every column."""
    return [
        (f"{task} {title.format(precision=precision(report))}", metric, task)
        for metric, title in METRICS.items()
        for task in (*runs.tasks, "average")
    ]


def results_table(runs: Runs, condition: str, report: dict[str, Any]) -> str:
    """Means of every variant: Table 6."""
    wanted = columns(runs, report)
    rows = [
        [variant]
        + [
            Mean.of(runs.values(condition, variant, metric, task)).plain()
            for _, metric, task in wanted
        ]
        for variant in runs.variants
    ]
    return table(["model", *(title for title, _, _ in wanted)], rows)


def difference_table(runs: Runs, condition: str, report: dict[str, Any]) -> str:
    """Paired differences to the full model."""
    wanted = columns(runs, report)
    rows = [
        [f"{FULL} minus {variant}"]
        + [
            runs.difference(condition, (FULL, variant), metric, task).signed()
            for _, metric, task in wanted
        ]
        for variant in runs.variants
        if variant != FULL
    ]
    return table(["difference", *(title for title, _, _ in wanted)], rows)


def noise_table(runs: Runs, report: dict[str, Any]) -> str:
    """Accuracy of the noisy condition's models on right and on noisy pairs."""
    kind = report["options"]["noise"]
    titles = ["model"]
    for task in runs.tasks:
        titles += [f"{task}, {kind} right", f"{task}, {kind} noise"]
    rows = []
    for variant in runs.variants:
        row = [variant]
        for task in runs.tasks:
            for metric in ("accuracy_right", "accuracy_noise"):
                row.append(Mean.of(runs.values("noisy", variant, metric, task)).plain())
        rows.append(row)
    return (
        "Accuracy of the models that were trained with noise, on the test pairs without and with "
        "it.\n\n" + table(titles, rows)
    )


def weight_text(runs: Runs, report: dict[str, Any]) -> str:
    """1 - lambda of the models with modality-wise attention."""
    titles = ["model", "task", "trained clean", "trained with noise", "difference", "right - noise"]
    rows = []
    for variant in WEIGHED:
        for task in runs.tasks:
            clean = runs.text_weights("clean", variant, task, "right")
            right, noise = (
                runs.text_weights("noisy", variant, task, k) for k in ("right", "noise")
            )
            shift, gap = (
                Mean.of([a - b for a, b in zip(first, second, strict=True)])
                for first, second in ((right, clean), (right, noise))
            )
            means = [Mean.of(clean).plain(3), Mean.of(right).plain(3)]
            rows.append([variant, task, *means, shift.signed(3), gap.signed(3)])
    return (
        "Modality-wise attention gives the text the weight 1 - lambda (a share, not a percentage), "
        f"here for test pairs whose {report['options']['noise']} is their own. The last column "
        "compares these with the pairs whose "
        f"{report['options']['noise']} is noise: it is what the attention tells apart pair by "
        "pair. With sequence-wise attention both of its inputs have seen the whole pair, so a "
        f"weight near 0 or 1 does not mean that a modality is ignored; {NO_SA} weighs image and "
        "text themselves.\n\n" + table(titles, rows) + "\n\n![text](text_weight.svg)"
    )


def findings(runs: Runs, report: dict[str, Any]) -> str:
    """Sentences whose wording follows from the numbers."""
    lines = ["## In words", ""]
    for condition in CONDITIONS:
        where = "with noise" if condition == "noisy" else "without noise"
        for metric, title in METRICS.items():
            gaps = {
                variant: runs.difference(condition, (FULL, variant), metric, "average")
                for variant in runs.variants
                if variant != FULL
            }
            shown = [verdict(variant, gap) for variant, gap in gaps.items() if gap.outside_noise]
            equal = [f"{v} ({gap.signed()})" for v, gap in gaps.items() if not gap.outside_noise]
            if equal:
                shown.append(f"a difference within chance from {', '.join(equal)}")
            name = f"Average {title.format(precision=precision(report))}, {where}"
            lines.append(f"- {name}: {FULL} has {'; '.join(shown)}.")
    lines += [
        "",
        "At 95 %, about one of twenty comparisons without a true difference gets a star by "
        f"chance. The tables hold {comparisons(runs, report)} comparisons, of which these "
        f"{len(lines) - 2} lines tell {(len(lines) - 2) * (len(runs.variants) - 1)}.",
        "",
        "![ablation](ablation.svg)",
    ]
    return "\n".join(lines)


def comparisons(runs: Runs, report: dict[str, Any]) -> int:
    """Number of the tables' cells that could have a star."""
    differing = len(CONDITIONS) * (len(runs.variants) - 1) * len(columns(runs, report))
    return differing + 2 * len(WEIGHED) * len(runs.tasks)


def verdict(variant: str, gap: Mean) -> str:
    """Say which is better."""
    return f"{abs(gap.value):.1f} points {'more' if gap.value > 0 else 'less'} than {variant}"


def colophon(report: dict[str, Any]) -> str:
    """The relevance maps, and the machine."""
    ran_on = report["machine"]
    return (
        "`relevance.png` in the run's folder shows the patches that a word's query finds in the "
        "first layer, as in the paper's Figure 2; it is not committed, for it holds the emoji's "
        "art (Twemoji CC-BY 4.0, OpenMoji CC-BY-SA 4.0, Noto OFL 1.1). The emoji are evenly "
        "spaced in the test split, not chosen. The word is the one whose relevance varies most "
        "over the patches. The maps are as coarse as "
        "the encoder's cells, and nothing here measures whether they are right.\n\n"
        f"Ran on {ran_on['processor']}, torch {report['versions']['torch']}."
    )
