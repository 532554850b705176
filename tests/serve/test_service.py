"""The service as a client meets it: Ray Serve with its proxy, the ingress and a model replica, over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from distft.errors import ServingError, UsageError
from distft.serve import server
from distft.serve.arrangement import Options
from distft.serve.items import ItemsResponse
from distft.serve.itemsearch import ItemQuery, ItemSearch
from distft.serve.keys import add_key
from distft.serve.predictor import Predictor, Query
from distft.serve.server import Service
from distft.storage import Storage
from tests.serve.bodies import BY_HAND
from tests.serve.bundles import NUM_ITEMS, as_json, events
from tests.serve.over_http import OF_MANY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def key(state: Path) -> str:
    return add_key(str(state / "keys.json"), "tests")


@pytest.fixture(scope="module")
def kept() -> set[str]:
    """Users that a test has told of and not forgotten."""
    return set()


@pytest.fixture(scope="module")
def service(ray_session: object, bundle: Storage, state: Path, key: str, kept: set[str]) -> Iterator[Service]:
    steps: list[tuple[str, int, int]] = []
    (state / "deny.txt").touch()
    options = Options(
        state=str(state),
        keys=str(state / "keys.json"),
        request_log=str(state / "requests.jsonl"),
        deny=str(state / "deny.txt"),
    )
    running = server.start(
        bundle, "127.0.0.1", server.free_port("127.0.0.1"), lambda *step: steps.append(step), options
    )
    try:
        assert [done for _, done, _ in steps] == [0, 1, 2, 3]
        yield running
    finally:
        running.stop()
        logged = [json.loads(line) for file in (state / "log").glob("*") for line in file.read_text().splitlines()]
        assert {line["user_id"] for line in logged} == kept, "what waited was written when the service ended"
        assert not running.folder.exists()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz", timeout=2)


@pytest.fixture(scope="module")
def client(service: Service, key: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=service.url, timeout=30, headers=headers, limits=OF_MANY) as http:
        yield http


def test_it_says_what_it_serves(service: Service, client: httpx.Client, predictor: Predictor, key: str) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "model_version": service.model_version}
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/model").json() == {**predictor.describe(), "keeps_histories": True}
    assert "/v1/recommend" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200
    request, answer = service.probe(key)
    assert request["history"] and len(answer["items"]) == 10


def test_served_scores_are_the_predictors_in_whatever_batch(client: httpx.Client, predictor: Predictor) -> None:
    queries = [
        Query(events(seed, seed % 37), k=1 + seed % 50, exclude_seen=[None, True, False][seed % 3])
        for seed in range(120)
    ]
    queries[5] = Query(events(5, 9), 20, None, {"category": ["toys", "garden"]})

    def ask(query: Query) -> httpx.Response:
        body = {"history": as_json(list(query.events)), "k": query.k, "filter": query.filter}
        return client.post("/v1/recommend", json={**body, "exclude_seen": query.exclude_seen})

    with ThreadPoolExecutor(4) as pool:  # as many as this small a batch lets in
        responses = list(pool.map(ask, queries))
    for query, response in zip(queries, responses, strict=True):
        expected = predictor.recommend([query])[0]
        answer = response.json()
        assert response.status_code == 200, answer
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores, abs=1e-5)
        assert (answer["source"], answer["unknown_items"]) == (expected.source, expected.unknown_items)


def test_what_is_denied_is_not_recommended_from_then_on(client: httpx.Client, state: Path) -> None:
    def recommended() -> set[str]:
        return {item["item_id"] for item in client.post("/v1/recommend", json={"k": 50}).json()["items"]}

    for denied in ({"i0", "i4"}, set[str]()):
        (state / "deny.txt").write_text("".join(f"{item_id}\n" for item_id in denied))
        deadline = time.monotonic() + 10
        while recommended() & {"i0", "i4"} != {"i0", "i4"} - denied:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert client.get("/v1/model").json()["denied_items"] == len(denied)
        assert client.get("/v1/items").json()["num_found"] == NUM_ITEMS - len(denied)
        assert client.get("/readyz").status_code == 200


def test_the_catalogue_is_that_of_the_model(client: httpx.Client, predictor: Predictor) -> None:
    search = ItemSearch(predictor.encoder, predictor.version)
    expected = ItemsResponse.of(search.page(ItemQuery("i", ("category:toys",), offset=3, limit=5, num_values=2)))
    found = client.get("/v1/items?q=i&filter=category:toys&offset=3&limit=5&values=2")
    assert found.status_code == 200 and found.json() == expected.model_dump(exclude_none=True)
    refused = client.get("/v1/items?filter=colour:red")
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "filter.0"


def test_a_crowd_that_browses_holds_nobody_up_who_asks_what_to_recommend(client: httpx.Client) -> None:
    def browse(number: int) -> httpx.Response:
        return client.get("/v1/items", params={"q": f"i{number}", "values": 100, "limit": 100})

    with ThreadPoolExecutor(40) as pool:
        crowd = [pool.submit(browse, number) for number in range(400)]
        asked = [client.post("/v1/recommend", json={"history": as_json(events(seed, 9))}) for seed in range(20)]
    assert {response.status_code for response in asked} == {200}
    browsed = [one.result() for one in crowd]
    assert {response.status_code for response in browsed} <= {200, 503}
    assert all(response.headers["retry-after"] == "1" for response in browsed if response.status_code == 503)


def test_errors_are_problems(client: httpx.Client) -> None:
    view = {"event": "view", "item_id": "i1"}
    cases = [
        (client.get("/nowhere"), 404, None),
        (client.put("/v1/recommend"), 405, None),
        (client.post("/v1/recommend", json={"k": 51}), 422, "k"),
        (client.post("/v1/recommend", json={"filter": {"colour": ["red"]}}), 422, "filter.colour"),
        (client.post("/v1/recommend", json={"history": [view, {"event": "look"}]}), 422, "history.1.event"),
        (client.post("/v1/recommend", content=b"{"), 400, None),
        (client.post("/v1/recommend", content=b" " * (2 << 20)), 413, None),
    ]
    for response, status, field in cases:
        assert response.status_code == status == response.json()["status"]
        assert response.headers["content-type"] == "application/problem+json"
        assert field is None or response.json()["errors"][0]["field"] == field


def test_no_body_breaks_it(client: httpx.Client) -> None:
    statuses = [client.post("/v1/recommend", content=body).status_code for body in BY_HAND]
    assert set(statuses) <= {200, 400, 413, 422}
    assert client.get("/readyz").status_code == 200


def test_raw_bytes_that_are_hardly_http(service: Service, client: httpx.Client) -> None:
    port = int(service.url.rsplit(":", 1)[1])
    for raw in (
        b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n{}",
        b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x00\xff\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: caf\xe9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            assert b" 500 " not in connection.recv(4096).split(b"\r\n")[0]
    assert client.get("/readyz").status_code == 200


def test_histories_are_kept_and_forgotten(client: httpx.Client, predictor: Predictor, kept: set[str]) -> None:
    history = events(3, 20)
    kept.add("kept")
    for user in ("kept", "gone"):
        told = {"user_id": user, "events": as_json(history)}
        assert client.post("/v1/events", json=told).json() == {"accepted": 20, "duplicates": 0}
        answer = client.post("/v1/recommend", json={"user_id": user}).json()
        assert [item["item_id"] for item in answer["items"]] == predictor.recommend([Query(history)])[0].item_ids
    assert client.delete("/v1/users/gone").json() == {"forgotten_events": 20}
    assert client.post("/v1/recommend", json={"user_id": "gone"}).json()["source"] == "popularity"
    wished = {"user_id": "x", "events": [{"event": "wished", "item_id": "i1"}]}
    assert client.post("/v1/events", json=wished).json()["errors"] == [
        {
            "field": "events.0.event",
            "message": "'wished' is no event type of this service: view, cart, purchase, search",
        }
    ]


def test_strangers_are_not_answered_and_nobody_is_logged(service: Service, client: httpx.Client, state: Path) -> None:
    with pytest.raises(ServingError, match="API key is needed"):
        service.probe()
    response = httpx.post(f"{service.url}/v1/recommend", json={"user_id": "kept"})
    assert response.status_code == 401 and response.headers["x-content-type-options"] == "nosniff"
    assert client.get("/v1/model", headers={"x-request-id": "find-me"}).headers["x-request-id"] == "find-me"
    deadline = time.monotonic() + 5  # the line is written when the answer has gone
    while '"find-me"' not in (text := (state / "requests.jsonl").read_text()):
        assert time.monotonic() < deadline
    assert "kept" not in text


def test_a_second_service_on_the_cluster_is_refused(service: Service, bundle: Storage) -> None:
    with pytest.raises(UsageError, match="runs on this cluster already"):
        server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"))


@pytest.mark.proof
def test_a_killed_replica_costs_no_request_its_answer(service: Service, client: httpx.Client) -> None:
    pid = _replica(f"ray::ServeReplica:model-{service.model_version}")
    body = {"history": as_json(events(2, 5))}
    os.kill(pid, signal.SIGKILL)
    assert client.get("/readyz").status_code == 503, "it is told, so that nobody is sent here"
    deadline = time.monotonic() + 60
    statuses = []
    while not statuses or statuses[-1] != 200:
        response = client.post("/v1/recommend", json=body)
        statuses.append(response.status_code)
        assert response.status_code == 200 or response.headers["retry-after"]
        assert time.monotonic() < deadline
    assert set(statuses) <= {200, 503}
    assert client.get("/readyz").status_code == 200
    assert _replica(f"ray::ServeReplica:model-{service.model_version}") != pid


def _replica(name: str) -> int:
    """The process below this one whose command line begins so."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if command.startswith(name) and _is_below_this_process(int(folder.name)):
            return int(folder.name)
    raise AssertionError(f"no process {name}")


def _is_below_this_process(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False
