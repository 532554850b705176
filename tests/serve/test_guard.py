from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from distft.serve.guard import Guard, middlewares


def ask(headers: list[tuple[bytes, bytes]], kind: str = "http") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(scopes that reached the application, messages that went to the client)."""
    reached: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    (middleware,) = middlewares()
    guard = middleware.cls(app, *middleware.args, **middleware.kwargs)
    asyncio.run(guard({"type": kind, "headers": headers, "path": "/v1/model"}, None, send))
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
