"""The pages of a report: tables in Markdown and a plot, beside its JSON file."""

from pathlib import Path
from typing import Any

from .curves import page, save_curves
from .plot import save_plot
from .report import summary, tables


def pages(report: dict[str, Any], stem: str) -> dict[str, str]:
    """Text of every page, by file name."""
    if report["study"] != "table":
        return {f"{stem}.md": page(report)}
    return {f"{stem}.md": tables(report), f"{stem}_summary.md": summary(report)}


def write_pages(report: dict[str, Any], file: Path) -> str:
    """Write the pages and the plot; returns the first page."""
    made = pages(report, file.stem)
    for name, text in made.items():
        (file.parent / name).write_text(text, encoding="utf-8")
    draw = save_plot if report["study"] == "table" else save_curves
    draw(report, file.with_suffix(".svg"))
    return made[f"{file.stem}.md"]
