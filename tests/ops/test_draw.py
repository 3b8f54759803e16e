"""The operator that draws: the weights are those of ``backends/draws.py``, on every backend."""

from itertools import pairwise

import pytest
import torch

from mxm_kernels.backends.draws import draw_places
from mxm_kernels.backends.draws import drawn_weights as defined
from mxm_kernels.backends.row_interface import Draw
from mxm_kernels.ops.draw import drawn_weights

OFFSETS = torch.tensor([0, 3, 3, 4, 9, 9, 11, 18])  # of 4 images and 3 texts, two without positives
POSITIVES = 18


def _split_mix(seed: int, count: int) -> int:
    """Number ``count`` of SplitMix64 from ``seed``, in Python's integers."""
    z = (seed + count * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_oracle_of_the_numbers_is_split_mix():
    """The first numbers of its published test."""
    numbers = [_split_mix(1234567, k) for k in (1, 2, 3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("rounds", [1, 2, 7, 150])  # 150: more than a kernel draws together
@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_draws_are_the_same_everywhere(rounds, seed, backend):
    draw = Draw(torch.tensor(seed), OFFSETS, rounds, POSITIVES)
    on = draw._replace(seed=draw.seed.to(backend.device), offsets=OFFSETS.to(backend.device))
    got = drawn_weights(on, torch.float32, backend.name).cpu()
    expected, rows = torch.zeros(POSITIVES), len(OFFSETS) - 1
    for row, (start, end) in enumerate(pairwise(OFFSETS.tolist())):
        for turn in range(rounds):
            number = _split_mix(seed, turn // 2 * rows + row + 1)
            half = number >> 32 if turn % 2 else number % 2**32
            if start < end:
                expected[start + half * (end - start) // 2**32] += 1
    torch.testing.assert_close(got, expected / rounds)
    assert torch.equal(got, defined(draw, torch.float32))


def test_more_rows_than_a_program_takes(backend):
    """70 rows of 0 to 4 positives."""
    offsets = torch.cat([torch.zeros(1).long(), (torch.arange(70) % 5).cumsum(0)])
    draw = Draw(torch.tensor(11), offsets, 9, int(offsets[-1]))
    on = draw._replace(seed=draw.seed.to(backend.device), offsets=offsets.to(backend.device))
    got = drawn_weights(on, torch.float32, backend.name).cpu()
    assert torch.equal(got, defined(draw, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_weights_have_the_dtype_of_the_loss(dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    seed = torch.tensor(3, device=backend.device)
    draw = Draw(seed, OFFSETS.to(backend.device), 4, POSITIVES)
    got = drawn_weights(draw, dtype, backend.name)
    assert got.dtype == dtype and set(got.tolist()) <= {0, 0.25, 0.5, 0.75, 1}


def test_more_rounds_begin_with_the_same_ones():
    few, many = (
        draw_places(Draw(torch.tensor(3), OFFSETS, rounds, POSITIVES)) for rounds in (3, 8)
    )
    assert torch.equal(few, many[:3])


def test_contract_with_pytorch(backend):
    seed = torch.randint(2**63 - 1, (), device=backend.device)
    draw = Draw(seed, OFFSETS.to(backend.device), 3, POSITIVES)
    arguments = (*draw, torch.float32, backend.name)
    torch.library.opcheck(torch.ops.mxm_kernels.drawn_weights.default, arguments)
