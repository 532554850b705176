"""The protocol of a model: a causal state for every event, vectors for the items asked for, and scores.

Shape legend: B histories, L positions, D width, N rows (one position each), K items of a row, P additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distft.models.memo import Memo
from distft.schema import Batch

BESIDE_HISTORIES = ("target_BL", "target_value_BL", "key_B", "step_key_B")
"""What a batch holds for its loss: no state depends on it."""


@dataclass(frozen=True)
class OwnScores:
    """What a model adds to the scores of a few items of each state, such as those of its history.

    ``bonus_P`` fp32 is added to the score of item row ``item_P`` in state ``state_P``. States ascend; an item may come
    several times in one state, its additions are summed.
    """

    state_P: Tensor
    item_P: Tensor
    bonus_P: Tensor

    def at(self, items_NK: Tensor) -> Tensor:
        """bonus_NK of K items for each of N states, 0 where there is none."""
        size = 1 + int(torch.cat([self.item_P, items_NK.reshape(-1)]).max()) if items_NK.numel() else 1
        key_P, inverse_P = torch.unique(self.state_P * size + self.item_P, return_inverse=True)
        sum_P = self.bonus_P.new_zeros(len(key_P) + 1).index_add(0, inverse_P, self.bonus_P)
        wanted_NK = torch.arange(len(items_NK), device=items_NK.device)[:, None] * size + items_NK
        place_NK = torch.searchsorted(key_P, wanted_NK.contiguous())
        found_NK = torch.cat([key_P, key_P.new_full((1,), -1)])[place_NK] == wanted_NK
        return torch.where(found_NK, sum_P[place_NK], 0.0)

    def add_to(self, s_NC: Tensor, start: int) -> Tensor:
        """``s_NC``, the scores of item rows ``start`` to ``start`` + C - 1, with the additions; changed in place."""
        inside_P = (self.item_P >= start) & (self.item_P < start + s_NC.shape[1])
        index_P = (self.state_P * s_NC.shape[1] + self.item_P - start)[inside_P]
        s_NC.view(-1).index_add_(0, index_P, self.bonus_P[inside_P].to(s_NC.dtype))
        return s_NC


class Model(nn.Module):
    """Base of all models.

    ``retrieval`` says how candidates are found: "dot" models rank by the product of state and item vector,
    "pair" models score each (state, item) pair and are ranked by a chunked scan, never by an index. ``state_dim`` is
    the width D of a state. ``recompute`` is set by the job's ``train.activation_checkpointing``.
    """

    retrieval: ClassVar[Literal["dot", "pair"]] = "dot"
    num_items: int
    state_dim: int
    recompute: bool = False

    def states(self, batch: Batch) -> Tensor:
        """x_BLD: what the model knows after each event. Causal: position l sees events 0..l alone.

        L may be 1 where every target of the batch stands after the last event of its history: that is then the state
        after the whole history. ``last_states`` and ``states_at`` take care of it.
        """
        raise NotImplementedError

    def item_vectors(self, items_N: Tensor) -> Tensor:
        """v_ND of the item rows ``items_N``, and of no others."""
        raise NotImplementedError

    def pair_scores(self, x_ND: Tensor, items_NK: Tensor, batch: Batch, row_N: Tensor) -> Tensor:
        """s_NK: scores of K items for each of N states. The default is the dot product.

        State n is one of history ``row_N[n]`` of ``batch``: a loss asks for many positions of a history at once.
        """
        v_NKD = self.item_vectors(items_NK.reshape(-1)).view(*items_NK.shape, -1)
        return torch.einsum("nd,nkd->nk", x_ND, v_NKD)

    def own_scores(self, x_ND: Tensor, row_N: Tensor, position_N: Tensor, batch: Batch) -> OwnScores | None:
        """What is added to the scores of single items in the states ``x_ND``; None, the default, adds nothing.

        State i stands at ``position_N``[i] of history ``row_N``[i], and only events up to there may take part.
        """
        return None

    def through(self, block: nn.Module, *inputs: Any) -> Tensor:
        """What ``block`` gives for ``inputs``; with ``recompute`` all inside it is computed again for the gradient.

        Also what it draws at random: torch's generator is set back for that.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            given: Tensor = block(*inputs)
            return given
        recomputed: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return recomputed

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter, in named groups from input to output: the units of freezing."""
        raise NotImplementedError

    def remember(self, memo: Memo) -> list[str]:
        """Lets ``memo`` keep what the lowest layers give, as far as nothing of them trains; the names of their groups.

        Without such layers, or in a model that cannot do so, there are none, which is the default.
        """
        return []

    def vocabularies(self) -> dict[str, str]:
        """Module of a table → the vocabulary (of ``Encoder.sizes``) that its rows are, one row each.

        These tables can take the rows of a base whose vocabulary this one continues, and new rows behind them.
        """
        return {}

    def table_parts(self) -> dict[str, int]:
        """Module of a table of ``vocabularies`` that holds the vocabulary several times over → how often."""
        return {}


def states_once(model: Model, batch: Batch) -> Tensor:
    """x_BLD of ``model.states``, a history that comes several times in a row being computed once.

    Targets of a basket share their history, and of a random split all those of a user.
    """
    repeats_B = _repeats(batch)
    if not repeats_B.any():
        return model.states(batch)
    distinct = Batch(**{name: tensor[~repeats_B] for name, tensor in batch.tensors()})
    return model.states(distinct)[(~repeats_B).cumsum(0) - 1]


def _repeats(batch: Batch) -> Tensor:
    """repeats_B: true where a history, and what is known of its user, are those of the row before."""
    num_rows = len(batch.length_B)
    same_R = torch.ones(max(0, num_rows - 1), dtype=torch.bool, device=batch.length_B.device)
    for name, tensor in batch.tensors():
        if name not in BESIDE_HISTORIES and same_R.any():
            equal = tensor[1:] == tensor[:-1]
            while equal.dim() > 1:
                equal = equal.all(-1)
            same_R = same_R & equal
    return torch.cat([same_R.new_zeros(min(1, num_rows)), same_R])


def last_states(x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """x_BD: the state after each history's last event; the first position's for an empty history."""
    return states_at(x_BLD, torch.arange(len(x_BLD), device=x_BLD.device), (length_B - 1).clamp(min=0))


def states_at(x_BLD: Tensor, row_N: Tensor, position_N: Tensor) -> Tensor:
    """x_ND: the states at some positions."""
    width = x_BLD.shape[1]
    return x_BLD.flatten(0, 1).index_select(0, row_N * width + position_N.clamp(max=width - 1))
