"""The README's numbers are those of committed files, and what it names exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"<!-- results: (\S+) -->\n(.*?)\n<!-- end -->", README, re.DOTALL)


@pytest.mark.parametrize(("source", "block"), BLOCKS, ids=lambda v: v[:40])
def test_results_are_those_of_their_file(source, block):
    assert block == (ROOT / source).read_text().strip()


def test_there_are_results():
    assert BLOCKS


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?://)([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z-]+)`", README))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_default_budgets_are_those_of_the_code():
    from mxm_kernels import memory

    words = " ".join(README.split())
    assert (
        "by default 64 MiB on a CPU, and on a GPU a sixteenth of its memory, at most 4 GiB" in words
    )
    assert (memory.CPU_DEFAULT, memory.CUDA_MOST) == (64 << 20, 4 << 30)
    assert memory.CUDA_SHARE == 16


def test_the_code_runs():
    """With the variables that the text describes."""
    features = {
        name: torch.nn.functional.normalize(torch.randn(rows, 8)).requires_grad_()
        for name, rows in (("image_features", 4), ("text_features", 3))
    }
    namespace = {
        **features,
        "image_ids": [0, 0, 1, 1],
        "text_ids": [1, 0, 1],
        "log_scale": torch.tensor(3.0, requires_grad=True),
        "momentum_images": features["image_features"].detach(),
        "momentum_texts": features["text_features"].detach(),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert all(f.grad is not None for f in features.values())
