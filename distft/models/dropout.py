"""Dropout that does not cost more than the layer it follows.

Enters: a tensor. Leaves: the tensor with a share of its elements at 0, the others scaled up. On a CPU torch draws one
random number after another, at 7 ns an element: a third of a training step. Here numpy draws 16 bits for each, twenty
times as fast. Surprising choice: its seed is one draw from torch's generator, so that whatever fixes or restores that
generator (a step's seed, activation checkpointing) fixes the mask; the share is a multiple of 1/65536.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VALUES = 1 << 16


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """``x`` with ``share`` of its elements dropped, when training."""
    if not training or not share:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    mask = keep_mask(draw(x.shape, seed()), share, torch.empty(x.shape, dtype=x.dtype))
    return x * mask.mul_(scale_of(share))


def seed() -> int:
    """The next seed for ``draw``, from torch's generator."""
    return int(torch.randint(2**63 - 1, ()))


def draw(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform random int16 of this shape, on the CPU."""
    size = math.prod(shape)
    words = np.random.SFC64(seed).random_raw(-(-size // 4))
    return torch.from_numpy(np.atleast_1d(words).view(np.int16)[:size]).view(tuple(shape))


def keep_mask(random: Tensor, share: float, out: Tensor) -> Tensor:
    """``out``, filled with 1 where an element is kept and 0 where it is dropped."""
    return torch.ge(random, _threshold(share) - VALUES // 2, out=out)


def scale_of(share: float) -> float:
    """What the kept elements are multiplied by, so that the expected value stays."""
    return VALUES / (VALUES - _threshold(share))


def _threshold(share: float) -> int:
    return min(round(share * VALUES), VALUES - 1)
