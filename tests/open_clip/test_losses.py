"""The losses against open_clip's own: signatures, values, gradients, over one process and two."""

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mxm_kernels import fused_mfh_loss
from mxm_kernels import open_clip as ours
from tests.support.distributed import D_IN, D, Towers
from tests.support.processes import results, run_ranks

theirs = pytest.importorskip("open_clip.loss")

SAME = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss"]
TOKENS, PLACES = 5, 4  # of a caption's logits
B = 6


def signature(function, drop=()):
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [p for p in parameters if p.name not in drop]


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signatures_are_theirs(name, method):
    mine, other = (getattr(getattr(module, name), method) for module in (ours, theirs))
    assert signature(mine) == signature(other)


def test_mfh_adds_to_the_signatures_of_clip_loss():
    new = {"hard_weight", "rounds"}
    assert signature(ours.MFHLoss.__init__, new) == signature(theirs.ClipLoss.__init__)
    teacher = signature(theirs.DistillClipLoss.forward)
    new = {"folds", "generator", *(p.name for p in teacher if p.name.startswith("dist_"))}
    assert signature(ours.MFHLoss.forward, new) == signature(theirs.ClipLoss.forward)


def batch(rank, world):
    """Inputs (B, D_IN) of a rank and its teacher's features."""
    g = torch.Generator().manual_seed(3)
    shards = torch.randn(4, world, B, D_IN, generator=g)[:, rank]
    return shards[0], shards[1], normalize(shards[2], dim=1), normalize(shards[3], dim=1)


class Model(Towers):
    """What the program gives a loss by name; the scale is 0-d as open_clip's models have it."""

    def __init__(self, name="ClipLoss"):
        super().__init__()
        self.name = name
        self.bias = nn.Parameter(torch.tensor(-3.0)) if takes_bias(name) else None
        self.decoder = nn.Linear(D, TOKENS * PLACES) if name == "CoCaLoss" else None

    def forward(self, images, texts):
        x, y, scale = super().forward(images, texts)
        output = {"image_features": x, "text_features": y, "logit_scale": scale.squeeze()}
        if self.bias is not None:
            output["logit_bias"] = self.bias
        if self.decoder is not None:
            output["logits"] = self.decoder(x).view(-1, PLACES, TOKENS)
            output["labels"] = torch.arange(B * PLACES).view(B, PLACES) % TOKENS  # 0 is padding
        return output


def takes_bias(name):
    """open_clip 2.32 ignores ClipLoss's, which over ranks stops DDP from averaging gradients."""
    if name == "SigLipLoss":
        return True
    bias = torch.zeros((), requires_grad=True)
    return name in ("ClipLoss", "MFHLoss") and theirs.ClipLoss()(X, X, 1.0, bias).requires_grad


def step(module, name, rank, world, options):
    """Every value that open_clip's program would log, and the gradients it would step with."""
    images, texts, a, b = batch(rank, world)
    model = Model(name)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    output = wrapped(images, texts)
    if name == "DistillClipLoss":
        output |= {"dist_image_features": a, "dist_text_features": b, "dist_logit_scale": 7.0}
    kind = getattr(module, name)
    weights = {"caption_loss_weight": 0.5, "clip_loss_weight": 3.0} if name == "CoCaLoss" else {}
    options = weights | options
    losses = kind(rank=rank, world_size=world, **options)(**output, output_dict=True)
    sum(losses.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    return {n: v.detach() for n, v in losses.items()}, grads


def both(rank, world, name, options):
    return [step(module, name, rank, world, options) for module in (ours, theirs)]


def assert_equal(mine, other):
    (losses, grads), (their_losses, their_grads) = mine, other
    assert losses.keys() == their_losses.keys()
    for name, value in their_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=2e-6, atol=2e-6)
    size = torch.cat([g.flatten() for g in their_grads.values() if g is not None]).norm()
    for name, grad in their_grads.items():
        if grad is not None:
            error = float((grads[name] - grad).norm() / size)
            assert error < 2e-6, f"{name}: {error}"


@pytest.mark.parametrize("name", SAME)
def test_one_process(name):
    assert_equal(*both(0, 1, name, {}))


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_ours_is_nearer_to_float64(name, dtype):
    """Of the same 16-bit features, summed over batches of other sizes of the loss."""
    errors = {ours: 0.0, theirs: 0.0}
    weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0} if name == "CoCaLoss" else {}
    for seed in range(5):
        rows = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(seed))
        x, y, a, b = (f.to(dtype) for f in normalize(rows + rows[:1], dim=-1))
        exact = first_loss(theirs, name, weights, (x.double(), y.double(), a.double(), b.double()))
        with torch.autocast("cpu", dtype):
            for module in errors:
                errors[module] += abs(first_loss(module, name, weights, (x, y, a, b)) - exact)
    assert errors[ours] < 5 * 5e-6  # float32 rounding of losses below 5
    assert errors[theirs] > 20 * errors[ours]


def first_loss(module, name, weights, features):
    """All that it returns, at a scale of 20; of CoCa without the captions, which are PyTorch's."""
    x, y, a, b = features
    given = {"image_features": x, "text_features": y, "logit_scale": torch.tensor(20.0)}
    if name == "DistillClipLoss":
        given |= {"dist_image_features": a, "dist_text_features": b, "dist_logit_scale": 30.0}
    if name == "CoCaLoss":
        given |= {"logits": torch.zeros(4, 2, 3), "labels": torch.ones(4, 2, dtype=torch.long)}
    if name == "SigLipLoss":
        given["logit_bias"] = torch.tensor(-10.0)
    values = getattr(module, name)(**weights)(**given, output_dict=True)
    return sum(v.item() for key, v in values.items() if key != "caption_loss")


@pytest.mark.parametrize("options", [{"pad_id": 3}, {"pad_id": -1}, {"caption_loss_weight": 0.0}])
def test_options_of_coca(options):
    assert_equal(*both(0, 1, "CoCaLoss", options))


@pytest.mark.parametrize("weight", [0, 0.0])
def test_coca_without_its_contrastive_part(weight):
    """Theirs is an integer 0 then, and the scale has no gradient."""
    mine, other = both(0, 1, "CoCaLoss", {"clip_loss_weight": weight})
    assert_equal(mine, other)
    (losses, grads), (their_losses, their_grads) = mine, other
    assert losses["contrastive_loss"].dtype == their_losses["contrastive_loss"].dtype == torch.int64
    assert grads["log_scale"] is their_grads["log_scale"] is None


CLIP_OPTIONS = [
    {"local_loss": local, "gather_with_grad": gather}
    for local in (False, True)
    for gather in (False, True)
]
GATHERED = [name for name in SAME if name != "SigLipLoss"]
CASES = [(name, options) for name in GATHERED for options in CLIP_OPTIONS]
CASES += [("SigLipLoss", {"dist_impl": kind}) for kind in ("bidir", "shift", "reduce", "gather")]


def every_case(rank, world):
    warnings.filterwarnings("ignore", category=FutureWarning, module="open_clip")  # its own
    return [both(rank, world, name, options) for name, options in CASES]


@pytest.fixture(scope="module")
def over_ranks():
    return results(2, every_case)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_over_ranks(over_ranks, case):
    for rank in over_ranks:
        assert_equal(*rank[case])


def mfh_step(rank, world):
    ids = torch.tensor([0, 0, 1, 1, 2, 2]) + rank  # groups straddle ranks
    images, texts, a, b = batch(rank, world)
    model = Model("SigLipLoss")  # it has a bias
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    output = wrapped(images, texts)
    teacher = {"dist_image_features": a, "dist_text_features": b, "dist_logit_scale": 7.0}
    loss = ours.MFHLoss(gather_with_grad=True, rank=rank, world_size=world, rounds=None)
    value = loss(**output, **teacher, folds=(ids, ids))
    value.backward()
    return value.detach(), {n: p.grad for n, p in model.named_parameters()}


def test_mfh_over_ranks_is_that_of_one_process():
    world = 2
    images, texts, a, b = (torch.cat(t) for t in zip(*(batch(r, 2) for r in range(2)), strict=True))
    ids = torch.cat([torch.tensor([0, 0, 1, 1, 2, 2]) + rank for rank in range(world)])
    model = Model("SigLipLoss")
    out = model(images, texts)
    value = fused_mfh_loss(
        out["image_features"],
        out["text_features"],
        (ids, ids),
        logit_scale=out["logit_scale"],
        rounds=None,
        teacher_image_features=a,
        teacher_text_features=b,
        teacher_logit_scale=7.0,
    )
    value.backward()
    for mine, grads in results(world, mfh_step):
        torch.testing.assert_close(mine, value.detach())
        for name, parameter in model.named_parameters():
            if name == "bias":
                assert grads[name] == 0
            else:
                torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


X = torch.eye(4)


@pytest.mark.parametrize("name", [*SAME, "MFHLoss"])
def test_more_processes_need_a_process_group(name):
    weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
    options = {"MFHLoss": {"gather_with_grad": True}, "CoCaLoss": weights}.get(name, {})
    loss = getattr(ours, name)(world_size=2, **options)
    more = {
        "CoCaLoss": {"logits": torch.zeros(4, 2, 3), "labels": torch.ones(4, 2, dtype=torch.long)},
        "DistillClipLoss": {
            "dist_image_features": X,
            "dist_text_features": X,
            "dist_logit_scale": 1.0,
        },
        "MFHLoss": {"folds": (1, 1)},
        "SigLipLoss": {"logit_bias": None},
    }
    with pytest.raises(ValueError, match=r"world_size=2 needs torch\.distributed"):
        loss(image_features=X, text_features=X, logit_scale=1.0, **more.get(name, {}))


def wrong_rank(rank, world):
    ours.ClipLoss(rank=0, world_size=3)(X, X, 1.0)


def test_the_rank_is_compared():
    for error in run_ranks(1, wrong_rank):
        assert isinstance(error, ValueError)
        assert "torch.distributed, 0 and 1, got 0 and 3" in str(error)


@pytest.mark.parametrize("name", [*GATHERED, "MFHLoss"])
def test_horovod_is_an_error(name):
    weights = [2.0, 1.0] if name == "CoCaLoss" else []
    with pytest.raises(ValueError, match=r"use_horovod must be False.*torchrun"):
        getattr(ours, name)(*weights, use_horovod=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.SigLipLoss(dist_impl="tree"), ValueError, "dist_impl must be .*, got 'tree'"),
        (lambda: ours.ClipLoss()(X, X, 1.0, "0"), TypeError, "logit_bias must be .*, got '0'"),
        (lambda: ours.MFHLoss()(X, X, 1.0), TypeError, "MFHLoss needs folds"),
        (lambda: ours.MFHLoss(world_size=2), ValueError, "gather_with_grad must be True"),
        (lambda: ours.MFHLoss(hard_weight=2), ValueError, "hard_weight"),
        (
            lambda: ours.DistillClipLoss()(X, X, 1.0, X, X.clone().requires_grad_(), 1.0),
            ValueError,
            "dist_text_features requires a gradient",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_pair_or_a_dictionary():
    assert isinstance(ours.ClipLoss()(X, X, 5.0), torch.Tensor)
    assert len(ours.DistillClipLoss()(X, X, 5.0, X, X, 5.0)) == 2
    captions = torch.zeros(4, 2, 3), torch.ones(4, 2, dtype=torch.long)
    assert isinstance(ours.CoCaLoss(2.0, 1.0)(X, X, *captions, 5.0), tuple)
    bias = torch.tensor(3.0)
    assert ours.ClipLoss()(X, X, 5.0, bias) == ours.ClipLoss()(X, X, 5.0)
    unbiased = ours.SigLipLoss()(X, X, 5.0, None)
    torch.testing.assert_close(unbiased, theirs.SigLipLoss()(X, X, 5.0, None))
