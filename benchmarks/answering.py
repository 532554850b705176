"""How fast a predictor answers, without HTTP: beside bare tensor operations, and among a million items.

Run:  .venv/bin/python benchmarks/answering.py share|million

An untrained model of 64 dimensions and histories of 50 events, k = 10 (``served_shop.py``), on all cores. ``share``:
batches of 32 requests among 50,000 items, answered by the predictor (from parsed requests to item ids), and by its
model, one product and one ``torch.topk`` alone, on inputs that are ready tensors; in turns. ``million``: 1,000,000
items, one request at a time, by a scan and from the index, which is built with other requests than those that are
asked; ``recall`` is the share of the scan's lists that the index finds. Adds its part to
``benchmarks/results/answering.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranking import processor
from served_shop import bodies, write_shop

from distft.ann import Index
from distft.data.collate import history_batch
from distft.models.base import last_states, states_once
from distft.serve.predictor import Predictor, Query
from distft.serve.requests import RecommendRequest, read_request
from distft.storage import Storage

RESULTS = Path(__file__).parent / "results" / "answering.json"
K = 10
BATCH = 32
ROUNDS = 200
NUM_ASKED = 1_000
NUM_STATES = 500


def main() -> None:
    verbs = {"share": measure_share, "million": measure_million}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        raise SystemExit(__doc__)
    load, name = os.getloadavg()[0], sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="distft-bench-") as folder:
        measured = verbs[name](Storage(folder))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "load_before": round(load, 2)}
    results[name] = {"command": f"benchmarks/answering.py {name}", **machine, **measured}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[name], indent=2))


def queries(num_items: int, count: int) -> list[Query]:
    """Requests as the interface parses them."""
    return [read_request(json.dumps(body).encode(), RecommendRequest).query() for body in bodies(num_items, count)]


@torch.inference_mode()
def measure_share(root: Storage) -> dict[str, Any]:
    """Batches of requests by the predictor, and by its tensor operations alone."""
    num_items = 50_000
    predictor = Predictor.load(write_shop(root, num_items))
    asked = queries(num_items, BATCH)
    ranker, encoder = predictor.ranker, predictor.encoder
    histories = encoder.encode_users([query.events for query in asked])
    batch = history_batch(histories, ranker.max_history, ranker.has_clock, ranker.side)
    vectors_ND = ranker.vectors_ND
    assert vectors_ND is not None

    def bare() -> None:
        x_BD = last_states(states_once(ranker.model, batch), batch.length_B)
        torch.topk(x_BD @ vectors_ND.T, K, dim=1)

    took: dict[str, list[float]] = {"predictor": [], "bare": []}
    for round_ in range(ROUNDS + 20):
        for name, work in (("predictor", lambda: predictor.recommend(asked)), ("bare", bare)):
            started_s = time.perf_counter()
            work()
            if round_ >= 20:  # the first ones warm up
                took[name].append(time.perf_counter() - started_s)
    medians = {name: statistics.median(some) for name, some in took.items()}
    return {
        "items": num_items,
        "batch": BATCH,
        "batches": ROUNDS,
        **{f"{name}_ms": round(1000 * seconds, 3) for name, seconds in medians.items()},
        "share": round(medians["bare"] / medians["predictor"], 3),
    }


def measure_million(root: Storage) -> dict[str, Any]:
    """One request at a time among a million items, by a scan and from the index."""
    num_items = 1_000_000
    predictor = Predictor.load(write_shop(root, num_items))
    asked = queries(num_items, NUM_STATES + NUM_ASKED)
    vectors_ND = predictor.ranker.vectors_ND
    assert vectors_ND is not None
    encoded = predictor.encoder.encode_users([query.events for query in asked[:NUM_STATES]])
    states_BD = predictor.ranker.scores(encoded).x_BD  # type: ignore[attr-defined]
    started_s = time.perf_counter()
    index = Index.build(vectors_ND, states_BD, K, predictor.job.serve.index_recall)
    built_s = time.perf_counter() - started_s
    predictor = Predictor(predictor.job, predictor.encoder, predictor.ranker, predictor.version, index)
    lists: dict[str, list[list[str]]] = {}
    result: dict[str, Any] = {"items": num_items, "requests": NUM_ASKED, "index_built_s": round(built_s, 1)}
    for name, exact in (("scan", True), ("index", False)):
        took_s, lists[name] = [], []
        for query in asked[NUM_STATES:]:
            started_s = time.perf_counter()
            (answer,) = predictor.recommend([query], exact=exact)
            took_s.append(time.perf_counter() - started_s)
            lists[name].append(answer.item_ids)
        shown = {f"p{part}_ms": round(1000 * float(np.percentile(took_s, part)), 2) for part in (50, 99)}
        result[name] = shown
    hits = sum(len(set(one) & set(other)) for one, other in zip(lists["scan"], lists["index"], strict=True))
    facts = index.facts
    result["index"] |= {"recall": round(hits / (K * NUM_ASKED), 4), "recall_at_export": facts.recall}
    result["index"] |= {"lists": facts.num_lists, "probed": facts.num_probed}
    return result


if __name__ == "__main__":
    main()
