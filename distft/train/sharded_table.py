"""A table of items whose rows are shared out among the ranks: look-ups, gradients and updates of the rows of a step.

Enters: at every step the item rows that a rank's micro-batches will ask for. Leaves: their vectors, as a leaf of the
graph that the model takes instead of a table of its own; then, from the leaf's gradient, an update of these rows where
they lie. A row is looked up once a step, however often it occurs; rows that no rank looked up stay as they are, with
their optimiser state. What is exchanged are ids, vectors and gradients, each by one all-to-all.

The gradient of a leaf is W / N · S times that of this rank's summed loss (``step.train_step`` multiplies by W / N for
DeepSpeed's sake, and DeepSpeed by the loss scale S). Divided by W · S and summed over the ranks it is that of the mean
over the whole batch.

Surprising choice: row n is on rank n mod W, at place n div W, and not in a run of rows. Rows are ordered by how popular
their items are, so the rank with the first run would serve most look-ups. See
docs/decisions/0039-sharded-item-tables.md.

Shape legend: U distinct rows of a rank's step, R rows that ranks ask this one for, T touched rows of this rank, n rows
that this rank holds, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distft.component import ItemTable
from distft.errors import UsageError
from distft.losses.draws import mix, numbers
from distft.models.blocks import INIT_STD
from distft.models.looked_up import LookedUp
from distft.schema import PAD
from distft.sections.train import Train
from distft.train.settings import DTYPES

EPSILON = 1e-8
CHUNK_ROWS = 1 << 13
"""Rows that are drawn at once when a table begins."""
ROWWISE = "sum_sq"
"""State of rowwise_adagrad: one number a row."""


@dataclass(frozen=True)
class Rule:
    """How touched rows are updated. ``rate_factor``: what the learning rate of a step is multiplied by."""

    optimizer: Literal["rowwise_adagrad", "adamw"]
    rate_factor: float
    betas: tuple[float, float]
    weight_decay: float

    @classmethod
    def of(cls, section: ItemTable, train: Train) -> Rule:
        """That of a job's ``model.item_table`` and ``train``."""
        rate_factor = 1.0 if section.learning_rate is None else section.learning_rate / train.learning_rate
        return cls(section.rule, rate_factor, train.betas, train.weight_decay)

    def new_state(self, num_rows: int, dim: int, device: torch.device) -> dict[str, Tensor]:
        """State name → zeros: [n] of what is kept for a row, [n, D] of what is kept for each weight."""
        if self.optimizer == "rowwise_adagrad":
            return {ROWWISE: torch.zeros(num_rows, device=device)}
        return {name: torch.zeros(num_rows, dim, device=device) for name in ("exp_avg", "exp_avg_sq")}


class ShardedTable:
    """The rows of a table that a rank holds, and what it exchanges with the other ranks.

    ``look_up`` and ``collect`` are collective: every rank calls them, in the same order. ``path``: the module of a
    model that stands in the table's place. The table is the parameter ``<path>.weight`` of a ``Step``, by the name that
    it would have as a weight of the model.
    """

    def __init__(self, path: str, lookup: LookedUp, rule: Rule, seed: int, device: torch.device) -> None:
        self.name, self.lookup, self.rule = f"model.{path}.weight", lookup, rule
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.num_rows, self.dim = lookup.num_embeddings, lookup.embedding_dim
        self.num_held = max(0, -(-(self.num_rows - self.rank) // self.world_size))
        self.weight = initial_rows(self.rank, self.world_size, self.num_held, self.dim, seed).to(device)
        self.state = rule.new_state(self.num_held, self.dim, device)
        self.steps = 0
        self.device = device
        self._asked: _Asked | None = None
        self._leaf_UD: Tensor | None = None
        self._update: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, section: ItemTable, train: Train, seed: int, device: torch.device) -> ShardedTable:
        """The table of a model that was built without one. Raises UsageError where the model asks for none."""
        found = [(path, module) for path, module in model.named_modules() if isinstance(module, LookedUp)]
        if len(found) != 1:
            raise UsageError(
                f"model.item_table is sharded, and the model looks items up in {len(found)} tables",
                "a model with one ItemEmbedding",
                "Set model.item_table.placement to replicated.",
            )
        ((path, lookup),) = found
        lookup.dtype = DTYPES[train.precision]
        return cls(path, lookup, Rule.of(section, train), seed, device)

    @property
    def shape(self) -> tuple[int, int]:
        """That of the whole table."""
        return self.num_rows, self.dim

    # -- a step --------------------------------------------------------------------------------------------------

    def look_up(self, rows: Tensor) -> None:
        """Hands the model the vectors of these item rows (int64, of any shape, repeated or not) and of PAD."""
        rows_U = torch.unique(rows.to(self.device))
        rows_U = rows_U[rows_U != PAD]
        asked = _Asked.of(rows_U, self.world_size)
        v_RD = self.weight[asked.place_R]
        v_UD = torch.zeros(len(rows_U) + 1, self.dim, device=self.device)
        v_UD[1 + asked.order_U] = asked.back(v_RD)
        self._asked, self._leaf_UD = asked, v_UD.requires_grad_()
        self.lookup.hold(torch.cat([rows_U.new_full((1,), PAD), rows_U]), self._leaf_UD)

    def collect(self, divisor: float) -> Tensor:
        """Fetches the gradient of the looked-up rows, divided by ``divisor``; gives its norm over all ranks, a scalar.

        ``update`` then has the rows of this rank that were touched, with their gradients summed over the ranks.
        """
        assert self._asked is not None and self._leaf_UD is not None, "nothing was looked up"
        asked, gradient_UD = self._asked, self._leaf_UD.grad
        if gradient_UD is None:
            gradient_UD = torch.zeros_like(self._leaf_UD)
        gradient_RD = asked.there(gradient_UD[1:][asked.order_U] / divisor)
        touched_T, place_R = torch.unique(asked.place_R, return_inverse=True)
        gradient_TD = torch.zeros(len(touched_T), self.dim, device=self.device)
        # Rank after rank: in each part a row occurs once, so the order of the sums is fixed on a GPU too.
        parts = (torch.split(tensor, asked.received) for tensor in (place_R, gradient_RD))
        for place, part_RD in zip(*parts, strict=True):
            gradient_TD.index_add_(0, place, part_RD)
        self._update = touched_T, gradient_TD
        self._asked = self._leaf_UD = None
        self.lookup.release()
        square = gradient_TD.double().square().sum()
        if self.world_size > 1:
            dist.all_reduce(square)
        return square.sqrt().float()

    @torch.no_grad()
    def update(self, learning_rate: float, scale: float) -> None:
        """Updates the touched rows by the collected gradient times ``scale``."""
        assert self._update is not None, "no gradient was collected"
        rows_T, gradient_TD = self._update
        self.drop()
        self.steps += 1
        update_rows(self, rows_T, gradient_TD * scale, learning_rate * self.rule.rate_factor)

    def drop(self) -> None:
        """Forgets the collected gradient: of a step that is not taken."""
        self._update = None

    def hold(self, places: slice | Tensor) -> Tensor:
        """Hands the model rows of this rank alone, by place, ascending; gives them as item rows. Not collective."""
        values = self.weight[places]
        if isinstance(places, slice):
            places = torch.arange(places.start, places.start + len(values), device=self.device)
        rows = self.rank + self.world_size * places
        self.lookup.hold(rows, values)
        return rows

    # -- state ---------------------------------------------------------------------------------------------------

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """(state name, values by place) of this rank, "weight" first: what a checkpoint holds."""
        yield "weight", self.weight
        yield from self.state.items()

    def wants(self, first: int, step: int) -> bool:
        """True if some of the rows ``first``, ``first + step``, ... may be this rank's."""
        return (first - self.rank) % math.gcd(step, self.world_size) == 0

    @torch.no_grad()
    def take(self, kind: str, first: int, step: int, values: Tensor) -> None:
        """Takes those of the ``values`` that are of this rank's rows: of the rows ``first``, ``first + step``, ..."""
        rows = first + step * torch.arange(len(values))
        mine = rows % self.world_size == self.rank
        own = self.weight if kind == "weight" else self.state[kind]
        own[(rows[mine] // self.world_size).to(own.device)] = values[mine].to(own.device)


@dataclass(frozen=True)
class _Asked:
    """Who asked whom for which rows in a step: the way of the ids, by which vectors go back and gradients come.

    ``order_U``: places, among the rows asked for, of those sent to the first rank, then to the next, and so on.
    ``place_R``: places of the rows that the ranks want of this one.
    """

    order_U: Tensor
    place_R: Tensor
    sent: list[int]
    received: list[int]

    @classmethod
    def of(cls, rows_U: Tensor, world_size: int) -> _Asked:
        owner_U = owners(rows_U, world_size)
        order_U = torch.argsort(owner_U, stable=True)
        if world_size == 1:
            return cls(order_U, rows_U, [len(rows_U)], [len(rows_U)])
        sent_W = torch.bincount(owner_U, minlength=world_size)
        received_W = torch.empty_like(sent_W)
        dist.all_to_all_single(received_W, sent_W)
        sent, received = sent_W.tolist(), received_W.tolist()
        rows_R = _exchanged(rows_U[order_U], sent, received)
        return cls(order_U, rows_R // world_size, sent, received)

    def back(self, values_RD: Tensor) -> Tensor:
        """What the ranks asked this one for → what this one asked them for, in ``order_U``."""
        return values_RD if len(self.sent) == 1 else _exchanged(values_RD, self.received, self.sent)

    def there(self, values_UD: Tensor) -> Tensor:
        """Of what this rank asked for, in ``order_U`` → of what the ranks asked this one for."""
        return values_UD if len(self.sent) == 1 else _exchanged(values_UD, self.sent, self.received)


def owners(rows: Tensor, world_size: int) -> Tensor:
    """The rank that holds each item row, [...]."""
    return rows % world_size


def _exchanged(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """The rows of ``values``, so many to each rank, against those of the other ranks, so many from each."""
    found = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(found, values.contiguous(), received, sent)
    return found


def update_rows(table: ShardedTable, rows_T: Tensor, gradient_TD: Tensor, rate: float) -> None:
    """One step of the table's optimiser on some of its rows; weight decay is decoupled, and of these rows alone.

    rowwise_adagrad: Adagrad (Duchi et al., 2011) with the mean square of a row's gradient in the place of the square of
    each number. adamw: Loshchilov and Hutter (2019, arXiv:1711.05101); its bias correction counts the table's steps, as
    torch's SparseAdam does, and the moments of other rows do not decay.
    """
    rule, state = table.rule, table.state
    weight_TD = table.weight[rows_T] * (1 - rate * rule.weight_decay)
    if rule.optimizer == "rowwise_adagrad":
        sum_T = state[ROWWISE][rows_T] + gradient_TD.square().mean(1)
        state[ROWWISE][rows_T] = sum_T
        table.weight[rows_T] = weight_TD - rate * gradient_TD / (sum_T.sqrt() + EPSILON)[:, None]
        return
    (first, second), steps = rule.betas, table.steps
    mean_TD = state["exp_avg"][rows_T].lerp_(gradient_TD, 1 - first)
    square_TD = state["exp_avg_sq"][rows_T].mul_(second).addcmul_(gradient_TD, gradient_TD, value=1 - second)
    state["exp_avg"][rows_T], state["exp_avg_sq"][rows_T] = mean_TD, square_TD
    size_TD = (square_TD / (1 - second**steps)).sqrt_().add_(EPSILON)
    table.weight[rows_T] = weight_TD - rate / (1 - first**steps) * mean_TD / size_TD


def initial_rows(first: int, step: int, count: int, dim: int, seed: int) -> Tensor:
    """[n, D]: the vectors that the rows ``first``, ``first + step``, ... begin with; that of PAD is zero.

    Normal with the standard deviation of the other tables. Each number is a function of seed, row and column, so that
    a table begins alike on any number of ranks, and no rank draws another's rows.
    """
    key = int(np.random.SeedSequence([seed, dim]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    out_ND = torch.empty(count, dim)
    for start in range(0, count, CHUNK_ROWS):
        rows_C = first + step * torch.arange(start, min(start + CHUNK_ROWS, count))
        out_ND[start : start + len(rows_C)] = _normal(mix(rows_C ^ key), dim) * INIT_STD
    if first <= PAD and count:
        out_ND[PAD // step] = 0
    return out_ND


def _normal(key_N: Tensor, dim: int) -> Tensor:
    """Standard normal numbers [N, D] by Box and Muller: two of each random number of 64 bits."""
    random_NH = numbers(key_N, -(-dim // 2))
    low = ((random_NH & 0xFFFFFFFF).float() + 0.5) * 2.0**-32
    high = (((random_NH >> 32) & 0xFFFFFFFF).float() + 0.5) * 2.0**-32
    radius, angle = (-2 * low.log()).sqrt_(), 2 * math.pi * high
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :dim]
