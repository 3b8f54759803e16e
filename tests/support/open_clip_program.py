"""Running open_clip's training program: its arguments, and what it logs."""

import re
from pathlib import Path

CAPTIONS = [3, 1, 2, 4, 2, 1, 3, 2]  # of each image
COLOURS = ["red", "green", "blue", "white", "black", "pink", "brown", "yellow"]


def arguments(data, kind, name, *more):
    """Of a run on ``data``, a path or a pattern of paths; logs are kept beside it."""
    options = {
        "--model": "tiny-for-tests",
        "--train-data": data,
        "--dataset-type": kind,
        "--batch-size": 4,
        "--epochs": 2,
        "--workers": 0,
        "--warmup": 1,
        "--lr": 0.01,
        "--precision": "fp32",
        "--device": "cpu",
        "--log-every-n-steps": 1,
        "--logs": Path(data).parent / "logs",
        "--name": name,
        "--save-frequency": 0,
    }
    return [str(word) for pair in options.items() for word in pair] + [str(m) for m in more]


def logged(data, name):
    """The losses of every step, as the program wrote them."""
    text = (Path(data).parent / "logs" / name / "out.log").read_text()
    lines = [line for line in text.splitlines() if "Train Epoch" in line]
    return [{k: float(v) for k, v in re.findall(r"(\w*[Ll]oss): (\S+) \(", line)} for line in lines]


def run(data, kind, name, *more):
    """Train; the losses of every step."""
    from open_clip_train import main as program

    program.main(arguments(data, kind, name, *more))
    return logged(data, name)
