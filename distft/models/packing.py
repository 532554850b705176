"""A batch without its padding: the positions of all histories one after the other.

Enters: a padded Batch. Leaves: where its real positions are, and how to go there and back, so that layers that look
at one position at a time compute no padding at all. Attention looks along a history: for it the histories are laid
side by side in groups of similar length, whose little padding is all that is left. Surprising choice: the packed
batch is itself a Batch, of one long row, so that embeddings take it as it is.

Shape legend: B histories, L positions, N real positions of the batch, b histories and l positions of one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.schema import Batch

Int64 = NDArray[np.int64]

CPU_CELLS = 1 << 17
"""Cells b·l² of one group on a CPU, so that a group's attention stays in the cache."""
GPU_CELLS = 1 << 25
SIMILAR = 0.7
"""A group's shortest history, as a share of its longest; below ``ALIKE`` positions all are alike."""
ALIKE = 8


@dataclass(frozen=True)
class Group:
    """The packed positions ``start:end``: ``rows`` histories of up to ``length`` positions, longest first.

    ``real_K`` are their places among the b·l of the padded layout; None where no history is shorter.
    """

    start: int
    end: int
    rows: int
    length: int
    real_K: Tensor | None

    def pad(self, x_ND: Tensor) -> Tensor:
        """The group as x [b, l, ...], from all packed positions, with zeros at the padding."""
        x_MD = x_ND[self.start : self.end]
        if self.real_K is not None:
            x_MD = x_MD.new_zeros(self.rows * self.length, *x_MD.shape[1:]).index_copy(0, self.real_K, x_MD)
        return x_MD.view(self.rows, self.length, *x_ND.shape[1:])

    def strip(self, x_blD: Tensor) -> Tensor:
        """The group's real positions, packed: what ``pad`` was made from."""
        x_MD = x_blD.reshape(self.rows * self.length, *x_blD.shape[2:])
        return x_MD if self.real_K is None else x_MD.index_select(0, self.real_K)


@dataclass(frozen=True)
class Packing:
    """The real positions of a batch. A history without events keeps one, so that each row has a state.

    ``rows``: the histories in the order in which they are packed, ``lengths`` their numbers of positions.
    """

    shape: tuple[int, int]
    index_N: Tensor
    position_N: Tensor
    groups: tuple[Group, ...]
    rows: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, batch: Batch) -> Packing:
        """The packing of a batch, its histories ordered by length."""
        device = batch.item_BL.device
        lengths = np.maximum(batch.length_B.cpu().numpy(), 1)
        row = np.argsort(-lengths, kind="stable")
        length = lengths[row]
        starts = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        position = np.arange(starts[-1]) - np.repeat(starts[:-1], length)
        index = np.repeat(row * batch.item_BL.shape[1], length) + position
        max_cells = CPU_CELLS if device.type == "cpu" else GPU_CELLS
        groups = [_group(length[a:b], int(starts[a]), device) for a, b in _runs(length, max_cells)]
        height, width = batch.item_BL.shape
        index_N, position_N = _tensor(index, device), _tensor(position, device)
        return cls((height, width), index_N, position_N, tuple(groups), row.tolist(), length.tolist())

    def pack(self, batch: Batch) -> Batch:
        """The batch as one row of N positions; what belongs to a whole history is left as it is."""
        return Batch(**{name: self._packed(name, tensor) for name, tensor in batch.tensors()})

    def _packed(self, name: str, tensor: Tensor) -> Tensor:
        if name.endswith("_B") or name.startswith("user_"):
            return tensor
        return tensor.flatten(0, 1).index_select(0, self.index_N)[None]

    def unpack(self, x_ND: Tensor) -> Tensor:
        """x_BLD with zeros at the padding."""
        height, width = self.shape
        x_MD = x_ND.new_zeros(height * width, x_ND.shape[1])
        return x_MD.index_copy(0, self.index_N, x_ND).view(height, width, x_ND.shape[1])


def _runs(length: Int64, max_cells: int) -> Iterator[tuple[int, int]]:
    """Runs a:b of the lengths, longest first, that are similar and do not exceed the cells together."""
    start = 0
    for row in range(1, len(length) + 1):
        longest = int(length[start])
        full = (row - start + 1) * longest**2 > max_cells
        if row == len(length) or full or length[row] < min(SIMILAR * longest, longest - ALIKE):
            yield start, row
            start = row


def _group(length: Int64, start: int, device: torch.device) -> Group:
    rows, longest, size = len(length), int(length[0]), int(length.sum())
    if size == rows * longest:
        return Group(start, start + size, rows, longest, None)
    real = np.flatnonzero(np.arange(longest) < length[:, None])
    return Group(start, start + size, rows, longest, _tensor(real, device))


def _tensor(values: Int64, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
