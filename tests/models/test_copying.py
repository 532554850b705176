"""What a history's own items gain, against the definition written out event by event."""

from __future__ import annotations

import math

import pytest
import torch

from distft.data.collate import history_batch
from distft.models.base import OwnScores, last_states
from distft.models.copying import GAIN, MAX_COUNT, NUM_DISTANCES, Copying, Pairs, own_scores
from distft.models.elapsed import gap_codes, seconds_since_first
from distft.models.transformer.config import Config
from distft.schema import NUM_GAP_BUCKETS, NUM_RESERVED
from tests.factories import catalog, histories


def random_copying(shop, dim=8):
    torch.manual_seed(0)
    copying = Copying(shop, dim)
    for parameter in copying.parameters():
        torch.nn.init.normal_(parameter)
    return copying


def plain_bonus(copying, x_D, batch, row, position, seconds_BL):
    """{item row: addition} in the state at one position."""
    found: dict[int, float] = {}
    items, events = batch.item_BL[row].tolist(), batch.event_BL[row].tolist()
    for index in range(position + 1):
        item, event = items[index], events[index]
        if item < NUM_RESERVED:
            continue
        last = item not in items[index + 1 : position + 1]
        far = position - index
        code = far if far < 16 else min(16 + math.floor(4 * math.log2(far / 16)), NUM_DISTANCES - 1)
        before = [i for i in range(index) if items[i] == item and events[i] == event]
        total = copying.distance[(2 * event + last) * NUM_DISTANCES + code]
        total = total + copying.count[event * MAX_COUNT + min(len(before), MAX_COUNT - 1)]
        if copying.elapsed is not None:
            elapsed = gap_codes(seconds_BL[row, position] - seconds_BL[row, index])
            total = total + copying.elapsed[(2 * event + last) * NUM_GAP_BUCKETS + elapsed]
        found[item] = found.get(item, 0.0) + float(GAIN * total + copying.gate.weight[event] @ x_D)
    return found


@pytest.mark.parametrize("clock", [True, False])
@torch.inference_mode()
def test_additions_equal_the_definition(clock):
    shop = catalog(num_items=7, clock=clock)
    batch = history_batch(histories([40, 3, 0, 17], num_items=7), 32, clock)
    copying = random_copying(shop)
    wanted_BL = batch.event_BL > 0
    row_N, position_N = wanted_BL.nonzero().unbind(1)
    x_ND = torch.randn(len(row_N), 8)
    own = own_scores(copying, x_ND, row_N, position_N, batch)
    found_NV = own.at(torch.arange(7).expand(len(row_N), -1))
    seconds_BL = seconds_since_first(batch.gap_BL)
    for n, (row, position) in enumerate(zip(row_N.tolist(), position_N.tolist(), strict=True)):
        expected_V = torch.zeros(7)
        for item, bonus in plain_bonus(copying, x_ND[n], batch, row, position, seconds_BL).items():
            expected_V[item] = bonus
        torch.testing.assert_close(found_NV[n], expected_V, rtol=1e-4, atol=1e-3)
    assert (own.state_P.diff() >= 0).all()


@torch.inference_mode()
def test_a_new_model_lists_the_recently_seen_items():
    shop, some = catalog(num_items=400), histories([60, 5], num_items=400)
    batch = history_batch(some, 64, True)
    model = Config(max_history=64, copy=True).build(shop).eval()
    x_BD, row_B = last_states(model.states(batch), batch.length_B), torch.arange(2)
    own = model.own_scores(x_BD, row_B, batch.length_B - 1, batch)
    assert own is not None
    own_BV = own.at(torch.arange(400).expand(2, -1))
    for row, own_V in enumerate(own_BV):
        recent = [item for item in batch.item_BL[row].tolist()[::-1] if item >= NUM_RESERVED]
        order = sorted(set(recent), key=recent.index)
        gained = own_V[order]
        assert (gained.diff() <= 0).all() and (gained[:10].diff() < 0).all() and gained[0] > 5
        assert int((own_V != 0).sum()) == len(order)
    assert Config(max_history=64).build(shop).own_scores(x_BD, row_B, row_B, batch) is None


def test_additions_to_a_chunk_are_those_of_its_items():
    own = OwnScores(torch.tensor([0, 0, 0, 2]), torch.tensor([5, 5, 9, 3]), torch.tensor([1.0, 2.0, 4.0, 8.0]))
    whole = own.add_to(torch.zeros(3, 12), 0)
    assert torch.equal(whole, own.at(torch.arange(12).expand(3, -1)))
    assert whole[0, 5] == 3 and whole[0, 9] == 4 and whole[2, 3] == 8 and whole.sum() == 15
    parts = [own.add_to(torch.zeros(3, end - start), start) for start, end in ((0, 4), (4, 9), (9, 12))]
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("seconds", [0, 1, 59, 3600, 10**6, 10**9])
def test_codes_of_a_span_are_those_of_a_gap(seconds):
    batch = history_batch(histories([2]), 16, True)
    batch.gap_BL[0, 1] = min(1 + math.floor(math.log2(1 + seconds)), NUM_GAP_BUCKETS - 1)
    since = seconds_since_first(batch.gap_BL)[0]
    assert gap_codes(since[1] - since[0]) == batch.gap_BL[0, 1]


def test_pairs_of_no_state_are_none():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(Pairs(history_batch(histories([]), 16, True), nothing, nothing).state_P) == 0
