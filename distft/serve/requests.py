"""The service's requests and answers as types, and the strict reading of a request body.

Enters: the bytes of a body. Leaves: a ``RecommendRequest``, or a ``Problem`` that says which field is wrong. The
same types make the OpenAPI description. Surprising choice: JSON is read by rules stricter than Python's: a
duplicate key, NaN, Infinity and text that is not UTF-8 are refused instead of being given some meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from distft.data.encode import RawEvent
from distft.serve.explaining import Reason
from distft.serve.predictor import AnswerSource, Query, Recommendation
from distft.serve.problems import MAX_FIELD_ERRORS, FieldError, Problem

MAX_BODY_BYTES = 1 << 20
MAX_HISTORY_EVENTS = 10_000
MAX_EXCLUDED_ITEMS = 10_000
MAX_TEXT_CHARS = 1_000
MAX_TIME_MS = 253_402_300_799_999  # the end of year 9999

Request = TypeVar("Request", bound="Body")
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]

_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ].*)?")
_DATETIME = TypeAdapter(datetime)


def time_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 text; without an offset it is UTC. Raises ValueError."""
    expected = "expected milliseconds since 1970, or ISO 8601 such as 2010-12-01T10:16:00Z"
    if not _ISO_TIME.fullmatch(text):
        raise ValueError(expected)
    try:
        moment = _DATETIME.validate_python(text)
    except ValidationError:
        raise ValueError(expected) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    milliseconds = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not 0 <= milliseconds <= MAX_TIME_MS:
        raise ValueError("expected a time from 1970 to 9999")
    return milliseconds


def _readable(value: Any) -> Any:
    return time_ms(value) if isinstance(value, str) else value


Time = Annotated[
    int,
    Field(ge=0, le=MAX_TIME_MS),
    BeforeValidator(_readable),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_TIME_MS},
                {"type": "string", "format": "date-time"},
            ]
        }
    ),
]


class Body(BaseModel):
    """Base of what a client sends: no conversions, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_EXAMPLE: dict[str, Any] = {
    "history": [
        {"event": "search", "query": "red mug", "timestamp": "2010-12-01T10:15:00Z"},
        {"event": "view", "item_id": "85123A", "timestamp": "2010-12-01T10:16:00Z"},
    ],
    "k": 10,
}


class HistoryEvent(Body):
    """One event of the user, in the shop's own words."""

    event: Text = Field(description="event type, one of those that GET /v1/model lists", examples=["view"])
    item_id: Text | None = Field(None, description="may be left out of a search only", examples=["85123A"])
    timestamp: Time | None = Field(
        None,
        description="milliseconds since 1970 in UTC, or ISO 8601 text (UTC unless it says otherwise)",
        examples=[1291198560000, "2010-12-01T10:16:00Z"],
    )
    query: Text | None = Field(None, description="the words of a search", examples=["red mug"])
    value: Number | None = Field(None, description="a rating or the like, where the model learnt from it", examples=[4])

    def raw(self) -> RawEvent:
        """The event as the encoder takes it."""
        return RawEvent(self.item_id, self.event, self.timestamp, self.query, self.value)


class RecommendRequest(Body):
    """Whom to recommend to, and what may be recommended."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    user_id: Text | None = Field(
        None, description="the shop's own; without 'history' the events that the service has kept of this user count"
    )
    history: list[HistoryEvent] | None = Field(
        None,
        max_length=MAX_HISTORY_EVENTS,
        description="the user's events, and nothing else counts then; by time if all have one, else as listed",
    )
    k: int = Field(10, ge=1, description="items wanted; GET /v1/model tells the largest number")
    exclude_seen: bool | None = Field(
        None, description="leave out all items of the history (true) or none; by default as the model was evaluated"
    )
    filter: dict[Text, Annotated[list[Text], Field(min_length=1)]] | None = Field(
        None,
        description="keep only the items whose feature has one of the values",
        examples=[{"category": ["kitchen", "garden"]}],
    )
    exclude_items: list[Text] | None = Field(
        None, max_length=MAX_EXCLUDED_ITEMS, description="items not to recommend", examples=[["85123A"]]
    )
    user: dict[Text, Text | Number] = Field(
        default_factory=dict,
        description="what is known of the user: features that GET /v1/model lists, in the shop's own words",
        examples=[{"gender": "F", "age": 34}],
    )
    explain: bool = Field(
        False, description="tell of each item which events moved its score most; costs a pass for each event"
    )

    def query(self) -> Query:
        """What the predictor is asked."""
        events = [event.raw() for event in self.history or ()]
        kept = dict(self.filter) if self.filter else None
        denied = tuple(self.exclude_items or ())
        return Query(events, self.k, self.exclude_seen, kept, self.user, denied, explain=self.explain)


class Because(BaseModel):
    """An event of the history, and what it did to an item's score."""

    place: int = Field(description="where the event stands in the history, from 0")
    event: str
    item_id: str | None = None
    query: str | None = None
    timestamp: int | None = Field(None, description="milliseconds since 1970, where it is known")
    effect: float = Field(description="the score less what it is without this event: above 0 speaks for the item")


class RecommendedItem(BaseModel):
    """One recommendation; a higher score is better."""

    item_id: str
    score: float
    because: list[Because] | None = Field(None, description="where 'explain' is true; the strongest effect first")


class RecommendResponse(BaseModel):
    """Recommendations, best first; fewer than asked for when no more are left."""

    items: list[RecommendedItem]
    model_version: str
    unknown_items: int = Field(description="events of the history whose item the model does not know")
    source: AnswerSource = Field(description="model, or popularity where the user has no history")

    @classmethod
    def of(cls, answer: Recommendation, events: Sequence[RawEvent] = ()) -> RecommendResponse:
        """The answer in the words of the API; ``events``: those of the query, which reasons name by their places."""
        reasons = [None] * len(answer.item_ids) if answer.reasons is None else answer.reasons
        items = [
            RecommendedItem(item_id=item_id, score=score, because=_because(some, events))
            for item_id, score, some in zip(answer.item_ids, answer.scores, reasons, strict=True)
        ]
        return cls(
            items=items, model_version=answer.model_version, unknown_items=answer.unknown_items, source=answer.source
        )


def _because(reasons: Sequence[Reason] | None, events: Sequence[RawEvent]) -> list[Because] | None:
    if reasons is None:
        return None
    return [
        Because(
            place=one.place,
            event=events[one.place].event,
            item_id=events[one.place].item_id,
            query=events[one.place].query,
            timestamp=events[one.place].time_ms,
            effect=one.effect,
        )
        for one in reasons
    ]


class Status(BaseModel):
    """The state of the service."""

    status: str
    model_version: str | None = None


def read_request(body: bytes, kind: type[Request]) -> Request:
    """The request in a body. Raises Problem 400 if it is not JSON, 422 naming each field that is wrong."""
    return checked(strict_json(body), kind)


def checked(value: Any, kind: type[Request]) -> Request:
    """The request that a value is. Raises Problem 422 naming each field that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise Problem(422, "The request is not valid.", errors=_field_errors(found)) from None


def strict_json(body: bytes) -> Any:
    """The JSON value in a body. Raises Problem 400 saying what is wrong with it."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not UTF-8: byte {error.start} cannot be read.") from None
    except RecursionError:
        raise Problem(400, "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(400, f"The body is not JSON: {error.msg} ({where}).") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Problem(400, f"The body is not JSON that can be read: {str(error).split(';')[0][:200]}.") from None


def _no_constant(name: str) -> NoReturn:
    raise Problem(400, f"The body is not JSON: {name} is not a number of JSON.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for index, name in enumerate(names) if name in names[:index])
        raise Problem(400, "A key stands twice in one object.", errors=[FieldError(double, "stands twice")])
    return value


def _field_errors(found: Sequence[Any]) -> list[FieldError]:
    """One error a field, its path joined by dots."""
    errors = {
        ".".join(str(step) for step in error["loc"] if step != "[key]") or "body": _said(error) for error in found
    }
    return [FieldError(field, message) for field, message in errors.items()][:MAX_FIELD_ERRORS]


def _said(error: Any) -> str:
    """What is wrong, in the words of JSON instead of Python's."""
    if error["type"] == "extra_forbidden":
        return "There is no such key; GET /docs lists what there is"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "Expected a JSON object"
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "Expected").split(" after")[0]
