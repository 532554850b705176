"""What a history holds is not compared with its target: each loss against its formula, written down plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distft.component import configs
from distft.errors import JobError
from distft.job import Job
from distft.jobfile import parse_job
from distft.losses.base import Wanted
from distft.losses.seen import Exclusion
from distft.losses.softmax.loss import chunked_cross_entropy
from distft.models.base import OwnScores
from distft.schema import NUM_RESERVED, PAD, UNKNOWN
from tests.losses.toys import built, labelled
from tests.train.ranks import NUM_ITEMS

ALL = torch.arange(NUM_ITEMS)
KINDS = {config.model_fields["kind"].default: config for config in configs("losses")}
RULES = ["all", "targets"]
JOB = """
name: seen
storage: nowhere
data:
  events: [{source: synthetic, num_users: 20}]
  target_events: [purchase]
"""


@pytest.fixture
def batch():
    """Every second event is of another type; one item is unknown, and one target comes again."""
    batch = labelled(40)
    batch.event_BL[:, 1::2] = 2
    batch.item_BL[0, 0] = UNKNOWN
    batch.item_BL[1, 0] = batch.item_BL[1, 2] = batch.target_BL[1, 3] = 9
    return batch


def seen_by_hand(batch, rule):
    """Whether each row is left out for each target, bool [M, V]: counted event by event."""
    left_out = []
    for row, position in (batch.target_BL != PAD).nonzero().tolist():
        before = zip(batch.item_BL[row, : position + 1].tolist(), batch.event_BL[row].tolist(), strict=False)
        counted = {item for item, event in before if item >= NUM_RESERVED and (rule == "all" or event == 1)}
        left_out.append([item in counted - {int(batch.target_BL[row, position])} for item in range(NUM_ITEMS)])
    return torch.tensor(left_out)


def scores(model, batch):
    """(s_MV of all rows, target_M), by one product."""
    wanted = batch.target_BL != PAD
    return model.states(batch)[wanted] @ model.item_vectors(ALL).T, batch.target_BL[wanted]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_numbers", [1, 10**6])
def test_the_history_up_to_a_position_is_seen_and_never_its_target(batch, rule, max_numbers):
    wanted = Wanted.of(torch.zeros(*batch.item_BL.shape, 1), batch)
    seen = Exclusion(rule, (1,)).seen(batch, wanted)
    expected = seen_by_hand(batch, rule)
    assert expected.any(1).float().mean() > 0.5
    assert torch.equal(seen.holds(ALL.expand(len(expected), -1), max_numbers), expected)
    assert Exclusion("none", (1,)).seen(batch, wanted) is None


@pytest.mark.parametrize("rule", RULES)
def test_softmax_is_over_what_was_not_seen(batch, rule):
    model, loss = built(KINDS["softmax"], {"exclude_seen": rule, "max_logits": 50})
    s_MV, target_M = scores(model, batch)
    s_MV[:, :NUM_RESERVED] = -torch.inf
    plain = F.cross_entropy(s_MV.masked_fill(seen_by_hand(batch, rule), -torch.inf), target_M, reduction="sum")
    expected = torch.autograd.grad(plain, [model.items.weight, model.mix.weight])
    value, _ = loss(model, model.states(batch), batch)
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-4)
    found = torch.autograd.grad(value, [model.items.weight, model.mix.weight])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert abs(value - built(KINDS["softmax"], {})[1](model, model.states(batch), batch)[0]) > 1


def test_what_a_model_adds_to_the_score_of_a_seen_item_changes_nothing(batch):
    torch.manual_seed(0)
    wanted = Wanted.of(torch.randn(*batch.item_BL.shape, 4), batch)
    x_MD, v_VD = wanted.x_MD.requires_grad_(), torch.randn(NUM_ITEMS - NUM_RESERVED, 4, requires_grad=True)
    seen, left_out = Exclusion("targets", (1,)).seen(batch, wanted), seen_by_hand(batch, "targets")
    state_P = torch.arange(len(left_out)).repeat_interleave(5)
    item_P = NUM_RESERVED + torch.randint(NUM_ITEMS - NUM_RESERVED, state_P.shape)
    bonus_P = torch.randn(state_P.shape).requires_grad_()
    assert 0 < left_out[state_P, item_P].sum() < len(state_P)
    target_M = wanted.target_M - NUM_RESERVED
    s_MV = (x_MD @ v_VD.T).index_put((state_P, item_P - NUM_RESERVED), bonus_P, accumulate=True)
    plain = F.cross_entropy(s_MV.masked_fill(left_out[:, NUM_RESERVED:], -torch.inf), target_M, reduction="sum")
    loss = chunked_cross_entropy(x_MD, v_VD, target_M, 0.0, 50, OwnScores(state_P, item_P, bonus_P), seen)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
    found, expected = (torch.autograd.grad(value, [x_MD, v_VD, bonus_P]) for value in (loss, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shared", [False, True])
def test_very_many_negatives_give_the_full_softmax_over_the_same(batch, rule, shared):
    count = 400_000 if shared else 40_000
    settings = {"num_negatives": count, "negatives_shared": shared, "exclude_seen": rule}
    model, loss = built(KINDS["sampled_softmax"], settings)
    _, full = built(KINDS["softmax"], {"exclude_seen": rule})
    expected = full(model, model.states(batch), batch)[0]
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["bce", "gbce"])
def test_binary_losses_leave_out_seen_negatives(batch, kind, shared, rule):
    model, loss = built(KINDS[kind], {"num_negatives": 7, "negatives_shared": shared, "exclude_seen": rule})
    beta = getattr(loss, "beta", 1.0)
    s_MV, target_M = scores(model, batch)
    left_out_MV = seen_by_hand(batch, rule)
    drawn = loss.sampler.for_step(batch, 7).expand(len(target_M), 7) if shared else loss.sampler.for_each(batch, 7)
    expected, s_MV = 0.0, s_MV - math.log(7 / beta)
    for s_V, target, negatives, out_V in zip(s_MV, target_M.tolist(), drawn.tolist(), left_out_MV, strict=True):
        expected -= beta * F.logsigmoid(s_V[target]) / 8
        expected -= sum(F.logsigmoid(-s_V[u]) for u in negatives if u != target and not out_V[u]) / 8
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_generator_proposes_nothing_that_was_seen(batch, monkeypatch):
    settings = {"num_negatives": 3, "pool_size": 40, "generator_dim": 4, "exclude_seen": "all"}
    model, loss = built(KINDS["adversarial"], settings)
    asked = []
    monkeypatch.setattr(loss, "_proposals", lambda g, other, *rest: asked.append(other) or torch.zeros_like(g))
    loss(model, model.states(batch), batch)
    pool = torch.unique(loss.sampler.for_step(batch, 40))
    target_M = batch.target_BL[batch.target_BL != PAD]
    assert torch.equal(asked[0], ~seen_by_hand(batch, "all")[:, pool] & (pool != target_M[:, None]))


def test_a_history_that_has_seen_the_whole_pool_loses_a_number():
    settings = {"num_negatives": 1, "pool_size": 2, "generator_dim": 4, "exclude_seen": "all"}
    model, loss = built(KINDS["adversarial"], settings)
    batch = labelled(1)
    batch.item_BL[0, :2] = loss.sampler.for_step(batch, 2)
    batch.target_BL[0] = torch.tensor([PAD, PAD, PAD, PAD, 5])
    assert loss(model, model.states(batch), batch)[0].isfinite()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["loss.exclude_seen=all", "evaluate.exclude_seen=targets"], "loss.exclude_seen: .* expected no more than"),
        (["loss.exclude_seen=targets", "evaluate.exclude_seen=none"], "loss.exclude_seen: .* expected no more than"),
        (["loss.exclude_seen=all", "loss.label_smoothing=0.1"], "label_smoothing"),
        (["loss={kind: bce, num_negatives: 0, exclude_seen: all}", "data.label={value_at_least: 1}"], "no negatives"),
        (["loss.exclude_seen=some"], "exclude_seen"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(changes, words):
    with pytest.raises(JobError, match=words):
        parse_job(JOB, "seen.yaml", changes)


def test_a_job_may_leave_out_as_much_as_its_evaluation_does():
    job: Job = parse_job(JOB, "seen.yaml", ["loss.exclude_seen=targets", "evaluate.exclude_seen=all"])
    assert job.loss.exclude_seen == "targets"
