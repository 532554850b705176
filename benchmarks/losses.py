"""Each model with each loss, trained briefly on the same data: what it ranks, and how fast it trains.

Run:  .venv/bin/python benchmarks/losses.py DATASET [EPOCHS] [ONLY ...]

DATASET is what ``distft prepare jobs/ml1m.yaml`` made (``runs/ml1m/dataset``). The jobs are ``jobs/ml1m.yaml`` with the
latest 50 events of each user, EPOCHS (5) epochs on two workers of one thread each, and the loss's settings below; a
minute's training tells which combinations learn and at what speed, and not how far each of them gets. ONLY: names
of models or losses, to train some of the combinations; the others keep their results. Models of pairs take two epochs.
All of it takes some 20 minutes on a quiet machine.

Writes ``benchmarks/results/losses.json`` and prints its table, in Markdown; the job file is ``ml1m.yaml``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the process groups that the tests use too

from distft.component import LossConfig, ModelConfig, configs  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.journal import read_lines  # noqa: E402
from distft.train.loop import Loop  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "losses.json"
MODELS = {
    "transformer": ["model.dim=64"],
    "transformer, cosine": ["model={kind: transformer, score: cosine, item_features: false}"],
    "hstu": ["model={kind: hstu, num_heads: 2, item_features: false}"],
    "cnn": ["model={kind: cnn, item_features: false}"],
    "mlp": ["model={kind: mlp}"],
    "linear": ["model={kind: linear}"],
}
LOSSES = {
    "softmax": "{kind: softmax}",
    "sampled softmax, uniform": "{kind: sampled_softmax}",
    "sampled softmax, popularity": "{kind: sampled_softmax, sampling: popularity}",
    "sampled softmax, in batch": "{kind: sampled_softmax, sampling: in_batch}",
    "gbce": "{kind: gbce}",
    "bce, one negative": "{kind: bce}",
    "bce, 256 shared negatives": "{kind: bce, num_negatives: 256, negatives_shared: true}",
    "adversarial": "{kind: adversarial}",
}
MAIN_LOSSES = ("softmax", "sampled softmax, uniform", "gbce", "bce, one negative")
"""Trained with every model that ranks by a product; the others with the transformer alone."""
PAIR_LOSSES = ("bce, one negative", "adversarial")
PAIR_NEGATIVES = {"adversarial": "{kind: adversarial, num_negatives: 4, pool_size: 16}"}
PAIR_EPOCHS = 2
"""At most, for a model that goes through its layers for every pair: each of its epochs takes several of another's."""


def no_report(_: dict[str, Any]) -> None:
    """Where Ray Train would be told of a checkpoint."""


def settings(model: str, loss: str, epochs: int) -> list[str]:
    """What is different from ``jobs/ml1m.yaml``."""
    kind = model.split(",")[0]
    pair = next(c for c in cast(Any, configs("models")) if c.model_fields["kind"].default == kind).retrieval == "pair"
    chosen = PAIR_NEGATIVES.get(loss, LOSSES[loss]) if pair else LOSSES[loss]
    epochs = min(epochs, PAIR_EPOCHS) if pair else epochs
    length = ["model.max_history=50"]
    train = [f"train.epochs={epochs}", "train.warmup_steps=30", f"train.validate.every_epochs={epochs}"]
    return [*MODELS[model], *length, f"loss={chosen}", *train, "train.checkpoint.every_steps=100000"]


def combinations(only: list[str]) -> list[tuple[str, str]]:
    """(model, loss) of those that there are, and that can be."""
    kinds = {c.model_fields["kind"].default: cast(type[ModelConfig], c) for c in configs("models")}
    known = {c.model_fields["kind"].default for c in configs("losses") if issubclass(c, LossConfig)}
    models = [name for name in MODELS if name.split(",")[0] in kinds]
    pairs = [
        (model, loss)
        for model in models
        for loss, keys in LOSSES.items()
        if keys.split("kind: ")[1].rstrip("}").split(",")[0] in known
        and (loss in PAIR_LOSSES if kinds[model.split(",")[0]].retrieval == "pair" else loss in suited(model))
    ]
    return [pair for pair in pairs if not only or any(name in pair for name in only)]


def suited(model: str) -> tuple[str, ...]:
    """Losses that a model which ranks by a product is trained with."""
    return tuple(LOSSES) if model == "transformer" else MAIN_LOSSES[:2] if "cosine" in model else MAIN_LOSSES


def train_all(folder: str, dataset: str, wanted: list[tuple[str, str]], epochs: int) -> None:
    """One combination after the other; rank 0 writes what it has after each."""
    for number, pair in enumerate(wanted):
        found = train(Path(folder) / str(number), dataset, *pair, epochs)
        if dist.get_rank() == 0:
            print(json.dumps(found), file=sys.stderr, flush=True)
            write(found, epochs)


def write(found: dict[str, Any], epochs: int) -> None:
    """Puts one result in the place of the one before of the same model and loss."""
    before = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {(row["model"], row["loss"]): row for row in [*before, found]}
    order = [pair for pair in ((model, loss) for model in MODELS for loss in LOSSES) if pair in rows]
    result = {"split": "validation", "epochs": epochs, "machine": {"cpus": os.cpu_count()}}
    RESULT.write_text(json.dumps({**result, "rows": [rows[pair] for pair in order]}, indent=2) + "\n")


def train(storage: Path, dataset: str, model: str, loss: str, epochs: int) -> dict[str, Any]:
    job = load_job(str(ROOT / "jobs" / "ml1m.yaml"), [f"storage={storage}", *settings(model, loss, epochs)])
    root = Storage(job.storage)
    root.make()
    if dist.get_rank() == 0:
        os.symlink(Path(dataset).resolve(), root.path / "dataset")
    dist.barrier()
    started = time.perf_counter()
    result = Loop(job, root, "train", torch.device("cpu"), no_report).run()
    took_s = time.perf_counter() - started
    lines = list(read_lines(root / "train"))
    valid = [line for line in lines if line["kind"] == "valid"][-1]
    speeds = [line["tokens_per_s"] for line in lines if line["kind"] == "train"]
    return {
        "model": model,
        "loss": loss,
        "settings": settings(model, loss, epochs),
        "hr@10": round(valid["hr@10"], 4),
        "ndcg@10": round(valid["ndcg@10"], 4),
        "events_per_s": round(statistics.median(speeds)),
        "steps": result.steps,
        "wall_s": round(took_s, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| model | loss | ndcg@10 | hr@10 | events/s |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append("| {model} | {loss} | {ndcg@10:.4f} | {hr@10:.4f} | {events_per_s:,} |".format(**row))
    return "\n".join(lines)


def main() -> None:
    dataset, *more = sys.argv[1:]
    epochs = int(more.pop(0)) if more and more[0].isdigit() else 5
    wanted = combinations(more)
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(2, train_all, folder, dataset, wanted, epochs)
    print(table(json.loads(RESULT.read_text())["rows"]))


if __name__ == "__main__":
    main()
