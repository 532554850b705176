from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from distft.data.encode import RawEvent
from distft.errors import QueryError, ServingError
from distft.serve import api
from distft.serve.histories import Histories, Keeping
from distft.serve.itemsearch import ItemPage, ItemQuery, ItemSearch
from distft.serve.predictor import Predictor, Query, Recommendation
from distft.serve.problems import FieldError, Problem
from tests.serve.bodies import BY_HAND, bodies
from tests.serve.bundles import as_json, events

PROBLEM = "application/problem+json"


class InProcess:
    """The real predictor behind the interface, without Ray in between."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.search = ItemSearch(predictor.encoder, predictor.version)
        self.histories: Histories | None = None
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def recommend(self, query: Query) -> Recommendation:
        if self.failure:
            raise self.failure
        if self.gate:
            await self.gate.wait()
        try:
            return self.predictor.recommend([query])[0]
        except QueryError as error:
            raise Problem(422, "The request is not valid.", [FieldError(error.field, str(error))]) from error

    async def history(self, user_id: str) -> list[RawEvent]:
        return await self.histories.events(user_id) if self.histories else []

    def check_events(self, events: Sequence[RawEvent]) -> None:
        if self.histories is None:
            raise Problem(404, "This service keeps no histories.")
        for index, event in enumerate(events):
            if event.event not in self.predictor.encoder.event_names:
                raise Problem(422, "The request is not valid.", [FieldError(f"events.{index}.event", "unknown")])

    async def remember(self, user_id: str, events: Sequence[RawEvent]) -> int:
        assert self.histories
        return await self.histories.add(user_id, events)

    async def forget(self, user_id: str) -> int:
        assert self.histories
        return await self.histories.forget(user_id)

    async def describe(self) -> dict[str, Any]:
        return {**self.predictor.describe(), "keeps_histories": self.histories is not None}

    async def items(self, query: ItemQuery) -> ItemPage:
        if self.failure:
            raise self.failure
        try:
            return self.search.page(query, self.predictor.allowed_N)
        except QueryError as error:
            raise Problem(422, "The request is not valid.", [FieldError(error.field, str(error))]) from error

    async def ready(self) -> str:
        if self.failure:
            raise self.failure
        return self.predictor.version


class Client:
    """Calls the ASGI application in its own event loop, one request after the other or all at once."""

    def __init__(self, backend: InProcess) -> None:
        self.backend = backend
        self.transport = httpx.ASGITransport(api.build_api(backend), raise_app_exceptions=False)

    def __call__(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(method, path, **content)

        return asyncio.run(call())

    def recommend(self, **body: Any) -> httpx.Response:
        return self("POST", "/v1/recommend", json=body)


@pytest.fixture
def client(predictor: Predictor) -> Client:
    return Client(InProcess(predictor))


def test_recommendations_are_the_predictors(client: Client, predictor: Predictor) -> None:
    history = events(5, 12)
    response = client.recommend(history=as_json(history), k=7)
    expected = predictor.recommend([Query(history, 7)])[0]
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    body = response.json()
    assert [item["item_id"] for item in body["items"]] == expected.item_ids
    assert [item["score"] for item in body["items"]] == expected.scores
    assert body["model_version"] == predictor.version
    assert (body["unknown_items"], body["source"]) == (0, "model")


@pytest.fixture
def keeping(client: Client, tmp_path: Path) -> Iterator[Client]:
    """A client of a service that keeps histories."""
    histories = Histories(Keeping("embedded", str(tmp_path), "tiny", 100))
    client.backend.histories = histories
    yield client
    asyncio.run(histories.close())


def test_what_was_told_of_a_user_is_the_history(keeping: Client, predictor: Predictor, tmp_path: Path) -> None:
    history = events(5, 12)
    told = {"user_id": "somebody/ü", "events": as_json(history)}
    assert keeping("POST", "/v1/events", json=told).json() == {"accepted": 12, "duplicates": 0}
    assert keeping("POST", "/v1/events", json=told).json() == {"accepted": 0, "duplicates": 12}
    explicit = keeping.recommend(history=as_json(history), k=7).json()
    assert keeping.recommend(user_id="somebody/ü", k=7).json() == explicit
    assert keeping.recommend(user_id="somebody/ü", history=[], k=7).json()["source"] == "popularity"
    assert keeping.recommend(user_id="another").json()["source"] == "popularity"
    assert asyncio.run(keeping.backend.histories.flush()) == 12
    (log,) = (tmp_path / "log").iterdir()
    assert [json.loads(line)["user_id"] for line in log.read_text().splitlines()] == ["somebody/ü"] * 12
    forgotten = keeping("DELETE", "/v1/users/somebody%2F%C3%BC")
    assert (forgotten.status_code, forgotten.json()) == (200, {"forgotten_events": 12})
    assert keeping.recommend(user_id="somebody/ü").json()["source"] == "popularity" and not log.read_text()


def test_an_event_without_a_time_gets_that_of_its_arrival(keeping: Client) -> None:
    before = int(time.time() * 1000)
    body = {"user_id": "u", "events": [{"event": "view", "item_id": "i1"}]}
    assert keeping("POST", "/v1/events", json=body).status_code == 200
    (event,) = asyncio.run(keeping.backend.history("u"))
    assert before <= event.time_ms <= int(time.time() * 1000)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"event": "gone", "item_id": "i1"}, "events.0.event"),
        ({"event": "view"}, "events.0.item_id"),
        ({"event": "search"}, "events.0.query"),
        ({"event": "view", "item_id": ""}, "events.0.item_id"),
        ({"event": "view", "item_id": "i1", "timestamp": "9999-01-01"}, "events.0.timestamp"),
        ({"event": "view", "item_id": "i1", "when": 1}, "events.0.when"),
    ],
)
def test_events_that_no_history_can_hold_are_named(keeping: Client, event: dict[str, Any], field: str) -> None:
    response = keeping("POST", "/v1/events", json={"user_id": "u", "events": [event]})
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == field
    assert asyncio.run(keeping.backend.history("u")) == []


def test_a_service_that_keeps_no_histories_says_so(client: Client) -> None:
    body = {"user_id": "u", "events": [{"event": "view", "item_id": "i1"}]}
    assert client("POST", "/v1/events", json=body).status_code == 404


def test_items_can_be_ruled_out_one_by_one(client: Client) -> None:
    history = as_json(events(5, 12))
    first = [item["item_id"] for item in client.recommend(history=history, k=20).json()["items"]]
    fewer = client.recommend(history=history, k=10, exclude_items=[*first[:3], "nothing", first[5]]).json()
    assert [item["item_id"] for item in fewer["items"]] == [*first[3:5], *first[6:14]]


def test_kept_events_of_another_models_types_are_left_out(predictor: Predictor) -> None:
    history = events(5, 12)
    strange = [RawEvent("i1", "wished", 1), *history]
    assert predictor.recommend([Query(strange, 7, kept=True)]) == predictor.recommend([Query(history, 7)])
    with pytest.raises(QueryError):
        predictor.recommend([Query(strange, 7)])


@pytest.mark.parametrize("body", [{}, {"user_id": "somebody"}, {"history": []}])
def test_without_history_the_answer_is_the_popularity_list(client: Client, body: dict[str, Any]) -> None:
    answer = client.recommend(**body).json()
    assert answer["source"] == "popularity" and len(answer["items"]) == 10


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/recommend", 405),
        ("DELETE", "/v1/model", 405),
        ("POST", "/readyz", 405),
    ],
)
def test_other_routes_are_problems(client: Client, method: str, path: str, status: int) -> None:
    response = client(method, path)
    assert response.status_code == status == response.json()["status"]
    assert response.headers["content-type"] == PROBLEM
    assert status != 405 or response.headers["allow"]


def test_the_model_tells_what_it_knows(client: Client) -> None:
    facts = client("GET", "/v1/model").json()
    assert facts["events"] == ["view", "cart", "purchase", "search"] and facts["max_k"] == 50
    assert facts["num_items"] == 60 and facts["filters"] == ["category"] and facts["keeps_histories"] is False


def test_states(client: Client) -> None:
    assert client("GET", "/healthz").json()["status"] == "alive"
    assert client("GET", "/readyz").json() == {"status": "ready", "model_version": client.backend.predictor.version}
    client.backend.failure = ServingError("The model does not score as it was exported")
    response = client("GET", "/readyz")
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert "does not score" in response.json()["detail"]
    assert client("GET", "/healthz").status_code == 200


def test_what_the_model_refuses_is_named(client: Client) -> None:
    problem = client.recommend(history=[{"event": "viewed", "item_id": "i1"}]).json()
    assert problem["errors"][0]["field"] == "history.0.event" and "view, cart" in problem["errors"][0]["message"]
    assert client.recommend(k=51).json()["errors"][0]["field"] == "k"


def test_a_failure_inside_is_a_problem_without_its_insides(client: Client) -> None:
    client.backend.failure = RuntimeError("secret")
    response = client.recommend()
    assert response.status_code == 500 and response.headers["content-type"] == PROBLEM
    assert "secret" not in response.text


def test_a_body_is_read_no_further_than_the_limit(client: Client) -> None:
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        while True:
            taken += 65_536
            yield b" " * 65_536

    response = client("POST", "/v1/recommend", content=endless())
    assert response.status_code == 413 and taken <= api.MAX_BODY_BYTES + 2 * 65_536
    announced = client("POST", "/v1/recommend", content=b"", headers={"content-length": str(10**30)})
    assert announced.status_code == 413
    fits = b'{"k": 1}'.ljust(api.MAX_BODY_BYTES)
    assert client("POST", "/v1/recommend", content=fits).status_code == 200
    assert client("POST", "/v1/recommend", content=fits + b" ").status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.05)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    assert client("POST", "/v1/recommend", content=slow()).status_code == 408


def test_more_requests_than_the_bound_are_told_to_come_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_IN_FLIGHT", 3)

    async def crowd() -> list[httpx.Response]:
        client.backend.gate = asyncio.Event()
        async with httpx.AsyncClient(transport=client.transport, base_url="http://test") as http:
            calls = [asyncio.create_task(http.post("/v1/recommend", json={})) for _ in range(5)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            client.backend.gate.set()
            return [await call for call in calls]

    responses = asyncio.run(crowd())
    turned_away = [response for response in responses if response.status_code == 503]
    assert len(turned_away) == 2 and all(r.headers["retry-after"] == "1" for r in turned_away)
    client.backend.gate = None
    assert client.recommend().status_code == 200


def test_the_description_covers_the_contract(client: Client) -> None:
    description = client("GET", "/openapi.json").json()
    assert set(description["paths"]) == {
        "/v1/recommend",
        "/v1/items",
        "/v1/events",
        "/v1/users/{user_id}",
        "/v1/model",
        "/healthz",
        "/readyz",
    }
    body = description["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = description["components"]["schemas"]
    assert body["$ref"].rsplit("/", 1)[1] in schemas
    missing = [ref for ref in _refs(description) if ref.removeprefix("#/components/schemas/") not in schemas]
    assert not missing
    assert client("GET", "/docs").headers["content-type"].startswith("text/html")


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from _refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _refs(inner)


@pytest.mark.parametrize("body", BY_HAND, ids=range(len(BY_HAND)))
def test_no_body_made_by_hand_breaks_it(client: Client, body: bytes) -> None:
    _check(client("POST", "/v1/recommend", content=body))


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=bodies)
def test_no_body_made_by_chance_breaks_it(client: Client, body: bytes) -> None:
    _check(client("POST", "/v1/recommend", content=body))


def _check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 413, 422), response.text
    if response.status_code == 200:
        assert set(response.json()) == {"items", "model_version", "unknown_items", "source"}
    else:
        assert response.headers["content-type"] == PROBLEM
        assert response.json()["detail"]
        assert response.status_code != 422 or response.json()["errors"][0]["field"]


def test_probes_may_ask_for_the_head_alone(client: Client) -> None:
    for path in ("/healthz", "/readyz"):
        assert client("HEAD", path).status_code == client("GET", path).status_code == 200


def test_a_compressed_body_is_refused_by_name(client: Client) -> None:
    response = client("POST", "/v1/recommend", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert response.status_code == 415 and "Content-Encoding" in response.json()["detail"]


def test_no_path_sends_the_client_elsewhere(client: Client) -> None:
    response = client("POST", "/v1/recommend/", json={}, headers={"host": "evil.example"})
    assert response.status_code == 404 and "location" not in response.headers


def test_the_example_of_the_description_is_answered_as_it_stands(client: Client) -> None:
    schema = client("GET", "/openapi.json").json()["components"]["schemas"]["RecommendRequest"]
    (example,) = schema["examples"]
    response = client.recommend(**example)
    assert response.status_code == 200 and len(response.json()["items"]) == 10


def test_messages_speak_of_json(client: Client) -> None:
    assert client("POST", "/v1/recommend", json=[]).json()["errors"][0]["message"] == "Expected a JSON object"
    unknown = client.recommend(kk=3).json()["errors"][0]
    assert unknown["field"] == "kk" and "no such key" in unknown["message"]
    digits = client("POST", "/v1/recommend", content=b'{"k": ' + b"9" * 5000 + b"}").json()
    assert len(digits["detail"]) <= 1000 and "sys." not in digits["detail"]
