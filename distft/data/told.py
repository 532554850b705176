"""A history as the events of a request: what an evaluator sends to a server.

Enters: rows of an encoder. Leaves: the ``history`` of ``POST /v1/recommend`` in the shop's words, which encoded again
gives the same rows.
"""

from __future__ import annotations

from typing import Any

from distft.data.encode import UNKNOWN_WORD, Encoder
from distft.schema import Histories

_NAMES = ("item_id", "event", "timestamp", "query", "value")


def request_events(encoder: Encoder, histories: Histories, index: int) -> list[dict[str, Any]]:
    """Row ``index`` as the events of a request; absent fields are left out."""
    raw = encoder.decode(histories, index, unknown=UNKNOWN_WORD)
    times = raw.time_ms if encoder.has_clock else [None] * len(raw.events)
    columns = zip(raw.item_ids, raw.events, times, raw.queries, encoder.label_values(histories, index), strict=True)
    return [{n: value for n, value in zip(_NAMES, event, strict=True) if value is not None} for event in columns]
