"""Lets DeepSpeed clip by, and skip a step for, a gradient that it does not hold: that of a sharded table.

Enters: DeepSpeed's engine, and before each of its steps the norm of the other gradient. Leaves: the factor that
clipping has for both. Surprising choice: DeepSpeed has no place for this, so the function by which each of its
optimisers sums up its norm is wrapped, by the name that it has in 0.19; the tests hold every stage and precision
against plain torch.

| stage | precision | optimiser of DeepSpeed | wrapped |
|---|---|---|---|
| 0 | fp32 | none | ``clip_fp32_gradients`` of the engine |
| 0 | bf16 | FP16_UnfusedOptimizer | ``unscale_and_clip_grads`` |
| 1 | bf16 | BF16_Optimizer | ``get_grads_for_norm`` |
| 1, 2 | other | DeepSpeedZeroOptimizer | ``scaled_global_norm`` |
| 3 | all | DeepSpeedZeroOptimizer_Stage3 | ``_get_norm_groups`` |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""DeepSpeed's, which keeps a norm of zero from being divided by."""


class JointNorm:
    """Adds ``other``, the norm of a gradient over all ranks, to the norms of a DeepSpeed engine.

    ``clip_norm``: the largest norm, 0 for none. Where ``other`` is not finite, an optimiser that skips such steps (any
    with a loss scale) skips this one.
    """

    def __init__(self, engine: Any, clip_norm: float) -> None:
        self._clip_norm, self._other, self._total = clip_norm, torch.zeros(()), torch.zeros(())
        wrapped = engine.optimizer
        if hasattr(wrapped, "_get_norm_groups"):
            self._groups = wrapped._get_norm_groups
            wrapped._get_norm_groups = self._norm_groups
        elif hasattr(wrapped, "scaled_global_norm"):
            self._global = wrapped.scaled_global_norm
            wrapped.scaled_global_norm = lambda *args, **kwargs: self._joint(self._global(*args, **kwargs))
        elif hasattr(wrapped, "get_grads_for_norm"):
            self._gradients = wrapped.get_grads_for_norm
            wrapped.get_grads_for_norm = self._for_norm
        elif hasattr(wrapped, "unscale_and_clip_grads"):
            self._unscale = wrapped.unscale_and_clip_grads
            wrapped.unscale_and_clip_grads = lambda norm, **kwargs: self._unscale(self._joint(norm), **kwargs)
        else:
            self._engine = engine
            engine.clip_fp32_gradients = self._clip_plain

    def expect(self, other: Tensor, loss_scale: float) -> None:
        """Before a step: the norm of the other gradient, as it is without the loss scale."""
        self._other, self._loss_scale = other * loss_scale, loss_scale

    @property
    def scale(self) -> float:
        """After a step: what the clipping multiplied each gradient by."""
        if not self._clip_norm:
            return 1.0
        return min(1.0, self._clip_norm / (float(self._total) / self._loss_scale + EPSILON))

    def _joint(self, norm: Any) -> Tensor:
        """The norm of both; infinite where one is not finite, or negative, which is DeepSpeed's word for that."""
        both = torch.stack([torch.as_tensor(norm, dtype=torch.float32).reshape(()).cpu(), self._other.cpu()])
        invalid = bool((~both.isfinite() | (both < 0)).any())
        self._total = torch.tensor(torch.inf) if invalid else torch.linalg.vector_norm(both)
        return self._total.to(self._other.device)

    def _norm_groups(self) -> list[Tensor]:
        groups = [torch.as_tensor(norm, dtype=torch.float32, device=self._other.device) for norm in self._groups()]
        return [self._joint(_combined(groups))]

    def _for_norm(self, for_clipping: bool = False) -> Any:
        found = self._gradients(for_clipping=for_clipping)
        if for_clipping:
            return found
        gradients, of_experts = found
        self._joint(_combined([one.detach().float().norm() for one in gradients]))  # whole on every rank
        return [*gradients, self._other.reshape(1)], of_experts

    def _clip_plain(self) -> None:
        gradients = [one.grad for one in self._engine.module.parameters() if one.grad is not None]
        self._joint(_combined([one.norm() for one in gradients]))
        for one in gradients:
            one.mul_(self.scale)


def _combined(norms: Iterable[Tensor]) -> Tensor:
    """The norm of what has these norms; infinite where one is negative, which stands for infinite or NaN."""
    every = torch.stack(list(norms))
    return torch.where((every < 0).any(), torch.inf, torch.linalg.vector_norm(every))
