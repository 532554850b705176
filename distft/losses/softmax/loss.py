"""Full softmax cross-entropy that never holds the logits of all positions at once.

Enters: states, a batch with targets. Leaves: the loss's sum and count. Surprising choice: the gradients of states
and item vectors are computed already in the forward pass, chunk by chunk while the logits are at hand, and only
scaled in the backward pass: three matrix products in all, as many as without chunks, and no recomputation.

Shape legend: M positions with a target, C positions of one chunk, D width, V items of the catalogue, P additions to
single scores.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distft.losses.base import Loss, Wanted
from distft.losses.chunks import dealt, slices
from distft.losses.seen import Exclusion, Seen
from distft.models.base import Model, OwnScores
from distft.models.products import times_transposed
from distft.models.threads import each
from distft.schema import NUM_RESERVED, Batch, Catalog

if TYPE_CHECKING:
    from distft.losses.softmax.config import Config

LOG2_E = math.log2(math.e)
"""exp2 takes a quarter of the time of exp on a CPU."""


class Softmax(Loss):
    """-log p(target), p the softmax over every real item's score; PAD and UNKNOWN take no part."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.exclusion = Exclusion(config.exclude_seen, catalog.target_events)

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count); label smoothing spreads its share evenly over all items."""
        wanted = Wanted.of(x_BLD, batch)
        x_MD, target_M = wanted.x_MD, wanted.target_M - NUM_RESERVED
        items_V = torch.arange(NUM_RESERVED, model.num_items, device=x_BLD.device)
        v_VD = model.item_vectors(items_V)
        own = model.own_scores(x_MD, wanted.row_M, wanted.position_M, batch)
        seen = self.exclusion.seen(batch, wanted)
        smoothing, max_logits = self.config.label_smoothing, self.config.max_logits
        return chunked_cross_entropy(x_MD, v_VD, target_M, smoothing, max_logits, own, seen), wanted.count


def chunked_cross_entropy(  # noqa: PLR0913
    x_MD: Tensor,
    v_VD: Tensor,
    target_M: Tensor,
    label_smoothing: float,
    max_logits: int,
    own: OwnScores | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Sum over M of cross-entropy(x_MD @ v_VD.T, target_M), at most ``max_logits`` logits at a time.

    The additions of ``own`` count for the logits; its item rows are those of the catalogue, reserved ones included, as
    are those of ``seen``, whose items take no part; nothing is then smoothed.
    """
    bonus_P = None if own is None else own.bonus_P
    places = None if own is None else (own.state_P, own.item_P - NUM_RESERVED)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x_MD, v_VD, bonus_P, target_M, label_smoothing, max_logits, places, None if seen is None else seen.among_all()
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        x_MD: Tensor,
        v_VD: Tensor,
        bonus_P: Tensor | None,
        target_M: Tensor,
        label_smoothing: float,
        max_logits: int,
        places: tuple[Tensor, Tensor] | None,
        seen: Seen | None,
    ) -> Tensor:
        num_items, share = len(v_VD), 1 - label_smoothing
        needs_x, needs_v = ctx.needs_input_grad[:2]
        added = None
        if bonus_P is not None and places is not None:
            added = _Additions(bonus_P, *places, len(x_MD), num_items)
        dx_MD = torch.empty_like(x_MD) if needs_x else None
        chunks = dealt(slices(len(x_MD), num_items, max_logits, x_MD.device), x_MD.device)
        parts = each(partial(_normaliser, x_MD, v_VD, added, seen, dx_MD, needs_v), chunks)
        loss_sum = torch.stack([loss for loss, _ in parts]).sum()
        dv_DV = torch.stack([dv for _, dv in parts if dv is not None]).sum(0) if needs_v else None
        # The other half of the loss and its gradients: the score of the smoothed target, one vector a position.
        mean_D, target_MD = v_VD.float().mean(0), v_VD[target_M].float()
        wanted_MD = share * target_MD + label_smoothing * mean_D if label_smoothing else target_MD
        loss_sum -= (x_MD.float() * wanted_MD).sum()
        dv_VD = None
        if dx_MD is not None:
            dx_MD -= wanted_MD
        if dv_DV is not None:
            dv_VD = dv_DV.T.contiguous().index_add_(0, target_M, x_MD.float(), alpha=-share)
            if label_smoothing:
                dv_VD -= x_MD.float().sum(0) * (label_smoothing / num_items)
        if added is not None:
            wanted_P = share * (target_M[added.state_P] == added.item_P).float() + label_smoothing / num_items
            loss_sum -= (added.bonus_P * wanted_P).sum()
            added.gradient_P -= wanted_P
        ctx.save_for_backward(dx_MD, dv_VD, None if added is None else added.gradient_P)
        ctx.dtype = v_VD.dtype
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        dx_MD, dv_VD, d_bonus_P = ctx.saved_tensors
        dx = None if dx_MD is None else dx_MD * scale.to(dx_MD.dtype)
        dv = None if dv_VD is None else (dv_VD * scale).to(ctx.dtype)
        d_bonus = None if d_bonus_P is None else d_bonus_P * scale
        return dx, dv, d_bonus, None, None, None, None, None


class _Additions:
    """What is added to single logits, cut by positions; and its gradient, as the chunks come by."""

    def __init__(self, bonus_P: Tensor, state_P: Tensor, item_P: Tensor, num_positions: int, num_items: int) -> None:
        self.bonus_P, self.state_P, self.item_P = bonus_P, state_P, item_P
        self.index_P = state_P * num_items + item_P
        self.gradient_P = torch.empty_like(bonus_P)
        edges = torch.arange(num_positions + 1, device=state_P.device)
        self._first = torch.searchsorted(state_P, edges).tolist()
        self._num_items = num_items

    def of(self, chunk: slice) -> tuple[slice, Tensor]:
        """(The additions of a chunk's positions, their places among its logits.)"""
        part = slice(self._first[chunk.start], self._first[chunk.stop])
        return part, self.index_P[part] - chunk.start * self._num_items


def _normaliser(  # noqa: PLR0913
    x_MD: Tensor,
    v_VD: Tensor,
    added: _Additions | None,
    seen: Seen | None,
    dx_MD: Tensor | None,
    needs_v: bool,
    chunks: list[slice],
) -> tuple[Tensor, Tensor | None]:
    """(Sum of log Σ_v exp(x·v), its gradient dv_DV) over the positions of ``chunks``; writes theirs of ``dx_MD``."""
    dv_DV = torch.zeros(v_VD.shape[::-1], dtype=torch.float32, device=v_VD.device) if needs_v else None
    loss_sum = torch.zeros((), dtype=torch.float32, device=x_MD.device)
    for chunk in chunks:
        x_CD = x_MD[chunk]
        s_CV = times_transposed(x_CD, v_VD).float()
        if added is not None:
            part, index_P = added.of(chunk)
            s_CV.view(-1).index_add_(0, index_P, added.bonus_P[part])
        if seen is not None:
            s_CV[seen.pairs(chunk)] = -torch.inf
        most_C1 = s_CV.amax(1, keepdim=True)
        # Written over the logits, unnormalised: their sum divides the narrow products below instead.
        e_CV = s_CV.sub_(most_C1).mul_(LOG2_E).exp2_()
        sum_C1 = e_CV.sum(1, keepdim=True)
        loss_sum += (most_C1 + sum_C1.log()).sum()
        if added is not None:
            sum_P = sum_C1[added.state_P[part] - chunk.start, 0]
            added.gradient_P[part] = e_CV.view(-1)[index_P] / sum_P
        e_CV = e_CV.to(x_MD.dtype)
        if dx_MD is not None:
            dx_MD[chunk] = times_transposed(e_CV, v_VD.T) / sum_C1
        if dv_DV is not None:
            dv_DV += times_transposed((x_CD / sum_C1).to(x_MD.dtype).T.contiguous(), e_CV.T)
    return loss_sum, dv_DV
