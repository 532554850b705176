"""Services of their own, one after the other: a cluster has one Ray Serve at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from distft.errors import ServingError
from distft.serve import app, server
from distft.storage import Storage
from tests.serve.bundles import free_port, write_bundle

pytestmark = [pytest.mark.ray, pytest.mark.proof]


def test_a_model_that_scores_otherwise_is_not_served(ray_session: object, tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path), golden_shift=1e-3)
    port = free_port()
    with pytest.raises(ServingError, match="does not score as it was exported: golden request 1"):
        server.start(bundle, "127.0.0.1", port)
    server.check_port("127.0.0.1", port)


def test_more_requests_than_may_wait_are_told_to_come_again(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "QUEUED_BATCHES", 1)
    bundle = write_bundle(Storage(tmp_path), ("serve.max_batch_size=1",))
    service = server.start(bundle, "127.0.0.1", free_port())
    try:
        with httpx.Client(base_url=service.url, timeout=60) as http, ThreadPoolExecutor(50) as pool:
            responses = list(pool.map(lambda _: http.post("/v1/recommend", json={}), range(300)))
    finally:
        service.stop()
    turned_away = [response for response in responses if response.status_code != 200]
    assert 0 < len(turned_away) < 300
    for response in turned_away:
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
