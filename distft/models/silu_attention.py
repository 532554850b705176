"""Causal attention without a softmax, over packed histories: the pointwise aggregation of HSTU.

Enters: queries, keys and values of all packed positions, and what pairs of positions gain by their distance in events
and in time. Leaves: for each position the sum of the values up to it, weighted by SiLU(q·k + gains) (Zhai et al.,
2024, arXiv:2402.17152). ``attend_plainly`` is that, written with torch's operations; ``attend`` computes the same on a
CPU a group at a time, so that all stays in the cache, with half of the tensors kept for the backward pass. Surprising
choice: weights are divided by the model's ``max_history`` and not by what a batch is padded to, so that padding
changes nothing; here that is the length of ``distance_L``.

Shape legend: N packed positions, H heads, E width of a head, L distances, T codes of time, b histories and l positions
of one group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.models.packing import Group, Packing
from distft.models.threads import each


def attend(
    qkv_N3HE: Tensor, distance_L: Tensor, elapsed_T: Tensor | None, packing: Packing, codes: tuple[Tensor, ...]
) -> Tensor:
    """y_NHE. ``codes``: the time between any two positions of each group, uint8 [b, l, l]."""
    if qkv_N3HE.device.type == "cpu" and qkv_N3HE.dtype == torch.float32:
        y_NHE: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
            qkv_N3HE, distance_L, elapsed_T, packing, codes
        )
        return y_NHE
    return attend_plainly(qkv_N3HE, distance_L, elapsed_T, packing, codes)


def attend_plainly(
    qkv_N3HE: Tensor, distance_L: Tensor, elapsed_T: Tensor | None, packing: Packing, codes: tuple[Tensor, ...]
) -> Tensor:
    """The same by torch's own operations."""
    parts = []
    for group, code_bll in zip(packing.groups, codes, strict=True):
        q_bHlE, k_bHlE, v_bHlE = group.pad(qkv_N3HE).permute(2, 0, 3, 1, 4).unbind(0)
        far_ll, past_ll = _distances(group.length, qkv_N3HE.device)
        gain_bll = distance_L[far_ll] if elapsed_T is None else distance_L[far_ll] + elapsed_T[code_bll.long()]
        score_bHll = q_bHlE @ k_bHlE.transpose(2, 3) + gain_bll.view(-1, 1, group.length, group.length)
        weight_bHll = F.silu(score_bHll) * past_ll.to(score_bHll.dtype) / len(distance_L)
        parts.append(group.strip((weight_bHll @ v_bHlE).transpose(1, 2)))
    return torch.cat(parts) if parts else qkv_N3HE[:, 2]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_N3HE: Tensor,
        distance_L: Tensor,
        elapsed_T: Tensor | None,
        packing: Packing,
        codes: tuple[Tensor, ...],
    ) -> Tensor:
        y_NHE = torch.empty_like(qkv_N3HE[:, 0])
        kept = each(partial(_forward, qkv_N3HE, distance_L, elapsed_T, y_NHE), packing.groups, codes)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(qkv_N3HE, distance_L, *(tensor for tensors in kept for tensor in tensors))
            ctx.packing, ctx.codes, ctx.num_codes = packing, codes, None if elapsed_T is None else len(elapsed_T)
        return y_NHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_N3HE, distance_L, *flat = ctx.saved_tensors
        d_qkv_N3HE = torch.empty_like(qkv_N3HE)
        kept = [flat[first : first + 2] for first in range(0, len(flat), 2)]
        backward = partial(_backward, (qkv_N3HE, grads[0]), d_qkv_N3HE, len(distance_L), ctx.num_codes)
        parts = each(backward, ctx.packing.groups, ctx.codes, kept)
        d_distance_L = torch.zeros_like(distance_L)
        d_elapsed_T = None if ctx.num_codes is None else torch.zeros(ctx.num_codes, dtype=distance_L.dtype)
        for d_distance, d_elapsed in parts:
            d_distance_L += d_distance
            if d_elapsed_T is not None and d_elapsed is not None:
                d_elapsed_T += d_elapsed
        return d_qkv_N3HE, d_distance_L, d_elapsed_T, None, None


# Lower-case names below: a group's tensors; those of heads have histories and heads as one leading dimension.


def _forward(
    qkv_N3HE: Tensor, distance_L: Tensor, elapsed_T: Tensor | None, y_NHE: Tensor, group: Group, code: Tensor
) -> list[Tensor]:
    """Writes the group's part of ``y_NHE``; gives [score, its sigmoid], for the backward pass."""
    q, k, v = _heads(group.pad(qkv_N3HE))
    far, past = _distances(group.length, qkv_N3HE.device)
    score = torch.bmm(q, k.transpose(1, 2))
    each_head = score.view(group.rows, -1, group.length, group.length)
    each_head += distance_L[far]
    if elapsed_T is not None:
        each_head += elapsed_T.index_select(0, code.flatten().int()).view(code.shape)[:, None]
    sigmoid = torch.sigmoid(score).mul_(past)
    y = torch.bmm(score * sigmoid, v).div_(len(distance_L))
    y_NHE[group.start : group.end] = group.strip(_positions(y, group))
    return [score, sigmoid]


def _backward(  # noqa: PLR0913
    given: tuple[Tensor, Tensor],
    d_qkv_N3HE: Tensor,
    num_distances: int,
    num_codes: int | None,
    group: Group,
    code: Tensor,
    kept: list[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """Writes the group's part of ``d_qkv_N3HE``; gives the gradients of distance_L and elapsed_T."""
    qkv_N3HE, dy_NHE = given
    score, sigmoid = kept
    q, k, v = _heads(group.pad(qkv_N3HE))
    dy = group.pad(dy_NHE).transpose(1, 2).reshape(q.shape) / num_distances
    weight = score * sigmoid
    dv = torch.bmm(weight.transpose(1, 2), dy)
    # The derivative of s · σ(s) is σ + s·σ·(1 - σ); where σ was set to 0, after the position, it is 0.
    slope = weight.addcmul_(weight, sigmoid, value=-1).add_(sigmoid)
    d_score = torch.bmm(dy, v.transpose(1, 2)).mul_(slope)
    dq, dk = torch.bmm(d_score, k), torch.bmm(d_score.transpose(1, 2), q)
    d_bl3HE = torch.stack([_positions(d, group) for d in (dq, dk, dv)], 2)
    d_qkv_N3HE[group.start : group.end] = group.strip(d_bl3HE)
    d_gain = d_score.view(group.rows, -1, group.length, group.length).sum(1)
    far, _ = _distances(group.length, score.device)
    d_distance = d_gain.new_zeros(num_distances).index_add_(0, far.flatten(), d_gain.sum(0).flatten())
    if num_codes is None:
        return d_distance, None
    return d_distance, d_gain.new_zeros(num_codes).index_add_(0, code.flatten().int(), d_gain.flatten())


def _distances(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(How many events back column j lies from row i, 0 where it comes after; 1 up to the position and 0 after.)"""
    place = torch.arange(length, device=device)
    far = place[:, None] - place
    return far.clamp(min=0), (far >= 0).float()


def _positions(y: Tensor, group: Group) -> Tensor:
    """[b·H, l, E] → [b, l, H, E]."""
    return y.view(group.rows, len(y) // group.rows, *y.shape[1:]).transpose(1, 2)


def _heads(qkv_bl3HE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [b·H, l, E]."""
    q, k, v = qkv_bl3HE.permute(2, 0, 3, 1, 4).flatten(1, 2)
    return q, k, v
