"""Checkpoint → bundle: all that a server needs, in one folder that a person can open.

Enters: the job, its dataset's encoder, the model's weights, the metrics if there are any. Leaves ``bundle/``:
model.safetensors, encoder/, job.yaml, metrics.json, golden_requests.jsonl, MODEL_CARD.md and the manifest that
makes them a bundle. Surprising choice: the golden requests are answered here by the evaluator's own ranking code,
so that a server that answers them alike is known to score like the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from distft.data.encode import UNKNOWN_WORD, Encoder
from distft.data.shards import TargetReader
from distft.job import Job
from distft.jobfile import dump_job
from distft.models.weights import fill
from distft.ranking import Ranker, excluded_items
from distft.schema import NUM_RESERVED, Histories
from distft.storage import MANIFEST, Manifest, Storage

NUM_GOLDEN = 200
GOLDEN_K = 10


def export(
    job: Job,
    root: Storage,
    weights: Mapping[str, torch.Tensor],
    metrics: dict[str, Any] | None,
    made_from: dict[str, Any],
) -> Manifest:
    """Writes ``<root>/bundle`` whole or not at all, and gives its manifest."""
    dataset = root / "dataset"
    encoder = Encoder.of_dataset(dataset)
    model = job.model.build(encoder.catalog())
    fill(model, weights)
    golden = golden_requests(job, dataset, encoder, Ranker(model, job.model.max_history, encoder))
    with root.replacing("bundle") as bundle:
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        bundle.write_bytes("model.safetensors", save(tensors, metadata={"format": "pt"}))
        encoder_files = dataset / "encoder"
        for name in encoder_files.list():
            if name != MANIFEST:
                bundle.write_bytes(f"encoder/{name}", encoder_files.read_bytes(name))
        bundle.write_bytes("job.yaml", dump_job(job).encode())
        bundle.write_json("metrics.json", metrics or {})
        lines = [json.dumps(request, ensure_ascii=False, sort_keys=True) for request in golden]
        bundle.write_bytes("golden_requests.jsonl", "".join(line + "\n" for line in lines).encode())
        bundle.write_bytes("MODEL_CARD.md", _model_card(job, encoder, model, metrics).encode())
        info = {"name": job.name, "num_items": encoder.num_items, "num_golden": len(golden)}
        return bundle.write_manifest("bundle", made_from, info)


def golden_requests(job: Job, dataset: Storage, encoder: Encoder, ranker: Ranker) -> list[dict[str, Any]]:
    """Up to 200 histories of the test split (the validation's, if there is no test) as requests with their answers.

    Each is {"request": the body of /v1/recommend, "items": [{"item_id", "score"}]}.
    """
    split = "test" if TargetReader(dataset, "test").num_rows else "valid"
    golden: list[dict[str, Any]] = []
    for histories, _ in TargetReader(dataset, split, batch_size=NUM_GOLDEN):
        excluded = excluded_items(histories, job.evaluate.exclude_seen, encoder.target_codes)
        ranked = ranker.top_k(histories, GOLDEN_K, excluded)
        for index in range(min(len(histories), NUM_GOLDEN - len(golden))):
            request = {"history": _events(encoder, histories, index), "k": GOLDEN_K}
            items = _items(encoder, ranked.rows_BK[index].numpy(), ranked.scores_BK[index].tolist())
            golden.append({"request": request, "items": items})
        if len(golden) == NUM_GOLDEN:
            break
    return golden


def _events(encoder: Encoder, histories: Histories, index: int) -> list[dict[str, Any]]:
    """A history as the events of a request; absent fields are left out."""
    raw = encoder.decode(histories, index, unknown=UNKNOWN_WORD)
    times = raw.time_ms if encoder.has_clock else [None] * len(raw.events)
    columns = zip(raw.item_ids, raw.events, times, raw.queries, encoder.label_values(histories, index), strict=True)
    names = ("item_id", "event", "timestamp", "query", "value")
    return [{n: value for n, value in zip(names, event, strict=True) if value is not None} for event in columns]


def _items(encoder: Encoder, rows: NDArray[np.int64], scores: list[float]) -> list[dict[str, Any]]:
    pairs = zip(rows.tolist(), scores, strict=True)
    return [{"item_id": str(encoder.item_ids[row]), "score": score} for row, score in pairs if row >= NUM_RESERVED]


def _model_card(job: Job, encoder: Encoder, model: torch.nn.Module, metrics: dict[str, Any] | None) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = int(np.asarray(encoder.counts).sum())
    lines = [
        f"# {job.name}",
        "",
        f"A `{job.model.kind}` recommender of {parameters:,} parameters, trained by distft with the `{job.loss.kind}`",
        f"loss on {trained:,} target events ({', '.join(encoder.target_events)}) over "
        f"{encoder.num_items - NUM_RESERVED:,} items.",
        "",
        "- **Intended use**: ranking this shop's catalogue for a visitor with the events of `job.yaml`.",
        "- **Not for**: other catalogues (unknown items are ignored), or decisions about people.",
        f"- **Split**: {job.data.split.by}. **Items already seen**: {job.evaluate.exclude_seen} excluded.",
        "- **Personal data**: the bundle holds no user ids; `golden_requests.jsonl` holds histories without them.",
        "",
    ]
    if metrics and metrics.get("model"):
        names = ["model", *metrics.get("baselines", {})]
        rows = {"model": metrics["model"], **metrics.get("baselines", {})}
        shown = [f"{metric}@{k}" for metric in ("hr", "ndcg") for k in sorted(job.evaluate.k) if k > 1]
        lines += [f"## {metrics['split']} split, {metrics['num_targets']:,} targets", ""]
        lines += ["| metric | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for metric in shown:
            lines.append(f"| {metric} | " + " | ".join(f"{rows[name].get(metric, 0):.4f}" for name in names) + " |")
        lines.append("")
    return "\n".join(lines)
