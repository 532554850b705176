"""What the service says when it cannot answer: ``application/problem+json`` (RFC 9457).

Enters: a ``Problem``, or any error that left a route. Leaves: a response with the status, a sentence, and the
fields that are wrong; with ``Retry-After`` where trying again helps. Surprising choice: the JSON is pure ASCII,
because a client may send half of a surrogate pair, which UTF-8 cannot carry back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from distft.errors import ServingError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
MAX_FIELD_CHARS = 200
MAX_MESSAGE_CHARS = 1000
MAX_FIELD_ERRORS = 20

logger = logging.getLogger(__name__)

SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI description says of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


@dataclass(frozen=True)
class FieldError:
    """A field of the request, as a path such as ``history.3.event``, and what is wrong with it."""

    field: str
    message: str


class Problem(Exception):
    """A request that gets no answer: status, one sentence, the fields at fault, and when to try again."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, tuple(errors), retry_after_s, headers)
        self.status = status
        self.detail = detail[:MAX_MESSAGE_CHARS]
        self.errors = tuple(FieldError(e.field[:MAX_FIELD_CHARS], e.message[:MAX_MESSAGE_CHARS]) for e in errors)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})

    def response(self, headers: dict[str, str] | None = None) -> Response:
        """The response that tells the client."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [asdict(error) for error in self.errors]
        retry = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s is not None else {}
        return Response(
            json.dumps(body).encode("ascii"),
            self.status,
            headers={**self.headers, **(headers or {}), **retry},
            media_type=MEDIA_TYPE,
        )


def answer_problems(api: FastAPI) -> None:
    """Makes the application tell every error as a problem: its own, the router's, the service's, and any other."""

    @api.exception_handler(Problem)
    async def _known(_: Request, error: Problem) -> Response:
        return error.response()

    @api.exception_handler(HTTPException)
    async def _routing(request: Request, error: HTTPException) -> Response:
        detail = {
            404: f"There is nothing at {request.url.path[:MAX_FIELD_CHARS]}; GET /docs lists what there is.",
            405: f"{request.method} is not possible here; GET /docs lists what is.",
        }.get(error.status_code, str(error.detail))
        return Problem(error.status_code, detail).response(dict(error.headers or {}))

    @api.exception_handler(ServingError)
    async def _unavailable(_: Request, error: ServingError) -> Response:
        return Problem(503, str(error), retry_after_s=RETRY_AFTER_S).response()

    @api.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> Response:
        logger.error("A request failed inside the service", exc_info=error)
        return Problem(500, "The service failed; its log says why.").response()
