"""The study's figure, drawn from its JSON file."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .numbers import average
from .plan import FUSED, ROWS

STYLE: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "cma_rows", "font.size": 9}
NOISE = {"clean": "#2171b5", "text noise": "#d94801", "image noise": "#7f7f7f"}
NAMES = {"own": "#969696", "right name": "#2171b5", "wrong name": "#d94801"}
TRAINED_ON = {"clean": "captions as they are", "names put in": "half with names"}
STEP = 0.22  # between the dots of a row


def save_figure(report: dict[str, Any], path: Path) -> None:
    """Draw both panels into an SVG file that is the same in every run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_rows(left, report)
        draw_names(right, report)
        figure.savefig(path, metadata={"Date": None})


def draw_rows(axes: Axes, report: dict[str, Any]) -> None:
    """Every row under each kind of noise that it has."""
    by_cell = {(c["condition"], c["row"]): c["tests"]["all"] for c in report["cells"]}
    for number, (condition, colour) in enumerate(NOISE.items()):
        found = [(place, by_cell.get((condition, row))) for place, row in enumerate(ROWS)]
        points = [(place + STEP * (number - 1), test) for place, test in found if test]
        dots(axes, points, colour, condition)
    finish(axes, list(ROWS), "Rows, without and with noise", 3)


def draw_names(axes: Axes, report: dict[str, Any]) -> None:
    """Captions that lack their class names, as they are and with names put in."""
    by_cell = {(c["condition"], c["row"]): c["tests"] for c in report["cells"]}
    models = [(condition, row) for condition in TRAINED_ON for row in FUSED]
    for number, (name, colour) in enumerate(NAMES.items()):
        points = [
            (place + STEP * (number - 1), by_cell[model][name])
            for place, model in enumerate(models)
        ]
        dots(axes, points, colour, name)
    labels = [f"{row}\n({TRAINED_ON[condition]})" for condition, row in models]
    finish(axes, labels, "Captions that lack their class names", 3)


def dots(axes: Axes, points: list[tuple[float, dict[str, Any]]], colour: str, label: str) -> None:
    """Average accuracy with the interval over the test emoji."""
    places = [place for place, _ in points]
    means = np.array([average(test).mean() for _, test in points])
    low, high = np.array([test["interval"]["accuracy"] for _, test in points]).T
    spread = np.clip([means - low, high - means], 0, None)
    axes.errorbar(means, places, xerr=spread, fmt="o", ms=4, capsize=2, color=colour, label=label)


def finish(axes: Axes, labels: list[str], title: str, columns: int) -> None:
    """Name the rows, the first one at the top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set(xlabel="average accuracy on test pairs, percent", title=title)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.13), ncols=columns, frameon=False)
