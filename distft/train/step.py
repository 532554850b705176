"""One optimiser step, on one screen.

Enters: this rank's micro-batches of a step. Leaves: updated weights, and the loss over the whole batch of all
ranks. Surprising choice: the number of targets is summed over the ranks before the first backward pass, so that
the gradient is that of one mean over the whole batch, however the batch was cut.

Shape legend: B histories, L positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from distft.errors import NotFiniteError
from distft.losses.base import Loss
from distft.models.base import Model, last_states, states_once
from distft.ranking import item_scores, ranks_by, target_scores
from distft.schema import PAD, Batch
from distft.train.engine import Engine
from distft.train.position import here
from distft.train.sharded_ranks import sharded_ranks
from distft.train.sharded_table import ShardedTable


@dataclass(frozen=True)
class RankTargets:
    """What a validation batch is ranked against: ``target_B`` item rows, and the rows each history rules out.

    ``scored``: the targets are not ranked, but only scored.
    """

    target_B: Tensor
    excluded: list[NDArray[np.int32]] | None
    scored: bool = False


class Step(nn.Module):
    """Model and loss as the one module that DeepSpeed wraps: no parameter is touched outside of its forward.

    ``table``: where the items' rows lie, if the model has no table of its own. Rows that a forward pass needs must be
    looked up before it.
    """

    def __init__(self, model: Model, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.frozen: tuple[str, ...] = ()
        self.table: ShardedTable | None = None

    def train(self, mode: bool = True) -> Step:
        """Turns dropout on or off; never on in the modules that are ``frozen``, by their names."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, batch: Batch, targets: RankTargets | None = None) -> tuple[Tensor, ...]:
        """(loss_sum fp32, count), and with ``targets`` also their ranks over the whole catalogue, rank_B, or scores."""
        x_BLD = self.model.states(batch) if targets is None else states_once(self.model, batch)
        loss_sum, count = self.loss(self.model, x_BLD, batch)
        if targets is None:
            return loss_sum, count
        x_BD = last_states(x_BLD, batch.length_B)
        if targets.scored:
            return loss_sum, count, target_scores(self.model, x_BD, targets.target_B, batch)
        if self.table is not None:
            return loss_sum, count, sharded_ranks(self.model, self.table, x_BD, targets.target_B, targets.excluded)
        scores = item_scores(self.model, x_BD, batch)
        return loss_sum, count, ranks_by(scores, self.model.num_items, targets.target_B, targets.excluded)

    def look_up(self, batches: Sequence[Batch], targets: RankTargets | None = None) -> None:
        """Looks up all item rows that forward passes over these micro-batches need; collective.

        With ``targets`` that are only scored, also theirs.
        """
        if self.table is None:
            return
        rows = [row for batch in batches for row in (batch.item_BL.flatten(), self.loss.item_rows(batch))]
        if targets is not None and targets.scored:
            rows.append(targets.target_B)
        self.table.look_up(torch.cat([torch.zeros(0, dtype=torch.int64, device=self.table.device), *rows]))


@dataclass(frozen=True)
class StepResult:
    """Over all ranks: the summed loss, the number of targets, and of events that were read.

    ``save_wanted``: some rank was asked for a checkpoint; all ranks learn of it in the same step.
    """

    loss_sum: float
    count: int
    num_tokens: int
    save_wanted: bool = False


def train_step(engine: Engine, batches: Sequence[Batch], empty: Batch, step: int, learning_rate: float) -> StepResult:
    """Takes one optimiser step on the micro-batches of all ranks; every rank calls it, if need be with none.

    Let rank r hold micro-batches with loss sums l_ri, W ranks, N the count of targets over all of them. Wanted is
    the gradient of (sum of all l_ri) / N. DeepSpeed adds up what a rank hands to ``backward`` and averages over
    ranks, which divides by W; its own division by the number of micro-batches is switched off. So each l_ri is
    multiplied by W / N, in fp32 and before the backward pass:

        1/W · Σ_r Σ_i ∇(W / N · l_ri)  =  ∇ (Σ_r Σ_i l_ri) / N

    All ranks run as many micro-batches as the one with most of them, because ZeRO's collectives are part of every
    pass; ``empty`` fills up: it has no targets, but goes through every parameter. Raises NotFiniteError where the
    loss is not finite, before any weight has changed. Rows of a sharded table are looked up once for all micro-batches.
    """
    here.at("exchange of counts", step)
    counts = [(int((batch.target_BL != PAD).sum()), int(batch.length_B.sum())) for batch in batches]
    table = torch.zeros(engine.world_size, 4, dtype=torch.float64, device=engine.device)
    mine = [len(batches), sum(count for count, _ in counts), sum(size for _, size in counts), here.save_wanted]
    table[engine.rank] = torch.tensor(mine, dtype=torch.float64, device=engine.device)
    _summed(table, engine)
    rounds, total, tokens = int(table[:, 0].max()), int(table[:, 1].sum()), int(table[:, 2].sum())
    save_wanted = bool(table[:, 3].any())
    if total == 0:
        return StepResult(0.0, 0, tokens, save_wanted)
    loss_total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    micro = [(batches[index] if index < len(batches) else empty).to(engine.device) for index in range(rounds)]
    engine.look_up(micro)
    for index, batch in enumerate(micro):
        here.at("forward pass")
        loss_sum, count = engine(batch)
        loss_total += torch.stack([loss_sum.detach().double(), count.double()])
        if index == rounds - 1:
            here.at("exchange of losses")
            _summed(loss_total, engine)
            _check(loss_total, total, step)
        here.at("backward pass")
        engine.backward(loss_sum * (engine.world_size / total), last=index == rounds - 1)
    here.at("update")
    engine.step(learning_rate)
    return StepResult(float(loss_total[0]), total, tokens, save_wanted)


def _summed(table: Tensor, engine: Engine) -> None:
    """Adds up what all ranks hold, in place; of one rank there is nothing to add."""
    if engine.world_size > 1:
        dist.all_reduce(table)


def _check(loss_total: Tensor, total: int, step: int) -> None:
    loss_sum, count = loss_total.tolist()
    if not math.isfinite(loss_sum):
        raise NotFiniteError(
            f"The loss of step {step} is {loss_sum}",
            "a finite number",
            "Lower train.learning_rate, set train.clip_norm or train.warmup_steps, or use precision fp32 or bf16.",
        )
    assert int(count) == total, f"the loss counted {int(count)} targets, the batches have {total}"
