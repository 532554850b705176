"""The service's only way in: one process that speaks HTTP to clients, and Ray's handles to the model.

Enters: HTTP. Leaves: recommendations, by the application that ``user_config`` names and perhaps by one on trial.
Surprising choice: a process decides who may come in before Ray Serve sees the request, see ``guard``.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.types import ASGIApp

from distft.data.encode import RawEvent
from distft.data.pseudonyms import open_pseudonyms
from distft.errors import DistftError, ServingError
from distft.serve.admission import FULL, Admission, Bounded
from distft.serve.api import MAX_IN_FLIGHT, build_api
from distft.serve.arrangement import HISTORIES, MODEL_PREFIX, Arrangement
from distft.serve.batching import Overloaded
from distft.serve.door import Door, log_requests
from distft.serve.golden import GoldenRequest, difference
from distft.serve.guard import let_in_before_ray
from distft.serve.itemsearch import ItemPage, ItemQuery
from distft.serve.keys import Keyring
from distft.serve.metrics import Counted, IngressMeter
from distft.serve.predictor import Query, Recommendation
from distft.serve.problems import FieldError, Problem
from distft.serve.replicas import Busy, Refusal
from distft.serve.trial import AT_ONCE, TRIALS, Kind, Trial, overlap

READY_TIMEOUT_S = 2.0
"""How soon a model that has shown what it can must answer ``/readyz``."""

FORGET_TIMEOUT_S = 60.0
"""How long forgetting a user may take: every segment of the log that holds one of the user's events is rewritten."""

_Answer = TypeVar("_Answer")


class Ingress:
    """The service's only way in: HTTP on one side, the handle of the current model on the other."""

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        self.histories = serve.get_app_handle(HISTORIES) if arrangement.keeping else None
        self.pseudonyms = open_pseudonyms(arrangement.pseudonyms)
        self.event_names: tuple[str, ...] = ()
        self.config: dict[str, Any] = {}
        self.handle: DeploymentHandle | None = None
        self.trial: Tried | None = None
        self.model_version = ""
        self.request_timeout_s = 0.0
        self.ready_version: str | None = None
        self.meter = IngressMeter()
        self.admission = Admission(1.0, MAX_IN_FLIGHT, MAX_IN_FLIGHT)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        keys, log = self.arrangement.keys, self.arrangement.request_log
        if log is not None:
            log_requests(Path(log))
        keyring = Keyring(Path(keys)) if keys else None

        def around(app: ASGIApp) -> ASGIApp:
            door = Door(Bounded(app, self.admission, self.meter.refused), keyring, self.arrangement.policy)
            return Counted(door, self.meter, lambda: self.model_version)

        api = let_in_before_ray(build_api(self), around)
        gc.collect()
        gc.freeze()  # or every full collection would walk all that Ray and torch have made while they were imported
        return api

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Follows ``user_config``, see ``ingress_config``."""
        self.config = config
        trial = config.get("trial")
        self.trial = None
        # A process that starts after a promotion was killed finds its trial here, and nothing of it on the cluster.
        with suppress(ValueError, RayServeException):
            self.trial = Tried(Trial(**trial), self._ask) if trial else None
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
            reply = await self._answer(query)
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

    async def _answer(self, query: Query) -> Recommendation | Refusal | Busy:
        """What a replica replies: of the running model, or of the one that is on trial."""
        trial, started_s = self.trial, time.perf_counter()
        if trial is not None and trial.is_chosen("canary"):
            answer = await trial.answer(query)
            if answer is not None:
                return answer
        reply: Recommendation | Refusal | Busy = await self._ask("recommend", query)
        if trial is not None and isinstance(reply, Recommendation) and trial.is_chosen("shadow"):
            trial.mirror(query, reply, time.perf_counter() - started_s)
        return reply

    async def deployed(self) -> tuple[Arrangement, dict[str, Any]]:
        """How the service is run, and what the interface follows now; for a promotion, not for clients."""
        return self.arrangement, self.config

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
        try:
            return await _reply(getattr(handle, method).remote(*args))
        except (RayActorError, DeploymentUnavailableError):
            self.meter.retried()
            if handle is not self.histories and self.handle is not None and not self._is_tried(handle):
                handle = self.handle  # the model may have been exchanged meanwhile
            return await _reply(getattr(handle, method).remote(*args))

    def _is_tried(self, handle: DeploymentHandle) -> bool:
        return self.trial is not None and handle is self.trial.handle


class Tried:
    """The model that is on trial, as one process of the interface asks it; ``ask`` as ``Ingress._ask``."""

    def __init__(self, trial: Trial, ask: Callable[..., Awaitable[Any]]) -> None:
        self.trial, self._ask = trial, ask
        self.handle = serve.get_app_handle(trial.application)
        self._log = ray.get_actor(trial.log, namespace=TRIALS)
        self._mirrored: set[asyncio.Task[None]] = set()

    def is_chosen(self, kind: Kind) -> bool:
        """True if this request is one of the trial's share."""
        return self.trial.kind == kind and time.time() < self.trial.until_s and random.random() < self.trial.share

    async def answer(self, query: Query) -> Recommendation | None:
        """The new model's answer; None where the running one has to answer instead."""
        reply, took_s = await self._asked(query)
        if reply is not None:
            self._log.answered.remote(took_s)
        return reply

    def mirror(self, query: Query, running: Recommendation, running_took_s: float) -> None:
        """Asks the new model too, and notes how its answer compares; the client has gone on by then."""
        if len(self._mirrored) < AT_ONCE:
            task = asyncio.create_task(self._compare(query, running, running_took_s))
            self._mirrored.add(task)
            task.add_done_callback(self._mirrored.discard)

    async def _compare(self, query: Query, running: Recommendation, running_took_s: float) -> None:
        reply, took_s = await self._asked(query)
        if reply is not None:
            self._log.answered.remote(took_s, running_took_s, overlap(reply.item_ids, running.item_ids))

    async def _asked(self, query: Query) -> tuple[Recommendation | None, float]:
        """(the new model's answer, its seconds); None, and noted, where it fails or refuses what another may follow."""
        started_s = time.perf_counter()
        try:
            reply = await self._ask("recommend", query, of=self.handle)
        except (ServingError, Overloaded, RayTaskError):
            reply = None
        if not isinstance(reply, Recommendation):
            self._log.failure.remote()
            reply = None
        return reply, time.perf_counter() - started_s


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
