"""Checkpoint → bundle: all that a server needs, in one folder that a person can open.

Enters: the job, its dataset's encoder, the model's weights, the metrics if there are any. Leaves ``bundle/``:
model.safetensors, encoder/, job.yaml, metrics.json, golden_requests.jsonl, MODEL_CARD.md, item_vectors.safetensors
where they are stored in fewer bytes, index/ where the catalogue is large, and the manifest that makes them a bundle.
Surprising choice: the golden requests are answered here by the evaluator's own ranking code, so that a server that
answers them alike is known to score like the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from distft import item_vectors
from distft.data.encode import Encoder
from distft.data.features import FeatureSpec
from distft.data.histories import write_histories
from distft.data.shards import TargetReader
from distft.data.told import request_events
from distft.data.users import Users
from distft.evaluate.metrics import ranking_metrics
from distft.item_vectors import ItemVectors
from distft.job import Job
from distft.jobfile import dump_job
from distft.models.weights import fill
from distft.ranking import DotScores, Ranker, excluded_items
from distft.schema import NUM_RESERVED
from distft.storage import MANIFEST, Manifest, Storage

if TYPE_CHECKING:
    from distft.ann import Index

NUM_GOLDEN = 200
GOLDEN_K = 10
INDEX_K = 10
NUM_STATES = 500
"""States that the recall of an index is measured by."""
NUM_MEASURED = 20_000
"""Targets that the loss of stored vectors is measured by."""
NDCG = f"ndcg@{INDEX_K}"


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
    ranker = Ranker(model, job.model.max_history, encoder, None, job.serve.item_vectors)
    golden = golden_requests(job, dataset, encoder, ranker)
    index = index_of(job, dataset, ranker)
    stored = ranker.vectors_ND if isinstance(ranker.vectors_ND, ItemVectors) else None
    if stored is not None:
        plain = Ranker(model, job.model.max_history, encoder)
        metrics = {**(metrics or {}), "item_vectors": vectors_loss(job, dataset, encoder, (plain, ranker), stored)}
    with root.replacing("bundle") as bundle:
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        bundle.write_bytes("model.safetensors", save(tensors, metadata={"format": "pt"}))
        encoder_files = dataset / "encoder"
        for name in encoder_files.list():
            if name != MANIFEST:
                bundle.write_bytes(f"encoder/{name}", encoder_files.read_bytes(name))
        if stored is not None:
            bundle.write_bytes(item_vectors.FILE, save(stored.tensors()))
        if index is not None:
            index.save(bundle)
        bundle.write_bytes("job.yaml", dump_job(job).encode())
        bundle.write_json("metrics.json", metrics or {})
        lines = [json.dumps(request, ensure_ascii=False, sort_keys=True) for request in golden]
        bundle.write_bytes("golden_requests.jsonl", "".join(line + "\n" for line in lines).encode())
        if job.serve.export_histories:
            write_histories(dataset, encoder, bundle, job.serve.history_events)
        bundle.write_bytes("MODEL_CARD.md", _model_card(job, encoder, model, metrics).encode())
        info: dict[str, Any] = {"name": job.name, "num_items": encoder.num_items, "num_golden": len(golden)}
        manifest = dataset.manifest("dataset")
        if manifest and "pseudonyms" in manifest.info:
            info["pseudonyms"] = manifest.info["pseudonyms"]
        return bundle.write_manifest("bundle", made_from, info)


def golden_requests(job: Job, dataset: Storage, encoder: Encoder, ranker: Ranker) -> list[dict[str, Any]]:
    """Up to 200 histories of the test split (the validation's, if there is no test) as requests with their answers.

    Each is {"request": the body of /v1/recommend, "items": [{"item_id", "score"}], "target": the item that the user
    took next, null where it has no row}. Where the model takes features of users, those of a request are made up: the
    real ones would tell who it was whose history a bundle holds.
    """
    split = "test" if TargetReader(dataset, "test").num_rows else "valid"
    golden: list[dict[str, Any]] = []
    specs = encoder.user_features if job.model.uses_users else ()
    for histories, targets in TargetReader(dataset, split, batch_size=NUM_GOLDEN):
        excluded = excluded_items(histories, job.evaluate.exclude_seen, encoder.target_codes)
        users = [made_up_user(specs, len(golden) + index) for index in range(len(histories))]
        ranked = ranker.top_k(replace(histories, user_row=_rows(users)), GOLDEN_K, excluded, Users.told(specs, users))
        for index in range(min(len(histories), NUM_GOLDEN - len(golden))):
            request = {"history": request_events(encoder, histories, index), "k": GOLDEN_K}
            request |= {"user": users[index]} if users[index] else {}
            items = _items(encoder, ranked.rows_BK[index].numpy(), ranked.scores_BK[index].tolist())
            row = int(targets.item[index])
            target = str(encoder.item_ids[row]) if row >= NUM_RESERVED else None
            golden.append({"request": request, "items": items, "target": target})
        if len(golden) == NUM_GOLDEN:
            break
    return golden


def index_of(job: Job, dataset: Storage, ranker: Ranker) -> Index | None:
    """The index of a catalogue above ``serve.index_above_items``, measured by states of the validation split."""
    vectors_ND = ranker.vectors_ND
    if vectors_ND is None or len(vectors_ND) - NUM_RESERVED <= job.serve.index_above_items:
        return None
    from distft.ann import Index  # FAISS is loaded where an index needs it

    for split in ("valid", "test"):
        for histories, _ in TargetReader(dataset, split, batch_size=NUM_STATES):
            scores = ranker.scores(histories)
            if isinstance(scores, DotScores):  # otherwise some have no history, and no state
                return Index.build(vectors_ND, scores.x_BD, INDEX_K, job.serve.index_recall)
    return None


def vectors_loss(
    job: Job, dataset: Storage, encoder: Encoder, rankers: tuple[Ranker, Ranker], stored: ItemVectors
) -> dict[str, Any]:
    """What ranking by the stored vectors costs: ndcg@10 of both ``rankers``, of which the first has the model's own.

    Of the validation split, or the test's where there is none; of its first NUM_MEASURED targets, if there are more.
    """
    width = stored.codes_ND.shape[1]
    told: dict[str, Any] = {
        "stored": job.serve.item_vectors,
        "bytes": stored.num_bytes,
        "share_of_fp32_bytes": round(stored.num_bytes / (4 * len(stored) * width), 4),
    }
    split = "valid" if TargetReader(dataset, "valid").num_rows else "test"
    found: list[list[NDArray[np.int64]]] = [[], []]
    for histories, targets in TargetReader(dataset, split, batch_size=NUM_STATES):
        excluded = excluded_items(histories, job.evaluate.exclude_seen, encoder.target_codes)
        for ranks, ranker in zip(found, rankers, strict=True):
            ranks.append(ranker.ranks(histories, targets.item, excluded))
        if sum(len(part) for part in found[0]) >= NUM_MEASURED:
            break
    if not found[0]:
        return told
    own, quantised = (ranking_metrics(np.concatenate(ranks), [INDEX_K])[NDCG] for ranks in found)
    loss = round(1 - quantised / own, 6) if own else 0.0
    num_targets = sum(len(part) for part in found[0])
    return told | {"split": split, "num_targets": num_targets, NDCG: quantised, f"fp32_{NDCG}": own, "loss": loss}


def made_up_user(specs: Sequence[FeatureSpec], number: int) -> dict[str, str | float]:
    """Features in the shop's words that change with ``number``: known categories, and numbers within their range."""
    user: dict[str, str | float] = {}
    for place, spec in enumerate(specs):
        known = spec.vocabulary[NUM_RESERVED:]
        if spec.kind == "category" and known:
            user[spec.name] = known[(number + place) % len(known)]
        elif spec.kind == "number":
            user[spec.name] = spec.low + (spec.high - spec.low) * ((number + place) % 5) / 4
    return user


def _rows(users: Sequence[Any]) -> NDArray[np.int32]:
    return np.arange(len(users), dtype=np.int32)


def _items(encoder: Encoder, rows: NDArray[np.int64], scores: list[float]) -> list[dict[str, Any]]:
    pairs = zip(rows.tolist(), scores, strict=True)
    return [{"item_id": str(encoder.item_ids[row]), "score": score} for row, score in pairs if row >= NUM_RESERVED]


def _personal(job: Job) -> str:
    if not job.serve.export_histories:
        return "the bundle holds no user ids; `golden_requests.jsonl` holds histories without them."
    named = "pseudonyms" if job.data.pseudonyms else "ids"
    return f"`histories/` holds what users did, with their {named}; `golden_requests.jsonl` holds histories without."


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
        f"- **Personal data**: {_personal(job)}",
        "",
    ]
    vectors = (metrics or {}).get("item_vectors")
    if vectors and NDCG in vectors:
        before, after = vectors[f"fp32_{NDCG}"], vectors[NDCG]
        text = f"- **Item vectors**: {vectors['stored']}, which changes {NDCG} of the {vectors['split']} split from"
        lines[-1:] = [f"{text} {before:.4f} to {after:.4f}.", ""]
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
