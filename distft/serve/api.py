"""The HTTP interface of the service: routes, types, limits and errors; it knows neither Ray nor the model.

Enters: a ``Backend`` that answers queries. Leaves: an ASGI application. Surprising choice: the body is read and
checked here instead of by FastAPI, so that its size is bounded while it arrives and JSON is read strictly; the
OpenAPI description is made of the same types.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from distft import __version__
from distft.data.encode import RawEvent
from distft.serve import problems
from distft.serve.demopage import add_demo
from distft.serve.events import EventsRequest, Keeper, add_events
from distft.serve.items import Catalogue, add_items
from distft.serve.predictor import Query, Recommendation
from distft.serve.problems import Problem
from distft.serve.requests import MAX_BODY_BYTES, RecommendRequest, RecommendResponse, Status, read_request

MAX_IN_FLIGHT = 1024
BODY_TIMEOUT_S = 10.0

_REQUESTS = (RecommendRequest, EventsRequest)
_REFS = "#/components/schemas/{model}"


class Backend(Keeper, Catalogue, Protocol):
    """What answers. Each method raises Problem for a request it refuses and ServingError while it cannot answer."""

    async def recommend(self, query: Query) -> Recommendation:
        """The answer to one query."""

    async def history(self, user_id: str) -> list[RawEvent]:
        """The events that are kept of a user; none where nothing keeps them."""

    async def describe(self) -> dict[str, Any]:
        """The facts of what is served, JSON: those of the model, and ``keeps_histories``."""

    async def ready(self) -> str:
        """The version of the model, once it has answered a golden request as expected."""


def build_api(backend: Backend) -> FastAPI:
    """The ASGI application that serves a backend."""
    # Its pages bring their script along: a service in a closed network has them too, and no stranger's code runs.
    api = FastAPIOffline(
        title="distft",
        description="Recommendations for a shop.",
        version=__version__,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.answer_problems(api)
    _add_status(api, backend)
    _add_recommend(api, backend)
    add_items(api, backend)
    add_events(api, backend, _body)
    add_demo(api)
    describe = api.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts.update(models_json_schema([(kind, "validation") for kind in _REQUESTS], ref_template=_REFS)[1]["$defs"])
        parts["Problem"] = problems.SCHEMA
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _add_status(api: FastAPI, backend: Backend) -> None:
    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz", tags=["state"], summary="Is this process alive?")
    async def healthz() -> Status:
        return Status(status="alive")

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz", tags=["state"], summary="Does the model answer as it should", responses=problems.responses(503))
    async def readyz() -> Status:
        return Status(status="ready", model_version=await backend.ready())

    @api.get("/v1/model", tags=["model"], summary="What is served", responses=problems.responses(503))
    async def model() -> dict[str, Any]:
        return await backend.describe()


def _add_recommend(api: FastAPI, backend: Backend) -> None:
    in_flight = 0

    @api.post(
        "/v1/recommend",
        tags=["model"],
        summary="The best items for a user",
        responses=problems.responses(400, 408, 413, 415, 422, 503),
        response_model=RecommendResponse,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": _REFS.format(model="RecommendRequest")}}},
            }
        },
    )
    async def recommend(request: Request) -> Response:
        nonlocal in_flight
        if in_flight >= MAX_IN_FLIGHT:
            raise Problem(
                503, f"{in_flight} requests are being answered already.", retry_after_s=problems.RETRY_AFTER_S
            )
        in_flight += 1
        try:
            wanted = read_request(await _body(request), RecommendRequest)
            query = wanted.query()
            if wanted.history is None and wanted.user_id is not None:
                query = replace(query, events=await backend.history(wanted.user_id), kept=True)
            answer = await backend.recommend(query)
        finally:
            in_flight -= 1
        told = RecommendResponse.of(answer, query.events)
        return Response(told.model_dump_json(exclude_none=True), media_type="application/json")


async def _body(request: Request) -> bytes:
    """The body, of which never more than the limit is held. Raises Problem 413, or 408 if it does not arrive."""
    try:
        return await asyncio.wait_for(_bounded(request), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Problem(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None


async def _bounded(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(415, f"The body is encoded as {encoding[:100]}; send it as it is, without Content-Encoding.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Problem:
    return Problem(413, f"The body is longer than {MAX_BODY_BYTES} bytes.")
