"""A bundle in memory that answers requests: the served model without Ray and without HTTP.

Enters: a bundle, then queries in the shop's own words. Leaves: the best items with their scores. Histories are
encoded by the bundle's encoder, batched by the collate function of training and ranked by the evaluator's code,
so that served scores are the evaluated ones. Surprising choice: a query without any history is answered by the
popularity list, and says so, because a model has nothing to add there.

Shape legend: B queries, N items, C items of a chunk, K results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.data import ragged
from distft.data.encode import Encoder, RawEvent, time_order
from distft.data.users import Users
from distft.errors import ArtefactError, QueryError
from distft.item_vectors import stored_vectors
from distft.job import Job
from distft.jobfile import parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import DotScores, Ranker, excluded_items
from distft.schema import ITEMLESS_EVENTS, NUM_RESERVED, PAD, UNKNOWN, ExcludeSeen, Histories
from distft.serve.arrangement import VERSION_CHARS
from distft.serve.explaining import Reason, reasons
from distft.storage import Storage
from distft.topk import ScoreChunk, top_k

if TYPE_CHECKING:
    from distft.ann import Index

INDEX_FACTS = "index/index.json"

AnswerSource = Literal["model", "popularity"]


@dataclass(frozen=True)
class Query:
    """One request: the user's events, how many items, and what is left out.

    ``exclude_seen``: None is the rule that the model was evaluated with; True leaves out every item of the history,
    False none. ``filter``: feature name → values, of which an item must have one. ``user``: what is known of the
    user, feature name → value. ``exclude_items``: ids not to recommend. ``kept``: the events were kept by the service,
    perhaps in the time of another model, so that those of types unknown to this one are left out instead of refused.
    ``deny``: the service's deny-list counts, which it does for every query but those that prove the model.
    ``explain``: the answer tells which events moved each item's score.
    """

    events: Sequence[RawEvent]
    k: int = 10
    exclude_seen: bool | None = None
    filter: Mapping[str, Sequence[str]] | None = None
    user: Mapping[str, str | float] = field(default_factory=dict)
    exclude_items: tuple[str, ...] = ()
    kept: bool = False
    deny: bool = True
    explain: bool = False


@dataclass(frozen=True)
class Recommendation:
    """Item ids and their scores, best first; fewer than asked for when no more are left.

    ``source`` "popularity": the score is the item's share of all target events that the model was trained on.
    ``reasons``: for each item, where they were asked for; places are those in the query's events.
    """

    item_ids: list[str]
    scores: list[float]
    unknown_items: int
    source: AnswerSource
    model_version: str
    reasons: list[list[Reason]] | None = None


@dataclass(frozen=True)
class Accepted:
    """A query that was found answerable.

    ``events`` are those that the model follows. ``kept_N`` are the items that pass the filter and the deny-list, None
    if all do. ``place_E``: where each event of the history stands in the query, for one that wants an explanation.
    """

    query: Query
    events: Sequence[RawEvent]
    kept_N: NDArray[np.bool_] | None
    place_E: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Batch:
    """Accepted queries as rows. ``excluded``: for each the item rows that may not come out."""

    queries: Sequence[Accepted]
    histories: Histories
    excluded: list[NDArray[np.int32]]
    unknown_B: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.queries)


class Predictor:
    """The model of a bundle, ready to answer. Not for several threads at once."""

    def __init__(self, job: Job, encoder: Encoder, ranker: Ranker, version: str, index: Index | None = None) -> None:
        self.job = job
        self.index = index
        self.encoder = encoder
        self.ranker = ranker
        self.version = version
        self._denied: Sequence[str] = ()
        self._allowed_N: NDArray[np.bool_] | None = None
        self._filters = {column.spec.name: column for column in encoder.features if column.spec.kind == "category"}

    @classmethod
    def load(cls, bundle: Storage, *, verify: bool = True) -> Predictor:
        """The predictor of a bundle. Raises ArtefactError naming the file that is missing or changed."""
        manifest = bundle.verified("bundle") if verify else bundle.manifest("bundle")
        if manifest is None:
            raise ArtefactError(
                f"There is no bundle at {bundle.uri}", "a folder that distft export made", "Export the model first."
            )
        job = parse_job(bundle.read_bytes("job.yaml").decode(), f"{bundle.uri}/job.yaml")
        encoder = Encoder.load(bundle / "encoder")
        model = job.model.build(encoder.catalog())
        fill(model, read_weights(bundle))
        ranker = Ranker(model, job.model.max_history, encoder, None, stored_vectors(bundle, manifest))
        index = None
        if INDEX_FACTS in manifest.files:
            from distft.ann import Index  # FAISS is loaded where an index needs it

            assert ranker.vectors_ND is not None, "only models that rank by products get an index"
            index = Index.load(bundle, ranker.vectors_ND)
        return cls(job, encoder, ranker, manifest.sha256[:VERSION_CHARS], index)

    def deny(self, item_ids: Sequence[str]) -> None:
        """These items are not recommended from now on; ids that the model does not know say nothing."""
        if item_ids is self._denied:
            return
        rows = self.encoder.item_rows(item_ids)
        allowed_N = np.ones(self.encoder.num_items, bool)
        allowed_N[rows[rows >= NUM_RESERVED]] = False
        self._denied, self._allowed_N = item_ids, None if allowed_N.all() else allowed_N

    @property
    def allowed_N(self) -> NDArray[np.bool_] | None:
        """Item rows that the deny-list does not name; None where it names none."""
        return self._allowed_N

    def recommend(self, queries: Sequence[Query], *, exact: bool = False) -> list[Recommendation]:
        """The answer to each query; ``exact``: without the index. Raises QueryError for the first without answer."""
        accepted = [self.accept(query) for query in queries]
        return self.scan(accepted) if exact else self.answer(accepted)

    def accept(self, query: Query) -> Accepted:
        """The query with what of it the model follows. Raises QueryError naming the field that it cannot follow."""
        if not 1 <= query.k <= self.job.serve.max_k:
            raise QueryError(f"{query.k} items are asked for", f"1 to {self.job.serve.max_k}", "", "k")
        events: Sequence[RawEvent] = query.events
        followed: Sequence[int] = range(len(events))
        if query.kept:
            names = self.encoder.event_names
            followed = [place for place in followed if events[place].event in names]
            events = [events[place] for place in followed]
        self._check_events(events)
        self._check_user(query.user)
        kept_N = self._kept(query.filter)
        if query.deny and self._allowed_N is not None:
            kept_N = self._allowed_N if kept_N is None else kept_N & self._allowed_N
        if not query.explain:
            return Accepted(query, events, kept_N)
        order = time_order(events)
        places = followed if order is None else [followed[place] for place in order]
        return Accepted(query, events, kept_N, np.array(places, np.int64))

    def answer(self, queries: Sequence[Accepted]) -> list[Recommendation]:
        """The answer to each query: from the index, where there is one and it serves, or by a scan."""
        indexed = [self._suits_index(query) for query in queries]
        parts = {
            True: iter(self._look_up([query for query, suits in zip(queries, indexed, strict=True) if suits])),
            False: iter(self.scan([query for query, suits in zip(queries, indexed, strict=True) if not suits])),
        }
        answers = [next(parts[suits]) for suits in indexed]
        return [
            answer if query.place_E is None else self._explained(query, query.place_E, answer)
            for query, answer in zip(queries, answers, strict=True)
        ]

    def _encoded(self, queries: Sequence[Accepted]) -> _Batch:
        """The queries as rows, all at once: each array has its price, however short it is."""
        histories = self.encoder.encode_users([query.events for query in queries])
        rules = [self._exclusion(one.query.exclude_seen) for one in queries]
        seen = {rule: excluded_items(histories, rule, self.encoder.target_codes) for rule in set(rules)}
        excluded = []
        for number, (rule, one) in enumerate(zip(rules, queries, strict=True)):
            found = seen[rule]
            rows = found[number] if found else np.zeros(0, np.int32)
            if one.query.exclude_items:
                denied = self.encoder.item_rows(one.query.exclude_items)
                rows = np.union1d(rows, denied[denied >= NUM_RESERVED])
            excluded.append(rows)
        unknown_B = np.diff(ragged.offsets_of(histories.item_row == UNKNOWN)[histories.offsets])
        return _Batch(queries, histories, excluded, unknown_B)

    def _explained(self, query: Accepted, place_E: NDArray[np.int64], answer: Recommendation) -> Recommendation:
        if answer.source == "popularity":
            return replace(answer, reasons=[[] for _ in answer.item_ids])
        users = None
        if self.job.model.uses_users:
            users = Users.told(self.encoder.user_features, [query.query.user])
        row_K = self.encoder.item_rows(answer.item_ids).astype(np.int64)
        found = reasons(self.ranker, self.encoder.encode_events(query.events), row_K, users)
        return replace(
            answer, reasons=[[Reason(int(place_E[one.place]), one.effect) for one in some] for some in found]
        )

    def _suits_index(self, query: Accepted) -> bool:
        """False for what the index was not measured for: longer lists, few of the items, and no history."""
        index, filtered = self.index, bool(query.query.filter)
        return index is not None and query.query.k <= index.facts.k and not filtered and len(query.events) > 0

    @torch.inference_mode()
    def _look_up(self, queries: Sequence[Accepted]) -> list[Recommendation]:
        """The best of what the index finds and of the items to which the model adds something, by their own scores."""
        if not queries:
            return []
        assert self.index is not None
        batch = self._encoded(queries)
        scores = self._scores(batch)
        assert isinstance(scores, DotScores), "only models that rank by products get an index"
        wanted = max(one.query.k + len(excluded) for one, excluded in zip(queries, batch.excluded, strict=True))
        kept_N = queries[0].kept_N
        alike = all(query.kept_N is kept_N for query in queries)
        found_BK = self.index.search(scores.x_BD, wanted, kept_N if alike else None)
        answers = []
        for number, (one, excluded) in enumerate(zip(queries, batch.excluded, strict=True)):
            own = scores.own_items(number)
            rows = np.setdiff1d(np.concatenate([found_BK[number], own]), excluded)
            rows = rows[rows >= NUM_RESERVED]
            rows_N = torch.from_numpy(rows if one.kept_N is None else rows[one.kept_N[rows]])
            score_N = scores.of_items(number, rows_N)
            best_K = torch.sort(score_N, descending=True, stable=True).indices[: one.query.k]
            if len(best_K) < one.query.k and len(best_K) < self._num_left(one, excluded):
                answers += self.scan([one])
            else:
                answers.append(self._recommendation(batch, number, score_N[best_K].numpy(), rows_N[best_K].numpy()))
        return answers

    def _num_left(self, query: Accepted, excluded: NDArray[np.int32]) -> int:
        """Items that the query may be answered with."""
        if query.kept_N is None:
            return self.encoder.num_items - NUM_RESERVED - len(excluded)
        return int(query.kept_N[NUM_RESERVED:].sum()) - int(query.kept_N[excluded].sum())

    def _scores(self, batch: _Batch) -> ScoreChunk:
        histories, users = batch.histories, None
        if self.job.model.uses_users:
            users = Users.told(self.encoder.user_features, [one.query.user for one in batch.queries])
            histories = replace(histories, user_row=np.arange(len(batch), dtype=np.int32))
        return self.ranker.scores(histories, users)

    @torch.inference_mode()
    def scan(self, queries: Sequence[Accepted]) -> list[Recommendation]:
        """The answer to each query, all computed in one forward pass over the whole catalogue."""
        if not queries:
            return []
        batch = self._encoded(queries)
        k = max(one.query.k for one in queries)
        kept = _kept_scores(queries, self._scores(batch))
        scores_BK, rows_BK = top_k(kept, self.encoder.num_items, k, batch.excluded, len(batch))
        return [
            self._recommendation(batch, number, scores_K[: one.query.k], rows_K[: one.query.k])
            for number, (one, scores_K, rows_K) in enumerate(
                zip(queries, scores_BK.numpy(), rows_BK.numpy(), strict=True)
            )
        ]

    def describe(self) -> dict[str, Any]:
        """What GET /v1/model tells of this model: JSON."""
        return {
            "model_version": self.version,
            "name": self.job.name,
            "model": self.job.model.kind,
            "num_parameters": sum(parameter.numel() for parameter in self.ranker.model.parameters()),
            "num_items": self.encoder.num_items - NUM_RESERVED,
            "events": list(self.encoder.event_names),
            "target_events": list(self.encoder.target_events),
            "filters": sorted(self._filters),
            "denied_items": 0 if self._allowed_N is None else int((~self._allowed_N).sum()),
            "user_features": [spec.name for spec in self.encoder.user_features] if self.job.model.uses_users else [],
            "max_history": self.job.model.max_history,
            "max_k": self.job.serve.max_k,
            "exclude_seen": self.job.evaluate.exclude_seen,
            "index": asdict(self.index.facts) if self.index else None,
        }

    def _check_events(self, events: Sequence[RawEvent]) -> None:
        names = self.encoder.event_names
        for index, event in enumerate(events):
            if event.event not in names:
                what = f"{event.event!r} is no event type of this model"
                raise QueryError(what, f"one of {', '.join(names)}", "", f"history.{index}.event")
            if event.item_id is None and event.event not in ITEMLESS_EVENTS:
                what = f"A {event.event} has no item_id"
                raise QueryError(what, "the item that it is about", "", f"history.{index}.item_id")

    def _check_user(self, user: Mapping[str, str | float]) -> None:
        known = {spec.name: spec.kind for spec in self.encoder.user_features} if self.job.model.uses_users else {}
        for name, value in user.items():
            if name not in known:
                expected = f"one of {', '.join(known)}" if known else "nothing: this model takes no features of users"
                raise QueryError(f"{name[:100]!r} is no feature of users", expected, "", f"user.{name}")
            if known[name] == "number" and isinstance(value, str):
                raise QueryError(f"{value[:100]!r} is no number", "a number", "", f"user.{name}")

    def _exclusion(self, wanted: bool | None) -> ExcludeSeen:
        if wanted is None:
            return self.job.evaluate.exclude_seen
        return "all" if wanted else "none"

    def _kept(self, wanted: Mapping[str, Sequence[str]] | None) -> NDArray[np.bool_] | None:
        if not wanted:
            return None
        kept_N = np.ones(self.encoder.num_items, bool)
        for name, values in wanted.items():
            if name not in self._filters:
                expected = f"one of {', '.join(sorted(self._filters))}" if self._filters else "no filter at all"
                raise QueryError(f"{name[:100]!r} is no category of the items", expected, "", f"filter.{name}")
            kept_N &= self._filters[name].matching(set(values))
        return kept_N

    def _recommendation(
        self, batch: _Batch, number: int, scores_K: NDArray[np.float32], rows_K: NDArray[np.int64]
    ) -> Recommendation:
        found_K = rows_K != PAD
        return Recommendation(
            item_ids=self.encoder.item_ids[rows_K[found_K]].tolist(),
            scores=scores_K[found_K].tolist(),
            unknown_items=int(batch.unknown_B[number]),
            source="model" if batch.queries[number].events else "popularity",
            model_version=self.version,
        )


def _kept_scores(queries: Sequence[Accepted], scores: ScoreChunk) -> ScoreChunk:
    """The scores with -inf for the items that a query's filter or the deny-list drops."""
    if all(query.kept_N is None for query in queries):
        return scores

    def kept(start: int, end: int) -> Tensor:
        everything = np.ones(end - start, bool)
        kept_BC = np.stack([everything if q.kept_N is None else q.kept_N[start:end] for q in queries])
        return scores(start, end).masked_fill(torch.from_numpy(~kept_BC), -torch.inf)

    return kept
