"""Matrix products in fp32 on a CPU, by the faster of the two libraries inside torch; and the linear layer on top.

Enters: dense matrices. Leaves: their product. torch hands fp32 products to MKL, which keeps to AVX2 on processors of
other makers than its own: half of the speed of oneDNN, which takes AVX-512 wherever it is. Surprising choice: oneDNN
is reached through the operator that torch's own compiler calls, because there is no public way; where it is missing,
and on GPUs and at other precisions, all is plain torch. Which of the two it is depends on the machine and on nothing
else, so that a run repeats bit for bit.

Shape legend: N rows, K inner width, M columns.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Both keep 1,024 compiled products, one for each shape; packed rows hardly ever have the same number twice, so that
# they only fill: 1.3 GB of a worker after 60 steps of long histories. They are read when the first product is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")


def onednn_takes(tensor: Tensor) -> bool:
    """True where products of such tensors go through oneDNN."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and _has_onednn()


def times_transposed(a_NK: Tensor, b_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """The product a @ b.T (+ bias), [N, M], outside of autograd.

    ``b_MK`` may be a transposed view at no cost; ``a_NK`` should be contiguous.
    """
    if onednn_takes(a_NK) and b_MK.dtype == a_NK.dtype and a_NK.numel() and b_MK.numel():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, bias_M, "none", [], "")
        return product
    return F.linear(a_NK, b_MK, bias_M)


class Linear(nn.Linear):
    """nn.Linear with the faster product."""

    def forward(self, input: Tensor) -> Tensor:
        """The rows [..., M] of ``input`` [..., K]."""
        if not onednn_takes(input) or self.weight.dtype != input.dtype:
            return F.linear(input, self.weight, self.bias)
        rows_NK = input.reshape(-1, input.shape[-1])
        out_NM: Tensor = _Linear.apply(rows_NK, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out_NM.view(*input.shape[:-1], len(self.weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, w_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NK, w_MK)
        return times_transposed(x_NK, w_MK, bias_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NM,) = (grad.contiguous() for grad in grads)
        x_NK, w_MK = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        dx_NK = times_transposed(dy_NM, w_MK.T) if needs_x else None
        dw_MK = times_transposed(x_NK.T.contiguous(), dy_NM.T).T if needs_w else None
        return dx_NK, dw_MK, dy_NM.sum(0) if needs_bias else None


@cache
def _has_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
