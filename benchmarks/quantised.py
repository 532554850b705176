"""Item vectors in 8 and 16 bits: what they take, what they cost in the ranking, and how long a scan takes.

Run:  .venv/bin/python benchmarks/quantised.py FOLDER
      .venv/bin/python benchmarks/quantised.py scan

Trains ``jobs/ml1m.yaml`` on the latest 50 events of each user for 8 epochs (3,416 items, 64 wide) into FOLDER, where
a run that was ended goes on, then evaluates and exports it with each ``serve.item_vectors``: bytes of the vectors,
ndcg@10 on the validation split (as the bundle's metrics.json tells it) and on the test split (the evaluation's), and
the largest difference between a served score and the evaluator's. Then scans of a million made-up items for one and for
32 histories at once, on one thread: median of 20; ``scan`` does only this. Writes
``benchmarks/results/quantised.json``; its job file is ``ml1m.yaml``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from distft.item_vectors import ItemVectors  # noqa: E402
from distft.ranking import DotScores  # noqa: E402
from distft.serve.golden import read_golden  # noqa: E402
from distft.serve.predictor import Predictor  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.topk import top_k  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PRECISIONS = ("fp32", "fp16", "int8")
SETTINGS = ("model.max_history=50", "train.epochs=8", "train.validate.every_epochs=4")
NUM_ITEMS, DIM, K, SCANS = 1_000_000, 64, 10, 20


def distft(verb: str, folder: str, *more: str) -> dict[str, Any]:
    """What a command tells with --json."""
    settings = [part for one in (*SETTINGS, *more) for part in ("--set", one)]
    command = [sys.executable, "-m", "distft", verb, str(ROOT / "jobs" / "ml1m.yaml"), "--storage", folder, "--json"]
    done = subprocess.run([*command, *settings], stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measured(folder: str, precision: str) -> dict[str, Any]:
    chosen = f"serve.item_vectors={precision}"
    for verb in ("evaluate", "export"):
        force(folder, verb)
        distft(verb, folder, chosen)
    bundle = Storage(folder) / "bundle"
    metrics = bundle.read_json("metrics.json")
    predictor = Predictor.load(bundle)
    golden = read_golden(bundle, K)
    answers = [predictor.recommend([one.query])[0] for one in golden]
    pairs = [(one.scores, answer.scores) for one, answer in zip(golden, answers, strict=True)]
    gaps = [abs(a - b) for expected, given in pairs for a, b in zip(expected, given, strict=True)]
    vectors = predictor.ranker.vectors_ND
    assert vectors is not None
    return {
        "bytes": vectors.num_bytes if isinstance(vectors, ItemVectors) else 4 * vectors.numel(),
        "test": {"ndcg@10": metrics["model"]["ndcg@10"], "hr@10": metrics["model"]["hr@10"]},
        "validation": metrics.get("item_vectors"),
        "golden_requests": len(golden),
        "largest_score_difference": max(gaps),
    }


def force(folder: str, verb: str) -> None:
    """Removes what the stage made with another precision: it is to be made again."""
    Storage(folder).delete_tree({"evaluate": "report", "export": "bundle"}[verb])


def scans() -> dict[str, dict[str, float]]:
    """Milliseconds of a scan of a million items for so many histories."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    v_ND, found = torch.randn(NUM_ITEMS, DIM), {}
    for precision in PRECISIONS:
        vectors = v_ND if precision == "fp32" else ItemVectors.of(v_ND, precision)  # type: ignore[arg-type]
        found[precision] = {f"{rows} histories": scan_ms(vectors, rows) for rows in (1, 32)}
    return found


@torch.inference_mode()
def scan_ms(vectors: torch.Tensor | ItemVectors, rows: int) -> float:
    x_BD, seconds = torch.randn(rows, DIM), []
    for _ in range(SCANS):
        started = time.perf_counter()
        top_k(DotScores(x_BD, vectors), NUM_ITEMS, K, None, rows)
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 1)


def main() -> None:
    (folder,) = sys.argv[1:]
    load, path = [round(value, 1) for value in os.getloadavg()], RESULTS / "quantised.json"
    result = json.loads(path.read_text()) if folder == "scan" else ranked(folder)
    result["scan_ms_of_a_million"] = scans()
    result["machine"] = {"cpus": os.cpu_count(), "load_before": load}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def ranked(folder: str) -> dict[str, Any]:
    """All but the scans."""
    for verb in ("prepare", "train"):
        distft(verb, folder)
    found = {precision: measured(folder, precision) for precision in PRECISIONS}
    base = found["fp32"]
    for one in found.values():
        one["share_of_fp32_bytes"] = round(one["bytes"] / base["bytes"], 4)
        one["test_loss"] = round(1 - one["test"]["ndcg@10"] / base["test"]["ndcg@10"], 6)
    return {"settings": SETTINGS, "precisions": found}


if __name__ == "__main__":
    main()
