"""The README's numbers are those of committed files, and what it names exists."""

import json
import re
from pathlib import Path

import pytest
import torch

import mxm_kernels
from bench.gpu.headline import KEEPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOUND = (ROOT / "docs" / "found.md").read_text()  # what the examples found
BLOCKS = re.findall(r"<!-- results: (\S+) -->\n(.*?)\n<!-- end -->", README + FOUND, re.DOTALL)
H200 = ROOT / "bench" / "results" / "nvidia-h200"


@pytest.mark.parametrize(("source", "block"), BLOCKS, ids=lambda v: v[:40])
def test_results_are_those_of_their_file(source, block):
    assert block == (ROOT / source).read_text().strip()


def test_there_are_results():
    assert len(BLOCKS) == 5


def test_its_times_on_a_gpu_are_those_of_the_records():
    headline = json.loads((H200 / "headline.json").read_text())["lines"]
    records = json.loads((H200 / "peers.json").read_text())
    words = " ".join(README.split())

    def against(peer):
        (found,) = (v for name, v in records["peers"].items() if name.startswith(peer))
        return found["milliseconds"]["ours"], found["ours_over_theirs"]

    assert f"a memory budget of {KEEPS >> 30} GiB" in words
    ours, ratio = against("dense eager, 16,384")
    assert f"16,384 x 16,384: {ours:.2f} ms, {1 / ratio:.1f} x faster than PyTorch eager" in words
    ours, ratio = against("memeff, 65,536")
    assert f"65,536 x 65,536: {ours:.1f} ms, {1 / ratio:.1f} x faster than memeff" in words
    ours, ratio = against("siglip-kernel, 65,536")
    slower = f"{ours:.1f} ms, {100 * (ratio - 1):.0f} % slower than siglip-kernel"
    assert f"65,536 x 65,536: {slower}" in words
    million = records["million"]
    assert f"{million['seconds']:.2f} s and {million['peak_bytes'] / 2**30:.2f} GiB" in words
    call = headline["paper"]["milliseconds"]["ours"]["both"]
    graph = headline["paper, CUDA graph"]["milliseconds"]["ours"]["both"]
    assert f"{call:.2f} ms, and {graph:.3f} ms in a CUDA graph" in words


def test_its_first_screen_has_the_picture_the_swap_and_the_commands():
    first = README.partition("\n## ")[0]
    assert "](docs/figures/time_and_memory.svg)" in first
    assert "fused_info_nce_loss(" in first
    assert "pip install .  " in first
    assert "python -m mxm_kernels  " in first
    assert "](docs/hosts/index.md)" in first
    assert len(first.splitlines()) < 50


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
        for name, rows in (
            ("image_features", 4),
            ("text_features", 4),
            ("all_images", 4),
            ("all_texts", 4),
        )
    }
    namespace = {
        **features,
        "scale": torch.tensor(20.0),
        "labels": torch.arange(4),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "fused_info_nce_loss": mxm_kernels.fused_info_nce_loss,
        "fused_mfh_loss": mxm_kernels.fused_mfh_loss,
        "image_ids": [0, 0, 1, 1],
        "text_ids": [1, 0, 1, 1],
        "log_scale": torch.tensor(3.0, requires_grad=True),
        "momentum_images": features["image_features"].detach(),
        "momentum_texts": features["text_features"].detach(),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert all(features[f"{side}_features"].grad is not None for side in ("image", "text"))


def test_the_swapped_loss_is_the_same_number():
    """The lines before and after, of the first block."""
    (before, after) = re.search(
        r"# before:.*?\n(.*?)# after:.*?\n(.*?)# or", README, re.DOTALL
    ).groups()
    features = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    namespace = {
        "image_features": features[0],
        "text_features": features[1],
        "scale": torch.tensor(20.0),
        "labels": torch.arange(5),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "fused_info_nce_loss": mxm_kernels.fused_info_nce_loss,
    }
    exec(before, namespace)
    theirs = namespace["loss"]
    exec(after, namespace)
    torch.testing.assert_close(namespace["loss"], theirs)
