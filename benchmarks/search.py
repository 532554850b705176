"""What search keywords are worth: the made-up shop's model with them and without, beside the best that can be reached.

Run:  .venv/bin/python benchmarks/search.py

Prepares, trains and evaluates ``jobs/quickstart.yaml`` twice in empty storages, the second time with a
``data.min_token_count`` that no keyword reaches: the searches stay in the histories, their words are unknown. Told is
the share of the distance between the model without keywords and the oracle, in ndcg@10 on the test split, that the
keywords close; the oracle knows the shop's parameters and what the visitor did, and reads the keywords. Writes
``benchmarks/results/search.json``; its job file is ``quickstart.yaml``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from path import DISTFT, RESULTS, ROOT

JOB = "jobs/quickstart.yaml"
WITHOUT = ("--set", "data.min_token_count=1000000000")
METRIC = "ndcg@10"


def metrics(storage: Path, *more: str) -> dict[str, Any]:
    """metrics.json of one run."""
    for stage in ("prepare", "train", "evaluate"):
        subprocess.run([DISTFT, stage, JOB, "--storage", str(storage), *more], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads((storage / "report" / "metrics.json").read_text())
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seeing, blind = metrics(Path(folder) / "seeing"), metrics(Path(folder) / "blind", *WITHOUT)
    oracle = seeing["baselines"]["oracle"][METRIC]
    if blind["num_targets"] != seeing["num_targets"]:
        raise SystemExit("The two runs were scored on different targets.")
    with_words, without = seeing["model"][METRIC], blind["model"][METRIC]
    found = {
        "num_targets": seeing["num_targets"],
        f"{METRIC} with keywords": with_words,
        f"{METRIC} without keywords": without,
        f"{METRIC} of the oracle": oracle,
        "share of the distance closed": round((with_words - without) / (oracle - without), 3),
    }
    (RESULTS / "search.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
