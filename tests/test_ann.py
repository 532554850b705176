from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distft import ann
from distft.ann import Index, Vectors, recall_of
from distft.item_vectors import ItemVectors, Precision
from distft.schema import NUM_RESERVED
from distft.storage import Storage

NUM_ITEMS, WIDTH, K = 6_000, 16, 10


def shop(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(vectors of all rows, states), both around the same centres."""
    drawn = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, WIDTH, generator=drawn)
    near = centres[torch.randint(60, (NUM_ITEMS + NUM_RESERVED + 300,), generator=drawn)]
    near = near + 0.4 * torch.randn(near.shape, generator=drawn)
    return near[:-300].contiguous(), near[-300:].contiguous()


def stored(vectors_ND: torch.Tensor, precision: Precision) -> Vectors:
    return vectors_ND if precision == "fp32" else ItemVectors.of(vectors_ND, precision)


precisions = pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])


def best(vectors_ND: torch.Tensor, states_BD: torch.Tensor) -> np.ndarray:
    s_BN = states_BD @ vectors_ND.T
    s_BN[:, :NUM_RESERVED] = -torch.inf
    return torch.topk(s_BN, K).indices.numpy()


@precisions
def test_the_recall_that_is_written_down_is_what_other_states_meet(precision: Precision) -> None:
    vectors_ND, states_BD = shop(1)
    vectors = stored(vectors_ND, precision)
    index = Index.build(vectors, states_BD[:150], K, 0.98)
    assert index.bytes_per_item == {"fp32": 4, "fp16": 2, "int8": 1}[precision] * WIDTH
    vectors_ND = vectors[:]
    assert 0.98 <= index.facts.recall <= 1 and index.facts.num_probed < index.facts.num_lists / 2
    others = recall_of(index.search(states_BD[150:], K), best(vectors_ND, states_BD[150:]))
    assert others == pytest.approx(index.facts.recall, abs=0.03)
    written = recall_of(index.search(states_BD[:150], K), best(vectors_ND, states_BD[:150]))
    assert written == pytest.approx(index.facts.recall, abs=1e-3)


@precisions
def test_all_lists_hold_everything_once_and_no_reserved_row(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "ROWS_AT_ONCE", 1_000)
    vectors_ND, states_BD = shop(2)
    index = Index.build(stored(vectors_ND, precision), states_BD, K, 1.0)
    index.num_probed = index.facts.num_lists
    found = index.search(states_BD[:3], NUM_ITEMS)
    everything = list(range(NUM_RESERVED, NUM_ITEMS + NUM_RESERVED))
    assert all(sorted(row[row >= 0].tolist()) == everything for row in found)
    assert recall_of(index.search(states_BD, K), best(stored(vectors_ND, precision)[:], states_BD)) == 1


def test_chunks_of_any_size_make_the_same_index(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND, states_BD = shop(4)
    vectors = stored(vectors_ND, "int8")
    whole = Index.build(vectors, states_BD, K, 0.98)
    monkeypatch.setattr(ann, "ROWS_AT_ONCE", 7)
    pieces = Index.build(vectors, states_BD, K, 0.98)
    assert pieces.facts == whole.facts and torch.equal(pieces.list_N, whole.list_N)
    assert np.array_equal(pieces.search(states_BD, K), whole.search(states_BD, K))


@precisions
def test_what_was_saved_finds_the_same_in_the_models_own_vectors(tmp_path: Path, precision: Precision) -> None:
    vectors_ND, states_BD = shop(3)
    vectors = stored(vectors_ND, precision)
    built = Index.build(vectors, states_BD, K, 0.9)
    built.save(Storage(tmp_path))
    loaded = Index.load(Storage(tmp_path), vectors)
    assert loaded.facts == built.facts and loaded.num_probed == built.num_probed
    assert np.array_equal(loaded.search(states_BD, K), built.search(states_BD, K))
    again = Index.build(vectors, states_BD, K, 0.9)
    assert torch.equal(again.list_N, built.list_N) and again.facts == replace(built.facts)
