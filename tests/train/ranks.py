"""Runs a function in several processes that share a gloo group, and toy parts to train there."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from distft.losses.base import Loss
from distft.models.base import Model
from distft.schema import PAD, Batch

NUM_ITEMS, DIM, LENGTH = 23, 6, 5


class Toy(Model):
    """An embedding, a linear layer, a frozen scale and a buffer: the smallest model with all kinds of state."""

    retrieval = "dot"
    num_items, state_dim = NUM_ITEMS, DIM

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS, DIM, padding_idx=PAD)
        self.mix = nn.Linear(DIM, DIM)
        self.fixed = nn.Linear(DIM, DIM, bias=False)
        self.fixed.requires_grad_(False)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("seen", torch.arange(3))

    def states(self, batch: Batch) -> Tensor:
        return self.drop(self.fixed(torch.tanh(self.mix(self.items(batch.item_BL)))))

    def item_vectors(self, items_N: Tensor) -> Tensor:
        return self.items(items_N)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"embeddings": list(self.items.parameters()), "head": [*self.mix.parameters(), *self.fixed.parameters()]}


class ToyLoss(Loss):
    """Cross-entropy over all rows, as a sum."""

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        wanted_BL = batch.target_BL != PAD
        s_MV = x_BLD[wanted_BL].float() @ model.item_vectors(torch.arange(NUM_ITEMS)).float().T
        return nn.functional.cross_entropy(s_MV, batch.target_BL[wanted_BL], reduction="sum"), wanted_BL.sum()


def toy_batch(rows: int, seed: int) -> Batch:
    """``rows`` histories of up to LENGTH positions, about half of them with a target."""
    draw = torch.Generator().manual_seed(seed)
    item_BL = torch.randint(2, NUM_ITEMS, (rows, LENGTH), generator=draw)
    target_BL = torch.randint(2, NUM_ITEMS, (rows, LENGTH), generator=draw)
    target_BL *= torch.rand(rows, LENGTH, generator=draw) < 0.5
    return Batch(
        item_BL=item_BL,
        event_BL=torch.ones_like(item_BL),
        gap_BL=torch.zeros_like(item_BL),
        query_BLQ=torch.zeros(rows, LENGTH, 0, dtype=torch.int64),
        length_B=torch.full((rows,), LENGTH),
        target_BL=target_BL,
        target_value_BL=torch.zeros(rows, LENGTH),
        user_row_B=torch.arange(rows),
        key_B=torch.randint(2**62, (rows,), generator=draw),
        step_key_B=torch.full((rows,), seed // 10),
        label_BL=torch.zeros_like(item_BL),
        user_codes_BK=torch.zeros(rows, 0, dtype=torch.int64),
        user_numbers_BG=torch.zeros(rows, 0),
    )


@contextmanager
def group(rank: int, world_size: int, folder: str) -> Iterator[None]:
    """A gloo process group that finds itself through a file."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _enter(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with group(rank, world_size, folder):
        torch.save(function(*args), os.path.join(folder, f"result-{rank}"))


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returned on each of ``world_size`` ranks, each in a process of its own.

    They are forked from a process that has imported what takes seconds, once for all tests.
    """
    multiprocessing.set_forkserver_preload(["tests.train.preload"])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_enter, (world_size, folder, function, args), world_size, start_method="forkserver")
        return [torch.load(os.path.join(folder, f"result-{rank}"), weights_only=False) for rank in range(world_size)]
