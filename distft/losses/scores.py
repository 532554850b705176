"""Scores of chosen candidates: of each position's own ones, by dot or by pair models, in bounded memory.

Enters: a model, the positions with a target, item rows. Leaves: scores in fp32, with gradients. Surprising choice: a
model is asked for item vectors once in a forward pass, and pair models are cut along the candidates, into a number of
chunks that the job alone decides: under ZeRO-3 every call gathers parameters from all ranks, which must therefore
make equally many, however many positions each of them has.

Shape legend: M positions with a target, K candidates of each, U distinct items, C positions of one chunk, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distft.losses.base import Wanted
from distft.losses.negatives import MANY_ITEMS
from distft.models.base import Model
from distft.schema import Batch

DENSE = 32
"""Distinct items for each candidate of a position, up to which the scores of all of them, in one matrix product, take
less time than looking the candidates' vectors up, one by one."""
PAIR_POSITIONS = 16_384
"""Positions that a chunk of a pair model is planned for: those of a micro-batch by default."""


def vectors_once(model: Model, *asked: Tensor) -> tuple[Tensor, ...]:
    """(v_UD, …): the vectors of all item rows that are ``asked`` for, each once, and the place of each row asked."""
    if model.num_items > MANY_ITEMS:
        rows_U, place = torch.unique(torch.cat([items.flatten() for items in asked]), return_inverse=True)
        parts = torch.split(place, [items.numel() for items in asked])
        return model.item_vectors(rows_U), *(part.view_as(items) for part, items in zip(parts, asked, strict=True))
    used_V = torch.zeros(model.num_items, dtype=torch.bool, device=asked[0].device)
    for items in asked:
        used_V[items] = True
    place_V = used_V.cumsum(0) - 1
    return model.item_vectors(used_V.nonzero()[:, 0]), *(place_V[items] for items in asked)


def dots(x_MD: Tensor, y_MD: Tensor) -> Tensor:
    """x·y of each position, fp32 [M]."""
    return (x_MD.float() * y_MD.float()).sum(1)


def candidate_scores(model: Model, wanted: Wanted, items_MK: Tensor, batch: Batch, max_numbers: int) -> Tensor:
    """s_MK of K item rows for each position, fp32; at most ``max_numbers`` numbers beside them are held at once."""
    if model.retrieval == "dot":
        v_UD, place_MK = vectors_once(model, items_MK)
        return _gathered_dots(wanted.x_MD, v_UD, place_MK, max_numbers)
    width = max(1, max_numbers // PAIR_POSITIONS)
    chunks = torch.split(items_MK, width, 1)

    def score(x_MD: Tensor, items_MC: Tensor) -> Tensor:
        return model.pair_scores(x_MD, items_MC, batch, wanted.row_M).float()

    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([score(wanted.x_MD, items_MC) for items_MC in chunks], 1)
    return torch.cat([checkpoint(score, wanted.x_MD, items_MC, use_reentrant=False) for items_MC in chunks], 1)


def _gathered_dots(x_MD: Tensor, v_UD: Tensor, place_MK: Tensor, max_numbers: int) -> Tensor:
    dense = len(v_UD) <= DENSE * place_MK.shape[1]
    score = _by_product if dense else _by_lookup
    numbers = len(v_UD) if dense else place_MK.shape[1] * v_UD.shape[1]
    width = max(1, max_numbers // max(1, numbers))
    if len(x_MD) <= width:
        return score(x_MD, v_UD, place_MK)
    pairs = zip(torch.split(x_MD, width), torch.split(place_MK, width), strict=True)
    return torch.cat([checkpoint(score, x_CD, v_UD, place_CK, use_reentrant=False) for x_CD, place_CK in pairs])


def _by_product(x_CD: Tensor, v_UD: Tensor, place_CK: Tensor) -> Tensor:
    return (x_CD @ v_UD.T).gather(1, place_CK).float()


def _by_lookup(x_CD: Tensor, v_UD: Tensor, place_CK: Tensor) -> Tensor:
    # Not a batch of products: of matrices as small as these, starting each takes longer than computing it.
    return (F.embedding(place_CK, v_UD) * x_CD[:, None]).sum(2).float()
