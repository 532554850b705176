"""The two Ray Serve applications: a stable ingress, and one application a model.

Enters: HTTP. Leaves: recommendations. The ingress speaks HTTP and sends each query through a handle to the
application that its ``user_config`` names; a promotion starts ``model-<hash>`` beside the old one and then changes
that field, so clients see no gap. Surprising choice: the event types that the model knows are told to the ingress
in ``user_config``, because an event is accepted or refused while no model may be up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import LoggingConfig

from distft.data.encode import RawEvent
from distft.data.pseudonyms import open_pseudonyms
from distft.errors import DistftError, ServingError
from distft.sections.serve import Serve
from distft.serve.admission import FULL, Admission, Bounded
from distft.serve.api import MAX_IN_FLIGHT, build_api
from distft.serve.arrangement import HISTORIES, INGRESS, MODEL_PREFIX, Arrangement, ServedBundle
from distft.serve.batching import Overloaded
from distft.serve.door import Door, log_requests
from distft.serve.golden import GoldenRequest, difference
from distft.serve.histories import Keeping
from distft.serve.itemsearch import ItemPage, ItemQuery
from distft.serve.keys import Keyring
from distft.serve.metrics import Counted, IngressMeter
from distft.serve.predictor import Query, Recommendation
from distft.serve.problems import FieldError, Problem
from distft.serve.replicas import QUEUED_BATCHES, Busy, HistoryReplica, ModelReplica, Refusal

CPUS_PER_REPLICA = 1
REPORT_INTERVAL_S = 1.0
"""How often replicas tell the autoscaler how many requests they have."""

READY_TIMEOUT_S = 2.0
"""How soon a model that has shown what it can must answer ``/readyz``."""

FORGET_TIMEOUT_S = 60.0
"""How long forgetting a user may take: every segment of the log that holds one of the user's events is rewritten."""

LEAN = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Environment of processes that do little with many requests: glibc gives back what these leave, where it would keep
heaps full of holes. Not of the model's, whose large tensors would be asked of the system each time."""

_Answer = TypeVar("_Answer")

_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


class Ingress:
    """The service's only way in: HTTP on one side, the handle of the current model on the other."""

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        self.histories = serve.get_app_handle(HISTORIES) if arrangement.keeping else None
        self.pseudonyms = open_pseudonyms(arrangement.pseudonyms)
        self.event_names: tuple[str, ...] = ()
        self.handle: DeploymentHandle | None = None
        self.model_version = ""
        self.request_timeout_s = 0.0
        self.ready_version: str | None = None
        self.meter = IngressMeter()
        self.admission = Admission(1.0, MAX_IN_FLIGHT, MAX_IN_FLIGHT)

    def __serve_build_asgi_app__(self) -> Counted:
        keys, log = self.arrangement.keys, self.arrangement.request_log
        if log is not None:
            log_requests(Path(log))
        api = Bounded(build_api(self), self.admission, self.meter.refused)
        door = Door(api, Keyring(Path(keys)) if keys else None, self.arrangement.policy)
        return Counted(door, self.meter, lambda: self.model_version)

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Follows ``user_config``, see ``ingress_config``."""
        self.handle = serve.get_app_handle(config["model_application"])
        self.model_version = config["model_application"].removeprefix(MODEL_PREFIX)
        self.request_timeout_s = config["request_timeout_s"]
        self.admission.follow(config["target_latency_s"], config["least_in_flight"])
        self.event_names = tuple(config["events"])
        self.ready_version = None

    async def recommend(self, query: Query) -> Recommendation:
        """The current model's answer. Raises Problem 422 for what it refuses, ServingError if it does not come."""
        if not self.admission.enter():
            self.meter.refused()
            raise Overloaded(FULL)
        started_s, took_s = time.perf_counter(), None
        try:
            reply: Recommendation | Refusal | Busy = await self._ask("recommend", query)
            took_s = time.perf_counter() - started_s
        except ServingError:
            took_s = time.perf_counter() - started_s
            raise
        finally:
            self.admission.leave(took_s)
            self.meter.load(self.admission.in_flight, self.admission.limit)
        return _answered(reply)

    async def items(self, query: ItemQuery) -> ItemPage:
        """A page of the current model's items. Raises Problem 422 for what it refuses, ServingError if none comes."""
        reply: ItemPage | Refusal | Busy = await self._ask("items", query)
        return _answered(reply)

    async def history(self, user_id: str) -> list[RawEvent]:
        """The events that are kept of a user. Raises ServingError if they do not come."""
        if self.histories is None:
            return []
        events: list[RawEvent] = await self._ask_store("events", user_id)
        return events

    def check_events(self, events: Sequence[RawEvent]) -> None:
        """Raises Problem 422 for a type that the model does not know, 404 where nothing keeps histories."""
        self._store()
        for index, event in enumerate(events):
            if event.event not in self.event_names:
                what = f"{event.event[:100]!r} is no event type of this service: {', '.join(self.event_names)}"
                raise Problem(422, "The request is not valid.", [FieldError(f"events.{index}.event", what)])

    async def remember(self, user_id: str, events: Sequence[RawEvent]) -> int:
        """How many of the events were new, and are kept now. Raises ServingError where that is not known."""
        return int(await self._ask_store("add", user_id, list(events)))

    async def forget(self, user_id: str) -> int:
        """How many events were dropped."""
        return int(await self._ask_store("forget", user_id, timeout_s=FORGET_TIMEOUT_S))

    async def _ask_store(self, operation: str, user_id: str, *args: Any, timeout_s: float | None = None) -> Any:
        """What the history store answers; it knows the user by a pseudonym where there are some."""
        store, began_s = self._store(), time.perf_counter()
        name = self.pseudonyms.of(user_id) if self.pseudonyms else user_id
        try:
            return await self._ask(operation, name, *args, of=store, timeout_s=timeout_s)
        finally:
            self.meter.history(operation, time.perf_counter() - began_s)

    def _store(self) -> DeploymentHandle:
        if self.histories is None:
            raise Problem(404, "This service keeps no histories: serve.history is none.")
        return self.histories

    async def describe(self) -> dict[str, Any]:
        """The facts of the current model, and whether histories are kept."""
        facts: dict[str, Any] = await self._ask("describe")
        return {**facts, "keeps_histories": self.histories is not None}

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

    async def _ask(
        self, method: str, *args: Any, timeout_s: float | None = None, of: DeploymentHandle | None = None
    ) -> Any:
        """What a replica of the model answers (or of another); one that dies meanwhile is replaced by another, once."""
        handle, who = (self.handle, "model") if of is None else (of, "history store")
        assert handle is not None, "Ray Serve calls reconfigure before it sends requests"
        timeout_s = self.request_timeout_s if timeout_s is None else timeout_s
        try:
            return await asyncio.wait_for(self._ask_again(handle, method, *args), timeout_s)
        except asyncio.TimeoutError:
            raise ServingError(f"The {who} did not answer within {timeout_s:g} s") from None
        except BackPressureError:
            if of is None:
                raise Overloaded(FULL) from None
            raise ServingError(f"More requests are waiting for the {who} than it can answer in time") from None
        except (DeploymentUnavailableError, RayActorError) as error:
            raise ServingError(f"The {who} is not available: {type(error).__name__}") from error
        except RayTaskError as error:
            if isinstance(error.cause, DistftError):
                raise ServingError(f"The {who} failed: {error.cause.what}") from error
            raise

    async def _ask_again(self, handle: DeploymentHandle, method: str, *args: Any) -> Any:
        remote = getattr(handle, method)
        try:
            return await _reply(remote.remote(*args))
        except RayActorError:
            self.meter.retried()
            return await _reply(remote.remote(*args))


def _answered(reply: _Answer | Refusal | Busy) -> _Answer:
    """The answer of a replica that gave one. Raises Problem 422 where it refuses, Overloaded where it is too busy."""
    if isinstance(reply, Refusal):
        raise Problem(422, "The request is not valid.", [FieldError(reply.field, reply.message)])
    if isinstance(reply, Busy):
        raise Overloaded(FULL)
    return reply


async def _reply(response: DeploymentResponse[Any]) -> Any:
    """What a replica replies; where nobody waits for it any longer, the replica stops working on it."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def model_application(bundle_uri: str, settings: Serve, deny: str | None = None) -> serve.Application:
    """The application that serves the model of a bundle, but for the items of ``deny``; it has no HTTP route."""
    deployment = serve.deployment(ModelReplica, name="model").options(
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
        autoscaling_config=_autoscaling(settings),
        max_ongoing_requests=QUEUED_BATCHES * settings.max_batch_size,
        max_queued_requests=QUEUED_BATCHES * settings.max_batch_size,
        logging_config=_QUIET,
    )
    return deployment.bind(bundle_uri, deny)


def history_application(bundle_uri: str, version: str, keeping: Keeping) -> serve.Application:
    """The application that keeps users' histories: one replica, because there is one writer."""
    deployment = serve.deployment(HistoryReplica, name=HISTORIES).options(
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": LEAN}},
        user_config={"version": version},
        max_ongoing_requests=2 * MAX_IN_FLIGHT,
        max_queued_requests=MAX_IN_FLIGHT,
        logging_config=_QUIET,
    )
    return deployment.bind(keeping, bundle_uri)


def _autoscaling(settings: Serve) -> AutoscalingConfig:
    # Ray warns of the interval's key; the variables that are to replace it hold for a whole cluster, and it does not
    # look at them where it compares the interval with the period that is looked back.
    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        initial_replicas=max(1, settings.min_replicas),
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.ongoing_requests,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        metrics_interval_s=REPORT_INTERVAL_S,
        look_back_period_s=max(2 * REPORT_INTERVAL_S, min(settings.upscale_delay_s, settings.downscale_delay_s)),
    )


def ingress_config(model_application_name: str, settings: Serve, event_names: Sequence[str]) -> dict[str, Any]:
    """What the ingress follows: the name of the model's application, what its job says of serving, its event types."""
    return {
        "model_application": model_application_name,
        "request_timeout_s": settings.request_timeout_s,
        "target_latency_s": settings.target_latency_s,
        # More than all replicas should have: with less, no crowd would ever make a slow model scale up to them.
        "least_in_flight": (settings.max_replicas + 1) * settings.ongoing_requests,
        "events": list(event_names),
    }


def ingress_application(
    model_application_name: str, settings: Serve, event_names: Sequence[str], arrangement: Arrangement
) -> serve.Application:
    """The application that clients talk to, routing to the named model application."""
    deployment = serve.deployment(serve.ingress()(Ingress), name=INGRESS).options(
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": LEAN}},
        num_replicas=settings.num_ingress_replicas,
        user_config=ingress_config(model_application_name, settings, event_names),
        # Above the interface's own limit, so that it is the interface that turns requests away, as a problem.
        max_ongoing_requests=2 * MAX_IN_FLIGHT,
        max_queued_requests=MAX_IN_FLIGHT,
        logging_config=_QUIET,
    )
    return deployment.bind(arrangement)


def deploy(bundle: ServedBundle, arrangement: Arrangement, http: tuple[str, int], proxy: dict[str, str]) -> None:
    """Starts Ray Serve with all applications; returns before they run. Needs Ray up and no Ray Serve running.

    ``http``: host and port. ``proxy``: environment of the HTTP proxy, see ``server.proxy_environment``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    host, port = http
    options = {"runtime_env": {"env_vars": proxy}}
    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET, controller_options=options)
    name, settings = f"{MODEL_PREFIX}{bundle.version}", bundle.settings
    targets = [serve.RunTarget(model_application(bundle.uri, settings, arrangement.deny), name=name, route_prefix=None)]
    if arrangement.keeping is not None:
        histories = history_application(bundle.uri, bundle.version, arrangement.keeping)
        targets.append(serve.RunTarget(histories, name=HISTORIES, route_prefix=None))
    ingress = ingress_application(name, settings, bundle.event_names, arrangement)
    serve.run_many(
        [*targets, serve.RunTarget(ingress, name=INGRESS, route_prefix="/")],
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
