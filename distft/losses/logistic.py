"""Binary cross-entropy of each target against its negatives: what ``bce`` and ``gbce`` share.

Enters: states, a batch with targets and keys. Leaves: the loss's sum. For a target t and K draws u:

    (exponent · log(1 + exp(b - s_t)) + Σ_u log(1 + exp(s_u - b))) / (K + 1),    b = log(K / exponent)

with an exponent of 1 the mean binary cross-entropy of K + 1 pairs. A draw that hits the target is left out. The offset
b is the prior of Lin et al. (2017, arXiv:1708.02002): a model that scores everything with 0 is then right on average.
Without it the first thing that K negatives teach is that all scores are too high, and item vectors that have all moved
one way are slow to part again. The order of the items does not depend on it.

Shape legend: M positions with a target, K negatives of each, U distinct negatives that all share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.losses.base import Wanted
from distft.losses.candidates import Candidates, logistic_losses
from distft.losses.config import LogisticConfig
from distft.losses.negatives import Sampler, distinct, places
from distft.losses.scores import candidate_scores, dots, vectors_once
from distft.losses.seen import Exclusion, Seen, left_out
from distft.models.base import Model
from distft.schema import Batch


def against_negatives(  # noqa: PLR0913
    model: Model,
    wanted: Wanted,
    batch: Batch,
    sampler: Sampler,
    exclusion: Exclusion,
    config: LogisticConfig,
    exponent: float,
) -> Tensor:
    """The loss above, summed over the positions with a target; the target's probability is taken ** ``exponent``."""
    offset, seen = prior(config.num_negatives, exponent), exclusion.seen(batch, wanted)
    if not config.negatives_shared:
        items_MK = sampler.for_each(batch, config.num_negatives)
        one_MK = torch.ones_like(items_MK)
        own_M, others = _over_own(model, wanted, items_MK, one_MK, batch, config.max_logits, offset, seen)
    else:
        items_U, count_U = distinct(sampler.for_step(batch, config.num_negatives), model.num_items)
        if model.retrieval == "dot":
            own_M, others = _over_shared(model, wanted, items_U, count_U, config.max_logits, offset, seen)
        else:
            size = (len(wanted.target_M), -1)
            own_M, others = _over_own(
                model, wanted, items_U.expand(size), count_U.expand(size), batch, config.max_logits, offset, seen
            )
    return (exponent * F.softplus(offset - own_M).sum() + others) / (config.num_negatives + 1)


def prior(num_negatives: int, exponent: float = 1.0) -> float:
    """b: the log-odds of a negative against the target."""
    return math.log(num_negatives / exponent)


def _over_shared(  # noqa: PLR0913
    model: Model,
    wanted: Wanted,
    items_U: Tensor,
    count_U: Tensor,
    max_numbers: int,
    offset: float,
    seen: Seen | None,
) -> tuple[Tensor, Tensor]:
    v_ND, place_M, place_U = vectors_once(model, wanted.target_M, items_U)
    hit_M = places(items_U, wanted.target_M, model.num_items)
    seen = seen.among(items_U, model.num_items) if seen else None
    candidates = Candidates(v_ND[place_U], count_U.float().log(), hit_M, seen)
    own_M = dots(wanted.x_MD, F.embedding(place_M, v_ND))
    return own_M, logistic_losses(wanted.x_MD, candidates, offset, max_numbers)


def _over_own(  # noqa: PLR0913
    model: Model,
    wanted: Wanted,
    items_MK: Tensor,
    count_MK: Tensor,
    batch: Batch,
    max_numbers: int,
    offset: float,
    seen: Seen | None,
) -> tuple[Tensor, Tensor]:
    all_MK = torch.cat([wanted.target_M[:, None], items_MK], 1)
    s_MK = candidate_scores(model, wanted, all_MK, batch, max_numbers)
    weight_MK = count_MK.float().masked_fill(left_out(items_MK, wanted, seen, max_numbers), 0)
    return s_MK[:, 0], (weight_MK * F.softplus(s_MK[:, 1:] - offset)).sum()
