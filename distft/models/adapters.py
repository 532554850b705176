"""What fine-tuning adds to a model's layers, and how it is merged into them again.

Enters: a model whose tables and linear layers are those of its base. Leaves: the same model with room for new rows
(``GrownEmbedding``) and with adapters of low rank (``LowRankLinear``), all under the old names, so that weights are
matched by name before and after; ``merged`` gives the weights of the plain model. Surprising choice: new rows are a
parameter of their own, because ZeRO freezes whole parameters: the old rows can then rest while the new ones learn.

Shape legend: N rows, D width, P parts of a table, K inputs, M outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.models.products import Linear

GROWN, LORA_A, LORA_B = "grown", "lora_a", "lora_b"
ADDED = (GROWN, LORA_A, LORA_B)
"""Last parts of the names of what is added beside a ``weight``."""
SCALE = 2.0
"""What the product of the two adapters is multiplied by: the paper's alpha / rank. Adam hides it but for the rate."""


class GrownEmbedding(nn.Embedding):
    """A table with new rows, which are a second parameter, ``grown``, behind the old ones of each of its P parts."""

    def __init__(self, old: nn.Embedding, new_PND: Tensor) -> None:
        super().__init__(old.num_embeddings, old.embedding_dim, old.padding_idx, _weight=old.weight.detach())
        self.weight = old.weight
        self.num_parts, self.num_new = new_PND.shape[:2]
        self.grown = nn.Parameter(new_PND)

    def forward(self, input: Tensor) -> Tensor:
        """The rows [..., D] of ``input`` [...], which counts the old and the new rows of each part together."""
        num_old, num_new = self.num_embeddings // self.num_parts, self.num_new
        part = input // (num_old + num_new)
        place = input - part * (num_old + num_new)
        is_new = place >= num_old
        old = F.embedding(torch.where(is_new, 0, part * num_old + place), self.weight, self.padding_idx)
        new = F.embedding(torch.where(is_new, part * num_new + place - num_old, 0), self.grown.flatten(0, 1))
        return torch.where(is_new[..., None], new, old)


class LowRankLinear(Linear):
    """A linear layer plus the product of two narrow ones (LoRA; Hu et al., 2021, arXiv:2106.09685).

    It starts as the layer alone: the second of the two begins at zero.
    """

    def __init__(self, old: nn.Linear, rank: int) -> None:
        super().__init__(old.in_features, old.out_features, old.bias is not None, device="meta")
        self.weight, self.bias = old.weight, old.bias
        self.lora_a = nn.Parameter(torch.randn(rank, old.in_features) * old.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(old.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        """The rows [..., M] of ``input`` [..., K]."""
        return super().forward(input) + SCALE * F.linear(F.linear(input, self.lora_a), self.lora_b)


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Puts ``new`` where ``path`` is."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model: rows joined, adapters multiplied out and added, in fp32."""
    plain = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] not in ADDED}
    for name in weights:
        layer, _, last = name.rpartition(".")
        if last == GROWN:
            new_PND = weights[name]
            old_PND = plain[f"{layer}.weight"].view(new_PND.shape[0], -1, new_PND.shape[2])
            plain[f"{layer}.weight"] = torch.cat([old_PND, new_PND], 1).flatten(0, 1)
        elif last == LORA_B:
            product = weights[name].float() @ weights[f"{layer}.{LORA_A}"].float()
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + SCALE * product
    return plain
