from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distft.ann import Index, recall_of
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


def best(vectors_ND: torch.Tensor, states_BD: torch.Tensor) -> np.ndarray:
    s_BN = states_BD @ vectors_ND.T
    s_BN[:, :NUM_RESERVED] = -torch.inf
    return torch.topk(s_BN, K).indices.numpy()


def test_the_recall_that_is_written_down_is_what_other_states_meet() -> None:
    vectors_ND, states_BD = shop(1)
    index = Index.build(vectors_ND, states_BD[:150], K, 0.98)
    assert 0.98 <= index.facts.recall <= 1 and index.facts.num_probed < index.facts.num_lists / 2
    others = recall_of(index.search(states_BD[150:], K), best(vectors_ND, states_BD[150:]))
    assert others == pytest.approx(index.facts.recall, abs=0.03)
    written = recall_of(index.search(states_BD[:150], K), best(vectors_ND, states_BD[:150]))
    assert written == pytest.approx(index.facts.recall, abs=1e-3)


def test_all_lists_hold_everything_once_and_no_reserved_row() -> None:
    vectors_ND, states_BD = shop(2)
    index = Index.build(vectors_ND, states_BD, K, 1.0)
    index.num_probed = index.facts.num_lists
    found = index.search(states_BD[:3], NUM_ITEMS)
    assert all(sorted(row) == list(range(NUM_RESERVED, NUM_ITEMS + NUM_RESERVED)) for row in found.tolist())


def test_what_was_saved_finds_the_same_in_the_models_own_vectors(tmp_path: Path) -> None:
    vectors_ND, states_BD = shop(3)
    built = Index.build(vectors_ND, states_BD, K, 0.9)
    built.save(Storage(tmp_path))
    loaded = Index.load(Storage(tmp_path), vectors_ND)
    assert loaded.facts == built.facts and loaded.num_probed == built.num_probed
    assert np.array_equal(loaded.search(states_BD, K), built.search(states_BD, K))
    again = Index.build(vectors_ND, states_BD, K, 0.9)
    assert torch.equal(again.list_N, built.list_N) and again.facts == replace(built.facts)
