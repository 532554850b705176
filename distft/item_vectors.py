"""The vectors of all items, stored in fewer bytes than they were computed in.

Enters: vectors in fp32. Leaves: the same rows again in fp32, as near as fp16, or 8 bits with one scale for each row,
come. Surprising choice: rows are turned back into fp32 before they are multiplied, a chunk at a time, and not
multiplied as they are. So every product that ranks (of a chunk, of a target, of an index's candidates) is of the same
numbers, and ties and places are as exact as those of plain vectors; it is memory that is saved, not arithmetic.

Shape legend: N items, C of them, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors.torch import load
from torch import Tensor

from distft.storage import Manifest, Storage

FILE = "item_vectors.safetensors"
"""Where a bundle has them."""
LARGEST = 127
"""Of a signed code of 8 bits, as far as it has a negative too."""

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ItemVectors:
    """``codes_ND``: fp16, or int8 of which each row is to be multiplied by its ``scale_N1``."""

    codes_ND: Tensor
    scale_N1: Tensor | None = None

    @classmethod
    def of(cls, vectors_ND: Tensor, precision: Precision) -> ItemVectors:
        """Vectors in fp32, stored with the given precision (fp16 or int8).

        A row's scale is its largest number by 127, so that every number is off by at most half of that.
        """
        if precision == "fp16":
            return cls(vectors_ND.half())
        assert precision == "int8", "fp32 is a plain tensor"
        most_N1 = vectors_ND.abs().amax(1, keepdim=True)
        scale_N1 = torch.where(most_N1 > 0, most_N1 / LARGEST, 1.0)
        codes_ND = (vectors_ND / scale_N1).round_().clamp_(-LARGEST, LARGEST)
        return cls(codes_ND.to(torch.int8), scale_N1)

    def __len__(self) -> int:
        return len(self.codes_ND)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """v_CD, fp32, of a range of item rows, or of those listed."""
        v_CD = self.codes_ND[rows].float()
        return v_CD if self.scale_N1 is None else v_CD.mul_(self.scale_N1[rows])

    @property
    def bits(self) -> int:
        """Of a number of a vector."""
        return 8 * self.codes_ND.element_size()

    @property
    def num_bytes(self) -> int:
        """What the vectors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Name → tensor, as a bundle has them."""
        scale = {} if self.scale_N1 is None else {"scale": self.scale_N1}
        return {"codes": self.codes_ND.contiguous(), **scale}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ItemVectors:
        """What ``tensors`` gave."""
        return cls(tensors["codes"], tensors.get("scale"))


def stored_vectors(bundle: Storage, manifest: Manifest) -> Precision | ItemVectors:
    """The item vectors that a bundle was made to be ranked by; "fp32" where these are the model's own.

    They are read and not computed again: rounded to 8 bits, what differs in the last bit may differ by a step.
    """
    if FILE not in manifest.files:
        return "fp32"
    return ItemVectors.from_tensors(load(bundle.read_bytes(FILE)))
