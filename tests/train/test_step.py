"""Shards equal the whole batch: DeepSpeed on cut-up batches against plain torch on the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from distft.errors import TrainingError
from distft.losses.adversarial.config import Config as Adversarial
from distft.schema import Catalog
from distft.sections.train import Train
from distft.topk import MISS
from distft.train.engine import Engine
from distft.train.settings import ParameterGroup, build_optimizer, learning_rate
from distft.train.step import RankTargets, Step, train_step
from tests.train.ranks import DIM, NUM_ITEMS, Toy, ToyLoss, run_ranks, toy_batch

NUM_STEPS = 3
ROWS = (3, 4, 2)
OWNER = {1: (0, 0, 0), 2: (0, 0, 1), 4: (0, 1, 1, 3)}  # rank of each micro-batch: unequal numbers, some ranks none
CPU = torch.device("cpu")


def config(**changes: Any) -> dict[str, Any]:
    return {"weight_decay": 0.01, "clip_norm": 0.5, "warmup_steps": 2, "learning_rate": 0.05, **changes}


def toy_step(adversary: bool) -> Step:
    """The toy model with a loss without parameters, or with one that has its own and draws negatives."""
    torch.manual_seed(5)
    catalog = Catalog(NUM_ITEMS, 2, 0, False)
    return Step(Toy(), Adversarial(num_negatives=3, pool_size=9).build(catalog, DIM) if adversary else ToyLoss())


def engine_weights(train: dict[str, Any], adversary: bool = False) -> dict[str, torch.Tensor]:
    """fp32 weights after NUM_STEPS, as far as this rank holds them; the rest is NaN."""
    job = Train.model_validate(train)
    engine = Engine(toy_step(adversary), job, CPU)
    owner = OWNER[engine.world_size]
    for step in range(NUM_STEPS):
        mine = [index for index in range(len(ROWS)) if owner[index] == engine.rank]
        batches = [toy_batch(ROWS[index], 10 * step + index) for index in mine]  # a tenth of the seed keys the step
        train_step(engine, batches, toy_batch(0, 0), step, learning_rate(job, step, NUM_STEPS))
    weights = {name: torch.full(shape, torch.nan) for name, shape in engine.shapes.items()}
    for part in engine.slices():
        weights[part.name].view(-1)[part.offset : part.offset + part.length] = part.view(part.master)
    for name, offset, values in engine.frozen_slices():
        weights[name].view(-1)[offset : offset + len(values)] = values
    engine.close()
    return weights


def plain_weights(train: dict[str, Any], adversary: bool = False) -> dict[str, torch.Tensor]:
    """The same in plain torch: one process, one backward pass over the mean of the whole batch."""
    job = Train.model_validate(train)
    module = toy_step(adversary)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = build_optimizer(job, [ParameterGroup(parameters)])
    for step in range(NUM_STEPS):
        sums = [module(toy_batch(rows, 10 * step + index)) for index, rows in enumerate(ROWS)]
        (sum(s for s, _ in sums) / sum(int(n) for _, n in sums)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.clip_norm)
        for parameters_group in optimizer.param_groups:
            parameters_group["lr"] = learning_rate(job, step, NUM_STEPS)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def all_weights(trains: list[dict[str, Any]], adversary: bool) -> list[dict[str, torch.Tensor]]:
    return [engine_weights(train, adversary) for train in trains]


def assert_equal_to_plain(
    trains: list[dict[str, Any]], world_size: int, tolerance: float, adversary: bool = False
) -> None:
    ranks = run_ranks(world_size, all_weights, trains, adversary)
    for index, train in enumerate(trains):
        expected = plain_weights({**train, "precision": "fp32"}, adversary)
        for name, whole in expected.items():
            held = torch.stack([rank[index][name] for rank in ranks])
            assert not held.isnan().all(0).any(), f"{train}: nobody holds part of {name}"
            gap = (held - whole).abs().nan_to_num(0).max()
            assert gap <= tolerance, f"{train}: {name} differs by {gap}"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_equals_plain_torch(stage: int, one_rank: None) -> None:
    train = config(zero={"stage": stage})
    expected = plain_weights(train)
    for name, weights in engine_weights(train).items():
        torch.testing.assert_close(weights, expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_loss_may_train_an_adversary_of_its_own(stage: int, one_rank: None) -> None:
    train = config(zero={"stage": stage})
    before, found = dict(toy_step(True).named_parameters()), engine_weights(train, adversary=True)
    for name, expected in plain_weights(train, adversary=True).items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)
        assert "fixed" in name or not torch.equal(expected, before[name])


@pytest.mark.proof
def test_two_ranks_train_an_adversary_alike_at_every_stage() -> None:
    assert_equal_to_plain([config(zero={"stage": stage}) for stage in range(4)], 2, 1e-6, adversary=True)


def test_two_ranks_equal_plain_torch_at_every_stage() -> None:
    assert_equal_to_plain([config(zero={"stage": stage}) for stage in range(4)], 2, 1e-6)


@pytest.mark.proof
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_matrix_of_stages_offload_and_optimisers(world_size: int) -> None:
    zeros = [{"stage": s, "offload": o} for s in range(4) for o in ("none", "cpu") if s or o == "none"]
    trains = [config(zero=zero, optimizer=kind) for zero in zeros for kind in ("sgd", "adam", "adamw")]
    assert_equal_to_plain(trains, world_size, 1e-6)


@pytest.mark.proof
def test_bf16_follows_fp32_at_every_stage() -> None:
    assert_equal_to_plain([config(zero={"stage": s}, precision="bf16") for s in range(4)], 2, 0.03)


def test_frozen_parameters_do_not_move(one_rank: None) -> None:
    torch.manual_seed(5)
    before = Step(Toy(), ToyLoss()).model.fixed.weight.clone()
    assert torch.equal(engine_weights(config(zero={"stage": 3}))["model.fixed.weight"], before)


def test_loss_that_is_not_finite_stops_before_the_weights_change(one_rank: None) -> None:
    engine = Engine(Step(Toy(), ToyLoss()), Train(zero={"stage": 0}), CPU)  # type: ignore[arg-type]
    weight = engine.parameters["model.mix.weight"]
    with torch.no_grad():
        weight[0, 0] = torch.nan
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match="step 41"):
        train_step(engine, [toy_batch(3, 1)], toy_batch(0, 0), 41, 0.1)
    assert torch.equal(weight, before) or torch.equal(weight.isnan(), before.isnan())


def test_step_without_any_target_changes_nothing(one_rank: None) -> None:
    engine = Engine(Step(Toy(), ToyLoss()), Train(), CPU)
    before = [part.view(part.master).clone() for part in engine.slices()]
    assert train_step(engine, [], toy_batch(0, 0), 0, 0.1).count == 0
    assert all(torch.equal(b, part.view(part.master)) for b, part in zip(before, engine.slices(), strict=True))


def test_validation_gives_the_place_among_all_items(one_rank: None) -> None:
    engine = Engine(Step(Toy(), ToyLoss()), Train(zero={"stage": 3}), CPU)  # type: ignore[arg-type]
    engine.train(False)
    with torch.no_grad():
        _, _, rank_B = engine(toy_batch(4, 7), RankTargets(torch.tensor([2, 5, 1, 22]), None))
    assert rank_B[2] == MISS
    assert ((rank_B[[0, 1, 3]] >= 1) & (rank_B[[0, 1, 3]] <= NUM_ITEMS - 2)).all()
    assert dist.get_world_size() == 1
