"""Hard negatives from a learnt generator, after IRGAN (Wang et al., 2017, arXiv:1705.10513).

Enters: states, a batch with targets and keys. Leaves: the loss's sum and count. Out of a pool of items, drawn
uniformly for the step, a generator with small embeddings of its own proposes K for each target. The discriminator is
the model: it learns, by binary cross-entropy, to tell the target from the proposals. The generator learns to propose
what the model takes for a target: it gets the policy gradient of the expected reward Σ_p π(p) · σ(s_p - b), π its
softmax over the pool and b the prior of ``logistic.py``. Surprising choices: since the pool is small that expectation
is summed and not sampled, so the gradient has no variance from proposing; and there is one optimiser. Each of the two
sees the other only through detached tensors, and the generator's part adds its gradient and nothing to the loss that is
told, which is the model's.

Shape legend: M positions with a target, P items of the pool, K proposals, D width, E width of the generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.losses.base import Loss, Wanted
from distft.losses.draws import gumbel, numbers, place_keys
from distft.losses.logistic import prior
from distft.losses.negatives import Sampler, distinct
from distft.losses.scores import candidate_scores, dots, vectors_once
from distft.losses.seen import Exclusion, left_out
from distft.models.base import Model
from distft.models.blocks import init_normal
from distft.schema import PAD, Batch, Catalog

if TYPE_CHECKING:
    from distft.losses.adversarial.config import Config

FAR_BELOW = -1e30
"""The score of what is not to be chosen; finite, so that a softmax over nothing else is a number."""


class Adversarial(Loss):
    """The model against proposals, and the generator that makes them."""

    def __init__(self, config: Config, catalog: Catalog, state_dim: int) -> None:
        super().__init__()
        self.config = config
        self.sampler = Sampler(catalog, "uniform", 1.0)
        self.exclusion = Exclusion(config.exclude_seen, catalog.target_events)
        self.items = nn.Embedding(catalog.num_items, config.generator_dim, padding_idx=PAD)
        self.query = nn.Linear(state_dim, config.generator_dim)
        self.apply(init_normal)

    def item_rows(self, batch: Batch) -> Tensor:
        """Targets and the pool."""
        return torch.cat([super().item_rows(batch), self.sampler.for_step(batch, self.config.pool_size)])

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count)."""
        wanted = Wanted.of(x_BLD, batch)
        pool_P, _ = distinct(self.sampler.for_step(batch, self.config.pool_size), model.num_items)
        seen, pool_MP = self.exclusion.seen(batch, wanted), pool_P.expand(len(wanted.target_M), -1)
        other_MP = ~left_out(pool_MP, wanted, seen, self.config.max_logits)
        own_M, s_MP = self._model_scores(model, wanted, pool_P, batch)
        g_MP = self._generator_scores(wanted, pool_P)
        proposed_MP = self._proposals(g_MP.detach(), other_MP, batch, wanted)
        offset = prior(self.config.num_negatives)
        model_sum = F.softplus(offset - own_M).sum() + (F.softplus(s_MP - offset) * proposed_MP).sum()
        policy_MP = g_MP.masked_fill(~other_MP, FAR_BELOW).softmax(1)
        generator_sum = -(policy_MP * (s_MP.detach() - offset).sigmoid() * other_MP).sum()
        loss_sum = model_sum / (self.config.num_negatives + 1) + generator_sum - generator_sum.detach()
        return loss_sum, wanted.count

    def _model_scores(self, model: Model, wanted: Wanted, pool_P: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(own_M, s_MP), fp32."""
        if model.retrieval == "dot":
            v_ND, place_M, place_P = vectors_once(model, wanted.target_M, pool_P)
            own_M = dots(wanted.x_MD, F.embedding(place_M, v_ND))
            return own_M, (wanted.x_MD @ v_ND[place_P].T).float()
        all_MP = torch.cat([wanted.target_M[:, None], pool_P.expand(len(wanted.target_M), -1)], 1)
        s_MP = candidate_scores(model, wanted, all_MP, batch, self.config.max_logits)
        return s_MP[:, 0], s_MP[:, 1:]

    def _generator_scores(self, wanted: Wanted, pool_P: Tensor) -> Tensor:
        """g_MP, fp32: by the cosine of what the generator makes of a state and its own embedding of an item."""
        q_ME = F.normalize(self.query(wanted.x_MD.detach()).float(), dim=1)
        g_PE = F.normalize(self.items(pool_P).float(), dim=1)
        return q_ME @ g_PE.T / self.config.temperature

    def _proposals(self, g_MP: Tensor, other_MP: Tensor, batch: Batch, wanted: Wanted) -> Tensor:
        """1 where an item of the pool is proposed, else 0, [M, P]: K draws from the softmax, none twice, no target."""
        key_M = place_keys(batch.key_B[wanted.row_M], wanted.position_M)
        noisy_MP = (g_MP + gumbel(numbers(key_M, g_MP.shape[1]))).masked_fill(~other_MP, -torch.inf)
        count = min(self.config.num_negatives, g_MP.shape[1])
        proposed_MP = torch.zeros_like(g_MP).scatter_(1, noisy_MP.topk(count, 1).indices, 1.0)
        return proposed_MP * other_MP
