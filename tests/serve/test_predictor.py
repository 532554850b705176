from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distft.data.collate import history_batch
from distft.data.encode import RawEvent
from distft.errors import ArtefactError, QueryError
from distft.jobfile import parse_job
from distft.serve.predictor import Predictor, Query
from distft.storage import Storage
from tests.serve.bundles import JOB, NUM_ITEMS, encoder, events, write_bundle


def with_rule(predictor: Predictor, rule: str) -> Predictor:
    job = parse_job(JOB, "tiny.yaml", (f"evaluate.exclude_seen={rule}", "serve.max_k=100"))
    return Predictor(job, predictor.encoder, predictor.ranker, predictor.version)


def test_scores_are_the_products_of_the_last_state_and_the_item_vectors(predictor: Predictor) -> None:
    history = events(3, 9)
    answer = predictor.recommend([Query(history, k=5, exclude_seen=False)])[0]
    batch = history_batch(predictor.encoder.encode_events(history), 20, True)
    model = predictor.ranker.model
    with torch.inference_mode():
        state_D = model.states(batch)[0, -1]
        score_N = model.item_vectors(torch.arange(2, NUM_ITEMS + 2)) @ state_D
    best = torch.sort(score_N, descending=True, stable=True)
    assert answer.item_ids == [f"i{index}" for index in best.indices[:5]]
    assert answer.scores == pytest.approx(best.values[:5].tolist(), abs=1e-5)
    assert (answer.source, answer.unknown_items) == ("model", 0)


def test_a_batch_of_different_lengths_scores_as_one_by_one(predictor: Predictor) -> None:
    queries = [Query(events(seed, length), k=NUM_ITEMS - 10) for seed, length in enumerate([1, 20, 0, 7, 300, 0, 2])]
    queries[1] = replace(queries[1], exclude_seen=False, exclude_items=("i7", "nope", "i3"))
    queries[3] = replace(queries[3], filter={"category": ["toys"]}, k=4)
    queries[4] = replace(queries[4], events=[*queries[4].events, RawEvent("gone", "view")], exclude_items=("i9",))
    queries[6] = replace(queries[6], explain=True, kept=True, events=[RawEvent("i1", "viewed"), *queries[6].events])
    together = predictor.recommend(queries)
    for query, answer in zip(queries, together, strict=True):
        alone = predictor.recommend([query])[0]
        assert answer.item_ids == alone.item_ids
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)
        assert (answer.source, answer.unknown_items) == (alone.source, alone.unknown_items)
        assert not set(query.exclude_items) & set(answer.item_ids)
        assert answer.reasons == alone.reasons
    assert [answer.unknown_items for answer in together] == [0, 0, 0, 0, 1, 0, 0]
    assert together == predictor.recommend(queries)


def test_exclusion_follows_the_job_unless_the_request_says_otherwise(predictor: Predictor) -> None:
    history = [RawEvent("i1", "view"), RawEvent("i2", "purchase"), RawEvent("i3", "cart")]

    def seen(predictor: Predictor, exclude_seen: bool | None) -> set[str]:
        answer = predictor.recommend([Query(history, NUM_ITEMS, exclude_seen)])[0]
        return {"i1", "i2", "i3"} - set(answer.item_ids)

    everything = {"i1", "i2", "i3"}
    for rule, by_default in [("all", everything), ("targets", {"i2"}), ("none", set())]:
        ruled = with_rule(predictor, rule)
        assert seen(ruled, None) == by_default
        assert seen(ruled, True) == everything
        assert seen(ruled, False) == set()


def test_filter_keeps_only_the_items_of_the_categories(predictor: Predictor) -> None:
    column = encoder().feature("category")
    toys = {f"i{row - 2}" for row in np.flatnonzero(column.matching({"toys"}))}
    history = events(1, 5)
    kept = predictor.recommend([Query(history, 50, False, {"category": ["toys"]})])[0]
    assert set(kept.item_ids) == toys and kept.scores == sorted(kept.scores, reverse=True)
    either = predictor.recommend([Query(history, 50, False, {"category": ["toys", "garden"]})])[0]
    assert toys < set(either.item_ids)
    nothing = predictor.recommend([Query(history, 50, False, {"category": ["cars"]})])[0]
    assert nothing.item_ids == [] and nothing.scores == []
    assert predictor.describe()["filters"] == ["category"]


def test_without_history_the_popular_items_come_marked(predictor: Predictor) -> None:
    answer = predictor.recommend([Query([], k=3)])[0]
    assert answer.item_ids == ["i0", "i1", "i2"] and answer.source == "popularity"
    total = sum(range(NUM_ITEMS + 1, 2 * NUM_ITEMS + 1))
    assert answer.scores == pytest.approx([120 / total, 119 / total, 118 / total], rel=1e-6)
    toys = np.flatnonzero(encoder().feature("category").matching({"toys"}))
    filtered = predictor.recommend([Query([], k=3, filter={"category": ["toys"]})])[0]
    assert filtered.item_ids == [f"i{row - 2}" for row in toys[:3]]


def test_unknown_items_are_counted_and_still_answered(predictor: Predictor) -> None:
    history = [RawEvent("gone", "view"), RawEvent("i4", "view"), RawEvent("new", "purchase")]
    answer = predictor.recommend([Query(history, k=3)])[0]
    assert answer.unknown_items == 2 and len(answer.item_ids) == 3 and answer.source == "model"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (Query([RawEvent("i1", "viewed")]), "history.0.event"),
        (Query([RawEvent("i1", "view")], user={"age": 30}), "user.age"),
        (Query([RawEvent("i1", "view"), RawEvent(None, "purchase")]), "history.1.item_id"),
        (Query([], k=0), "k"),
        (Query([], k=51), "k"),
        (Query([], filter={"price": ["1"]}), "filter.price"),
    ],
)
def test_what_the_model_cannot_follow_is_refused_by_field(predictor: Predictor, query: Query, field: str) -> None:
    with pytest.raises(QueryError) as caught:
        predictor.recommend([query])
    assert caught.value.field == field


def test_scores_that_are_not_numbers_are_never_recommended(bundle: Storage) -> None:
    broken = Predictor.load(bundle)
    assert broken.ranker.vectors_ND is not None
    broken.ranker.vectors_ND = broken.ranker.vectors_ND.clone()
    broken.ranker.vectors_ND[2 + 7] = torch.nan
    answer = broken.recommend([Query(events(0, 4), 50, False)])[0]
    assert "i7" not in answer.item_ids and np.isfinite(answer.scores).all()


def test_one_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path))
    for name in bundle.list():
        if name == "manifest.json":
            continue
        file = bundle.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(ArtefactError, match=name):
            Predictor.load(bundle)
        file.write_bytes(whole)
    Predictor.load(bundle)


def test_weights_of_another_shape_and_no_bundle_are_said(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="There is no bundle"):
        Predictor.load(Storage(tmp_path / "nothing"), verify=False)
    bundle = write_bundle(Storage(tmp_path))
    job = bundle.path / "job.yaml"
    job.write_text(job.read_text().replace("dim: 16", "dim: 32"))
    with pytest.raises(ArtefactError, match="do not belong to this model"):
        Predictor.load(bundle, verify=False)
