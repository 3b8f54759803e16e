"""The study of CLIP's loss under autocast: the committed table, and what it says."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")
from bench.studies.open_clip_precision import DTYPES, SCALES, batch, errors, page

RESULTS = Path(__file__).parents[3] / "bench" / "results"
COMMITTED = json.loads((RESULTS / "open_clip_precision.json").read_text())


def test_the_page_is_of_the_committed_numbers():
    assert page(COMMITTED) == (RESULTS / "open_clip_precision.md").read_text()


def test_with_features_of_16_bits_this_package_is_nearer_in_every_batch():
    taken = [r for r in COMMITTED if r["features"] == "16 bits"]
    assert len(taken) == len(DTYPES) * len(SCALES)
    for record in taken:
        assert record["value"]["nearer"] == record["gradient"]["nearer"] == record["batches"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_measures_a_few_batches_alike(dtype):
    """Summed over seeds: the value by far, the gradient by what open_clip rounds beside it."""
    found = []
    for seed in range(5):
        x, y = batch(seed, rows=32)
        found.append(errors((x.to(dtype), y.to(dtype)), 100.0, dtype))
    value, gradient = (
        {name: sum(f[name][what] for f in found) for name in found[0]}
        for what in ("value", "gradient")
    )
    assert value["mxm_kernels"] < value["open_clip"] / 50
    assert gradient["mxm_kernels"] < gradient["open_clip"] / 1.3
    assert torch.tensor([f["mxm_kernels"]["value"] for f in found]).max() < 5e-6
