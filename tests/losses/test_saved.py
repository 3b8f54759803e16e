"""What version 0.1 saved loads, in a process that has imported only torch, and computes the same.

``saved_0_1`` has what ``torch.save`` of version 0.1 made of :func:`fresh`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import mxm_kernels as mxm

SAVED = Path(__file__).parent / "saved_0_1"
IDS = [3, 1, 3, 2, 1, 1, 4], [1, 2, 3, 3, 4, 1, 1, 1, 2]
SCALE = {"logit_scale": 9.0}


def fresh():
    """The same objects, made now; each under the name of its file."""
    queued = normalize(torch.linspace(0, 9, 12).sin().view(3, 4))
    modules = {
        "mfh": mxm.MFHLoss(hard_weight=0.7, rounds=None, label_smoothing=0.1),
        "hard": mxm.HardLoss(rounds=3),
        "soft": mxm.SoftLoss(image_to_text_weight=0.75),
        "info_nce": mxm.InfoNCELoss(mask_false_negatives=False, soft_weight=0.25),
        "decoupled": mxm.DecoupledLoss(reduction="none"),
        "debiased": mxm.DebiasedLoss(positive_prior=0.05),
        "self_distillation": mxm.SelfDistillationLoss(label_smoothing=0.1),
        "supcon": mxm.SupConLoss(positives="in"),
        "siglip": mxm.SigLipLoss(image_to_text_weight=0.25),
        "intra_modal": mxm.IntraModalLoss(rounds=None, mask_positives=False),
        "cwcl": mxm.CWCLLoss(image_to_text_weight=1.0),
    }
    return {
        "folds": {"from ids": mxm.Folds.from_ids(*IDS), "uniform": mxm.Folds.uniform(3, 2)},
        "modules": modules,
        "state_dict": modules["mfh"].state_dict(),
        "queue": mxm.Queue(queued, mxm.Folds.from_ids(IDS[0], [3, 9, 1])),
        "diagnostics": {"measured": measured(), "empty": mxm.Diagnostics()},
    }


def features():
    """x, y and the teacher's, (7, 4) and (9, 4)."""
    g = torch.Generator().manual_seed(0)
    return [normalize(torch.randn(n, 4, generator=g)) for n in (7, 9, 7, 9)]


def measured():
    """What a step of the soft loss measures."""
    x, y, tx, ty = features()
    seen = mxm.Diagnostics()
    mxm.fused_soft_loss(
        x, y, mxm.Folds.from_ids(*IDS), teacher_image_features=tx, teacher_text_features=ty,
        diagnostics=seen, backend="blocked", **SCALE,
    )  # fmt: skip
    return seen


def losses_of(made):
    """A loss of every saved module and folds; rows one after the other where there is no mean."""
    x, y, tx, ty = features()
    teacher = {"teacher_image_features": tx, "teacher_text_features": ty}
    more = {
        "mfh": teacher,
        "hard": {"generator": torch.Generator().manual_seed(1)},
        "soft": teacher,
        "info_nce": teacher,
        "self_distillation": {"soft_share": 0.5, "generator": torch.Generator().manual_seed(1)},
        "siglip": {"logit_bias": -5.0},
        "cwcl": teacher,
    }
    values = {}
    for name, module in made["modules"].items():
        inputs = (x, y, made["folds"]["from ids"])
        if name == "intra_modal":
            inputs = (x, IDS[0])
        elif name == "cwcl":
            inputs = (x, y)
        value = module(*inputs, **SCALE, **more.get(name, {}))
        values[name] = torch.cat(value) if isinstance(value, tuple) else value
    values["uniform"] = mxm.fused_supcon_loss(x[:6], y[:4], made["folds"]["uniform"], **SCALE)
    values["queue"] = mxm.fused_supcon_loss(
        x, y, made["folds"]["from ids"], text_queue=made["queue"], **SCALE
    )
    return values


LOAD = f"""
import pickle
import sys
from pathlib import Path

import torch

assert not [name for name in sys.modules if name.startswith("mxm_kernels")]
torch.load(Path({str(SAVED)!r}) / sys.argv[1], weights_only=False)
assert "mxm_kernels" in sys.modules or sys.argv[1] == "state_dict.pt"
"""


@pytest.mark.new_process
@pytest.mark.parametrize("name", ["folds", "modules", "state_dict", "queue", "diagnostics"])
def test_a_process_that_has_imported_only_torch_loads_it(name):
    command = [sys.executable, "-c", LOAD, f"{name}.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_it_computes_what_fresh_objects_compute():
    now = fresh()
    loaded = {name: torch.load(SAVED / f"{name}.pt", weights_only=False) for name in now}
    expected, got = losses_of(now), losses_of(loaded)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def test_modules_show_and_hold_what_they_held():
    now, loaded = fresh()["modules"], torch.load(SAVED / "modules.pt", weights_only=False)
    assert now.keys() == loaded.keys()
    for name, module in now.items():
        assert type(loaded[name]) is type(module)
        assert repr(loaded[name]) == repr(module)
        module.load_state_dict(torch.load(SAVED / "state_dict.pt"))


def test_folds_keep_their_pairs_and_their_ids():
    now, loaded = fresh()["folds"], torch.load(SAVED / "folds.pt", weights_only=False)
    for name, rows in (("from ids", (7, 9)), ("uniform", (12, 8))):
        assert repr(loaded[name]) == repr(now[name])
        for found, wanted in zip(loaded[name].pairs(*rows), now[name].pairs(*rows), strict=True):
            assert torch.equal(found, wanted)
        made = [folds[name].tables(*rows, torch.device("cpu")) for folds in (loaded, now)]
        found, wanted = map(vars, made)
        assert found.keys() == wanted.keys()
        for field, value in wanted.items():
            assert torch.equal(torch.as_tensor(found[field]), torch.as_tensor(value)), field


def test_diagnostics_have_the_same_numbers():
    now = fresh()["diagnostics"]
    loaded = torch.load(SAVED / "diagnostics.pt", weights_only=False)
    for name, seen in now.items():
        assert type(loaded[name]) is type(seen)
        assert loaded[name].numbers() == pytest.approx(seen.numbers(), rel=1e-5)
