"""How long the lists of the best take, by how many scores are computed at once.

Run:  .venv/bin/python benchmarks/lists.py

``distft.topk.top_k`` over products of 64-wide vectors drawn at random, one thread, the fastest of four; chunks of 1 MB
(what ranks of targets are computed in) to 64 MB of scores. Writes ``benchmarks/results/lists.json``.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from ranking import processor
from torch.nn import functional

from distft import topk

RESULTS = Path(__file__).parent / "results" / "lists.json"
DIM, ROUNDS = 64, 4
SIZES = ((1, 1_000_000, 10), (32, 50_000, 10), (32, 50_000, 1000), (256, 50_000, 20), (1024, 50_000, 20))
"""Histories, items, k."""
POWERS = (18, 20, 21, 22, 24)


def seconds(histories: int, items: int, k: int) -> dict[str, float]:
    """Megabytes of scores in a chunk → milliseconds."""
    x_BD, v_ND = torch.randn(histories, DIM), torch.randn(items + 2, DIM)
    took_s: dict[int, list[float]] = {power: [] for power in POWERS}
    for _ in range(ROUNDS):
        for power, some in took_s.items():
            topk.LIST_SCORES = 1 << power
            started_s = time.perf_counter()
            topk.top_k(lambda start, end: functional.linear(x_BD, v_ND[start:end]), items + 2, k, None, histories)
            some.append(time.perf_counter() - started_s)
    return {f"{4 << power >> 20} MB": round(1000 * min(some), 2) for power, some in took_s.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: dict[str, Any] = {"processor": processor(), "load_before": round(os.getloadavg()[0], 2)}
    shipped = f"{4 * topk.LIST_SCORES >> 20} MB"
    with torch.inference_mode():
        found = {f"{b} histories, {n} items, k {k}": seconds(b, n, k) for b, n, k in SIZES}
    result |= {"shipped": shipped, "milliseconds": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
