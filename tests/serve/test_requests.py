from __future__ import annotations

import json
from typing import Any

import pytest

from distft.data.encode import RawEvent
from distft.serve.problems import Problem
from distft.serve.requests import MAX_TIME_MS, RecommendRequest, read_request, time_ms


def refused(body: bytes | dict[str, Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), RecommendRequest)
    return caught.value


def test_a_full_request_becomes_a_query() -> None:
    body = {
        "user_id": "u1",
        "history": [
            {"item_id": "a", "event": "view", "timestamp": 5},
            {"event": "search", "timestamp": "1970-01-01T00:00:01Z", "query": "red mug"},
        ],
        "k": 3,
        "exclude_seen": False,
        "filter": {"category": ["x", "y"]},
    }
    query = read_request(json.dumps(body).encode(), RecommendRequest).query()
    assert list(query.events) == [RawEvent("a", "view", 5), RawEvent(None, "search", 1000, "red mug")]
    assert (query.k, query.exclude_seen, query.filter) == (3, False, {"category": ["x", "y"]})
    empty = read_request(b"{}", RecommendRequest).query()
    assert (list(empty.events), empty.k, empty.exclude_seen, empty.filter) == ([], 10, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 0),
        ("2010-12-01T10:16:00", 1291198560000),
        ("2010-12-01T10:16:00Z", 1291198560000),
        ("2010-12-01 12:16:00.250+02:00", 1291198560250),
        ("9999-12-31T23:59:59.999Z", MAX_TIME_MS),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert time_ms(text) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "1291198560", "2010-13-01", "2010-12-01T25:00", "1969-12-31", "9999-12-31T23:59:59-10:00"]
)
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        time_ms(text)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({"k": "10"}, "k"),
        ({"k": True}, "k"),
        ({"k": 0}, "k"),
        ({"k": 1.0}, "k"),
        ({"kk": 1}, "kk"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "x" * 1001}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"exclude_seen": "yes"}, "exclude_seen"),
        ({"history": {}}, "history"),
        ({"history": [{"event": "view"}, {"item_id": "a"}]}, "history.1.event"),
        ({"history": [{"event": "view", "item_id": ""}]}, "history.0.item_id"),
        ({"history": [{"event": "view", "timestamp": -1}]}, "history.0.timestamp"),
        ({"history": [{"event": "view", "timestamp": 10**30}]}, "history.0.timestamp"),
        ({"history": [{"event": "view", "timestamp": 1.5}]}, "history.0.timestamp"),
        ({"history": [{"event": "view", "timestamp": "soon"}]}, "history.0.timestamp"),
        ({"history": [{"event": "view", "price": 1}]}, "history.0.price"),
        ({"history": [{"event": "view"}] * 10_001}, "history"),
        ({"filter": ["category"]}, "filter"),
        ({"filter": {"category": "toys"}}, "filter.category"),
        ({"filter": {"category": []}}, "filter.category"),
        ({"filter": {"category": [1]}}, "filter.category.0"),
    ],
)
def test_a_wrong_field_is_named(body: Any, field: str) -> None:
    problem = refused(json.dumps(body).encode())
    assert problem.status == 422
    assert [error.field for error in problem.errors] == [field]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"user_id": "\xc3"}',
        b'{"k": NaN}',
        b'{"k": Infinity}',
        b'{"k": -Infinity}',
        b'{"k": 1, "k": 2}',
        b'{"k": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"k=10",
    ],
)
def test_what_is_not_json_is_a_400(body: bytes) -> None:
    assert refused(body).status == 400
