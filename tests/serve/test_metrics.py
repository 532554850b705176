from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from distft.serve import metrics
from distft.serve.api import build_api
from distft.serve.batching import Batch
from distft.serve.metrics import Counted
from distft.serve.predictor import Predictor
from tests.serve.test_api import InProcess


class Noted:
    def __init__(self) -> None:
        self.requests: list[tuple[str, int, str]] = []

    def request(self, route: str, status: int, model_version: str, took_s: float) -> None:
        assert took_s >= 0
        self.requests.append((route, status, model_version))


class Service:
    """The interface with the meter around it, without Ray."""

    def __init__(self, predictor: Predictor) -> None:
        self.backend, self.meter = InProcess(predictor), Noted()
        counted = Counted(build_api(self.backend), self.meter, lambda: "v1")
        self.transport = httpx.ASGITransport(counted, raise_app_exceptions=False)

    async def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
            return await client.request(method, path, **content)


def test_every_request_is_counted_by_its_route(predictor: Predictor) -> None:
    service = Service(predictor)

    async def ask() -> None:
        await service.send("POST", "/v1/recommend", json={})
        await service.send("POST", "/v1/recommend", json={"k": 0})
        await service.send("GET", "/readyz")
        await service.send("GET", "/nowhere/else")
        service.backend.failure = RuntimeError("broken")
        await service.send("POST", "/v1/recommend", json={})

    asyncio.run(ask())
    assert service.meter.requests == [
        ("/v1/recommend", 200, "v1"),
        ("/v1/recommend", 422, "v1"),
        ("/readyz", 200, "v1"),
        ("unknown", 404, "v1"),
        ("/v1/recommend", 500, "v1"),
    ]


def test_a_client_that_has_gone_is_told_apart(predictor: Predictor) -> None:
    service = Service(predictor)

    async def leave() -> None:
        service.backend.gate = asyncio.Event()
        task = asyncio.create_task(service.send("POST", "/v1/recommend", json={}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert service.meter.requests == [("/v1/recommend", 499, "v1")]


DASHBOARD = Path(__file__).parents[2] / "k8s/components/monitoring/dashboards/serving.json"
SUFFIXES = "_total|_bucket"


def test_the_dashboard_asks_for_every_metric_there_is_and_no_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        re.sub(rf"({SUFFIXES})$", "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ray_(distft_serve_\w+)", target["expr"])
    }
    told = {value for name, value in vars(metrics).items() if name.isupper() and str(value).startswith("distft_serve_")}
    assert asked == told


@pytest.mark.ray
def test_the_nodes_endpoint_has_the_figures_under_the_dashboards_names(ray_session: object) -> None:
    @ray.remote(num_cpus=0)
    class Replica:
        def __init__(self) -> None:
            ingress, model = metrics.IngressMeter(), metrics.ModelMeter("v1")
            ingress.request("/v1/recommend", 200, "v1", 0.02)
            ingress.refused()
            ingress.retried()
            ingress.load(3, 64.0)
            ingress.history("events", 0.002)
            model.started(1.5)
            model.batch(Batch(2, 1, 5, 0.01, 0.02))

        def ready(self) -> bool:
            return True

    replica = Replica.remote()
    assert ray.get(replica.ready.remote(), timeout=60)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ray_distft_serve_\w+", target["expr"])
    }
    deadline = time.monotonic() + 60
    while missing := {name for name in wanted if name not in scraped()}:
        assert time.monotonic() < deadline, missing
        time.sleep(1)
    ray.kill(replica)


def scraped() -> str:
    """What the metrics endpoint of the node says."""
    (node,) = [one for one in ray.nodes() if one["Alive"]]
    return httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
