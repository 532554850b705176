from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from distft.serve import guard
from distft.serve.guard import Guard, let_in_before_ray, middlewares
from distft.serve.problems import Problem


@pytest.fixture(autouse=True)
def nothing_before_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_around", None)


def ask(headers: list[tuple[bytes, bytes]], kind: str = "http") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(scopes that reached the application, messages that went to the client)."""
    reached: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    (middleware,) = middlewares()
    stands_before = middleware.cls(app, *middleware.args, **middleware.kwargs)
    asyncio.run(stands_before({"type": kind, "headers": headers, "path": "/v1/model"}, None, send))
    return reached, sent


def test_it_is_what_ray_serve_is_told_to_use() -> None:
    assert [middleware.cls for middleware in middlewares()] == [Guard]


@pytest.mark.parametrize("header", [(b"x-request-id", b"caf\xe9"), (b"x-\xff", b"a"), (b"x-session-id", b"\xff")])
def test_headers_that_are_no_text_are_the_clients_mistake(header: tuple[bytes, bytes]) -> None:
    reached, sent = ask([(b"host", b"x"), header])
    assert not reached
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"content-type"]) == (400, b"application/problem+json")
    assert "is not UTF-8" in json.loads(sent[1]["body"])["detail"]


def test_clients_do_not_steer_ray() -> None:
    kept = [(b"host", b"x"), (b"x-request-id", b"7"), (b"content-type", "ö".encode())]
    steering = [(b"x-request-timeout-seconds", b"0.001"), (b"x-request-disconnect-disabled", b"?1")]
    steering += [(b"serve_multiplexed_model_id", b"other"), (b"serve-multiplexed-model-id", b"other")]
    reached, sent = ask(kept + steering)
    assert [scope["headers"] for scope in reached] == [kept]
    assert not sent


def test_what_is_no_request_passes() -> None:
    reached, _ = ask([], kind="lifespan")
    assert reached[0]["type"] == "lifespan"


def statuses(*apps: Any, path: str = "/v1/model") -> list[int]:
    """What each application answers to a request of its own."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for app in apps:
        asyncio.run(app({"type": "http", "method": "GET", "headers": [], "path": path}, None, send))
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


def test_who_may_come_in_is_decided_once_and_before_ray() -> None:
    decided: list[str] = []

    def around(app: Any) -> Any:
        async def door(scope: Any, receive: Any, send: Any) -> None:
            decided.append(scope["path"])
            await (Problem(401, "No key.").response() if scope["path"] == "/closed" else app)(scope, receive, send)

        return door

    inside = let_in_before_ray(Problem(418, "The API.").response(), around)
    reached: list[str] = []

    async def ray(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await inside(scope, receive, send)

    assert statuses(Guard(ray), path="/closed") == [401] and not reached
    assert statuses(Guard(ray), path="/open") == [418] and reached == ["/open"]
    assert decided == ["/closed", "/open"], "once each"
    assert statuses(inside, path="/closed") == [401], "a request that comes through Ray's own proxy"
    assert statuses(inside, path="/open") == [418]
