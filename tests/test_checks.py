"""Bad input is an error that names the argument, what was expected and what came."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import BackendUnavailableError, Folds, MFHLoss, draw_selection, fused_mfh_loss

X, Y = normalize(torch.ones(4, 3)), normalize(torch.ones(6, 3))
GOOD = {"image_features": X, "text_features": Y, "folds": (2, 3), "logit_scale": 10.0}
TEACHER = {"teacher_image_features": X, "teacher_text_features": Y}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image_features": [[1.0]]}, TypeError, "image_features must be a tensor, got list"),
        ({"image_features": X[0]}, ValueError, r"image_features must have shape \(rows, D\), got \(3,\)"),
        ({"text_features": Y.long()}, TypeError, "text_features must be float32.*got torch.int64"),
        ({"text_features": Y[:, :2]}, ValueError, "same dimension D, got 3 and 2"),
        ({"text_features": Y.half()}, TypeError, "text_features must have the dtype.*float32.*float16"),
        ({"text_features": Y.to("meta")}, ValueError, "text_features must be on the device.*cpu, got meta"),
        ({"image_features": X[:0]}, ValueError, r"image_features must have at least one row.*\(0, 3\)"),
        ({"text_features": Y[:0]}, ValueError, r"text_features must have at least one row.*\(0, 3\)"),
        ({"image_features": X[:, :0], "text_features": Y[:, :0]}, ValueError, "one dimension"),
        ({"folds": (2, 2)}, ValueError, "folds: uniform folds need 2 image rows.*got 4 rows"),
        ({"folds": 3}, TypeError, "folds must be Folds, a pair.*got int"),
        ({"folds": (1, 2, 3)}, TypeError, "folds must be Folds, a pair.*got tuple"),
        ({"folds": (2.0, 3.0)}, TypeError, "folds must be.*got a pair of float and float"),
        ({"folds": (0, 3)}, ValueError, "views must be an integer >= 1, got 0"),
        ({"folds": ([1] * 4, [1] * 5)}, ValueError, "folds: expected ids for 4 rows.*got 4 image ids and 5"),
        ({"folds": ([1.0] * 4, [1] * 6)}, TypeError, "image_ids must hold integers"),
        ({"folds": ([1] * 4, [2] * 6)}, ValueError, "folds: expected at least one positive pair, got none"),
        ({"folds": Folds.from_ids([1] * 4, [1] * 6).to("meta")}, ValueError, "folds must be on the device"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale must be positive and finite.*got 0.0"),
        ({"logit_scale": -1}, ValueError, "logit_scale must be positive.*got -1"),
        ({"logit_scale": float("nan")}, ValueError, "logit_scale must be positive.*got nan"),
        ({"logit_scale": float("inf")}, ValueError, "logit_scale must be positive.*got inf"),
        ({"logit_scale": 1e-50}, ValueError, "logit_scale must be positive and finite.*got 1e-50"),
        ({"logit_scale": 10**400}, ValueError, "logit_scale must be positive and finite"),
        ({"image_features": X.to_sparse()}, TypeError, "image_features must be a dense tensor"),
        ({"logit_scale": torch.tensor(-2.0)}, ValueError, "logit_scale must be positive.*got -2.0"),
        ({"logit_scale": torch.ones(2)}, ValueError, r"logit_scale must be 0-d or of shape \[1\].*\(2,\)"),
        ({"logit_scale": torch.tensor(3)}, TypeError, "logit_scale must be a floating-point tensor.*int64"),
        ({"logit_scale": "10"}, TypeError, "logit_scale must be a number or a tensor, got str"),
        ({"logit_scale": torch.tensor(1.0, device="meta")}, ValueError, "logit_scale must be on the device"),
        ({"teacher_image_features": X}, ValueError, "go together, got teacher_text_features=None"),
        ({"teacher_text_features": Y}, ValueError, "go together, got teacher_image_features=None"),
        (TEACHER | {"teacher_text_features": Y[:5]}, ValueError, r"teacher_text_features must have shape \(6, D\)"),
        (TEACHER | {"teacher_text_features": Y[:, :1]}, ValueError, "same dimension D >= 1, got 3 and 1"),
        (TEACHER | {"teacher_image_features": X.double()}, TypeError, "teacher_image_features must have the dtype"),
        (TEACHER | {"teacher_image_features": X.to("meta")}, ValueError, "teacher_image_features must be on"),
        (TEACHER | {"teacher_image_features": 1}, TypeError, "teacher_image_features must be a tensor, got int"),
        (TEACHER | {"teacher_logit_scale": 0}, ValueError, "teacher_logit_scale must be positive"),
        ({"teacher_logit_scale": 5.0}, ValueError, "teacher_logit_scale.*without teacher"),
        ({"hard_weight": 1.1}, ValueError, "hard_weight must be between 0 and 1, got 1.1"),
        ({"hard_weight": float("nan")}, ValueError, "hard_weight must be between 0 and 1, got nan"),
        ({"hard_weight": "0.6"}, TypeError, "hard_weight must be a number, got str"),
        ({"hard_weight": 0}, ValueError, "hard_weight=0 is the soft loss alone, which needs teacher"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, or None.*got 0"),
        ({"rounds": 2.5}, TypeError, "rounds must be an integer or None, got float"),
        ({"reduction": "sum"}, ValueError, "reduction must be 'mean' or 'none', got 'sum'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
        ({"backend": "cuda"}, ValueError, "backend must be one of.*blocked.*got 'cuda'"),
    ],
)  # fmt: skip
def test_message(change, error, message):
    with pytest.raises(error, match=message):
        fused_mfh_loss(**GOOD | change)


def test_the_good_arguments_are_good():
    assert fused_mfh_loss(**GOOD, **TEACHER).isfinite()


def test_numbers_of_numpy_are_numbers():
    options = {"folds": (np.int64(2), np.int32(3)), "rounds": np.int64(2)}
    options |= {"hard_weight": np.float32(0.5), "logit_scale": np.float32(10)}
    assert fused_mfh_loss(**GOOD | TEACHER | options).isfinite()


@pytest.mark.parametrize(
    ("rounds", "error", "message"),
    [
        (None, TypeError, "rounds must be an integer, got None: an expectation draws nothing"),
        (2.5, TypeError, "rounds must be an integer, got float"),
        (True, TypeError, "rounds must be an integer, got bool"),
        (0, ValueError, "rounds must be between 1 and 16777216 for a draw, got 0"),
        (1 << 25, ValueError, "rounds must be between 1 and 16777216 for a draw, got 33554432"),
    ],
)
def test_a_draw_has_rounds(rounds, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        draw_selection((2, 3), X, Y, rounds=rounds)


def test_triton_takes_no_float64():
    change = {"image_features": X.double(), "text_features": Y.double(), "backend": "triton"}
    with pytest.raises(BackendUnavailableError, match="'triton' cannot run: .*float64.*'blocked'"):
        fused_mfh_loss(**GOOD | change)


def test_the_module_checks_when_it_is_built():
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        MFHLoss(rounds=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_scale_on_the_gpu_that_is_not_positive_gives_nan():
    x, y = X.cuda(), Y.cuda()
    loss = fused_mfh_loss(x, y, (2, 3), logit_scale=torch.tensor(-1.0, device="cuda"))
    assert loss.isnan()


def test_a_scale_that_became_nan_in_training_gives_nan():
    assert fused_mfh_loss(**GOOD | {"logit_scale": torch.tensor(torch.nan)}).isnan()
