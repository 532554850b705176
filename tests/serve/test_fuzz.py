"""Ten thousand requests that nobody would send, over HTTP: no answer of 5xx, no hang, no memory that grows."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distft.serve import server
from distft.serve.arrangement import Options
from distft.serve.keys import add_key
from distft.storage import Storage
from tests.serve.bodies import BY_HAND, bodies
from tests.serve.bundles import as_json, events

pytestmark = [pytest.mark.ray, pytest.mark.proof]

NUM_REQUESTS = 10_000
PATIENCE_S = 20.0
LONGEST_PATH_BYTES = 14_000
"""What always fits HAProxy's buffer of 16 KiB, of which it keeps 1 KiB for itself, together with the headers."""

ALLOWED = {200, 400, 401, 404, 405, 408, 413, 415, 422, 429}

quiet = settings(
    max_examples=10**6,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Enough(Exception):
    """So many requests were sent."""


class Fuzzer:
    """A client that counts what it was answered."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S, headers={"authorization": f"Bearer {key}"})
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0

    def send(self, method: str, path: str, limit: int | None = None, **content: Any) -> None:
        if limit is not None and self.statuses.total() >= limit:
            raise Enough
        began = time.perf_counter()
        try:
            response = self.http.request(method, path, **content)
        except httpx.InvalidURL:  # too long for this client
            return
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        self.statuses[response.status_code] += 1
        exchange = (method, path, content, response.text)
        assert response.status_code in ALLOWED, exchange
        if len(response.request.url.raw_path) > LONGEST_PATH_BYTES and response.status_code == 400:
            return  # the proxy's own answer to a head that is larger than its buffer
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json", exchange
            problem = response.json()
            assert problem["status"] == response.status_code
            if response.status_code == 422:
                assert problem["errors"][0]["field"], (content, problem)


@pytest.fixture
def fuzzer(ray_session: object, bundle: Storage, tmp_path: Path) -> Iterator[Fuzzer]:
    key = add_key(str(tmp_path / "keys.json"), "fuzz")
    options = Options(state=str(tmp_path), keys=str(tmp_path / "keys.json"))
    service = server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"), options=options)
    fuzzer = Fuzzer(service.url, key)
    try:
        yield fuzzer
    finally:
        fuzzer.http.close()
        service.stop()


def memory_bytes() -> dict[str, int]:
    """Unique memory of the processes of Ray Serve below this one, by what they are."""
    found: dict[str, int] = {}
    for process in psutil.Process(os.getpid()).children(recursive=True):
        title = " ".join(process.cmdline())
        if title.startswith("ray::ServeReplica:"):
            found[title.split(":")[3].split("-")[0]] = process.memory_full_info().uss
    return found


def usual(fuzzer: Fuzzer, number: int) -> None:
    """What clients send on any day, for every part of the service to have done its work once."""
    user, history = f"u{number % 50}", as_json(events(number % 40, 20))
    fuzzer.send("POST", "/v1/recommend", json={"history": history, "k": 1 + number % 50})
    fuzzer.send("POST", "/v1/events", json={"user_id": user, "events": history})
    fuzzer.send("POST", "/v1/recommend", json={"user_id": user})
    fuzzer.send("DELETE", f"/v1/users/{user}")
    fuzzer.send("GET", "/v1/items", params={"q": f"i{number % 7}", "values": 5, "offset": number % 20})


_users = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: f"/v1/users/{quote(text, safe='')}")
_asked = st.lists(
    st.tuples(st.sampled_from(["q", "filter", "item_id", "offset", "limit", "values", "x"]), st.text(max_size=9)),
    max_size=4,
).map(lambda pairs: f"/v1/items?{urlencode(pairs, errors='replace')}")
_targets = st.one_of(
    st.tuples(st.just("GET"), _asked),
    st.just(("POST", "/v1/recommend")),
    st.just(("POST", "/v1/events")),
    st.tuples(st.just("DELETE"), _users),
    st.tuples(st.sampled_from(["GET", "PUT", "POST", "DELETE"]), st.sampled_from(["/v1/model", "/readyz", "/nowhere"])),
)


@pytest.mark.timeout(900)
def test_ten_thousand_requests_break_nothing(fuzzer: Fuzzer) -> None:
    for number in range(400):
        usual(fuzzer, number)
    gc.collect()
    before = memory_bytes()
    assert set(before) == {"model", "histories", "ingress"}
    warm = fuzzer.statuses.total()
    for path in ("/v1/recommend", "/v1/events"):
        for body in [*BY_HAND, b" " * (2 << 20)]:
            fuzzer.send("POST", path, content=body)
    assert fuzzer.statuses[413] >= 2
    by_schema(fuzzer, warm + NUM_REQUESTS // 2)
    by_chance(fuzzer, warm + NUM_REQUESTS)
    assert fuzzer.statuses.total() == warm + NUM_REQUESTS
    assert {200, 400, 404, 405, 413, 422} <= set(fuzzer.statuses), fuzzer.statuses
    assert fuzzer.http.get("/readyz").status_code == 200
    growth = {name: after / before[name] - 1 for name, after in memory_bytes().items()}
    print(f"answers {dict(fuzzer.statuses)}, slowest {fuzzer.slowest_s:.2f} s, memory before {before}, growth {growth}")
    assert max(growth.values()) < 0.1, (before, growth)


def by_schema(fuzzer: Fuzzer, limit: int) -> None:
    """Requests made of the OpenAPI description, right and wrong ones, until so many were sent."""
    description = schemathesis.openapi.from_dict(fuzzer.http.get("/openapi.json").json())
    operations = [result.ok() for result in description.get_all_operations()]
    modes = list(schemathesis.GenerationMode)
    cases = st.one_of([one.as_strategy(generation_mode=mode) for one in operations for mode in modes])

    @quiet
    @given(cases)
    def sent(case: Any) -> None:
        request = case.as_transport_kwargs(base_url=str(fuzzer.http.base_url))
        headers = {name: value for name, value in request["headers"].items() if name.lower() == "content-type"}
        content = {name: request[name] for name in ("json", "data", "params") if request.get(name) is not None}
        if isinstance(content.get("data"), str | bytes):
            content["content"] = content.pop("data")
        fuzzer.send(request["method"], request["url"], limit, headers=headers, **content)

    with pytest.raises(Enough):
        sent()


def by_chance(fuzzer: Fuzzer, limit: int) -> None:
    """Bytes, JSON of any kind and nearly right requests, with any method at any path, until so many were sent."""

    @quiet
    @given(_targets, bodies)
    def sent(target: tuple[str, str], body: bytes) -> None:
        fuzzer.send(*target, limit, content=body)

    with pytest.raises(Enough):
        sent()
