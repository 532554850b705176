"""What every loss promises; losses are found by scanning, so a new folder is tested by existing."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distft.component import configs
from distft.schema import NUM_RESERVED, PAD, Batch
from tests.losses.toys import VARIANTS, DotAsPair, PairToy, built, labelled, loss_and_gradients
from tests.train.ranks import Toy

KINDS = {config.model_fields["kind"].default: config for config in configs("losses")}
CASES = [(kind, settings) for kind in KINDS for settings in VARIANTS.get(kind, [{}])]
PAIR_CASES = [(kind, settings) for kind, settings in CASES if KINDS[kind].takes_pairs]
COMBINED = [*product(CASES, [Toy]), *product(PAIR_CASES, [PairToy])]
CHUNKED = [value for value in COMBINED if "max_logits" in KINDS[value[0][0]].model_fields]


def name(case: tuple[str, dict[str, Any]]) -> str:
    return " ".join([case[0], *(f"{key}={setting}" for key, setting in case[1].items())])


def combined_name(combined: Any) -> str:
    return f"{name(combined[0])}, {combined[1].__name__}"


def part(batch: Batch, rows: list[int]) -> Batch:
    return Batch(**{name: tensor[rows] for name, tensor in batch.tensors()})


@pytest.fixture(params=COMBINED, ids=combined_name)
def case(request):
    (kind, settings), model = request.param
    return KINDS[kind], settings, model


def test_shards_sum_to_the_whole_batch(case):
    model, loss = built(*case)
    batch = labelled(7)
    whole, count, expected = loss_and_gradients(model, loss, batch)
    assert count == int((batch.target_BL != PAD).sum())
    pieces = [loss_and_gradients(model, loss, part(batch, rows)) for rows in ([5, 0], [], [6, 3, 1], [2, 4])]
    assert sum(piece[1] for piece in pieces) == count
    if loss.depends_on_cut:
        assert sum(piece[0] for piece in pieces) != pytest.approx(float(whole), rel=1e-3)
        return
    torch.testing.assert_close(sum(piece[0] for piece in pieces), whole, rtol=1e-5, atol=1e-5)
    for parameter, gradient in expected.items():
        found = sum(piece[2][parameter] for piece in pieces)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5, msg=parameter)


def test_gradients_are_finite_and_something_is_learnt(case):
    model, loss = built(*case)
    _, _, gradients = loss_and_gradients(model, loss, labelled(5))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("rows", [0, 3])
def test_without_targets_the_loss_and_its_gradients_are_zero(case, rows):
    model, loss = built(*case)
    batch = labelled(rows)
    batch.target_BL.zero_()
    value, count, gradients = loss_and_gradients(model, loss, batch)
    assert (value.item(), count) == (0, 0)
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("chunked", CHUNKED, ids=combined_name)
def test_chunks_change_nothing(chunked):
    (kind, settings), model = chunked
    config, found = KINDS[kind], []
    for max_logits in (1, 200_000, 10**8):
        toy, loss = built(config, {**settings, "max_logits": max_logits}, model)
        found.append(loss_and_gradients(toy, loss, labelled(9)))
    for value, count, gradients in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-5, atol=1e-5)
        assert count == found[0][1]
        torch.testing.assert_close(gradients, found[0][2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", PAIR_CASES, ids=name)
def test_a_dot_model_loses_the_same_pair_by_pair(case):
    """Shared candidates go through one matrix product and gradients of our own: the pairs are its plain twin."""
    kind, settings = case
    toys = [built(KINDS[kind], settings, model) for model in (Toy, DotAsPair)]
    fast, plain = (loss_and_gradients(model, loss, labelled(9)) for model, loss in toys)
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast[2], plain[2], rtol=1e-4, atol=1e-5)


def test_what_is_drawn_follows_the_keys_alone(case):
    model, loss = built(*case)
    batch = labelled(6)
    torch.manual_seed(1)
    first = loss(model, model.states(batch), batch)[0]
    torch.manual_seed(2)
    assert torch.equal(loss(model, model.states(batch), batch)[0], first)
    batch.key_B += 1
    batch.step_key_B += 1
    drawn = case[1].get("num_negatives") and case[1].get("sampling") != "in_batch"
    assert torch.equal(loss(model, model.states(batch), batch)[0], first) == (not drawn)


def test_the_rows_that_it_asks_for_are_known_beforehand(case, monkeypatch):
    config, *_ = case
    model, loss = built(*case)
    batch, asked = labelled(6), []
    monkeypatch.setattr(
        model.items, "forward", lambda rows: asked.append(rows) or F.embedding(rows, model.items.weight)
    )
    x_BLD = model.states(batch)
    asked.clear()
    loss(model, x_BLD, batch)
    found = set(torch.cat([rows.flatten() for rows in asked]).tolist())
    told = set(loss.item_rows(batch).tolist())
    if config.needs_all_items:
        assert len(found) == model.num_items - NUM_RESERVED and not found <= told
        return
    assert found and found - {PAD} <= told
    assert len(loss.item_rows(labelled(0))) <= len(told)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_bf16_follows_fp32(case):
    kind, settings = case
    model, loss = built(KINDS[kind], settings)
    batch = labelled(6)
    exact = loss(model, model.states(batch), batch)[0]
    model, loss = model.bfloat16(), loss.bfloat16()
    rounded, count = loss(model, model.states(batch), batch)
    assert rounded.dtype == torch.float32 and count.dtype == torch.int64
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.5)
