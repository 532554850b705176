"""Random numbers that are a pure function of a key: whoever draws again, on whatever rank or device, draws the same.

Enters: int64 keys (``Batch.key_B``, ``Batch.step_key_B``). Leaves: int64 whose 64 bits are as good as random, and
what is made of them. Surprising choice: there is no generator and no state; number j of a key is the SplitMix64 of
key + j · golden (Steele, Lea and Flood, 2014), computed in int64, whose arithmetic wraps as unsigned numbers would.

Shape legend: N keys, K numbers of a key; ... any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SIGN = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15 - _SIGN
_FIRST = 0xBF58476D1CE4E5B9 - _SIGN
_SECOND = 0x94D049BB133111EB - _SIGN
UNIT_BITS = 53
"""Bits of ``units``: all that a float64 holds."""


def mix(x: Tensor) -> Tensor:
    """SplitMix64 of every element, int64 [...]: what ``distft.data.hashing.mix`` gives, bit for bit."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def place_keys(key_N: Tensor, place_N: Tensor) -> Tensor:
    """A key of its own for each place (position, purpose) of what ``key_N`` is the key of: int64[N]."""
    return mix(key_N ^ mix(place_N))


def numbers(key_N: Tensor, count: int) -> Tensor:
    """``count`` random int64 of each key, [N, K]."""
    return mix(key_N[:, None] + torch.arange(count, device=key_N.device) * _GOLDEN)


def units(random: Tensor) -> Tensor:
    """Random int64 as whole numbers from 0 to 2**UNIT_BITS - 1, [...]."""
    return _shifted(random, 64 - UNIT_BITS)


def below(random: Tensor, size: int) -> Tensor:
    """Random int64 as whole numbers from 0 to ``size`` - 1, [...]; ``size`` is at most 2**31.

    One is likelier than another by at most ``size`` / 2**32.
    """
    return _shifted(_shifted(random, 32) * size, 32)


def gumbel(random: Tensor) -> Tensor:
    """Random int64 as standard Gumbel numbers, fp32 [...]: the largest of s + gumbel is one drawn from softmax(s)."""
    share = (_shifted(random, 40).float() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(share))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """``x`` >> ``bits`` of an unsigned number; int64's own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
