"""Draws of positives in plain PyTorch, any device and dtype: the definition of every draw."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.row_interface import Draw

# SplitMix64 (Steele, Lea and Flood 2014), whose k-th number is a function of seed and k alone.
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned ``word``."""
    return word - (word >> 63 << 64)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of int64 ``z`` moved right, zeros behind them."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _numbers(seed: Tensor, length: int) -> Tensor:
    """Numbers 1 to ``length`` of a seed, as int64 with their bits."""
    z = torch.arange(1, length + 1, device=seed.device).mul_(_signed(GAMMA)).add_(seed)
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(FIRST))
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(SECOND))
    return z.bitwise_xor_(_shifted(z, 31))


def draw_places(draw: Draw) -> Tensor:
    """(rounds, R) the place among all positives that each round draws, -1 for a row without one.

    Rounds 2 q and 2 q + 1 of row r take the lower and the upper half of number q R + r + 1 of the
    seed: half h chooses floor(h k / 2^32) of k, with a bias below k 2^-32. More rounds begin with
    the same ones.
    """
    counts, turns = draw.offsets.diff(), (draw.rounds + 1) // 2
    numbers = _numbers(draw.seed, turns * len(counts)).view(turns, 1, -1)
    halves = torch.cat([numbers & 0xFFFFFFFF, _shifted(numbers, 32)], dim=1)
    halves = halves.view(2 * turns, -1)[: draw.rounds]
    places = ((halves * counts) >> 32).add_(draw.offsets[:-1])
    return torch.where(counts > 0, places, -1)


def drawn_weights(draw: Draw, dtype: torch.dtype) -> Tensor:
    """(L,) share of the rounds in which each positive was drawn by its row."""
    return frequencies(draw_places(draw), draw.positives, dtype)


def frequencies(places: Tensor, positives: int, dtype: torch.dtype) -> Tensor:
    """(rounds, rows) drawn places, negative for none -> (L,) how often each was, over the rounds.

    Counted in integers, whose additions commute: the same bits in any order.
    """
    counts = torch.zeros(positives + 1, dtype=torch.int32, device=places.device)
    drew = (places >= 0).to(torch.int32)
    counts.scatter_add_(0, places.clamp(min=0).reshape(-1), drew.reshape(-1))
    return counts[:positives].to(dtype) / places.shape[0]
