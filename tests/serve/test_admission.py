"""The bound of requests in flight, against a model that answers a fixed number of requests a second."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from distft.serve.admission import Admission, Bounded
from distft.serve.problems import Problem

TARGET_S = 0.1


def settled(rate: float, admission: Admission, num_answers: int = 20_000) -> float:
    """The limit after a crowd: with ``n`` in flight a model of ``rate`` answers a second takes n / rate."""
    admission.in_flight = 0
    while admission.enter():
        pass
    for _ in range(num_answers):
        admission.leave(admission.in_flight / rate)
        while admission.enter():
            pass
    return admission.limit


@pytest.mark.parametrize("rate", [1000, 2000, 5000])
def test_as_many_come_in_as_are_answered_in_time(rate: float) -> None:
    admission = Admission(TARGET_S, 10, 1024)
    assert settled(rate, admission) == pytest.approx(rate * TARGET_S, rel=0.05)
    assert settled(rate / 2, admission) == pytest.approx(rate / 2 * TARGET_S, rel=0.05), "it follows"


def test_the_bounds_hold() -> None:
    assert settled(10, Admission(TARGET_S, 64, 1024)) == 64
    assert settled(1e9, Admission(TARGET_S, 64, 1024)) == 1024


def test_a_bound_that_nobody_comes_near_stays() -> None:
    admission = Admission(TARGET_S, 64, 1024)
    for _ in range(1000):
        assert admission.enter()
        admission.leave(0.001)
    assert admission.limit == 64 and admission.in_flight == 0
    assert admission.enter()
    admission.leave(None)
    assert admission.limit == 64


def test_only_requests_for_the_model_are_bounded() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await Problem(404, "inside").response()(scope, receive, send)  # type: ignore[arg-type]

    admission, refused = Admission(TARGET_S, 1, 1), []
    door = Bounded(app, admission, lambda: refused.append(1))

    async def call(method: str, path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://test") as client:
            return await client.request(method, path)

    assert asyncio.run(call("POST", "/v1/recommend")).status_code == 404
    assert admission.enter()
    for _ in range(2):
        response = asyncio.run(call("POST", "/v1/recommend"))
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
    assert len(refused) == 2
    assert asyncio.run(call("GET", "/readyz")).status_code == 404
    admission.leave(0.01)
    assert asyncio.run(call("POST", "/v1/recommend")).status_code == 404


def test_nobody_comes_in_while_the_process_is_behind() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await Problem(404, "inside").response()(scope, receive, send)  # type: ignore[arg-type]

    admission, refused = Admission(TARGET_S, 64, 64), []
    door = Bounded(app, admission, lambda: refused.append(1))

    async def status() -> int:
        sent: list[dict[str, int]] = []

        async def send(message: dict[str, int]) -> None:
            sent.append(message)

        await door({"type": "http", "method": "POST", "path": "/v1/recommend"}, None, send)  # type: ignore[arg-type]
        return sent[0]["status"]

    async def blocked_for_a_while() -> list[int]:
        found = [await status()]
        await asyncio.sleep(0.05)
        found.append(await status())
        time.sleep(TARGET_S)  # as a burst of other requests would, or a machine with other work
        found.append(await status())
        admission.in_flight = 32
        found.append(await status())
        await asyncio.sleep(0.05)
        return [*found, await status()]

    assert asyncio.run(blocked_for_a_while()) == [404, 404, 404, 503, 404]
    assert len(refused) == 1
