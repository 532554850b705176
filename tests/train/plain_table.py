"""The plain twin of a sharded table: every rank holds all rows, gradients are dense, and a mask says what was touched.

What ``ShardedTable`` does by exchange, this does by summing whole tables: the replicated table that it is measured
against, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distft.schema import PAD
from distft.train.sharded_table import EPSILON, Rule, initial_rows


class PlainTable:
    """All that a step and an engine ask of a ``ShardedTable``."""

    rank, world_size = 0, 1  # of the rows: all are here

    def __init__(self, path: str, lookup: Any, rule: Rule, seed: int) -> None:
        self.name, self.lookup, self.rule, self.device = f"model.{path}.weight", lookup, rule, torch.device("cpu")
        self.num_rows, self.dim = lookup.num_embeddings, lookup.embedding_dim
        self.weight = initial_rows(0, 1, self.num_rows, self.dim, seed)
        self.sum_N = torch.zeros(self.num_rows)
        self.mean_ND, self.square_ND = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.dim

    def look_up(self, rows: Tensor) -> None:
        self.touched_N = torch.zeros(self.num_rows)
        self.touched_N[rows] = 1
        self.touched_N[PAD] = 0
        self.leaf_ND = self.weight.clone().requires_grad_()
        self.lookup.hold(torch.arange(self.num_rows), self.leaf_ND)

    def collect(self, divisor: float) -> Tensor:
        gradient_ND = self.leaf_ND.grad if self.leaf_ND.grad is not None else torch.zeros_like(self.weight)
        self.gradient_ND = gradient_ND / divisor
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.gradient_ND)
            dist.all_reduce(self.touched_N)
        self.gradient_ND[PAD] = 0
        return self.gradient_ND.norm()

    def update(self, learning_rate: float, scale: float) -> None:
        g_ND, on_N1 = self.gradient_ND * scale, (self.touched_N > 0)[:, None]
        self.steps += 1
        rate, (first, second) = learning_rate * self.rule.rate_factor, self.rule.betas
        if self.rule.optimizer == "rowwise_adagrad":
            self.sum_N += (g_ND**2).mean(1)
            move_ND = g_ND / (self.sum_N.sqrt() + EPSILON)[:, None]
        else:
            self.mean_ND = torch.where(on_N1, first * self.mean_ND + (1 - first) * g_ND, self.mean_ND)
            self.square_ND = torch.where(on_N1, second * self.square_ND + (1 - second) * g_ND**2, self.square_ND)
            size_ND = (self.square_ND / (1 - second**self.steps)).sqrt() + EPSILON
            move_ND = self.mean_ND / (1 - first**self.steps) / size_ND
        decayed_ND = self.weight * (1 - rate * self.rule.weight_decay)
        self.weight = torch.where(on_N1, decayed_ND - rate * move_ND, self.weight)

    def drop(self) -> None:
        pass
