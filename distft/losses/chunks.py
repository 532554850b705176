"""How a matrix of positions times candidates is cut, so that it never exists at once.

Enters: its size, and the numbers that may be held. Leaves: slices of the positions, dealt to the threads of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_NUMBERS, CPU_WIDTH = 1 << 18, 128
"""Numbers of one chunk on a CPU, for its cache, and positions of one where there are many candidates."""
ALIKE = 3
"""Chunks after which every further one holds what the one before it held."""

_alike = False


def slices(num_positions: int, num_candidates: int, most: int, device: torch.device) -> list[slice]:
    """Runs of the positions, each with at most ``most`` numbers (or one position), and no more than a cache likes."""
    width = max(1, most // max(1, num_candidates))
    if device.type == "cpu":
        width = min(width, max(CPU_WIDTH, CPU_NUMBERS // max(1, num_candidates)))
    starts = range(0, num_positions, width)
    if _alike:
        starts = range(0, min(num_positions, width * ALIKE), width)
    return [slice(start, min(start + width, num_positions)) for start in starts]


@contextmanager
def only_different() -> Iterator[None]:
    """In the block all chunks but the first few are left out: for who asks what a chunk holds, and not for the loss.

    A catalogue of millions makes a chunk of every position, and a plan would look at thousands of them.
    """
    global _alike
    before, _alike = _alike, True
    try:
        yield
    finally:
        _alike = before


def dealt(chunks: list[slice], device: torch.device) -> list[list[slice]]:
    """Every chunk once, dealt to as many parts as a CPU has threads; on a GPU to one."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    return [chunks[first::count] for first in range(count)]
