"""The study of what a filter leaves out: the committed page, and the package's own count."""

import json
from pathlib import Path

import torch
from torch.nn.functional import normalize

from bench.studies.filter_share import OF_POSITIVES, page, shares
from mxm_kernels import contrastive_rows

RESULTS = Path(__file__).parents[3] / "bench" / "results"


def test_the_page_is_of_the_committed_numbers():
    committed = json.loads((RESULTS / "filter_share.json").read_text())
    assert page(committed) == (RESULTS / "filter_share.md").read_text()
    assert [r["threshold"] for r in committed] == list(OF_POSITIVES)
    out = [r["left_out"] for r in committed]
    assert out == sorted(out, reverse=True)


def test_the_mean_is_what_the_package_takes():
    ids = torch.arange(12) // 3, torch.arange(8) // 2
    images, texts = (normalize(torch.randn(len(i), 5, dtype=torch.float64), dim=1) for i in ids)
    same = ids[0][:, None] == ids[1]
    (record,) = [r for r in shares(images, texts, same) if r["threshold"] == "the mean"]
    guide = {"teacher_image_features": images, "teacher_text_features": texts}
    left = contrastive_rows(
        images, texts, ids, logit_scale=1.0, filter_margin=0.0, **guide
    ).num_negatives
    assert record["negatives"] == 2 * int((~same).sum())
    assert record["left_out"] == record["negatives"] - int(left.sum()) > 0
