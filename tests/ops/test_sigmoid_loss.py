"""The sigmoid loss in one pass: against dense float64, and its contract with PyTorch."""

import pytest
import torch
from torch.nn.functional import normalize, softplus

from mxm_kernels import backends, fused_siglip_loss
from mxm_kernels.backends.interface import SigmoidLoss, SigmoidWeights
from mxm_kernels.ops.sigmoid_loss import sigmoid_loss
from tests.support.cases import NAMED_CASES
from tests.support.compare import assert_as_good
from tests.support.memory import saved_bytes
from tests.support.products import matrix_products
from tests.support.rules import sigmoid_rules
from tests.support.sigmoid import CASES, CHUNKS, SCALARS, TILES, batch

GRAD = 1000 / 3  # upstream, as of loss scaling; no power of two, so that it is not exact in 16 bits
NAMES = "loss", "dx", "dy", "dscale", "dbias"


def _weights(leaves, tables, *, of_pairs=True) -> SigmoidWeights:
    """Weights of about the size of a mean's, different for every row and pair."""
    g = torch.Generator().manual_seed(3)
    scale = leaves[2].detach()
    rand = lambda n: torch.rand(n, generator=g).to(scale)  # noqa: E731
    M, N, P = len(leaves[0]), len(leaves[1]), tables.pairs if of_pairs else 0
    return SigmoidWeights(torch.cat([rand(M) / M, rand(N) / N]), rand(P) / M)


def _of_terms(weights, tables):
    """(M, N) the weight of every term."""
    t, rows = tables, weights.rows
    each = rows[: t.images, None] + rows[t.images :]
    if len(weights.pairs):
        each[t.pair_images, t.pair_texts] = weights.pairs
    return each


def _dense(leaves, tables, weights):
    """The same from the whole matrix."""
    x, y, s, b = leaves
    S = s * (x @ y.T)
    each = _of_terms(SigmoidWeights(*(v.to(x) for v in weights)), tables)
    positive = (tables.image_groups[:, None] == tables.text_groups).to(x.device)
    margin = torch.where(positive, 1.0, -1.0) * (S + b)
    return (each * softplus(-margin, threshold=40)).sum()


def _differentiated(loss_of, leaves, grad=1.0):
    leaves = [v.detach().clone().requires_grad_() for v in leaves]
    loss = loss_of(leaves)
    return loss.detach(), *torch.autograd.grad(loss * grad, leaves)


def _magnitudes(leaves, tables, weights) -> list[float]:
    """Size of the terms that each number sums: what bounds its rounding where terms cancel."""
    x, y, s, b = leaves
    each = _of_terms(SigmoidWeights(*(v.double() for v in weights)), tables)
    L, largest = s * (x @ y.T) + b, s * (x.abs() @ y.abs().T)
    slope = each * torch.where(
        tables.image_groups[:, None] == tables.text_groups, torch.sigmoid(-L), torch.sigmoid(L)
    )
    return [
        float((slope * (largest + b.abs())).sum()),
        float((s * slope @ y.abs()).norm() * s),
        float((s * slope.T @ x.abs()).norm() * s),
        float((slope * largest).sum()),
        float(slope.sum() * s),
    ]


@pytest.mark.parametrize("scalars", SCALARS.values(), ids=SCALARS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_dense_float64(case, dtype, scalars, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    if case is CHUNKS and backend.interpreted:
        pytest.skip("triton-cpu: 20 seconds, and it has tiles and programs in the other cases")
    leaves, tables = batch(backend, dtype, case, scalars)
    weights = _weights(leaves, tables, of_pairs=scalars != SCALARS["far tails"])
    got = _differentiated(lambda v: sigmoid_loss(*v, tables, weights, backend.name), leaves, GRAD)
    tables, weights = tables.map(torch.Tensor.cpu), SigmoidWeights(*(w.cpu() for w in weights))
    exact = [v.detach().cpu().double() for v in leaves]
    expected = _differentiated(lambda v: _dense(v, tables, weights), exact, GRAD)
    narrow = torch.promote_types(dtype, torch.float32)
    given = [v.to(narrow) for v in exact]
    naive = _differentiated(lambda v: _dense(v, tables, weights), given, GRAD)
    sizes = _magnitudes(exact, tables, weights)
    for k, (name, *values, size) in enumerate(zip(NAMES, got, expected, naive, sizes, strict=True)):
        if k in (1, 2):
            assert values[0].dtype == dtype
        own = narrow if name == "loss" else dtype
        assert_as_good(name, *values, own, magnitude=size * (GRAD if k else 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_upstream_gradient_is_not_rounded_to_16_bits(dtype, backend):
    """A third is not exact in 16 bits; rounded first, it would move products by a unit."""
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    dx = torch.arange(1.0, 257.0, device=backend.device).view(16, 16)  # exact in bfloat16
    held = dx.float() if dtype == torch.float16 else dx.to(dtype)
    grad = torch.tensor(1 / 3, device=backend.device)
    right = (dx * grad).to(dtype)
    assert not torch.equal((dx * grad.to(dtype).float()).to(dtype), right)
    made = SigmoidLoss(grad, held, held[:0], dx[0, :2], dx[0, :0])
    got, _, scalars, _ = backends.load(backend.name).sigmoid_loss_backward(grad, made, dtype)
    assert torch.equal(got, right)
    assert torch.equal(scalars, dx[0, :2] * grad)


@pytest.mark.parametrize("s", [1e-20, 1e-30])
def test_a_tiny_scale_has_its_gradient(s, backend):
    """The square of the scale is below float32's numbers."""
    leaves, tables = batch(backend, scalars=(s, -1.0))
    weights = _weights(leaves, tables)
    got = _differentiated(lambda v: sigmoid_loss(*v, tables, weights, backend.name), leaves)
    tables = tables.map(torch.Tensor.cpu)
    exact = [v.detach().cpu().double() for v in leaves]
    expected = _differentiated(lambda v: _dense(v, tables, weights), exact)
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-4, atol=1e-6 * float(e.norm()))


def test_small_terms_are_not_lost(backend):
    """Every term is about 1e-9, right to a relative 1e-5."""
    leaves, tables = batch(backend, case=TILES, scalars=(1.0, -21.0))
    weights = _weights(leaves, tables, of_pairs=False)
    none = weights._replace(pairs=torch.zeros(tables.pairs).to(leaves[2].detach()))
    got = sigmoid_loss(*leaves, tables, none, backend.name).detach()
    expected = _dense([v.detach().double() for v in leaves], tables, none)
    assert expected < 1e-6
    torch.testing.assert_close(got.cpu().double(), expected.cpu(), rtol=1e-6, atol=0)


def _arguments(backend, dtype=torch.float32, needs=(1, 1, 1, 1), told=False):
    leaves, tables = batch(backend, dtype)
    for leaf, need in zip(leaves, needs, strict=True):
        leaf.requires_grad_(bool(need))
    weights = _weights(leaves, tables)
    rules = sigmoid_rules(*leaves[:2], given=told)
    tensors = *leaves, *tables.pair_tables(), *rules, *weights
    needs = [*(bool(n) for n in needs), told and rules[0].requires_grad]
    return (*tensors, needs, backend.name, 1 << 26)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
def test_opcheck(dtype, told, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    arguments = _arguments(backend, dtype, told=told)
    torch.library.opcheck(torch.ops.mxm_kernels.sigmoid_loss.default, arguments)


@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)], ids=str)
def test_opcheck_of_some_gradients(needs, backend):
    arguments = _arguments(backend, needs=needs)
    torch.library.opcheck(torch.ops.mxm_kernels.sigmoid_loss.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
def test_opcheck_of_the_backward(dtype, told, backend):
    *tensors, needs, name, budget = _arguments(backend, dtype, told=told)
    leaves = [v.detach() for v in tensors[:4]]
    with torch.no_grad():
        found = torch.ops.mxm_kernels.sigmoid_loss(*leaves, *tensors[4:], needs, name, budget)
    grad = torch.full_like(found[0], 3.0)
    torch.library.opcheck(
        torch.ops.mxm_kernels.sigmoid_loss_backward.default, (grad, *leaves, *found, name)
    )


def test_gradcheck(backend):
    if torch.float64 not in backend.dtypes:
        pytest.skip(f"{backend} takes no float64")
    leaves, tables = batch(backend, torch.float64, scalars=(3.0, -1.0))
    weights = _weights(leaves, tables)
    torch.autograd.gradcheck(lambda *v: sigmoid_loss(*v, tables, weights, backend.name), leaves)


def test_compiled_whole(backend):
    torch.compiler.reset()
    leaves, tables = batch(backend)
    weights = _weights(leaves, tables)
    function = lambda *v: sigmoid_loss(*v, tables, weights, backend.name)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True)
    results = [_differentiated(lambda v, f=f: f(*v), leaves) for f in (function, compiled)]
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager)
    with torch.no_grad():  # another program, without gradients
        torch.testing.assert_close(compiled(*leaves), results[0][0])
    torch.compiler.reset()


def test_second_derivatives_are_refused(backend):
    leaves, tables = batch(backend)
    loss = sigmoid_loss(*leaves, tables, _weights(leaves, tables), backend.name)
    (grad,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_can_run_twice_and_two_runs_give_the_same_bits(dtype, backend):
    leaves, tables = batch(backend, dtype, TILES)
    weights = _weights(leaves, tables)
    loss = sigmoid_loss(*leaves, tables, weights, backend.name)
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    anew = torch.autograd.grad(sigmoid_loss(*leaves, tables, weights, backend.name), leaves)
    for a, b, c in zip(once, again, anew, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("row", [0, 2])
def test_a_feature_that_is_not_finite_shows(row, side, value, backend):
    leaves, tables = batch(backend)
    with torch.no_grad():
        leaves[side][row, 3] = value
    loss = sigmoid_loss(*leaves, tables, _weights(leaves, tables), backend.name)
    assert loss.isnan()


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan])
def test_a_scale_that_is_not_positive_shows_in_the_loss_and_the_gradients(bad, backend):
    leaves, tables = batch(backend, scalars=(bad, -1.0))
    found = _differentiated(
        lambda v: sigmoid_loss(*v, tables, _weights(leaves, tables), backend.name), leaves
    )
    assert all(bool(value.isnan().all()) for value in found)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 2), (0, 1)], ids=str)
def test_only_the_gradients_that_are_wanted(needed, backend):
    leaves, tables = batch(backend)
    weights = _weights(leaves, tables)
    run = lambda: sigmoid_loss(*leaves, tables, weights, backend.name)  # noqa: E731
    every = torch.autograd.grad(run(), leaves)
    for k, leaf in enumerate(leaves):
        leaf.requires_grad_(k in needed)
    some = []
    made = matrix_products(
        lambda: some.extend(torch.autograd.grad(run(), [leaves[k] for k in needed]))
    )
    for k, got in zip(needed, some, strict=True):
        torch.testing.assert_close(got, every[k])
    assert made == 1 + sum(k in needed for k in (0, 1))  # S is made once


def test_without_gradients_none_is_computed(backend):
    leaves, tables = batch(backend)
    weights = _weights(leaves, tables)
    expected = sigmoid_loss(*leaves, tables, weights, backend.name)
    losses = []
    with torch.no_grad():
        made = matrix_products(
            lambda: losses.append(sigmoid_loss(*leaves, tables, weights, backend.name))
        )
    assert not losses[0].requires_grad
    torch.testing.assert_close(losses[0], expected)
    assert made == 1


OPTIONS = {
    "folds": {},
    "weights of the rows": {"image_weights": True, "text_weights": True},
    "weights of the pairs": {"pair_weights": True},
    "one direction": {"image_to_text_weight": 1.0},
    "the other": {"image_to_text_weight": 0.0, "text_weights": True},
    "all": {
        "image_weights": True,
        "text_weights": True,
        "pair_weights": True,
        "image_to_text_weight": 0.3,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_statistics_and_the_rows(name, backend):
    """Rows one by one, reduced here, take the other way."""
    case = NAMED_CASES["rows without positives"]
    leaves, tables = batch(backend, case=case)
    M, N = len(leaves[0]), len(leaves[1])
    g = torch.Generator().manual_seed(1)
    rand = lambda n: torch.rand(n, generator=g).to(backend.device)  # noqa: E731
    made = {
        "image_weights": rand(M),
        "text_weights": rand(N),
        "pair_weights": (rand(tables.pairs), rand(tables.pairs)),
    }
    options = {k: made.get(k, v) for k, v in OPTIONS[name].items()}
    share = options.get("image_to_text_weight", 0.5)

    def call(v, **more):
        return fused_siglip_loss(
            *v[:2], case.ids, logit_scale=v[2], logit_bias=v[3], backend=backend.name,
            **options | more,
        )  # fmt: skip

    def apart(v):
        rows, cols = call(v, reduction="none")
        a, b = (options.get(k) for k in ("image_weights", "text_weights"))
        mean = lambda losses, w: losses.mean() if w is None else losses.sum() / w.sum()  # noqa: E731
        return share * mean(rows, a) + (1 - share) * mean(cols, b)

    for got, want in zip(*(_differentiated(f, leaves, 7.0) for f in (call, apart)), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6 * float(want.abs().max()))


def test_weights_that_are_learned_get_their_gradient(backend):
    leaves, _ = batch(backend)
    weights = torch.ones(len(leaves[0]), device=backend.device, requires_grad=True)
    fused_siglip_loss(
        *leaves[:2], NAMED_CASES["ragged and shuffled"].ids, logit_scale=leaves[2],
        logit_bias=leaves[3], image_weights=weights, backend=backend.name,
    ).backward()  # fmt: skip
    assert weights.grad is not None and bool((weights.grad != 0).any())


def test_autograd_keeps_a_gradient_for_every_feature(backend):
    leaves, tables = batch(backend, case=TILES)
    weights = _weights(leaves, tables)
    known = [*leaves, *weights, *(v for v in vars(tables).values() if torch.is_tensor(v))]
    run = lambda: sigmoid_loss(*leaves, tables, weights, backend.name)  # noqa: E731
    features = sum(v.nbytes for v in leaves[:2])
    assert saved_bytes(run, known) <= features + 64


@pytest.fixture
def tiles_of_a_gpu(backend):
    """The interpreter's own tiles have 16 rows: 1,024 x 1,024 takes it a minute."""
    if not backend.interpreted:
        yield
        return
    from mxm_kernels.backends.triton.launch import forced
    from mxm_kernels.backends.triton.settings import Launch

    tile = Launch(128, 128, 0, warps=1, stages=1, group=2)
    with forced("stored_sigmoid_statistics", tile), forced("stored_sigmoid_gradient", tile):
        yield


@pytest.mark.usefixtures("tiles_of_a_gpu")
def test_the_gradient_by_the_scale_adds_up_a_million_terms(backend):
    side = 1024
    g = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(side, 64, generator=g)).to(backend.device) for _ in range(2))
    s = torch.tensor(10.0, device=backend.device, requires_grad=True)
    fused_siglip_loss(x, y, logit_scale=s, logit_bias=-10.0, backend=backend.name).backward()
    cosines, signs = x.double() @ y.double().T, 2 * torch.eye(side, device=x.device) - 1
    terms = -signs * torch.sigmoid(-signs * (10 * cosines - 10)) * cosines / side
    assert s.grad is not None
    assert abs(s.grad.double() - terms.sum()) <= 1e-7 * terms.abs().sum()
