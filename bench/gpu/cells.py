"""The cells of the settings table that a run tunes, and what goes from phase to phase of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from mxm_kernels.backends.triton.settings import Cell, Launch, Phase
from mxm_kernels.backends.triton.tuned import describe, key
from mxm_kernels.tuning.tune import Found


def cells(smoke: bool) -> list[Cell]:
    """bfloat16, D 768, 16,384 rows: MFH's phases, InfoNCE's, and the one pass of SigLIP."""
    D, rows = (16, 24) if smoke else (768, 16_384)
    of: list[tuple[Phase, bool]] = [
        ("statistics", True),
        ("stored_gradient", True),
        ("gradient", True),
        ("statistics", False),
        ("stored_gradient", False),
        ("gradient", False),
        ("sigmoid_gradient", False),
    ]
    every = [Cell(phase, torch.bfloat16, teacher, D, rows) for phase, teacher in of]
    return [every[0], every[2], every[-1]] if smoke else every


def name(cell: Cell) -> str:
    """In words, as the file of settings has it."""
    return describe(key(cell))


def record(found: Found) -> dict[str, Any]:
    """What the compiling phase leaves to the sweep."""
    return {
        "candidates": found.asked,
        "right": [asdict(one) for one in found.right],
        "faults": faults(found),
    }


def faults(found: Found) -> list[dict[str, Any]]:
    """The launches that failed or were wrong, and why."""
    return [{"launch": asdict(one), "fault": fault} for one, fault in found.faults]


def found(cell: Cell, shipped: Launch, left: dict[str, Any]) -> Found:
    """The same, read again; the table's launch alone where none was compiled in time.

    A table's launch that has a fault is not raced.
    """
    right = [Launch(**one) for one in left.get("right", [])]
    faulty = [Launch(**one["launch"]) for one in left.get("faults", [])]
    if not right and shipped not in faulty:
        right = [shipped]
    return Found(cell, shipped, left.get("candidates", 0), right)
