"""Reasons against asking again: the same item, the same history, without the event."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import numpy as np
import pytest

from distft.data.encode import RawEvent
from distft.serve.api import build_api
from distft.serve.explaining import REASONS
from distft.serve.predictor import Predictor, Query, Recommendation
from distft.storage import Storage
from tests.serve.bundles import NUM_ITEMS, as_json, events, write_bundle
from tests.serve.test_api import InProcess

CLOSE = 2e-5
MODELS = {
    "transformer": ("serve.max_k=100",),
    "copying": ("serve.max_k=100", "model.copy=true"),
    "pairs": ("serve.max_k=100", "model={kind: mlp, dim: 8, hidden: [8], dropout: 0}", "loss={kind: bce}"),
}


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = Storage(tmp_path_factory.mktemp("explained"))
    return Predictor.load(write_bundle(folder, MODELS[request.param]))


def scores(answer: Recommendation) -> dict[str, float]:
    return dict(zip(answer.item_ids, answer.scores, strict=True))


def changes(predictor: Predictor, query: Query) -> list[dict[str, float]]:
    """By how much every item's score is higher than when one event is left out, for each event of the query."""
    every = replace(query, explain=False, k=NUM_ITEMS, exclude_seen=False)
    whole = scores(predictor.recommend([every])[0])
    found = []
    for place in range(len(query.events)):
        rest = [*query.events[:place], *query.events[place + 1 :]]
        without = scores(predictor.recommend([replace(every, events=rest)])[0])
        found.append({item: whole[item] - without[item] for item in whole})
    return found


def test_the_strongest_reason_is_the_event_without_which_the_score_changes_most(made: Predictor) -> None:
    checked = 0
    for seed in range(20):
        # More events than the model looks at, in one of three; out of order, in one of two.
        history = events(seed, (7, 15, 26)[seed % 3])
        if seed % 2:
            history = [history[place] for place in np.random.default_rng(seed).permutation(len(history))]
        query = Query(history, k=10, explain=True)
        answer = made.recommend([query])[0]
        assert answer.reasons is not None
        expected = changes(made, query)
        for item, reasons in zip(answer.item_ids, answer.reasons, strict=True):
            effects = np.array([one[item] for one in expected])
            assert len(reasons) == REASONS
            assert abs(effects[reasons[0].place]) >= np.abs(effects).max() - CLOSE
            for reason in reasons:
                assert reason.effect == pytest.approx(effects[reason.place], abs=CLOSE)
            strengths = [abs(reason.effect) for reason in reasons]
            assert strengths == sorted(strengths, reverse=True)
            checked += 1
    assert checked == 200


def test_an_explained_answer_is_otherwise_the_same(made: Predictor) -> None:
    queries = [Query(events(seed, 9), k=5, explain=bool(seed % 2)) for seed in range(6)]
    plain = made.recommend([replace(query, explain=False) for query in queries])
    told = made.recommend(queries)
    assert [replace(answer, reasons=None) for answer in told] == plain
    assert [answer.reasons is not None for answer in told] == [query.explain for query in queries]


def test_places_are_those_of_the_events_that_were_sent_whatever_is_left_out_of_them(predictor: Predictor) -> None:
    known = events(3, 8)
    foreign = RawEvent("i1", "of another model", known[2].time_ms)
    kept = [foreign, *known[:4], foreign, *known[4:]]
    expected = predictor.recommend([Query(known, k=3, explain=True)])[0].reasons
    found = predictor.recommend([Query(kept, k=3, explain=True, kept=True)])[0].reasons
    assert expected is not None and found is not None
    for one, other in zip(expected, found, strict=True):
        assert [kept[reason.place] for reason in other] == [known[reason.place] for reason in one]


def test_popularity_has_no_reasons(predictor: Predictor) -> None:
    answer = predictor.recommend([Query([], k=4, explain=True)])[0]
    assert (answer.source, answer.reasons) == ("popularity", [[]] * 4)


def ask(predictor: Predictor, body: object) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(build_api(InProcess(predictor)))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.post("/v1/recommend", json=body)

    return asyncio.run(asked())


def test_over_http_reasons_name_the_event_in_the_shop_s_own_words(predictor: Predictor) -> None:
    history = events(5, 12)
    body = {"history": as_json(history), "k": 4, "explain": True}
    answer = ask(predictor, body)
    assert answer.status_code == 200
    reasons = predictor.recommend([Query(history, k=4, explain=True)])[0].reasons
    assert reasons is not None
    for item, expected in zip(answer.json()["items"], reasons, strict=True):
        for told, reason in zip(item["because"], expected, strict=True):
            assert told.pop("effect") == pytest.approx(reason.effect, abs=CLOSE)
            assert told.pop("place") == reason.place
            assert told == as_json([history[reason.place]])[0]
    plain = ask(predictor, {"history": as_json(history), "k": 4}).json()
    assert all(set(item) == {"item_id", "score"} for item in plain["items"])


def test_explain_is_true_or_false(predictor: Predictor) -> None:
    answer = ask(predictor, {"history": as_json(events(5, 3)), "explain": "yes"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["explain"]
