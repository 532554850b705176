"""Request bodies that try to break the service: by hand, and by chance."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

BY_HAND: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"0",
    b"{",
    b"\x00",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b'{"k": NaN}',
    b'{"k": -Infinity}',
    b'{"k": 1e999}',
    b'{"k": 1, "k": 2}',
    b'{"k": ' + b"9" * 5000 + b"}",
    b'{"k": 99999999999999999999}',
    b'{"k": -1}',
    b'{"k": 51}',
    b'{"k": null}',
    b'{"\\ud800": 1}',
    b'{"user_id": "\\ud800"}',
    b'{"user_id": "\\u0000"}',
    b'{"filter": {"\\udfff": ["a"]}}',
    b'{"filter": {"": ["a"]}}',
    b'{"filter": {"price": ["1"]}}',
    b'{"filter": {"category": ["' + b"x" * 2000 + b'"]}}',
    b'{"history": [null]}',
    b'{"history": [{}]}',
    b'{"history": [{"event": "view"}]}',
    b'{"history": [{"event": "search"}]}',
    b'{"history": [{"event": "search", "query": "\\u0130 \\u00df \\ufdfa \\ud83d\\ude00"}]}',
    b'{"history": [{"event": "view", "item_id": "i1", "timestamp": 253402300800000}]}',
    b'{"history": [{"event": "view", "item_id": "i1", "timestamp": "0001-01-01T00:00:00+23:59"}]}',
    b'{"history": [{"event": "view", "item_id": "i1", "timestamp": "9999-12-31T23:59:59-23:59"}]}',
    b'{"history": [{"event": "view", "item_id": "i1", "timestamp": 0}, {"event": "view", "item_id": "i1"}]}',
    b'{"history": [' + b",".join([b'{"event": "view", "item_id": "i1"}'] * 10_000) + b"]}",
    b'{"history": [' + b",".join([b"0"] * 200_000) + b"]}",
    b"[" * 500_000,
    b'{"a":' * 150_000,
]

_text = st.text(max_size=12)
_junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_event = st.fixed_dictionaries(
    {},
    optional={
        "event": st.sampled_from(["view", "purchase", "search", "gone"]) | _junk,
        "item_id": st.sampled_from(["i1", "i2", "nothing"]) | _junk,
        "timestamp": st.integers(-(10**20), 10**20) | st.datetimes().map(str) | _junk,
        "query": _text | _junk,
    },
)
_request = st.fixed_dictionaries(
    {},
    optional={
        "user_id": _text | _junk,
        "history": st.lists(_event, max_size=5) | _junk,
        "k": st.integers(-1, 60) | _junk,
        "exclude_seen": st.booleans() | _junk,
        "filter": st.dictionaries(st.just("category") | _text, st.lists(_text, max_size=2), max_size=2) | _junk,
        "more": _junk,
    },
)


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()  # lone surrogates come out as escapes, NaN as NaN


bodies: st.SearchStrategy[bytes] = st.one_of(st.binary(max_size=40), _junk.map(_encoded), _request.map(_encoded))
"""Bytes, JSON of any kind, and requests that are nearly right."""
