"""How the inputs of an encoder are cut, and its outputs put together."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._pytree import register_pytree_node

from mxm_kernels import GradientCache
from tests.support.towers import batch


class Recorded(nn.Module):
    """Two towers; what rows they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(8, 4).double(), nn.Linear(16, 4).double()
        self.given: list[tuple[int, int]] = []

    def forward(self, images, texts):
        self.given.append((len(images), len(texts)))
        return self.image(images), self.text(texts.mean(1))


def two_sides(images: int, texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(images)
    rows = partial(torch.randn, generator=generator, dtype=torch.float64)
    return rows(images, 8), rows(texts, 5, 16)


def loss_of(x, y) -> torch.Tensor:
    return (x @ y.T).exp().sum() + x.square().sum() + y.pow(3).sum()


@pytest.mark.parametrize(
    ("images", "texts", "micro_batch"),
    [(24, 2, 6), *product((1, 2, 5, 7, 24), (1, 3, 7), (1, 2, 3, 6))],
)
def test_no_part_is_empty(images, texts, micro_batch):
    torch.manual_seed(0)
    towers, inputs = Recorded(), two_sides(images, texts)
    whole = towers(*inputs)
    loss_of(*whole).backward()
    expected = [parameter.grad.clone() for parameter in towers.parameters()]
    towers.zero_grad()
    towers.given.clear()
    cache = GradientCache(micro_batch)
    x, y = cache.encode(towers, *inputs)
    torch.testing.assert_close((x.detach(), y.detach()), (whole[0].detach(), whole[1].detach()))
    loss_of(x, y).backward()
    cache.backward()
    actual = [parameter.grad for parameter in towers.parameters()]
    torch.testing.assert_close(actual, expected)
    parts = -(-max(images, texts) // micro_batch)
    assert len(towers.given) == 2 * parts
    for given in towers.given:
        assert min(given) >= 1
        assert max(given) <= max(2, micro_batch)  # with 1, twice the last row tells the sides apart
    if micro_batch == 1 and images == texts:
        assert set(towers.given) == {(1, 1)}


def test_three_sides():
    """Each pair of them differs in the rows of some part."""
    inputs = [torch.randn(rows, 4, dtype=torch.float64) for rows in (2, 9, 4)]
    layers = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in inputs)

    def encoder(tensors):
        assert all(len(rows) for rows in tensors)
        return [layer(rows) for layer, rows in zip(layers, tensors, strict=True)]

    for micro_batch in (1, 2, 3, 5):
        cache = GradientCache(micro_batch)
        features = cache.encode(encoder, inputs)
        expected = encoder(inputs)
        for actual, whole in zip(features, expected, strict=True):
            torch.testing.assert_close(actual.detach(), whole.detach())
        sum(f.square().sum() for f in expected).backward()
        wanted = [p.grad.clone() for p in layers.parameters()]
        layers.zero_grad()
        sum(f.square().sum() for f in features).backward()
        cache.backward()
        torch.testing.assert_close([p.grad for p in layers.parameters()], wanted)
        layers.zero_grad()


def test_no_part_is_empty_without_a_graph():
    towers = Recorded()
    with torch.no_grad():
        x, y = GradientCache(6).encode(towers, *two_sides(24, 2))
    assert (len(x), len(y)) == (24, 2)
    assert min(map(min, towers.given)) == 1


def test_an_input_without_rows_stays_as_it_is():
    """A rank may have no text: the encoder gets what it would get without a cache."""
    towers, cache = Recorded(), GradientCache(2)
    x, y = cache.encode(towers, *two_sides(5, 0))
    assert (x.shape, y.shape) == ((5, 4), (0, 4))
    (x.sum() + y.sum()).backward()
    cache.backward()
    assert {texts for _, texts in towers.given} == {0}
    assert cache.encode(nn.Linear(8, 4), torch.randn(0, 8)).shape == (0, 4)


class Positioned(nn.Module):
    """Tokens, and what is added to each place."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, ids, position_ids=None, mask=None, **more):
        hidden = self.tokens(ids)
        if position_ids is not None:
            hidden = hidden + self.positions(position_ids)
        return {"pooled": hidden.mean(1), "extra": None}


class Quiet(nn.Module):
    """Takes any part of its positions without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, tokens, positions):
        if isinstance(tokens, dict):
            tokens = tokens["ids"]
        return self.tokens(tokens).mean(1) + self.positions(positions).mean(0)


IDS, POSITIONS = torch.arange(18).remainder(9).view(6, 3), torch.arange(3)


@pytest.mark.parametrize("rows", [1, 3, 5, 7])  # 1: meant to be broadcast
@pytest.mark.parametrize(
    ("encoder", "call", "name"),
    [
        (Quiet(), lambda p: ((IDS, p), {}), "argument 1"),
        (Quiet(), lambda p: ((IDS,), {"positions": p}), "positions"),
        (Quiet(), lambda p: (({"ids": IDS, "mask": IDS > 1, "extra": p}, p), {}), r"\['extra'\]"),
        (Positioned(), lambda p: ((IDS,), {"position_ids": p}), "position_ids"),
        (Positioned(), lambda p: ((IDS,), {"mask": torch.ones(len(p), len(p))}), "mask"),
        (Positioned(), lambda p: ((IDS,), {"nested": [{"a": IDS}, (p,)]}), r"nested\[1\]\[0\]"),
    ],
)
def test_a_tensor_that_is_no_rows_is_named(encoder, call, name, rows):
    args, kwargs = call(torch.arange(rows))
    with pytest.raises(ValueError, match=name) as caught:
        GradientCache(2).encode(encoder, *args, **kwargs)
    assert "is cut along its first dimension" in str(caught.value)
    assert "functools.partial(encoder" in str(caught.value)


class Box:
    """A type whose parts have no names."""

    def __init__(self, *parts) -> None:
        self.parts = parts


def test_a_type_without_names_names_its_argument():
    register_pytree_node(Box, lambda box: (list(box.parts), None), lambda parts, _: Box(*parts))
    for positions in (POSITIONS, IDS):
        boxed = Box(IDS, positions)
        cache = GradientCache(2)
        if positions is IDS:
            assert len(cache.encode(lambda box: box.parts[0].float(), boxed)) == 6
        else:
            with pytest.raises(ValueError, match=r"every row of boxed, got none for .*\(3,\)"):
                cache.encode(lambda boxed: boxed.parts[0].float(), boxed=boxed)


@pytest.mark.parametrize("encoder", [Quiet(), Positioned()])
def test_what_is_bound_is_not_cut(encoder):
    """The two ways to pass what is not rows."""
    expected = None
    name = "positions" if isinstance(encoder, Quiet) else "position_ids"
    ways = (
        lambda ids: encoder(ids, POSITIONS),
        partial(encoder, **{name: POSITIONS}),
        lambda ids: partial(encoder.forward, **{name: POSITIONS})(ids),
    )
    for way in (None, *ways):
        encoder.zero_grad()
        cache = GradientCache(2)
        output = encoder(IDS, POSITIONS) if way is None else cache.encode(way, IDS)
        features = output if isinstance(output, torch.Tensor) else output["pooled"]
        features.pow(2).sum().backward()
        if way is not None:
            cache.backward()
        grads = [p.grad.clone() for p in encoder.parameters()]
        expected = expected or grads
        torch.testing.assert_close(grads, expected)


def test_an_error_of_the_encoder_stays_what_it_is():
    """Where all inputs have the same rows, or the memory ran out, nothing is to be said."""

    def failing(error):
        def encoder(*tensors):
            raise error

        return encoder

    other = torch.randn(3, 8)
    for error in (KeyError("rows"), torch.OutOfMemoryError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            GradientCache(2).encode(failing(error), IMAGES, other)
    with pytest.raises(RuntimeError, match="^shapes$"):
        GradientCache(8).encode(failing(RuntimeError("shapes")), IMAGES)
    with pytest.raises(ValueError, match="^values$"):
        GradientCache(8).encode(failing(ValueError("values")), IMAGES, IMAGES)
    with pytest.raises(RuntimeError, match="^one part$"):
        GradientCache(24).encode(failing(RuntimeError("one part")), IMAGES, other)


class NoOutput(nn.Module):
    def forward(self, rows):
        return rows.sum(0)


class Changing(nn.Linear):
    def forward(self, rows):
        out = super().forward(rows)
        return out if len(rows) == 8 else (out, out)


IMAGES = batch()[0]
LINEAR = nn.Linear(8, 4)


@pytest.mark.parametrize(
    ("encoder", "inputs", "error", "message"),
    [
        (LINEAR, (), ValueError, "expected a tensor with rows among the inputs, got none"),
        (LINEAR, (torch.tensor(1.0),), ValueError, "expected a tensor with rows"),
        (LINEAR, (IMAGES.clone().requires_grad_(),), ValueError, "an input requires a gradient"),
        (LINEAR, (IMAGES, object()), TypeError, "inputs must be tensors.*got object"),
        (LINEAR, (UserDict(rows=IMAGES),), TypeError, r"got UserDict; call dict\(\) on it"),
        (LINEAR, ([{"rows": (IMAGES, {1})}],), TypeError, "got set; pass its tensors"),
        (NoOutput(), (IMAGES,), ValueError, r"a row for every row.*8 in this.*shape \(8,\)"),
        (lambda rows: "features", (IMAGES,), TypeError, "must return tensors, got str"),
        (Changing(8, 4), (IMAGES[:23, :],), ValueError, "another structure"),
    ],
)
def test_message(encoder, inputs, error, message):
    if isinstance(encoder, NoOutput):
        inputs = (inputs[0][:, :5],)
        message = message.replace("(8,", "(5,")
    with pytest.raises(error, match=message):
        GradientCache(8).encode(encoder, *inputs)
