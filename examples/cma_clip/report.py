"""The study's markdown, written from its JSON file alone."""

from typing import Any

from .study import CONDITIONS, FULL, NO_SA
from .summary import PM, Mean, Runs

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
    parts += ["## What differs from the paper", differences(report), colophon(report)]
    return "\n\n".join(parts) + "\n"


def introduction(report: dict[str, Any], runs: Runs) -> str:
    """Say what was run."""
    options, classes = report["options"], report["classes"]
    sizes = ", ".join(f"{task} ({count} classes)" for task, count in classes.items())
    pairs = runs.summaries("clean", FULL)[0]["pairs"]
    return (
        f"# CMA-CLIP on the emoji set\n\n"
        f"Tasks: {sizes}, from an image and a caption together; about {pairs} test pairs. "
        f"Mean {PM} standard error over {len(report['seeds'])} seeds, in percent; a seed is a "
        f"split, aligned encoders, noise and initial weights. R@{precision(report):g} is the "
        f"recall at {precision(report):g} % precision, the paper's metric. Differences are paired "
        f"by seed; * marks those whose 95 % interval (Student's t) excludes zero, and no other is "
        f"a finding. Size: {options['layers']} layers, {options['width']} wide, "
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
    for variant in (FULL, NO_SA):
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
        f"{len(lines) - 2} lines of {len(runs.variants) - 1} comparisons each: at 95 % one of "
        "twenty stars is chance.",
        "",
        "![ablation](ablation.svg)",
    ]
    return "\n".join(lines)


def verdict(variant: str, gap: Mean) -> str:
    """Say which is better."""
    return f"{abs(gap.value):.1f} points {'more' if gap.value > 0 else 'less'} than {variant}"


def differences(report: dict[str, Any]) -> str:
    """Everything a reader must know before comparing with the paper's Table 6."""
    options = report["options"]
    epochs = ", ".join(map(str, options["stage_epochs"]))
    lines = [
        "Emoji and two tasks instead of 5.8 million products and three; no number here is "
        "comparable with one there.",
        f"The encoders are {encoder_text(options)}.",
        f"Epochs of the stages {epochs} instead of 20 each, learning rate {options['lr']:g} "
        f"({options['encoder_lr']:g} for the encoders) instead of 1e-5, "
        f"{options['batch_size'] * options['pairs_per_instance']} pairs in a batch instead of "
        "1024: the paper's rate would not move new weights in so few steps.",
        "The end-to-end stage adds the contrastive term that the paper leaves to future work "
        f"(weight {options['contrastive_weight']:g}, {options['pairs_per_instance']} images and "
        "captions of every emoji in a batch, this package's multifold loss).",
        "Noise is injected; the paper's was in its data, as titles that do not name the attribute.",
        "Without modality-wise attention both modalities weigh 1/2; without sequence-wise "
        "attention the encoders' class tokens are fused. The paper does not say what it did.",
        "The best checkpoint has the highest validation accuracy (the paper writes lowest), and "
        "the tuning stage trains the modality-wise attention (as section 4.2.2 says, unlike "
        "Algorithm 1).",
        "Recall at a precision uses one threshold for all classes of a task; the paper does not "
        "define it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def encoder_text(options: dict[str, Any]) -> str:
    """Describe the encoders."""
    if options["model"] != "packaged":
        return f"open_clip's {options['model']} ({options['pretrained'] or 'random weights'})"
    return (
        f"EfficientNet-Lite0 at {options['image_size']} px (cells of its last feature map as "
        f"patches) and MiniLM (its hidden states as tokens), aligned for "
        f"{options['alignment_epochs']} epochs by `examples.finetune` on the clean training split, "
        "instead of OpenAI's ViT-B/32 CLIP; neither has a class token, their pooled features "
        "stand for it. The end-to-end stage releases the last block of each"
    )


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


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown table."""
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
