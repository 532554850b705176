"""An untrained model of any catalogue size as a bundle, and requests for it: serving speed does not depend on weights.

The item vectors are drawn around many centres, as trained ones lie, so that an index has something to find; states are
what the model makes of random histories of these items.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from distft.data.encode import Encoder
from distft.jobfile import dump_job, parse_job
from distft.ranking import Ranker, excluded_items
from distft.storage import Storage

EVENTS = ("view", "cart", "purchase")
HISTORY = 50
NUM_CENTRES = 1_000
NUM_GOLDEN = 20
START_MS = 1_700_000_000_000

JOB = """
name: served-shop
storage: runs/served-shop
data:
  events:
    - {source: files, path: events.csv, columns: {user_id: u, item_id: i, timestamp: t, event: e},
       event_types: {view: view, cart: cart, purchase: purchase}}
model: {kind: transformer, dim: 64, num_blocks: 2, num_heads: 2, max_history: 50}
"""


def write_shop(root: Storage, num_items: int, overrides: tuple[str, ...] = ()) -> Storage:
    """Writes ``<root>/bundle`` with ``num_items`` items."""
    job = parse_job(JOB, "served-shop.yaml", overrides)
    encoder = Encoder(
        event_names=EVENTS,
        target_events=("purchase",),
        has_clock=True,
        item_ids=np.array(["", "", *(f"item-{index:07}" for index in range(num_items))], object),
        counts=np.array([0, 0, *range(num_items + 1, 1, -1)], np.int64),
        token_words=("", ""),
        features=(),
    )
    torch.manual_seed(1)
    model = job.model.build(encoder.catalog())
    _spread(model)
    ranker = Ranker(model, job.model.max_history, encoder)
    with root.replacing("bundle") as bundle:
        bundle.write_bytes("model.safetensors", save(model.state_dict()))
        encoder.save(bundle / "encoder")
        bundle.write_bytes("job.yaml", dump_job(job).encode())
        bundle.write_json("metrics.json", {})
        lines = [_golden(ranker, encoder, body) for body in bodies(num_items, NUM_GOLDEN)]
        bundle.write_bytes("golden_requests.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        bundle.write_manifest("bundle", {}, {"name": job.name})
    return root / "bundle"


def bodies(num_items: int, count: int, k: int = 10, length: int = HISTORY) -> list[dict[str, Any]]:
    """Requests with full histories."""
    rng = np.random.default_rng(2)
    made = []
    for _ in range(count):
        items = rng.integers(num_items, size=length)
        kinds = rng.integers(len(EVENTS), size=length)
        history = [
            {"item_id": f"item-{item:07}", "event": EVENTS[kind], "timestamp": START_MS + place * 60_000}
            for place, (item, kind) in enumerate(zip(items, kinds, strict=True))
        ]
        made.append({"history": history, "k": k})
    return made


def _spread(model: torch.nn.Module) -> None:
    """Puts the item embeddings around centres."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "item" in name and parameter.ndim == 2 and len(parameter) > NUM_CENTRES:
                centres = torch.randn(NUM_CENTRES, parameter.shape[1])
                near = centres[torch.randint(NUM_CENTRES, (len(parameter),))]
                parameter.copy_(0.1 * (near + 0.5 * torch.randn_like(near)))


def _golden(ranker: Ranker, encoder: Encoder, body: dict[str, Any]) -> dict[str, Any]:
    from distft.serve.requests import RecommendRequest, read_request

    query = read_request(json.dumps(body).encode(), RecommendRequest).query()
    histories = encoder.encode_events(query.events)
    ranked = ranker.top_k(histories, 10, excluded_items(histories, "all", encoder.target_codes))
    best = zip(ranked.rows_BK[0].tolist(), ranked.scores_BK[0].tolist(), strict=True)
    return {"request": body, "items": [{"item_id": str(encoder.item_ids[row]), "score": s} for row, s in best]}
