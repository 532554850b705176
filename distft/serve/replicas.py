"""The processes behind the interface: replicas of a model, and the one that keeps users' histories.

Enters: queries and events through Ray Serve's handles. Leaves: recommendations and histories. Surprising choice: what
the model refuses comes back as a value, not as an exception: Ray would wrap it and lose which field is at fault.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from distft.errors import QueryError, ServingError
from distft.serve.arrangement import served_bundle
from distft.serve.batching import Batcher, Overloaded
from distft.serve.denylist import read_deny_list
from distft.serve.followed import Followed
from distft.serve.golden import GoldenRequest, answered_as_expected, first_difference, read_golden
from distft.serve.histories import Histories, Keeping
from distft.serve.itemsearch import ItemPage, ItemQuery, ItemSearch
from distft.serve.metrics import ModelMeter
from distft.serve.predictor import Accepted, Predictor, Query, Recommendation
from distft.storage import Storage

QUEUED_BATCHES = 8
"""Full batches that may wait inside a replica, and as many again outside, before requests are turned away with 503.

Waiting inside is cheap: a replica that is full makes Ray's router ask again only after a growing pause. This is the
last line: the ingress lets in fewer, see ``admission``.
"""

QUEUED_SEARCHES = 16
"""Searches of the catalogue that may wait inside a replica. They are computed one at a time, in a thread of their own:
whoever browses shall not keep those waiting who ask what to recommend."""


@dataclass(frozen=True)
class Refusal:
    """Why the model cannot follow a query, and the field at fault."""

    field: str
    message: str


@dataclass(frozen=True)
class Busy:
    """Too many requests wait in the replica already."""


class ModelReplica:
    """One process with the model of a bundle; it never starts with a model that scores otherwise than expected.

    ``version``: of the bundle that was deployed; what was written there since then is another model. ``trusted_key``:
    whose signature it needs.
    """

    def __init__(
        self, bundle_uri: str, deny: str | None = None, version: str | None = None, trusted_key: str | None = None
    ) -> None:
        started_s = time.perf_counter()
        assigned = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
        bundle = Storage(bundle_uri)
        served, _ = served_bundle(bundle, trusted_key)
        if version not in (None, served.version):
            raise ServingError(f"{bundle_uri} is model {served.version} now, and {version} was deployed")
        self.predictor = Predictor.load(bundle, verify=False)
        wrong = not_finite(self.predictor)
        if wrong:
            raise ServingError(f"The model of {bundle_uri} has values that are no numbers: {wrong}")
        self.golden = read_golden(bundle, self.predictor.job.serve.max_k)
        wrong = first_difference(self.predictor, self.golden)
        if wrong:
            raise ServingError(f"The model of {bundle_uri} does not score as it was exported: {wrong}")
        self.proof = answered_as_expected(self.predictor, self.golden)
        self.denied = Followed(Path(deny), read_deny_list) if deny else None
        settings = self.predictor.job.serve
        meter = ModelMeter(self.predictor.version)
        # Computed in a thread, so that this replica still answers health checks meanwhile.
        self._batcher = Batcher[Accepted, Recommendation](
            self.predictor.answer,
            settings.max_batch_size,
            settings.batch_wait_s,
            QUEUED_BATCHES * settings.max_batch_size,
            meter.batch,
        )
        search = ItemSearch(self.predictor.encoder, self.predictor.version)
        self._searches = Batcher[ItemQuery, ItemPage](
            lambda queries: [search.page(query, self.predictor.allowed_N) for query in queries], 1, 0, QUEUED_SEARCHES
        )
        meter.started(time.perf_counter() - started_s)

    async def recommend(self, query: Query) -> Recommendation | Refusal | Busy:
        """The answer to one query, computed together with those that arrive at the same time."""
        self._follow()
        try:
            accepted = self.predictor.accept(query)
        except QueryError as error:
            return Refusal(error.field, str(error))
        try:
            return await self._batcher.ask(accepted)
        except Overloaded:
            return Busy()

    async def items(self, query: ItemQuery) -> ItemPage | Refusal | Busy:
        """A page of the items that the model knows."""
        self._follow()
        try:
            return await self._searches.ask(query)
        except QueryError as error:
            return Refusal(error.field, str(error))
        except Overloaded:
            return Busy()

    async def describe(self) -> dict[str, Any]:
        """The facts of the model."""
        self._follow()
        return self.predictor.describe()

    async def golden_request(self) -> GoldenRequest:
        """A request with its expected answer."""
        return self.proof

    async def golden_requests(self) -> list[GoldenRequest]:
        """All requests with their expected answers."""
        return self.golden

    def _follow(self) -> None:
        if self.denied is not None:
            self.predictor.deny(self.denied.value())


def not_finite(predictor: Predictor) -> str | None:
    """The first weight that is NaN or infinite somewhere, or None."""
    for name, tensor in predictor.ranker.model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


class HistoryReplica(Histories):
    """The one process that keeps users' histories."""

    def __init__(self, keeping: Keeping, bundle_uri: str) -> None:
        super().__init__(keeping)
        self.bundle = Storage(bundle_uri)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Follows ``user_config``: {"version"} of the bundle whose histories are taken over."""
        await self.fill(self.bundle, config["version"])

    async def __del__(self) -> None:
        """Ray Serve calls this when it stops the replica."""
        await self.close()
