"""What ``evaluate --endpoint`` says of services; ``tests/test_pipeline.py`` has the one that serves as evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from distft.errors import ServingError, UsageError
from distft.evaluate import endpoint
from distft.evaluate.endpoint import Endpoint
from distft.serve.server import free_port
from tests.serve.over_http import over_http

Answer = Callable[[int], Response]


def answering(answer: Answer) -> Any:
    """A service that answers its n-th request so."""
    count = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        await Request(scope, receive).body()
        count += 1
        await answer(count)(scope, receive, send)

    return application


def call(url: str, key: str | None = None) -> dict[str, Any]:
    with Endpoint(url, key) as service:
        return service.call("POST", "/v1/recommend", {})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x/v1/recommend", ""])
def test_what_is_no_url_of_a_service(url: str) -> None:
    with pytest.raises(UsageError, match="--endpoint is"):
        Endpoint(url)


def test_nobody_there() -> None:
    with pytest.raises(ServingError, match="does not answer"):
        call(f"http://127.0.0.1:{free_port('127.0.0.1')}")


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (Response("<html>", 200), "no service of distft: 200"),
        (Response("[]", 502), "no service of distft: 502"),
        (JSONResponse({"detail": "no", "errors": [{"field": "k", "message": "too large"}]}, 422), "422: no k: too"),
        (JSONResponse({"detail": "down"}, 503), "503: down"),
    ],
)
def test_answers_that_are_none(response: Response, told: str) -> None:
    with over_http(answering(lambda _: response)) as url, pytest.raises(ServingError, match=told):
        call(url)


def test_a_key_that_is_missing_or_refused() -> None:
    with over_http(answering(lambda _: JSONResponse({"detail": "no"}, 401))) as url:
        with pytest.raises(UsageError, match=r"wants an API key.*--key-file"):
            call(url)
        with pytest.raises(UsageError, match="key is refused"):
            call(url, "wrong")


def test_a_busy_service_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    busy = JSONResponse({"detail": "busy"}, 429, {"retry-after": "3"})
    with over_http(answering(lambda n: busy if n < 3 else JSONResponse({"n": n}))) as url:
        assert call(url) == {"n": 3}
    assert waited.count(3.0) == 2
    with over_http(answering(lambda _: busy)) as url, pytest.raises(ServingError, match="429: busy"):
        call(url)


def test_a_connection_that_was_closed_while_it_was_idle_is_opened_again() -> None:
    async def closing(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"n": 1}, headers={"x": "y"})(scope, receive, send)

    with over_http(closing, timeout_keep_alive=0) as url, Endpoint(url) as service:
        assert service.call("GET", "/") == {"n": 1}
        time.sleep(0.3)
        assert service.call("GET", "/") == {"n": 1}
