"""A running service, as a promotion sees it: which model it runs, how to start another beside it, how to exchange them.

Enters: bundles. Leaves: applications of Ray Serve started and removed, and the interface's ``user_config`` changed.
Surprising choice: nothing is remembered here; what the service runs is asked of its interface each time, so that a
promotion that was killed half-way leaves nothing that the next one would believe.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from distft import cluster
from distft.errors import ServingError, UsageError
from distft.serve.app import application, application_of, cause, ingress_application, ingress_config
from distft.serve.arrangement import INGRESS, MODEL_PREFIX, Arrangement, ServedBundle
from distft.serve.golden import GoldenRequest
from distft.serve.predictor import Query, Recommendation
from distft.serve.trial import TRIALS, Kind, Trial, TrialLog

ASK_TIMEOUT_S = 30.0
ASK_LIMIT_S = 300.0
"""Of all golden requests, one by one."""
AT_ONCE = 8
POLL_S = 0.25
DRAIN_S = 1.0
"""How long requests that the interface is just handing on to the old model may take to reach it."""


@dataclass(frozen=True)
class TrialPlan:
    """A trial on a share of the real requests before the exchange, for so long."""

    kind: Kind
    share: float
    seconds: float


class Asker:
    """Asks applications of Ray Serve, in a process of the cluster: Ray runs it as an actor.

    A handle goes on telling the service's controller about itself as long as its process lives, and in the service's
    throughput mode it needs an event loop; this process ends with the promotion, and has one.
    """

    async def call(self, application: str, method: str, *arguments: Any) -> Any:
        """What a replica replies. Raises ServingError where none does."""
        try:
            handle = getattr(serve.get_app_handle(application), method)
            return await asyncio.wait_for(handle.remote(*arguments), ASK_TIMEOUT_S)
        except (RayServeException, RayError, asyncio.TimeoutError) as error:
            said = (str(error).splitlines() or [""])[0]
            raise ServingError(f"{application} did not answer: {type(error).__name__} {said}") from error

    async def ask(self, application: str, queries: Sequence[Query], at_once: int) -> list[tuple[Any, float]]:
        """Reply and seconds of each query, in order."""
        gate = asyncio.Semaphore(at_once)

        async def one(query: Query) -> tuple[Any, float]:
            async with gate:
                started_s = time.perf_counter()
                return await self.call(application, "recommend", query), time.perf_counter() - started_s

        return await asyncio.gather(*map(one, queries))


class Live:
    """The service on the cluster that this process is connected to."""

    def __init__(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._asker = ray.remote(num_cpus=0)(Asker).remote()
        self.arrangement: Arrangement
        self.config: dict[str, Any]
        try:
            self._look()
        except ServingError as error:
            self.close()
            what = f"No service answers on this cluster: {error.what}"
            raise UsageError(what, "a service that distft serve started", "Start it, or name its cluster.") from error

    def _look(self) -> None:
        self.arrangement, self.config = self._told("call", INGRESS, "deployed")

    @property
    def application(self) -> str:
        """The application of the model that clients meet."""
        return str(self.config["model_application"])

    def close(self) -> None:
        """Ends what this process has started on the cluster."""
        with cluster.ending():
            ray.kill(self._asker)

    def version(self) -> str:
        """Of the model that clients meet; its application may be called otherwise, as the service was declared."""
        return str(self.describe(self.application)["model_version"])

    @property
    def target_latency_s(self) -> float:
        """What the running model's answers should take."""
        return float(self.config["target_latency_s"])

    def start(self, bundle: ServedBundle, timeout_s: float) -> None:
        """Starts a model beside the running one. Raises ServingError where no replica of it comes up in time."""
        target = application_of(bundle, self.arrangement)
        self._run(serve.RunTarget(target, name=application(bundle), route_prefix=None), timeout_s)

    def _run(self, target: serve.RunTarget, timeout_s: float) -> None:
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        self._await(target.name, timeout_s)

    def _await(self, name: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (state := serve.status().applications[name]).status != "RUNNING":
            messages = [state.message, *(one.message for one in state.deployments.values())]
            if state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ServingError(f"{name} did not start: {cause(messages)}")
            if time.monotonic() > deadline:
                what = f"{name} was not up after {timeout_s:g} s: {cause(messages)}"
                raise ServingError(what, "a free CPU for one more replica", "Make room, or wait until load has gone.")
            time.sleep(POLL_S)

    def golden(self, application: str) -> list[GoldenRequest]:
        """The golden requests of a model that runs."""
        found: list[GoldenRequest] = self._told("call", application, "golden_requests")
        return found

    def describe(self, application: str) -> dict[str, Any]:
        """The facts of a model that runs."""
        facts: dict[str, Any] = self._told("call", application, "describe")
        return facts

    def ask(self, application: str, queries: Sequence[Query]) -> list[Recommendation]:
        """The model's answers, in order. Raises ServingError for the first query that it does not answer."""
        replies = self._told("ask", application, queries, AT_ONCE)
        for query, (reply, _) in zip(queries, replies, strict=True):
            if not isinstance(reply, Recommendation):
                what = f"{application} did not answer a request of {len(query.events)} events: {reply}"
                raise ServingError(what)
        return [reply for reply, _ in replies]

    def time(self, application: str, queries: Sequence[Query]) -> list[float]:
        """Seconds of each answer, asked for one by one."""
        return [took_s for _, took_s in self._told("ask", application, queries, 1)]

    def _told(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._asker, method).remote(*arguments), timeout=ASK_LIMIT_S)
        except RayTaskError as error:
            if isinstance(error.cause, ServingError):
                raise ServingError(*error.cause.args) from error
            raise
        except GetTimeoutError as error:
            raise ServingError(f"The service did not answer within {ASK_LIMIT_S:g} s") from error

    def follow(self, bundle: ServedBundle, name: str = "", trial: Trial | None = None) -> None:
        """Lets the interface send its requests to the model of a bundle from now on, without a gap.

        ``name``: of its application, where that is not ``application(bundle)``.
        """
        facts = name or application(bundle), bundle.settings, bundle.event_names
        ingress = ingress_application(*facts, self.arrangement, trial)
        self._run(serve.RunTarget(ingress, name=INGRESS, route_prefix="/"), ASK_TIMEOUT_S)
        deadline = time.monotonic() + ASK_TIMEOUT_S
        while self.config != ingress_config(*facts, trial):
            if time.monotonic() > deadline:
                raise ServingError(f"The interface goes on with {self.application}")
            time.sleep(POLL_S)
            self._look()

    def try_out(self, running: ServedBundle, new: ServedBundle, plan: TrialPlan) -> dict[str, Any]:
        """What came of a trial on real requests; afterwards the running model answers all again."""
        old = self.application
        name = f"trial-{uuid.uuid4().hex[:8]}"
        log = ray.remote(num_cpus=0)(TrialLog).options(name=name, namespace=TRIALS).remote()
        try:
            ray.get(log.summary.remote(), timeout=ASK_TIMEOUT_S)
            until_s = time.time() + plan.seconds + ASK_TIMEOUT_S
            self.follow(running, old, Trial(plan.kind, application(new), plan.share, name, until_s))
            time.sleep(plan.seconds)
            summary: dict[str, Any] = ray.get(log.summary.remote(), timeout=ASK_TIMEOUT_S)
            return summary
        finally:
            self.follow(running, old)
            time.sleep(DRAIN_S)
            ray.kill(log)

    def remove(self, name: str) -> None:
        """Ends a model's application; what it is answering is answered."""
        with cluster.ending(), suppress(RayServeException):
            serve.delete(name)

    def remove_others(self) -> None:
        """Ends what a promotion that was killed has left: a model that nobody is sent to."""
        for name in serve.status().applications:
            if name.startswith(MODEL_PREFIX) and name != self.application:
                self.remove(name)
