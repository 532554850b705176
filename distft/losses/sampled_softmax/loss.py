"""Softmax cross-entropy whose normaliser is estimated from sampled items (Bengio and Senécal, 2003 and 2008).

Enters: states, a batch with targets and keys. Leaves: the loss's sum and count. A candidate u that was drawn c times
where e times were to be expected counts c/e times, so that the estimate's expected value is the whole sum:

    -log p(t)  ≈  -s_t + log(exp(s_t) + Σ_{u ≠ t} c_u / e_u · exp(s_u))

Surprising choice: the target itself is not weighed, since it is there with certainty and not by chance; a draw that
hits it is left out. For in-batch negatives (Yi et al., 2019, doi:10.1145/3298689.3346996) the draws are the targets of
the micro-batch, expected by their share of all targets: there the loss depends on how a batch is cut.

Shape legend: M positions with a target, K negatives of each, U distinct negatives that all share, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.losses.base import Loss, Wanted
from distft.losses.candidates import Candidates, log_normaliser
from distft.losses.negatives import Sampler, distinct, places
from distft.losses.scores import candidate_scores, dots, vectors_once
from distft.losses.seen import Exclusion, Seen, left_out
from distft.models.base import Model
from distft.schema import NUM_RESERVED, Batch, Catalog

if TYPE_CHECKING:
    from distft.losses.sampled_softmax.config import Config


class SampledSoftmax(Loss):
    """Negatives are drawn by a fixed distribution, once for a step or for each position."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.sampler = self._sampler(config, catalog)
        self.exclusion = Exclusion(config.exclude_seen, catalog.target_events)

    def _sampler(self, config: Config, catalog: Catalog) -> Sampler:
        assert config.sampling != "in_batch"
        return Sampler(catalog, config.sampling, config.popularity_exponent)

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count); label smoothing spreads its share over all items, as far as they were drawn."""
        wanted = Wanted.of(x_BLD, batch)
        seen = self.exclusion.seen(batch, wanted)
        if not self.config.negatives_shared:
            items_MK = self.sampler.for_each(batch, self.config.num_negatives)
            log_weight_MK = self._log_weight(items_MK, torch.ones_like(items_MK), self.config.num_negatives)
            return self._over_own(model, wanted, items_MK, log_weight_MK, batch, seen), wanted.count
        drawn_K = self._shared(batch, wanted)
        items_U, count_U = distinct(drawn_K, model.num_items)
        log_weight_U = self._log_weight(items_U, count_U, len(drawn_K))
        if model.retrieval == "dot":
            return self._over_shared(model, wanted, items_U, log_weight_U, seen), wanted.count
        size = (len(wanted.target_M), -1)
        items_MU, log_weight_MU = items_U.expand(size), log_weight_U.expand(size)
        return self._over_own(model, wanted, items_MU, log_weight_MU, batch, seen), wanted.count

    def item_rows(self, batch: Batch) -> Tensor:
        """Targets and negatives."""
        config = self.config
        return torch.cat(
            [super().item_rows(batch), self.sampler.drawn(batch, config.num_negatives, config.negatives_shared)]
        )

    def _shared(self, batch: Batch, wanted: Wanted) -> Tensor:
        """The item rows that all positions share, [K]."""
        return self.sampler.for_step(batch, self.config.num_negatives)

    def _log_weight(self, items: Tensor, count: Tensor, num_draws: int) -> Tensor:
        """Log of c/e for item rows that were drawn ``count`` times in ``num_draws`` draws."""
        log_draws = torch.tensor(float(max(1, num_draws)), device=items.device).log()
        return count.float().log() - log_draws - self.sampler.log_probability(items)

    def _over_shared(
        self, model: Model, wanted: Wanted, items_U: Tensor, log_weight_U: Tensor, seen: Seen | None
    ) -> Tensor:
        smoothing, x_MD, num_items = self.config.label_smoothing, wanted.x_MD, model.num_items - NUM_RESERVED
        v_ND, place_M, place_U = vectors_once(model, wanted.target_M, items_U)
        v_UD, own_M = v_ND[place_U], dots(x_MD, F.embedding(place_M, v_ND))
        hit_M = places(items_U, wanted.target_M, model.num_items)
        candidates = Candidates(v_UD, log_weight_U, hit_M, seen.among(items_U, model.num_items) if seen else None)
        loss_sum = log_normaliser(x_MD, own_M, candidates, self.config.max_logits) - (1 - smoothing) * own_M.sum()
        if smoothing:
            weight_U = log_weight_U.exp() / num_items
            hit_weight_M = torch.where(hit_M >= 0, weight_U[hit_M], 0)
            others = (x_MD.float().sum(0) * (weight_U @ v_UD.float())).sum() - (hit_weight_M * own_M).sum()
            loss_sum = loss_sum - smoothing * (own_M.sum() / num_items + others)
        return loss_sum

    def _over_own(
        self,
        model: Model,
        wanted: Wanted,
        items_MK: Tensor,
        log_weight_MK: Tensor,
        batch: Batch,
        seen: Seen | None,
    ) -> Tensor:
        smoothing, num_items = self.config.label_smoothing, model.num_items - NUM_RESERVED
        all_MK = torch.cat([wanted.target_M[:, None], items_MK], 1)
        s_MK = candidate_scores(model, wanted, all_MK, batch, self.config.max_logits)
        own_M1, other_MK = s_MK[:, :1], s_MK[:, 1:]
        log_weight_MK = log_weight_MK.masked_fill(left_out(items_MK, wanted, seen, self.config.max_logits), -torch.inf)
        loss_M = torch.cat([own_M1, other_MK + log_weight_MK], 1).logsumexp(1) - (1 - smoothing) * own_M1[:, 0]
        if smoothing:
            spread_M = own_M1[:, 0] + (log_weight_MK.exp() * other_MK).sum(1)
            loss_M = loss_M - smoothing / num_items * spread_M
        return loss_M.sum()


class InBatchSoftmax(SampledSoftmax):
    """Negatives are the targets of the micro-batch."""

    depends_on_cut = True

    def _sampler(self, config: Config, catalog: Catalog) -> Sampler:
        return Sampler(catalog, "popularity", 1.0)

    def item_rows(self, batch: Batch) -> Tensor:
        return Loss.item_rows(self, batch)

    def _shared(self, batch: Batch, wanted: Wanted) -> Tensor:
        return wanted.target_M
