"""A step with a sharded table: DeepSpeed and the table together against plain torch on the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distft.component import ItemTable
from distft.losses.sampled_softmax.config import Config as SampledSoftmax
from distft.models.transformer.config import Config as Transformer
from distft.ranking import item_scores, ranks_by
from distft.schema import Catalog
from distft.sections.train import Train
from distft.topk import MISS
from distft.train.engine import Engine
from distft.train.settings import ParameterGroup, build_optimizer, learning_rate
from distft.train.sharded_ranks import sharded_ranks
from distft.train.sharded_table import Rule, ShardedTable
from distft.train.step import Step, train_step
from tests.train.plain_table import PlainTable
from tests.train.ranks import LENGTH, NUM_ITEMS, run_ranks, toy_batch

NUM_STEPS, SEED = 3, 7
ROWS = (3, 4, 2)
OWNER = {1: (0, 0, 0), 2: (0, 0, 1), 4: (0, 1, 1, 3)}
CPU = torch.device("cpu")


def config(**changes: Any) -> dict[str, Any]:
    return {"weight_decay": 0.01, "clip_norm": 0.5, "warmup_steps": 2, "learning_rate": 0.05, **changes}


def module_of(has_table: bool = False, shared: bool = True) -> Step:
    torch.manual_seed(5)
    catalog = Catalog(NUM_ITEMS, 3, 0, True, has_item_table=has_table)
    model = Transformer(dim=8, num_heads=2, num_blocks=1, dropout=0.0, max_history=LENGTH).build(catalog)
    return Step(model, SampledSoftmax(num_negatives=5, negatives_shared=shared).build(catalog, model.state_dim))


def sharded(train: Train, optimizer: str = "adamw", shared: bool = True) -> Engine:
    module = module_of(shared=shared)
    section = ItemTable.model_validate({"placement": "sharded", "optimizer": optimizer})
    module.table = ShardedTable.of(module.model, section, train, SEED, CPU)
    module.table.weight *= 10  # so that the table's gradient is much of the norm
    return Engine(module, train, CPU)


def trained(train: dict[str, Any], optimizer: str) -> dict[str, torch.Tensor]:
    """fp32 weights after NUM_STEPS, as far as this rank holds them; the rest is NaN."""
    job = Train.model_validate(train)
    engine = sharded(job, optimizer, train.get("precision") != "bf16")
    table = engine.table
    assert table is not None
    owner = OWNER[engine.world_size]
    for step in range(NUM_STEPS):
        mine = [index for index in range(len(ROWS)) if owner[index] == engine.rank]
        batches = [toy_batch(ROWS[index], 10 * step + index) for index in mine]
        train_step(engine, batches, toy_batch(0, 0), step, learning_rate(job, step, NUM_STEPS))
    weights = {name: torch.full(shape, torch.nan) for name, shape in engine.shapes.items()}
    for part in engine.slices():
        weights[part.name].view(-1)[part.offset : part.offset + part.length] = part.view(part.master)
    weights[table.name] = torch.full(table.shape, torch.nan)
    weights[table.name][table.rank :: table.world_size] = table.weight
    engine.close()
    return weights


def plain(train: dict[str, Any], optimizer: str) -> dict[str, torch.Tensor]:
    """The same in plain torch, with a whole table."""
    job = Train.model_validate({**train, "precision": "fp32"})
    module = module_of(shared=train.get("precision") != "bf16")
    rule = Rule.of(ItemTable.model_validate({"placement": "sharded", "optimizer": optimizer}), job)
    table = PlainTable("items.items", module.model.items.items, rule, SEED)  # type: ignore[union-attr]
    table.weight *= 10
    parameters = list(module.parameters())
    dense = build_optimizer(job, [ParameterGroup(parameters)])
    for step in range(NUM_STEPS):
        batches = [toy_batch(rows, 10 * step + index) for index, rows in enumerate(ROWS)]
        table.look_up(
            torch.cat([one for b in batches for one in (b.item_BL.flatten(), module.loss.item_rows(b))])  # type: ignore[operator]
        )
        sums = [module(batch) for batch in batches]
        (sum(s for s, _ in sums) / sum(int(n) for _, n in sums)).backward()
        norm = torch.linalg.vector_norm(torch.stack([table.collect(1.0), *(p.grad.norm() for p in parameters)]))  # type: ignore[union-attr]
        scale = min(1.0, job.clip_norm / float(norm + 1e-6))
        assert scale < 0.9, "the clipping is to be seen"
        rate = learning_rate(job, step, NUM_STEPS)
        for one in parameters:
            one.grad *= scale  # type: ignore[operator]
        for group in dense.param_groups:
            group["lr"] = rate
        dense.step()
        dense.zero_grad()
        table.update(rate, scale)
    return {name: p.detach().clone() for name, p in module.named_parameters()} | {table.name: table.weight}


def assert_as_plain(train: dict[str, Any], optimizer: str, ranks: list[dict[str, torch.Tensor]], gap: float) -> None:
    expected = plain(train, optimizer)
    for name, whole in expected.items():
        held = torch.stack([rank[name] for rank in ranks])
        assert not held.isnan().all(0).any(), f"nobody holds part of {name}"
        found = float((held - whole).abs().nan_to_num(0).max())
        assert found <= gap, f"{train}: {name} differs by {found}"


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
@pytest.mark.parametrize("stage", range(4))
def test_one_rank_equals_plain_torch(stage: int, optimizer: str, one_rank: None) -> None:
    train = config(zero={"stage": stage}, optimizer="sgd", momentum=0.0)
    assert_as_plain(train, optimizer, [trained(train, optimizer)], 2e-5)


@pytest.mark.parametrize("stage", range(4))
def test_low_precision_counts_the_table_for_the_norm(stage: int, one_rank: None) -> None:
    train = config(zero={"stage": stage}, optimizer="sgd", momentum=0.0, precision="bf16")
    assert_as_plain(train, "rowwise_adagrad", [trained(train, "rowwise_adagrad")], 0.01)


def every(trains: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    return [trained(train, optimizer) for train in trains for optimizer in ("rowwise_adagrad", "adamw")]


def test_two_ranks_equal_plain_torch() -> None:
    train = config(zero={"stage": 2}, optimizer="sgd", momentum=0.0)
    ranks = run_ranks(2, every, [train])
    for index, optimizer in enumerate(("rowwise_adagrad", "adamw")):
        assert_as_plain(train, optimizer, [rank[index] for rank in ranks], 2e-5)


@pytest.mark.proof
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_equal_plain_torch_at_every_stage(world_size: int, precision: str) -> None:
    more: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "precision": precision}
    trains = [config(zero={"stage": stage}, **more) for stage in range(4)]
    ranks = run_ranks(world_size, every, trains)
    for index, train in enumerate(trains):
        found = [rank[2 * index] for rank in ranks]
        assert_as_plain(train, "rowwise_adagrad", found, 2e-5 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_that_is_skipped_changes_no_row(stage: int, one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a row is too large for its type, as fp16 finds out every few hundred steps."""
    train = Train.model_validate(config(zero={"stage": stage}))
    engine = sharded(train)
    table = engine.table
    assert table is not None
    train_step(engine, [toy_batch(3, 1)], toy_batch(0, 0), 0, 0.1)
    before = [part.view(part.master).clone() for part in engine.slices()]
    rows, state = table.weight.clone(), {name: values.clone() for name, values in table.state.items()}
    with monkeypatch.context() as patch:
        patch.setattr(table, "collect", lambda divisor: ShardedTable.collect(table, divisor) * torch.inf)
        train_step(engine, [toy_batch(3, 2)], toy_batch(0, 0), 1, 0.1)
    assert all(torch.equal(b, part.view(part.master)) for b, part in zip(before, engine.slices(), strict=True))
    assert torch.equal(table.weight, rows) and table.steps == 1
    assert all(torch.equal(table.state[name], values) for name, values in state.items())
    train_step(engine, [toy_batch(3, 2)], toy_batch(0, 0), 1, 0.1)
    assert not torch.equal(table.weight, rows) and table.steps == 2


def test_the_loss_scale_is_divided_out(one_rank: None) -> None:
    """DeepSpeed's scale at fp32 is 1; set to 8, it multiplies the loss and divides the gradients by it, as at fp16."""
    weights = []
    for scale in (1.0, 8.0):
        engine = sharded(Train.model_validate(config(zero={"stage": 2}, optimizer="sgd", momentum=0.0)))
        engine._wrapper.loss_scaler.cur_scale = scale
        for step in range(NUM_STEPS):
            train_step(engine, [toy_batch(3, step)], toy_batch(0, 0), step, 0.05)
        assert engine.table is not None
        weights.append([engine.table.weight, *(part.view(part.master).clone() for part in engine.slices())])
        engine.close()
    for one, eight in zip(*weights, strict=True):
        torch.testing.assert_close(one, eight, atol=1e-6, rtol=0)


# -- validation ----------------------------------------------------------------------------------------------------


def ranked(num_histories: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(Ranks by the sharded table, by a whole one) of this rank's histories, without and with exclusions, and ties."""
    found = []
    for ties in (False, True):
        torch.manual_seed(3)
        engine = sharded(Train())
        model, table = engine.module.model, engine.table
        assert table is not None
        whole = module_of(has_table=True).model
        weight = torch.randint(-2, 3, table.shape).float() if ties else torch.randn(table.shape)
        table.weight.copy_(weight[table.rank :: table.world_size])
        own = dict(model.state_dict()) | {"items.items.weight": weight}  # type: ignore[arg-type]
        whole.load_state_dict(own)
        rank = dist.get_rank()
        draw = torch.Generator().manual_seed(rank)
        count = num_histories[rank]
        shape = (count, 8)
        x_BD = torch.randint(-1, 2, shape, generator=draw).float() if ties else torch.randn(shape, generator=draw)
        target_B = torch.randint(0, NUM_ITEMS + 2, (count,), generator=draw)
        excluded = [
            np.unique(torch.randint(0, NUM_ITEMS, (row % 5,), generator=draw).numpy()).astype(np.int32)
            for row in range(count)
        ]
        with torch.no_grad():
            for lists in (None, excluded):
                mine = sharded_ranks(model, table, x_BD, target_B, lists)  # type: ignore[arg-type]
                batch = toy_batch(count, 1)
                found.append((mine, ranks_by(item_scores(whole, x_BD, batch), NUM_ITEMS, target_B, lists)))
        engine.close()
    return found


@pytest.mark.parametrize("counts", [(40,), (5, 0), pytest.param((3, 8, 1, 0), marks=pytest.mark.proof)])
def test_targets_are_ranked_as_in_a_whole_table(counts: tuple[int, ...], one_rank: None) -> None:
    ranks = [ranked(counts)] if len(counts) == 1 else run_ranks(len(counts), ranked, counts)
    for rank, count in zip(ranks, counts, strict=True):
        assert len(rank) == 4
        for mine, expected in rank:
            assert len(mine) == count and torch.equal(mine, expected)
    misses = sum(int((mine == MISS).sum()) for rank in ranks for mine, _ in rank)
    assert 0 < misses < sum(len(mine) for rank in ranks for mine, _ in rank)
