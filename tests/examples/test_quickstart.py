"""The quick start runs, stays short, and its loss falls."""

import re
import runpy
from pathlib import Path

import torch

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_quickstart(capsys):
    torch.manual_seed(0)
    runpy.run_path(str(QUICKSTART))
    losses = [float(v) for v in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0]


def test_it_is_thirty_lines():
    code = [line for line in QUICKSTART.read_text().splitlines()[1:] if line.strip()]
    assert len(code) <= 31
