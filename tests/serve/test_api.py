from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from distft.errors import QueryError, ServingError
from distft.serve import api
from distft.serve.predictor import Predictor, Query, Recommendation
from distft.serve.problems import FieldError, Problem
from tests.serve.bodies import BY_HAND, bodies
from tests.serve.bundles import as_json, events

PROBLEM = "application/problem+json"


class InProcess:
    """The real predictor behind the interface, without Ray in between."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
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

    async def describe(self) -> dict[str, Any]:
        return self.predictor.describe()

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
    assert facts["num_items"] == 60 and facts["filters"] == ["category"]


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
    assert set(description["paths"]) == {"/v1/recommend", "/v1/model", "/healthz", "/readyz"}
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
