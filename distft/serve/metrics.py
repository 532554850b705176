"""The service's figures for Prometheus, through the metrics endpoint that every Ray node has.

Enters: what happened. Leaves: series named ``ray_distft_serve_*``, drawn by the Grafana dashboard in
``k8s/components/monitoring/dashboards``. Ray adds labels of its own (node, process). Surprising choice: the histograms
begin at a millisecond and double, so that one set of bounds suits a small shop's latency and an overload's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ray.util.metrics import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distft.serve.batching import Batch

CLIENT_GONE = 499
"""The status of a request whose client did not wait for the answer, as proxies write it."""
UNKNOWN_ROUTE = "unknown"

SECONDS = [0.001 * 2**power for power in range(15)]
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]

REQUESTS = "distft_serve_requests"
LATENCY = "distft_serve_request_latency_s"
REFUSED = "distft_serve_refused"
RETRIES = "distft_serve_retries"
IN_FLIGHT = "distft_serve_in_flight"
LIMIT = "distft_serve_in_flight_limit"
BATCH_SIZE = "distft_serve_batch_size"
COMPUTED = "distft_serve_batch_computed_s"
QUEUE_WAIT = "distft_serve_queue_wait_s"
QUEUE_LENGTH = "distft_serve_queue_length"
CANCELLED = "distft_serve_cancelled"
HISTORY = "distft_serve_history_latency_s"
START = "distft_serve_replica_start_s"


class IngressMeter:
    """The figures of one process of the HTTP interface."""

    def __init__(self) -> None:
        tags = ("route", "status", "model_version")
        self._requests = Counter(REQUESTS, description="requests by route, status and model", tag_keys=tags)
        self._latency = Histogram(LATENCY, description="seconds of a request", boundaries=SECONDS, tag_keys=("route",))
        self._history = Histogram(
            HISTORY, description="seconds of the history store", boundaries=SECONDS, tag_keys=("operation",)
        )
        self._refused = Counter(REFUSED, description="requests turned away because too many were in flight")
        self._retries = Counter(RETRIES, description="requests that asked another replica because theirs had died")
        self._in_flight = Gauge(IN_FLIGHT, description="requests for the model that are being answered")
        self._limit = Gauge(LIMIT, description="how many may be answered at once, as found by control")

    def request(self, route: str, status: int, model_version: str, took_s: float) -> None:
        """Counts one answered request."""
        self._requests.inc(tags={"route": route, "status": str(status), "model_version": model_version})
        self._latency.observe(took_s, tags={"route": route})

    def history(self, operation: str, took_s: float) -> None:
        """Counts what was asked of the store of histories: ``events`` (reading), ``add`` or ``forget``."""
        self._history.observe(took_s, tags={"operation": operation})

    def refused(self) -> None:
        """Counts a request that was turned away."""
        self._refused.inc()

    def retried(self) -> None:
        """Counts a request that asked another replica."""
        self._retries.inc()

    def load(self, in_flight: int, limit: float) -> None:
        """Notes how full the interface is."""
        self._in_flight.set(in_flight)
        self._limit.set(limit)


class ModelMeter:
    """The figures of one replica of a model."""

    def __init__(self, model_version: str) -> None:
        keys, self._tags = ("model_version",), {"model_version": model_version}
        self._size = Histogram(BATCH_SIZE, description="requests in a batch", boundaries=SIZES, tag_keys=keys)
        self._computed = Histogram(COMPUTED, description="seconds of a batch", boundaries=SECONDS, tag_keys=keys)
        self._wait = Histogram(QUEUE_WAIT, description="its oldest one's wait", boundaries=SECONDS, tag_keys=keys)
        self._length = Gauge(QUEUE_LENGTH, description="requests that wait in the replica", tag_keys=keys)
        self._cancelled = Counter(CANCELLED, description="requests not computed: their client had gone", tag_keys=keys)
        self._start = Gauge(START, description="seconds until the replica was proved", tag_keys=keys)

    def started(self, took_s: float) -> None:
        """Notes how long the replica took to load and to prove itself."""
        self._start.set(took_s, tags=self._tags)

    def batch(self, batch: Batch) -> None:
        """Counts one batch."""
        if batch.size:
            self._size.observe(batch.size, tags=self._tags)
            self._computed.observe(max(batch.computed_s, 1e-9), tags=self._tags)
            self._wait.observe(max(batch.waited_s, 1e-9), tags=self._tags)
        if batch.num_cancelled:
            self._cancelled.inc(batch.num_cancelled, tags=self._tags)
        self._length.set(batch.num_waiting, tags=self._tags)


class RequestMeter(Protocol):
    """What is told of each request."""

    def request(self, route: str, status: int, model_version: str, took_s: float) -> None:
        """Counts one answered request."""


class Counted:
    """An ASGI application that tells a meter of every request to another; ``model_version``: of who answers now.

    A request's route is the pattern that its path matched: of these there are few, whatever clients ask for.
    """

    def __init__(self, app: ASGIApp, meter: RequestMeter, model_version: Callable[[], str]) -> None:
        self.app, self.meter, self.model_version = app, meter, model_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 500

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, answered)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self.meter.request(route, status, self.model_version(), time.perf_counter() - started_s)
