"""The routes of users' histories: events come in, a user is forgotten.

Enters: ``POST /v1/events`` and ``DELETE /v1/users/{user_id}``. Leaves: what became of them. Surprising choice: an event
without a time gets that of its arrival, and one that lies in the future is refused, because it would stand last in its
user's history until that future has come.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from distft.data.encode import RawEvent
from distft.schema import ITEMLESS_EVENTS
from distft.serve.problems import MAX_FIELD_ERRORS, FieldError, Problem, responses
from distft.serve.requests import MAX_TEXT_CHARS, Body, HistoryEvent, Text, read_request

MAX_EVENTS = 1_000
MAX_AHEAD_S = 300
"""How far the clocks of clients may go before ours."""

_EXAMPLE: dict[str, Any] = {
    "user_id": "17850",
    "events": [{"event": "view", "item_id": "85123A", "timestamp": "2010-12-01T10:16:00Z"}],
}


class EventsRequest(Body):
    """What a user did."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    user_id: Text = Field(description="the shop's own")
    events: list[HistoryEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsResponse(BaseModel):
    """What became of the events."""

    accepted: int = Field(description="events that are kept now, and will be in the event log")
    duplicates: int = Field(description="events that had been there: same user, type, item, query and time")


class ForgetResponse(BaseModel):
    """What a user's history held."""

    forgotten_events: int


class Keeper(Protocol):
    """What keeps the histories. Each method raises Problem 404 where the service keeps none."""

    def check_events(self, events: Sequence[RawEvent]) -> None:
        """Raises Problem 422 naming the event whose type is not known."""

    async def remember(self, user_id: str, events: Sequence[RawEvent]) -> int:
        """How many of the events were new."""

    async def forget(self, user_id: str) -> int:
        """How many events were dropped."""


def add_events(api: FastAPI, keeper: Keeper, body: Callable[[Request], Awaitable[bytes]]) -> None:
    """Adds the routes; ``body`` reads that of a request, bounded."""

    @api.post(
        "/v1/events",
        tags=["histories"],
        summary="Append to a user's history",
        responses=responses(400, 401, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EventsRequest"}}},
            }
        },
    )
    async def events(request: Request) -> EventsResponse:
        """Safe to send again: an event that is there already, same type, item, query and time, is not added twice."""
        wanted = read_request(await body(request), EventsRequest)
        told = told_events(wanted.events, time.time())
        keeper.check_events(told)
        accepted = await keeper.remember(wanted.user_id, told)
        return EventsResponse(accepted=accepted, duplicates=len(told) - accepted)

    @api.delete(
        "/v1/users/{user_id:path}",
        tags=["histories"],
        summary="Forget a user",
        responses=responses(401, 404, 422, 429, 503),
    )
    async def forget(user_id: str) -> ForgetResponse:
        """Nothing of the user is in the history or the event log any more when this answers."""
        if not 1 <= len(user_id) <= MAX_TEXT_CHARS:
            what = f"Expected 1 to {MAX_TEXT_CHARS} characters"
            raise Problem(422, "The request is not valid.", [FieldError("user_id", what)])
        return ForgetResponse(forgotten_events=await keeper.forget(user_id))


def told_events(events: Sequence[HistoryEvent], now_s: float) -> list[RawEvent]:
    """The events, each with a time. Raises Problem 422 naming what a history cannot hold."""
    now_ms, wrong, told = int(now_s * 1000), [], []
    for index, event in enumerate(events):
        if event.timestamp is not None and event.timestamp > now_ms + MAX_AHEAD_S * 1000:
            wrong.append(FieldError(f"events.{index}.timestamp", "lies in the future"))
        if event.item_id is None and event.event not in ITEMLESS_EVENTS:
            wrong.append(FieldError(f"events.{index}.item_id", f"a {event.event} has the item that it is about"))
        if event.item_id is None and event.query is None:
            wrong.append(FieldError(f"events.{index}.query", "an event has an item_id, a query, or both"))
        told.append(replace(event.raw(), time_ms=now_ms if event.timestamp is None else event.timestamp))
    if wrong:
        raise Problem(422, "The request is not valid.", wrong[:MAX_FIELD_ERRORS])
    return told
