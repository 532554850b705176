"""A small real bundle for the serving tests: a random model, an encoder with features, golden requests."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from distft.data.encode import Encoder, RawEvent
from distft.data.features import FeatureColumn, FeatureSpec
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.models.blocks import init_normal
from distft.ranking import Ranker, excluded_items
from distft.schema import NUM_RESERVED
from distft.storage import Storage

NUM_ITEMS = 60
CATEGORIES = ("garden", "kitchen", "toys")
EVENTS = ("view", "cart", "purchase", "search")
WORDS = ("mug", "red", "blue", "lamp")

JOB = """
name: tiny
storage: runs/tiny
data:
  events:
    - {source: files, path: events.csv, columns: {user_id: u, item_id: i, timestamp: t, event: e},
       event_types: {view: view, cart: cart, purchase: purchase, search: search}}
model: {kind: transformer, dim: 16, num_blocks: 1, num_heads: 2, max_history: 20}
serve: {max_replicas: 1, max_k: 50, max_batch_size: 4}
"""


def encoder(num_items: int = NUM_ITEMS) -> Encoder:
    """Items i0, i1, ... by falling popularity, each of one category."""
    rng = np.random.default_rng(0)
    codes = np.concatenate([[0, 1], rng.integers(NUM_RESERVED, NUM_RESERVED + len(CATEGORIES), num_items)])
    category = FeatureColumn(
        FeatureSpec("category", "category", vocabulary=("", "", *CATEGORIES)),
        offsets=np.arange(num_items + NUM_RESERVED + 1, dtype=np.int64),
        codes=codes.astype(np.int32),
    )
    price = FeatureColumn(
        FeatureSpec("price", "number"), values=rng.normal(size=num_items + NUM_RESERVED).astype(np.float32)
    )
    return Encoder(
        event_names=EVENTS,
        target_events=("purchase",),
        has_clock=True,
        item_ids=np.array(["", "", *(f"i{index}" for index in range(num_items))], object),
        counts=np.array([0, 0, *range(2 * num_items, num_items, -1)], np.int64),
        token_words=("", "", *WORDS),
        features=(category, price),
    )


def events(seed: int, length: int) -> list[RawEvent]:
    """A history of views and purchases, with a search in between."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(length):
        time_ms = 1_600_000_000_000 + index * 60_000
        if index % 4 == 3:
            made.append(RawEvent(None, "search", time_ms, f"{rng.choice(WORDS)} {rng.choice(WORDS)}"))
        else:
            made.append(RawEvent(f"i{rng.integers(NUM_ITEMS)}", str(rng.choice(EVENTS[:3])), time_ms))
    return made


def as_json(history: list[RawEvent]) -> list[dict[str, Any]]:
    """The history as the API takes it."""
    fields = ({"item_id": e.item_id, "event": e.event, "timestamp": e.time_ms, "query": e.query} for e in history)
    return [{key: value for key, value in event.items() if value is not None} for event in fields]


def write_bundle(
    root: Storage,
    overrides: tuple[str, ...] = (),
    golden_shift: float = 0.0,
    encoding: Encoder | None = None,
    seed: int = 1,
) -> Storage:
    """Writes ``<root>/bundle``; ``golden_shift`` spoils the expected scores by so much; ``seed``: of the weights.

    The targets of its golden requests are what the model of seed 1 finds second.
    """
    job, encoding = parse_job(JOB, "tiny.yaml", overrides), encoding or encoder()
    teacher = _ranker(job, encoding, 1)
    ranker = _ranker(job, encoding, seed)
    model = ranker.model
    histories = [some for number in range(30) if (some := _known(events(number, number + 1), encoding))]
    lines = [_golden(ranker, encoding, history, golden_shift) for history in histories]
    for line, history in zip(lines, histories, strict=True):
        line["target"] = _golden(teacher, encoding, history, 0.0)["items"][1]["item_id"]
    with root.replacing("bundle") as bundle:
        bundle.write_bytes("model.safetensors", save(model.state_dict()))
        encoding.save(bundle / "encoder")
        bundle.write_bytes("job.yaml", dump_job(job).encode())
        bundle.write_json("metrics.json", {})
        bundle.write_bytes("golden_requests.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        bundle.write_manifest("bundle", {}, {"name": job.name})
    return root / "bundle"


def _ranker(job: Job, encoding: Encoder, seed: int) -> Ranker:
    torch.manual_seed(seed)
    model = job.model.build(encoding.catalog())
    model.apply(partial(init_normal, std=0.3))
    return Ranker(model, job.model.max_history, encoding)


def _known(history: list[RawEvent], encoding: Encoder) -> list[RawEvent]:
    """The events whose type the encoder knows."""
    return [event for event in history if event.event in encoding.event_names]


def _golden(ranker: Ranker, encoding: Encoder, history: list[RawEvent], shift: float) -> dict[str, Any]:
    histories = encoding.encode_events(history)
    ranked = ranker.top_k(histories, 10, excluded_items(histories, "all", encoding.target_codes))
    best = zip(ranked.rows_BK[0].tolist(), ranked.scores_BK[0].tolist(), strict=True)
    items = [{"item_id": str(encoding.item_ids[row]), "score": score + shift} for row, score in best]
    return {"request": {"history": as_json(history), "k": 10}, "items": items}
