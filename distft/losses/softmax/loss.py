"""Full softmax cross-entropy that never holds the logits of all positions at once.

Enters: states, a batch with targets. Leaves: the loss's sum and count. Surprising choice: the gradients of states
and item vectors are computed already in the forward pass, chunk by chunk while the logits are at hand, and only
scaled in the backward pass: three matrix products in all, as many as without chunks, and no recomputation.

Shape legend: M positions with a target, C positions of one chunk, D width, V items of the catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distft.losses.base import Loss
from distft.models.base import Model
from distft.schema import NUM_RESERVED, PAD, Batch

if TYPE_CHECKING:
    from distft.losses.softmax.config import Config


class Softmax(Loss):
    """-log p(target), p the softmax over every real item's score; PAD and UNKNOWN take no part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count); label smoothing spreads its share evenly over all items."""
        wanted_BL = batch.target_BL != PAD
        x_MD = x_BLD[wanted_BL]
        target_M = batch.target_BL[wanted_BL] - NUM_RESERVED
        items_V = torch.arange(NUM_RESERVED, model.num_items, device=x_BLD.device)
        v_VD = model.item_vectors(items_V)
        loss_sum = chunked_cross_entropy(x_MD, v_VD, target_M, self.config.label_smoothing, self.config.max_logits)
        return loss_sum, wanted_BL.sum()


def chunked_cross_entropy(
    x_MD: Tensor, v_VD: Tensor, target_M: Tensor, label_smoothing: float, max_logits: int
) -> Tensor:
    """Sum over M of cross-entropy(x_MD @ v_VD.T, target_M), at most ``max_logits`` logits at a time."""
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x_MD, v_VD, target_M, label_smoothing, max_logits
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, v_VD: Tensor, target_M: Tensor, label_smoothing: float, max_logits: int
    ) -> Tensor:
        num_positions, num_items = len(x_MD), len(v_VD)
        width = max(1, max_logits // num_items)
        needs_x, needs_v = ctx.needs_input_grad[:2]
        dx_MD = torch.zeros_like(x_MD) if needs_x else None
        dv_VD = torch.zeros(v_VD.shape, dtype=torch.float32, device=v_VD.device) if needs_v else None
        loss_sum = torch.zeros((), dtype=torch.float32, device=x_MD.device)
        for start in range(0, num_positions, width):
            x_CD, target_C1 = x_MD[start : start + width], target_M[start : start + width, None]
            s_CV = (x_CD @ v_VD.T).float()
            target_s_C1 = s_CV.gather(1, target_C1)
            norm_C1 = torch.logsumexp(s_CV, dim=1, keepdim=True)
            loss_C1 = norm_C1 - (1 - label_smoothing) * target_s_C1
            if label_smoothing:
                loss_C1 = loss_C1 - label_smoothing * s_CV.mean(1, keepdim=True)
            loss_sum += loss_C1.sum()
            if dx_MD is None and dv_VD is None:
                continue
            # d loss / d s = softmax(s) - smoothed one-hot, written over the logits to save their memory twice.
            g_CV = s_CV.sub_(norm_C1).exp_()
            if label_smoothing:
                g_CV -= label_smoothing / num_items
            g_CV.scatter_add_(1, target_C1, torch.full_like(target_s_C1, label_smoothing - 1))
            g_CV = g_CV.to(x_MD.dtype)
            if dx_MD is not None:
                dx_MD[start : start + width] = g_CV @ v_VD
            if dv_VD is not None:
                dv_VD += g_CV.T @ x_CD
        ctx.save_for_backward(dx_MD, dv_VD)
        ctx.dtype = v_VD.dtype
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        dx_MD, dv_VD = ctx.saved_tensors
        dx = None if dx_MD is None else dx_MD * scale.to(dx_MD.dtype)
        dv = None if dv_VD is None else (dv_VD * scale).to(ctx.dtype)
        return dx, dv, None, None, None
