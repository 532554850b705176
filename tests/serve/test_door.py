from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from distft.serve.door import Door, DoorPolicy, log_requests, requests_log
from distft.serve.histories import Histories, Keeping
from distft.serve.keys import Keyring, add_key
from distft.serve.predictor import Predictor
from tests.serve.bundles import as_json, events
from tests.serve.test_api import Client, InProcess


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    log_requests(tmp_path / "requests.jsonl")
    yield tmp_path / "requests.jsonl"
    for handler in list(requests_log.handlers):
        handler.close()
        requests_log.removeHandler(handler)
    requests_log.setLevel(logging.NOTSET)


def behind_a_door(predictor: Predictor, keyring: Keyring | None = None, policy: DoorPolicy | None = None) -> Client:
    client = Client(InProcess(predictor))
    client.transport.app = Door(client.transport.app, keyring, policy)
    return client


def test_only_a_key_opens_what_is_not_open(predictor: Predictor, tmp_path: Path) -> None:
    secret = add_key(str(tmp_path / "keys.json"), "shop", 1000)
    client = behind_a_door(predictor, Keyring(tmp_path / "keys.json"))
    for path in ("/v1/model", "/nowhere", "/v1/users/x", "//healthz", "/healthz/../v1/model", "/docs/x", "/%2e/docs"):
        response = client("GET", path)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert client("GET", path).status_code == 200
    with_key = {"authorization": f"Bearer {secret}"}
    assert client("GET", "/v1/model", headers=with_key).status_code == 200
    assert client("GET", "/nowhere", headers=with_key).status_code == 404


def test_a_body_without_a_key_is_not_read(predictor: Predictor, tmp_path: Path) -> None:
    add_key(str(tmp_path / "keys.json"), "shop")
    client = behind_a_door(predictor, Keyring(tmp_path / "keys.json"))
    taken = []

    async def body():  # type: ignore[no-untyped-def]
        taken.append(1)
        yield b"{}"

    assert client("POST", "/v1/recommend", content=body()).status_code == 401 and not taken


def test_no_answer_lets_a_browser_do_anything_with_it(predictor: Predictor) -> None:
    client = behind_a_door(predictor, policy=DoorPolicy(tls=True))
    for method, path in [("GET", "/v1/model"), ("POST", "/v1/recommend"), ("GET", "/nowhere"), ("PUT", "/readyz")]:
        headers = client(method, path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["strict-transport-security"] == "max-age=31536000"
    assert "strict-transport-security" not in behind_a_door(predictor)("GET", "/v1/model").headers
    assert "script-src 'self'" in client("GET", "/docs").headers["content-security-policy"]


def test_the_log_names_routes_and_no_users_unless_asked(predictor: Predictor, log: Path, tmp_path: Path) -> None:
    secret = add_key(str(tmp_path / "keys.json"), "shop")
    client = behind_a_door(predictor, Keyring(tmp_path / "keys.json"))
    with_key = {"authorization": f"Bearer {secret}", "x-request-id": "mine-1"}
    history = [*as_json(events(1, 3)), {"event": "search", "query": "private words", "timestamp": 1}]
    response = client("POST", "/v1/recommend", json={"user_id": "anna", "history": history}, headers=with_key)
    assert response.status_code == 200
    client.backend.histories = Histories(Keeping("embedded", str(tmp_path), "tiny", 100))
    client("DELETE", "/v1/users/anna", headers=with_key)
    asyncio.run(client.backend.histories.close())
    client("GET", "/v1/anna?q=anna")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["route"], line["status"], line["key"]) for line in lines] == [
        ("/v1/recommend", 200, "shop"),
        ("/v1/users/{user_id:path}", 200, "shop"),
        ("(none)", 401, None),
    ]
    assert lines[0]["request_id"] == "mine-1" and lines[0]["ms"] > 0 and lines[0]["time"].endswith("Z")
    assert "anna" not in log.read_text() and "private" not in log.read_text() and secret not in log.read_text()
    behind_a_door(predictor, policy=DoorPolicy(log_users=True))("PUT", "/v1/users/anna")
    assert json.loads(log.read_text().splitlines()[-1])["route"] == "/v1/users/anna"
