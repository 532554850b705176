"""Sums over candidates that all positions share, whose scores never exist at once.

Enters: states, the vectors of the candidates, a weight for each, and which of them is a position's own target. Leaves:
what the position's loss needs of the candidates that are not its target: the logarithm of their summed exponentials,
or the sum of their logistic losses. Surprising choice: as in the full softmax, the gradients are computed already in
the forward pass, chunk by chunk while the scores are at hand, and only scaled in the backward pass.

Shape legend: M positions with a target, C positions of one chunk, U candidates, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.losses.chunks import dealt, slices
from distft.losses.seen import Seen
from distft.models.products import times_transposed
from distft.models.threads import each

LOG2_E = math.log2(math.e)
"""exp2 takes a quarter of the time of exp on a CPU."""


@dataclass(frozen=True)
class Candidates:
    """``v_UD`` with their weights (log) ``log_weight_U``; ``hit_M`` is where a position's target stands, or -1.

    ``seen``, by the places of the candidates: what a position is not compared with.
    """

    v_UD: Tensor
    log_weight_U: Tensor
    hit_M: Tensor
    seen: Seen | None = None


def log_normaliser(x_MD: Tensor, own_M: Tensor, candidates: Candidates, max_numbers: int) -> Tensor:
    """Sum over M of log(exp(own) + Σ_u weight_u · exp(x·v_u)), u running over all candidates but the target."""
    return _applied(_exponentials, x_MD, own_M, candidates, max_numbers)


def logistic_losses(x_MD: Tensor, candidates: Candidates, offset: float, max_numbers: int) -> Tensor:
    """Sum over M and u of weight_u · log(1 + exp(x·v_u - offset)), u running over all candidates but the target."""
    return _applied(partial(_logistic, offset), x_MD, x_MD.new_zeros(len(x_MD)), candidates, max_numbers)


_Chunk = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""(s_CU, own_C, log_weight_U) → (its loss, e_CU, scale_C, ds_own_C); e_CU times scale_C is the loss's gradient by s_CU.

A candidate that does not count has the score -inf. s_CU may be written over.
"""


def _exponentials(s_CU: Tensor, own_C: Tensor, log_weight_U: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s_CU += log_weight_U
    most_C = torch.maximum(s_CU.amax(1), own_C) if s_CU.shape[1] else own_C
    e_CU = s_CU.sub_(most_C[:, None]).mul_(LOG2_E).exp2_()
    e_own_C = (own_C - most_C).exp()
    sum_C = e_CU.sum(1) + e_own_C
    return (most_C + sum_C.log()).sum(), e_CU, 1 / sum_C, e_own_C / sum_C


def _logistic(
    offset: float, s_CU: Tensor, own_C: Tensor, log_weight_U: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight_U = log_weight_U.exp()
    s_CU -= offset
    loss = (F.softplus(s_CU) @ weight_U).sum()
    return loss, s_CU.sigmoid_().mul_(weight_U), torch.ones_like(own_C), torch.zeros_like(own_C)


def _applied(chunk: _Chunk, x_MD: Tensor, own_M: Tensor, candidates: Candidates, max_numbers: int) -> Tensor:
    loss: Tensor = _Summed.apply(  # type: ignore[no-untyped-call]
        x_MD,
        own_M.float(),
        candidates.v_UD,
        candidates.log_weight_U,
        (candidates.hit_M, candidates.seen),
        chunk,
        max_numbers,
    )
    return loss


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        x_MD: Tensor,
        own_M: Tensor,
        v_UD: Tensor,
        log_weight_U: Tensor,
        struck: tuple[Tensor, Seen | None],
        chunk: _Chunk,
        max_numbers: int,
    ) -> Tensor:
        dx_MD, down_M = torch.empty_like(x_MD), torch.empty_like(own_M)
        work = partial(_work, chunk, x_MD, own_M, v_UD, log_weight_U, struck, dx_MD, down_M)
        parts = each(work, dealt(slices(len(x_MD), len(v_UD), max_numbers, x_MD.device), x_MD.device))
        ctx.save_for_backward(dx_MD, down_M, torch.stack([dv for _, dv in parts]).sum(0).T.contiguous())
        ctx.dtype = v_UD.dtype
        return torch.stack([loss for loss, _ in parts]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        dx_MD, down_M, dv_UD = ctx.saved_tensors
        return dx_MD * scale.to(dx_MD.dtype), down_M * scale, (dv_UD * scale).to(ctx.dtype), None, None, None, None


def _work(  # noqa: PLR0913
    chunk: _Chunk,
    x_MD: Tensor,
    own_M: Tensor,
    v_UD: Tensor,
    log_weight_U: Tensor,
    struck: tuple[Tensor, Seen | None],
    dx_MD: Tensor,
    down_M: Tensor,
    parts: list[slice],
) -> tuple[Tensor, Tensor]:
    """(Loss, its gradient dv_DU) of the positions of ``parts``; writes theirs of ``dx_MD`` and ``down_M``."""
    hit_M, seen = struck
    dv_DU = torch.zeros(v_UD.shape[::-1], dtype=torch.float32, device=v_UD.device)
    loss_sum = torch.zeros((), dtype=torch.float32, device=x_MD.device)
    for part in parts:
        x_CD, hit_C = x_MD[part], hit_M[part]
        s_CU = times_transposed(x_CD, v_UD).float()
        held_H = (hit_C >= 0).nonzero()[:, 0]
        s_CU[held_H, hit_C[held_H]] = -torch.inf
        if seen is not None:
            s_CU[seen.pairs(part)] = -torch.inf
        loss, e_CU, scale_C, down_M[part] = chunk(s_CU, own_M[part], log_weight_U)
        loss_sum += loss
        e_CU = e_CU.to(x_MD.dtype)
        dx_MD[part] = times_transposed(e_CU, v_UD.T) * scale_C[:, None]
        dv_DU += times_transposed((x_CD * scale_C[:, None]).to(x_MD.dtype).T.contiguous(), e_CU.T)
    return loss_sum, dv_DU
