"""Our metrics against those of ranx, an independent library, on random scores.

Run:  .venv/bin/python benchmarks/metrics.py write scores.npz
      python -m venv ranx-venv && ranx-venv/bin/pip install ranx
      ranx-venv/bin/python benchmarks/metrics.py compare scores.npz
      rm scores.npz

``write`` ranks targets of 2,000 users among 500 items by scores with many ties, some items excluded, and stores the
scores with our metrics. ranx knows no tie rule, so its scores are made distinct by ours: of equal scores the lower item
row comes first. ``compare`` (which needs nothing of distft) computes them with ranx and writes
``benchmarks/results/metrics.json``.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

KS = (1, 5, 10, 20)
NAMES = {"hr": "hit_rate", "ndcg": "ndcg", "mrr": "mrr", "recall": "recall", "map": "map"}
NUM_USERS, NUM_ITEMS, NUM_EXCLUDED = 2_000, 500, 40


def write(path: str) -> None:
    import torch

    from distft.evaluate.metrics import ranking_metrics
    from distft.schema import NUM_RESERVED
    from distft.topk import target_ranks

    rng = np.random.default_rng(0)
    num_rows = NUM_ITEMS + NUM_RESERVED
    target_B = rng.integers(NUM_RESERVED, num_rows, NUM_USERS)
    s_BN = rng.integers(0, 60, (NUM_USERS, num_rows)).astype(np.float32)
    s_BN[np.arange(NUM_USERS), target_B] += rng.integers(0, 40, NUM_USERS)  # so that many are near the top
    excluded = [rng.integers(NUM_RESERVED, num_rows, NUM_EXCLUDED).astype(np.int32) for _ in range(NUM_USERS)]
    scores = torch.from_numpy(s_BN)
    rank_B = target_ranks(lambda start, end: scores[:, start:end], num_rows, torch.from_numpy(target_B), excluded)
    ours = ranking_metrics(rank_B.numpy(), KS)
    np.savez(path, scores=s_BN, targets=target_B, excluded=np.stack(excluded), ours=json.dumps(ours))


def compare(path: str) -> None:
    import ranx

    data = np.load(path)
    s_BN, target_B, excluded = data["scores"].astype(np.float64), data["targets"], data["excluded"]
    ours = json.loads(str(data["ours"]))
    s_BN -= np.arange(s_BN.shape[1]) / (2 * s_BN.shape[1])
    runs = {}
    for user, s_N in enumerate(s_BN):
        rows = np.setdiff1d(np.arange(2, len(s_N)), excluded[user])
        runs[f"u{user}"] = {f"i{row}": float(s_N[row]) for row in rows.tolist()}
    qrels = ranx.Qrels({f"u{user}": {f"i{target}": 1} for user, target in enumerate(target_B.tolist())})
    wanted = [f"{theirs}@{k}" for theirs in NAMES.values() for k in KS]
    theirs = ranx.evaluate(qrels, ranx.Run(runs), wanted)
    rows = {}
    for name, value in ours.items():
        family, k = name.split("@")
        other = float(theirs[f"{NAMES[family]}@{k}"])
        rows[name] = {"ours": value, "ranx": other, "difference": abs(value - other)}
    result = {
        "users": NUM_USERS, "items": NUM_ITEMS, "ranx": version("ranx"),
        "largest_difference": max(row["difference"] for row in rows.values()), "metrics": rows,
    }  # fmt: skip
    (Path(__file__).parent / "results" / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(rows)} metrics, largest difference {result['largest_difference']:.1e}")
    sys.exit(result["largest_difference"] > 1e-6)


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](sys.argv[2])
