"""Tables and plots of a study whose cells lie on curves, from its JSON report."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from examples.studies.protocol.contrasts import contrast
from examples.studies.protocol.tables import PM

from .report import COLUMNS, mean, primary_table, seconds, values
from .studies import STUDIES

DEEPEST = 7  # points below the best that a plot shows
LINES = ("#08519c", "#d95f02", "#7f7f7f")


def panels(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Results by panel."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in report["results"]:
        found.setdefault(result["panel"], []).append(result)
    return found


def reference(results: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """What a cell is compared with: the first of its curve, or the last of a panel of rows."""
    if not any(r["x"] for r in results):
        return results[-1]
    return next(r for r in results if r["curve"] == result["curve"])


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    study, plan, data = STUDIES[report["study"]], report["plan"], report["data"]
    parts = [
        f"{study.title}. Linear heads of width {plan['width']} on frozen encoders, "
        f"{data['name']}: {data['instances']} instances. Mean over {plan['splits']} splits with "
        f"{plan['seeds']} seeds each, in percent; *average* is the mean of R@1, R@5 and R@10 of "
        f"both directions; *{PM}* is the standard error of a paired difference over the splits, "
        f"enlarged for overlapping training sets.",
        report["tuning"],
        *(f"**{name}**\n\n{panel_table(shown)}" for name, shown in panels(report).items()),
        f"**Questions asked before the runs**\n\n{primary_table(report)}",
        f"Times are processor seconds of a training run (median), one thread of "
        f"{report['machine']['processor']}, {plan['workers']} runs at a time, torch "
        f"{report['versions']['torch']}. An asterisk: the best rate or temperature is the last "
        f"that was tried.",
    ]
    return "\n\n".join(parts) + "\n"


def panel_table(shown: list[dict[str, Any]]) -> str:
    """The cells of a panel."""
    places = any(result["x"] for result in shown)
    lines = [
        "| curve | at |" if places else "| observations |",
        "|---|---:|" if places else "|---|",
    ]
    heads = [f"{title} R@1" for title in COLUMNS]
    heads += ["average", "difference", "steps", "instances", "rate", "temperature", "time"]
    lines[0] += " " + " | ".join(heads) + " |"
    lines[1] += "---:|" * len(heads)
    for result in shown:
        setting, point, other = result["setting"], result["point"], reference(shown, result)
        found = contrast(values(result), values(other))
        away = "" if result is other else f"{found.mean:+.2f} {PM} {found.stderr:.2f}"
        cells = [
            result["curve"],
            *([f"{result['x']:g}"] if places else []),
            *(f"{mean(result, f'{direction} R@1'):.2f}" for direction in COLUMNS.values()),
            f"{mean(result):.2f}",
            away,
            f"{setting['steps']}",
            f"{setting['batch_size']}",
            f"{point['lr']:.2g}{'*' if result['at_edge'] else ''}",
            f"{point['temperature']:.2g}",
            f"{seconds(result):.1f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_curves(report: dict[str, Any], path: Path) -> None:
    """Draw the panels beside each other; below a panel of lines, the training times."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "curves"  # the same file from the same report
    shown = panels(report)
    if any_places(report):
        figure = Figure(figsize=(4.6 * len(shown), 5.4), layout="constrained")
        draw_lines(figure, report, shown)
    else:
        figure = Figure(figsize=(9.2, 2.5 * ((len(shown) + 1) // 2)), layout="constrained")
        draw_points(figure, shown)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def any_places(report: dict[str, Any]) -> bool:
    """Whether the cells have places on lines."""
    return any(result["x"] for result in report["results"])


def spread(result: dict[str, Any]) -> float:
    """Standard error over the splits of a cell's mean, the seeds of a split averaged."""
    splits = np.mean(values(result), axis=1)
    return float(splits.std(ddof=1) / np.sqrt(len(splits))) if len(splits) > 1 else 0.0


def draw_lines(figure: Figure, report: dict[str, Any], shown: dict[str, list]) -> None:
    """Recall with standard errors, and training time, over the places of the curves.

    A cell far below the best would squeeze the others together: it is written at the edge instead.
    """
    grid: Any = figure.subplots(
        2, len(shown), squeeze=False, sharex="col", sharey="row", height_ratios=(2, 1)
    )
    floor = max(map(mean, report["results"])) - DEEPEST
    for (above, below), (name, results) in zip(grid.T, shown.items(), strict=True):
        curves = dict.fromkeys(result["curve"] for result in results)
        for colour, curve in zip(LINES, curves, strict=False):
            cells = sorted((r for r in results if r["curve"] == curve), key=lambda r: r["x"])
            seen, line = [r for r in cells if mean(r) > floor], {"color": colour, "label": curve}
            heights, errors = [mean(r) for r in seen], [spread(r) for r in seen]
            above.errorbar([r["x"] for r in seen], heights, errors, fmt="o-", capsize=3, **line)
            below.plot([r["x"] for r in cells], [seconds(r) for r in cells], "o-", **line)
            for r in cells:
                if mean(r) <= floor:
                    text, place = f"{mean(r):.1f} \N{DOWNWARDS ARROW}", (r["x"], 0.02)
                    above.annotate(
                        text, place, xycoords=above.get_xaxis_transform(), ha="center", color=colour
                    )
        above.set_title(name, fontsize=10, loc="left")
        if len(curves) > 1:
            above.legend(frameon=False, fontsize=8)
        below.set_xlabel(STUDIES[report["study"]].x_label or name)
        places = sorted({r["x"] for r in results})
        below.set_xticks(places, [f"{x:g}" for x in places], rotation=60)
    grid[0][0].set_ylabel("average recall, percent")
    grid[1][0].set_ylabel("seconds of a run")
    grid[1][0].set_ylim(bottom=0)


def draw_points(figure: Figure, shown: dict[str, list]) -> None:
    """A point for each cell, with its standard error, two panels in a line."""
    grid: Any = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False, sharex=True, sharey=True)
    for axes, (name, results) in zip(grid.flat, shown.items(), strict=False):
        for place, result in enumerate(results):
            found = mean(result)
            axes.errorbar(found, place, xerr=spread(result), fmt="o", capsize=3, color=LINES[0])
        axes.set_yticks(range(len(results)), [result["curve"] for result in results])
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.set_title(name, fontsize=10, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("average recall, percent")
