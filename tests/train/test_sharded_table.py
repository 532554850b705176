"""Rows of a table shared out among ranks, against a whole table on every rank."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distft.component import ItemTable
from distft.models.looked_up import LookedUp
from distft.sections.train import Train
from distft.train.sharded_table import Rule, ShardedTable, initial_rows
from tests.train.plain_table import PlainTable
from tests.train.ranks import run_ranks

NUM_ROWS, DIM, NUM_STEPS, SEED = 201, 6, 4, 7
CPU = torch.device("cpu")
RULES = ("rowwise_adagrad", "adamw")


def rule_of(optimizer: str) -> Rule:
    section = ItemTable.model_validate({"placement": "sharded", "optimizer": optimizer, "learning_rate": 0.02})
    return Rule.of(section, Train(learning_rate=0.01, weight_decay=0.1))


def asked(rank: int, step: int) -> torch.Tensor:
    """Rows that a rank asks for: some repeated, PAD among them; rank 2 asks for nothing, rank 1 rarely."""
    draw = torch.Generator().manual_seed(10 * step + rank)
    count = (9, 0 if step == 1 else 4, 0, 12)[rank]
    return torch.randint(0, NUM_ROWS, (count, 2), generator=draw)


def stepped(table: Any, optimizer: str) -> None:
    """A few steps whose loss is a quadratic of the rows; a whole table gets the rows of all ranks at once."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for step in range(NUM_STEPS):
        rows = asked(rank, step)
        table.look_up(rows)
        v = table.lookup(rows)
        target = torch.sin(rows[..., None] + torch.arange(DIM) + rank)
        (3.0 * world_size * ((v - target) ** 2).sum()).backward()
        norm = table.collect(3.0 * world_size)
        assert norm > 0
        table.update(0.1, 0.5 if step % 2 else 1.0)


def whole(optimizer: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(This rank's rows, the rows of the twin, this rank's state)."""
    table = ShardedTable("items", LookedUp(NUM_ROWS, DIM), rule_of(optimizer), SEED, CPU)
    plain = PlainTable("items", LookedUp(NUM_ROWS, DIM), rule_of(optimizer), SEED)
    stepped(table, optimizer)
    stepped(plain, optimizer)
    return table.weight, plain.weight, table.state


def assert_as_the_twin(optimizer: str, ranks: list[Any]) -> None:
    world_size = len(ranks)
    for rank, (weight, plain, _) in enumerate(ranks):
        torch.testing.assert_close(weight, plain[rank::world_size], rtol=1e-5, atol=1e-6)
        assert not torch.equal(plain, initial_rows(0, 1, NUM_ROWS, DIM, SEED))
    rows = torch.cat([asked(rank, step).flatten() for rank in range(world_size) for step in range(NUM_STEPS)])
    untouched = torch.ones(NUM_ROWS, dtype=torch.bool)
    untouched[rows] = False
    untouched[0] = True
    before = initial_rows(0, 1, NUM_ROWS, DIM, SEED)
    for rank, (weight, _, state) in enumerate(ranks):
        still = untouched[rank::world_size]
        assert still.any() and torch.equal(weight[still], before[rank::world_size][still])
        assert all(not values[still].any() and values[~still].any() for values in state.values())


@pytest.mark.parametrize("optimizer", RULES)
def test_one_rank_updates_the_rows_that_it_looked_up_as_a_whole_table_would(optimizer: str, one_rank: None) -> None:
    assert_as_the_twin(optimizer, [whole(optimizer)])


def all_rules() -> list[Any]:
    return [whole(optimizer) for optimizer in RULES]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.proof)])
def test_ranks_update_together_what_a_whole_table_would(world_size: int) -> None:
    ranks = run_ranks(world_size, all_rules)
    for index, optimizer in enumerate(RULES):
        assert_as_the_twin(optimizer, [rank[index] for rank in ranks])


def test_a_table_begins_alike_on_any_number_of_ranks() -> None:
    whole = initial_rows(0, 1, 200_000, 5, 3)
    for first, step in ((0, 3), (2, 3), (1, 64)):
        part = initial_rows(first, step, len(range(first, 200_000, step)), 5, 3)
        assert torch.equal(part, whole[first::step])
    assert not whole[0].any() and whole[1:].all(1).any()
    other = initial_rows(0, 1, 200_000, 5, 4)
    assert not torch.isclose(whole[1:], other[1:]).all(1).any()
    numbers = whole[1:].flatten() / 0.02
    assert abs(float(numbers.mean())) < 0.01 and float(numbers.std()) == pytest.approx(1, abs=0.01)
    assert float((numbers.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.002)
    assert len(numbers.unique()) > 0.99 * len(numbers)
    correlation = torch.corrcoef(whole[1:].T) - torch.eye(5)
    assert correlation.abs().max() < 0.02


def test_a_row_that_was_not_looked_up_is_not_given(one_rank: None) -> None:
    table = ShardedTable("items", LookedUp(NUM_ROWS, DIM), rule_of("adamw"), SEED, CPU)
    table.look_up(torch.tensor([5, 3, 5]))
    rows = torch.tensor([[3, 0], [5, 5]])
    assert torch.equal(table.lookup(rows), table.weight[rows])
    with pytest.raises(AssertionError, match="not looked up"):
        table.lookup(torch.tensor([4]))
    assert table.lookup(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, DIM)


def test_files_without_any_row_of_a_rank_are_known(one_rank: None) -> None:
    table = ShardedTable("items", LookedUp(NUM_ROWS, DIM), rule_of("adamw"), SEED, CPU)
    for step, world_size in product(range(1, 7), repeat=2):
        for first, rank in product(range(step), range(world_size)):
            table.rank, table.world_size = rank, world_size
            assert table.wants(first, step) == any(row % world_size == rank for row in range(first, 100, step))
