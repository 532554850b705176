"""Causal self-attention over packed histories, with dropout on its weights.

Enters: queries, keys and values of all packed positions. Leaves: what each position gathered from its own history.
``attend_plainly`` is torch's attention, group by group. On a CPU torch has no fast attention with dropout: there
``attend`` computes the same by a function of its own, a group at a time, so that all stays in the cache. Surprising
choice: the weights stay unnormalised, exp2(s - max); their sum divides the much smaller result instead.

Shape legend: N packed positions, H heads, E width of a head, b histories and l positions of one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.models.dropout import draw, keep_mask, scale_of, seed
from distft.models.packing import Group, Packing
from distft.models.threads import each

LOG2_E = math.log2(math.e)
MASKED = -1e30


def attend(qkv_N3HE: Tensor, packing: Packing, dropout: float) -> Tensor:
    """y_NHE: for each position the mean of the values up to it, weighted by softmax(q·k / √E)."""
    if qkv_N3HE.device.type == "cpu" and qkv_N3HE.dtype == torch.float32:
        y_NHE: Tensor = _Attention.apply(qkv_N3HE, packing, dropout)  # type: ignore[no-untyped-call]
        return y_NHE
    return attend_plainly(qkv_N3HE, packing, dropout)


def attend_plainly(qkv_N3HE: Tensor, packing: Packing, dropout: float) -> Tensor:
    """The same by torch's own attention."""
    parts = []
    for group in packing.groups:
        # Padding stands on the right, so the causal mask alone keeps it from every real position.
        q_bHlE, k_bHlE, v_bHlE = group.pad(qkv_N3HE).permute(2, 0, 3, 1, 4).unbind(0)
        y_bHlE = F.scaled_dot_product_attention(q_bHlE, k_bHlE, v_bHlE, is_causal=True, dropout_p=dropout)
        parts.append(group.strip(y_bHlE.transpose(1, 2)))
    return torch.cat(parts) if parts else qkv_N3HE[:, 2]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_N3HE: Tensor, packing: Packing, dropout: float) -> Tensor:
        y_NHE = torch.empty_like(qkv_N3HE[:, 0])
        # Drawn in order, whichever thread takes which group.
        seeds = [seed() if dropout else None for _ in packing.groups]
        forward = partial(_forward, qkv_N3HE, y_NHE, dropout)
        kept = each(forward, packing.groups, seeds)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(qkv_N3HE, y_NHE, *(tensor for tensors in kept for tensor in tensors))
            ctx.packing, ctx.dropout = packing, dropout
        return y_NHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_N3HE, y_NHE, *flat = ctx.saved_tensors
        d_qkv_N3HE = torch.empty_like(qkv_N3HE)
        # Σ_j p_j · dp_j of a softmax's backward pass is dy · y, also with dropout.
        given = (qkv_N3HE, grads[0], (grads[0] * y_NHE).sum(2))
        size = 3 if ctx.dropout else 2
        kept = [flat[first : first + size] for first in range(0, len(flat), size)]
        each(partial(_backward, given, d_qkv_N3HE, ctx.dropout), ctx.packing.groups, kept)
        return d_qkv_N3HE, None, None


# Lower-case names below: a group's tensors, with histories and heads as one leading dimension: [b·H, l, E or l].


def _forward(qkv_N3HE: Tensor, y_NHE: Tensor, dropout: float, group: Group, seed: int | None) -> list[Tensor]:
    """Writes the group's part of ``y_NHE``; gives [weight, its sum, what dropout drew], for the backward pass."""
    q, k, v = _heads(group.pad(qkv_N3HE))
    weight = torch.baddbmm(_causal(group.length), q, k.transpose(1, 2), alpha=LOG2_E / math.sqrt(q.shape[2]))
    weight.sub_(weight.amax(2, keepdim=True)).exp2_()
    total = weight.sum(2, keepdim=True)
    kept, used = [weight, total], weight
    if seed is not None:
        kept.append(draw(weight.shape, seed))
        used = keep_mask(kept[2], dropout, torch.empty_like(weight)).mul_(weight)
    y = torch.bmm(used, v).mul_(scale_of(dropout) / total)
    y_NHE[group.start : group.end] = group.strip(_positions(y, group))
    return kept


def _backward(
    given: tuple[Tensor, Tensor, Tensor], d_qkv_N3HE: Tensor, dropout: float, group: Group, kept: Sequence[Tensor]
) -> None:
    """Writes the group's part of ``d_qkv_N3HE``."""
    qkv_N3HE, dy_NHE, mean_NH = given
    weight, total, *random = kept
    q, k, v = _heads(group.pad(qkv_N3HE))
    dy = group.pad(dy_NHE).transpose(1, 2).reshape(q.shape) / total
    mean = group.pad(mean_NH).transpose(1, 2).reshape(total.shape) / total
    d_weight = torch.bmm(dy, v.transpose(1, 2)).mul_(scale_of(dropout))
    used = weight
    if random:
        keep = keep_mask(random[0], dropout, torch.empty_like(weight))
        d_weight.mul_(keep)
        used = keep.mul_(weight)
    dv = torch.bmm(used.transpose(1, 2), dy).mul_(scale_of(dropout))
    d_score = d_weight.sub_(mean).mul_(weight).mul_(1 / math.sqrt(q.shape[2]))
    dq, dk = torch.bmm(d_score, k), torch.bmm(d_score.transpose(1, 2), q)
    d_bl3HE = torch.stack([_positions(d, group) for d in (dq, dk, dv)], 2)
    d_qkv_N3HE[group.start : group.end] = group.strip(d_bl3HE)


def _positions(y: Tensor, group: Group) -> Tensor:
    """[b·H, l, E] → [b, l, H, E]."""
    return y.view(group.rows, len(y) // group.rows, *y.shape[1:]).transpose(1, 2)


def _heads(qkv_bl3HE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [b·H, l, E]."""
    q, k, v = qkv_bl3HE.permute(2, 0, 3, 1, 4).flatten(1, 2)
    return q, k, v


def _causal(length: int) -> Tensor:
    """[l, l]: what is added to the scores; nothing up to the position itself, almost -∞ after it."""
    return torch.full((length, length), MASKED).triu_(1)
