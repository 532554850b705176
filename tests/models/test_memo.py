"""Outputs of frozen layers that are kept: equal to computed ones, however a batch is put together; and a full disk."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from distft.models.cnn.config import Config as Cnn
from distft.models.hstu.config import Config as Hstu
from distft.models.linear.config import Config as Linear
from distft.models.memo import Memo
from distft.models.transformer.config import Config as Transformer
from distft.schema import PAD, Batch
from tests.factories import catalog
from tests.models.test_contract import batch_of

LENGTHS = [3, 9, 0, 1, 9, 10]
CONFIGS = [Transformer(max_history=10, num_heads=2), Hstu(max_history=10, num_heads=2), Cnn(max_history=10)]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.kind)
def model(request: pytest.FixtureRequest) -> Any:
    """Embeddings and the first of three blocks are frozen."""
    torch.manual_seed(3)
    built = request.param.model_copy(update={"dim": 8, "num_blocks": 3, "dropout": 0.0}).build(catalog())
    for name, group in built.layer_groups().items():
        for parameter in group:
            parameter.requires_grad_(name not in ("embeddings", "blocks.0"))
    return built


def test_what_is_kept_is_what_is_computed(model: Any) -> None:
    batch = batch_of(LENGTHS, catalog())
    expected = model.states(batch)
    assert model.remember(Memo()) == ["embeddings", "blocks.0"]
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.states(batch), expected) and torch.equal(model.states(batch), expected)
    assert len(calls) == 1, "the second time it is read"
    order = torch.tensor([4, 2, 0, 5])
    other = _rows(batch, order)
    torch.testing.assert_close(model.states(other), expected[order])
    assert len(calls) == 1, "also in another batch, of another order and width"
    model.eval().states(batch)
    assert len(calls) == 2, "validation sees every layer"


def test_another_history_is_computed(model: Any) -> None:
    model.remember(Memo())
    batch = batch_of(LENGTHS, catalog())
    model.states(batch)
    for name in ("item_BL", "event_BL", "gap_BL", "query_BLQ"):
        tensor = getattr(batch, name).clone()
        tensor[1, 4] = torch.where(tensor[1, 4] == 2, 3, 2)
        changed = replace(batch, **{name: tensor})
        plain = Memo()
        first, model.memo = model.memo, plain
        expected = model.states(changed)
        model.memo = first
        torch.testing.assert_close(model.states(changed), expected)


def test_a_batch_without_histories_goes_through(model: Any) -> None:
    model.remember(Memo())
    assert model.states(batch_of([], catalog())).shape[0] == 0


def test_without_frozen_embeddings_nothing_is_kept(model: Any) -> None:
    model.items.items.weight.requires_grad_(True)
    assert model.remember(Memo()) == []
    assert Linear(max_history=10).build(catalog()).remember(Memo()) == []


def test_a_full_disk_costs_time_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = batch_of(LENGTHS, catalog())
    expected = model.states(batch)
    model.remember(Memo())
    real, left = os.pwrite, [2]

    def pwrite(file: int, data: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert all(torch.equal(model.states(batch), expected) for _ in range(2))
    assert "No room for more outputs" in caplog.text


def _rows(batch: Batch, order: torch.Tensor) -> Batch:
    """Some histories of a batch, without the padding that they do not need."""
    length = int(batch.length_B[order].max())
    cut = {name: tensor[order] for name, tensor in batch.tensors()}
    cut = {name: one[:, :length] if "BL" in name else one for name, one in cut.items()}
    assert (cut["item_BL"] != PAD).any()
    return Batch(**cut)
