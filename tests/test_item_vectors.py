from __future__ import annotations

import pytest
import torch

from distft.item_vectors import ItemVectors
from distft.ranking import DotScores
from distft.topk import target_ranks, top_k


def vectors(num_items: int = 500, dim: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    v_ND = torch.randn(num_items, dim) * torch.rand(num_items, 1) * 3
    v_ND[0] = 0
    v_ND[7] *= 1e-6
    return v_ND


def test_int8_is_off_by_half_a_step_of_its_row_and_takes_a_quarter_of_the_bytes() -> None:
    v_ND = vectors()
    stored = ItemVectors.of(v_ND, "int8")
    step_N1 = v_ND.abs().amax(1, keepdim=True) / 127
    assert ((stored[:] - v_ND).abs() <= 0.5001 * step_N1).all()
    assert stored[:].abs().amax(1) == pytest.approx(v_ND.abs().amax(1), rel=1e-6)
    assert not stored[:][0].any() and not torch.equal(stored[:], v_ND)
    assert stored.num_bytes == 500 * (64 + 4) < 0.27 * 4 * v_ND.numel()


def test_fp16_takes_half_and_is_nearer() -> None:
    v_ND = vectors()
    stored, coarse = ItemVectors.of(v_ND, "fp16"), ItemVectors.of(v_ND, "int8")
    assert stored.num_bytes == 2 * v_ND.numel() and len(stored) == 500
    assert (stored[:] - v_ND).abs().mean() < (coarse[:] - v_ND).abs().mean() / 10


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_ranges_and_lists_of_rows_are_those_of_the_whole_and_survive_their_file(precision) -> None:
    stored = ItemVectors.of(vectors(), precision)
    again = ItemVectors.from_tensors(stored.tensors())
    rows = torch.tensor([3, 499, 3])
    for one in (stored, again):
        assert one[:].dtype == torch.float32
        assert torch.equal(one[40:90], stored[:][40:90]) and torch.equal(one[rows], stored[:][rows])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_rank_is_the_place_in_the_list_also_among_equal_codes(precision) -> None:
    v_ND = vectors()
    v_ND[100:140] = v_ND[60:100]
    stored = ItemVectors.of(v_ND, precision)
    scores = DotScores(torch.randn(6, 64), stored)
    _, rows_BK = top_k(scores, len(stored), 498, None, 6)
    for place in (0, 5, 300):
        target_B = rows_BK[:, place].contiguous()
        for expected in (None, scores.of(target_B)):
            assert target_ranks(scores, len(stored), target_B, None, expected).tolist() == [place + 1] * 6
