"""The two Ray Serve applications: a stable ingress, and one application a model.

Enters: HTTP. Leaves: recommendations. The ingress speaks HTTP and sends each query through a handle to the
application that its ``user_config`` names; a promotion starts ``model-<hash>`` beside the old one and then changes
that field, so clients see no gap. Surprising choice: what the model refuses comes back as a value, not as an
exception, because Ray would wrap it and lose which field is at fault.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from distft.errors import QueryError, ServingError
from distft.job import Serve
from distft.serve.api import MAX_IN_FLIGHT, build_api
from distft.serve.golden import GoldenRequest, difference, first_difference, read_golden
from distft.serve.predictor import EncodedQuery, Predictor, Query, Recommendation
from distft.serve.problems import FieldError, Problem
from distft.storage import Storage

INGRESS = "ingress"
CPUS_PER_REPLICA = 1
QUEUED_BATCHES = 8
"""Full batches that may wait inside a replica, and as many again outside, before requests are turned away with 503.

Waiting inside is cheap: a replica that is full makes Ray's router ask again only after a growing pause.
"""

READY_TIMEOUT_S = 2.0
"""How soon a model that has shown what it can must answer ``/readyz``."""

_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


@dataclass(frozen=True)
class Refusal:
    """Why the model cannot follow a query, and the field at fault."""

    field: str
    message: str


class ModelReplica:
    """One process with the model of a bundle; it never starts with a model that scores otherwise than expected."""

    def __init__(self, bundle_uri: str) -> None:
        assigned = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
        bundle = Storage(bundle_uri)
        self.predictor = Predictor.load(bundle)
        self.golden = read_golden(bundle, self.predictor.job.serve.max_k)
        wrong = first_difference(self.predictor, self.golden)
        if wrong:
            raise ServingError(f"The model of {bundle_uri} does not score as it was exported: {wrong}")
        settings = self.predictor.job.serve
        self._answer.set_max_batch_size(settings.max_batch_size)
        self._answer.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def recommend(self, query: Query) -> Recommendation | Refusal:
        """The answer to one query, computed together with those that arrive at the same time."""
        try:
            encoded = self.predictor.encode(query)
        except QueryError as error:
            return Refusal(error.field, str(error))
        answer: Recommendation = await self._answer(encoded)
        return answer

    async def describe(self) -> dict[str, Any]:
        """The facts of the model."""
        return self.predictor.describe()

    async def golden_request(self) -> GoldenRequest:
        """A request with its expected answer."""
        return self.golden[0]

    @serve.batch
    async def _answer(self, queries: list[EncodedQuery]) -> list[Recommendation]:
        # In a thread, so that this replica still answers health checks while it computes.
        return await asyncio.to_thread(self.predictor.answer, queries)


class Ingress:
    """The service's only way in: HTTP on one side, the handle of the current model on the other."""

    def __init__(self) -> None:
        self.handle: DeploymentHandle | None = None
        self.request_timeout_s = 0.0
        self.ready_version: str | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Follows ``user_config``: {"model_application", "request_timeout_s"}."""
        self.handle = serve.get_app_handle(config["model_application"])
        self.request_timeout_s = config["request_timeout_s"]
        self.ready_version = None

    async def recommend(self, query: Query) -> Recommendation:
        """The current model's answer. Raises Problem 422 for what it refuses, ServingError if it does not come."""
        reply: Recommendation | Refusal = await self._ask("recommend", query)
        if isinstance(reply, Refusal):
            raise Problem(422, "The request is not valid.", [FieldError(reply.field, reply.message)])
        return reply

    async def describe(self) -> dict[str, Any]:
        """The facts of the current model."""
        facts: dict[str, Any] = await self._ask("describe")
        return facts

    async def ready(self) -> str:
        """The current model's version, once it has scored as it was exported and as long as it answers.

        Raises ServingError where it does not.
        """
        if self.ready_version is None:
            self.ready_version = await self._proved()
        else:
            await self._ask("describe", timeout_s=min(READY_TIMEOUT_S, self.request_timeout_s))
        return self.ready_version

    async def _proved(self) -> str:
        """The version of the model that answered a golden request, through the way that clients take, as expected."""
        handle = self.handle
        golden: GoldenRequest = await self._ask("golden_request")
        answer = await self.recommend(golden.query)
        wrong = difference(golden, answer)
        if wrong:
            raise ServingError(f"The model does not score as it was exported: {wrong}")
        if self.handle is not handle:
            raise ServingError("The model was exchanged meanwhile")
        return answer.model_version

    async def _ask(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """What a replica of the model answers; a replica that dies meanwhile is replaced by another, once."""
        timeout_s = self.request_timeout_s if timeout_s is None else timeout_s
        try:
            return await asyncio.wait_for(self._ask_again(method, *args), timeout_s)
        except asyncio.TimeoutError:
            raise ServingError(f"The model did not answer within {timeout_s:g} s") from None
        except BackPressureError:
            raise ServingError("More requests are waiting for the model than it can answer in time") from None
        except (DeploymentUnavailableError, RayActorError) as error:
            raise ServingError(f"The model is not available: {type(error).__name__}") from error

    async def _ask_again(self, method: str, *args: Any) -> Any:
        assert self.handle is not None, "Ray Serve calls reconfigure before it sends requests"
        remote = getattr(self.handle, method)
        try:
            return await remote.remote(*args)
        except RayActorError:
            return await remote.remote(*args)


def model_application(bundle_uri: str, settings: Serve) -> serve.Application:
    """The application that serves the model of a bundle; it has no HTTP route of its own."""
    deployment = serve.deployment(ModelReplica, name="model").options(
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            initial_replicas=max(1, settings.min_replicas),
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.max_batch_size,
        ),
        max_ongoing_requests=QUEUED_BATCHES * settings.max_batch_size,
        max_queued_requests=QUEUED_BATCHES * settings.max_batch_size,
        logging_config=_QUIET,
    )
    return deployment.bind(bundle_uri)


def ingress_application(model_application_name: str, settings: Serve) -> serve.Application:
    """The application that clients talk to, routing to the named model application."""
    deployment = serve.deployment(serve.ingress()(Ingress), name=INGRESS).options(
        ray_actor_options={"num_cpus": 0},
        user_config={"model_application": model_application_name, "request_timeout_s": settings.request_timeout_s},
        # Above the interface's own limit, so that it is the interface that turns requests away, as a problem.
        max_ongoing_requests=2 * MAX_IN_FLIGHT,
        max_queued_requests=MAX_IN_FLIGHT,
        logging_config=_QUIET,
    )
    return deployment.bind()


def deploy(name: str, bundle_uri: str, settings: Serve, http: tuple[str, int], proxy: dict[str, str]) -> None:
    """Starts Ray Serve with both applications; returns before they run. Needs Ray up and no Ray Serve running.

    ``http``: host and port. ``proxy``: environment of the HTTP proxy, see ``server.proxy_environment``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    host, port = http
    options = {"runtime_env": {"env_vars": proxy}}
    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET, controller_options=options)
    serve.run_many(
        [
            serve.RunTarget(model_application(bundle_uri, settings), name=name, route_prefix=None),
            serve.RunTarget(ingress_application(name, settings), name=INGRESS, route_prefix="/"),
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def failures() -> dict[str, str]:
    """Why applications could not be deployed: name → Ray's messages."""
    failed = {name: app for name, app in serve.status().applications.items() if app.status == "DEPLOY_FAILED"}
    return {
        name: "\n".join([app.message, *(deployment.message for deployment in app.deployments.values())])
        for name, app in failed.items()
    }


def is_running() -> bool:
    """True if the Ray cluster has a Ray Serve already."""
    return bool(serve.status().proxies)


def shutdown() -> None:
    """Ends Ray Serve with all its applications and proxies."""
    serve.shutdown()
