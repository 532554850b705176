"""The base of a fine-tuning: a trained model, found, verified, and kept beside what is trained from it.

Enters: the place of a bundle, of a checkpoint, or of a training's folder, whose best checkpoint is then meant. Leaves:
its weights, its encoder and the job that trained it; and ``<stage>/base/``, a copy of the weights that are used, so
that the stage's folder is whole without the base. Surprising choice: the loss's own parameters are not taken over: a
fine-tuning predicts something else, and may do so by another loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor

from distft.component import ItemTable
from distft.data.encode import Encoder
from distft.errors import ArtefactError, UsageError
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.models.weights import BASE, BUNDLE_WEIGHTS, MODEL_PREFIX, read_weights
from distft.promotions import bundle_at
from distft.storage import MANIFEST, Storage, digest

KEY = "finetune.from"


@dataclass(frozen=True)
class Base:
    """A trained model: ``storage`` is its bundle or checkpoint, ``folder`` that of the bundle or the training."""

    storage: Storage
    folder: Storage
    is_bundle: bool

    def job(self) -> Job:
        """The job that trained it. Raises ArtefactError where it is not as it was written."""
        listed = self.folder.manifest("bundle" if self.is_bundle else "train")
        if listed and "job.yaml" in listed.files:
            self.folder.verify_file("job.yaml", listed.files["job.yaml"])
        return parse_job(self.folder.read_bytes("job.yaml").decode(), f"{self.folder}/job.yaml")

    def encoder(self) -> Encoder:
        """The encoder whose rows the weights are of."""
        if self.is_bundle:
            self.storage.verified("bundle", below="encoder/")
            return Encoder.load(self.storage / "encoder")
        dataset = _parent(self.folder) / "dataset"
        if not dataset.exists(MANIFEST):
            what = f"{KEY}: the checkpoint {self.storage} has no dataset at {dataset}, which tells what its rows are"
            raise ArtefactError(
                what, "the dataset that it was trained on, or a bundle", "Export it, and name the bundle."
            )
        return Encoder.of_dataset(dataset)

    def weights(self) -> dict[str, Tensor]:
        """Weights of the plain model by name, every byte as it was written."""
        if self.is_bundle:
            self.storage.verified("bundle")
        return read_weights(self.storage)

    def identity(self) -> list[str]:
        """SHA-256 of the files that hold the weights."""
        files = self.storage.read_json(MANIFEST)["files"]
        held = [name for name in files if name.endswith(".safetensors") and not name.startswith("optimizer-")]
        return sorted(files[name]["sha256"] for name in held)


def find_base(place: str) -> Base:
    """The trained model at a place. Raises ArtefactError where there is none."""
    storage = bundle_at(place)
    if not storage.exists(MANIFEST):
        inside = [name for name in ("bundle", "finetune", "train") if (storage / name).exists(MANIFEST)]
        remedy = f"Did you mean {storage}/{inside[0]}?" if inside else "Correct the path, or train the base first."
        raise ArtefactError(f"{KEY}: there is no trained model at {storage}", "a bundle or a checkpoint", remedy)
    described = storage.read_json(MANIFEST)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind == "bundle":
        return Base(storage, storage, True)
    if kind == "checkpoint":
        return Base(storage, _parent(_parent(storage)), False)
    if kind == "train":
        if not storage.exists("best.json"):
            raise ArtefactError(f"{KEY}: {storage} has no best checkpoint yet", "", "Let it train an epoch first.")
        return Base(storage / str(storage.read_json("best.json")["checkpoint"]), storage, False)
    raise ArtefactError(
        f"{KEY}: {storage} holds a {kind}, which has no weights", "a bundle or a checkpoint", "Name one of these."
    )


def _parent(storage: Storage) -> Storage:
    return Storage(storage.uri.rsplit("/", 1)[0])


def inherited(job: Job) -> Job:
    """The job with the base's model and loss where it does not have its own.

    Raises UsageError where it has a model of another kind, JobError where it does not go with what it inherits.
    """
    assert job.finetune is not None, "the job is refused without"
    base = find_base(job.finetune.from_).job()
    if "model" in job.model_fields_set and job.model.kind != base.model.kind:
        raise UsageError(
            f"model.kind is {job.model.kind}, and the base {job.finetune.from_} is a {base.model.kind}",
            "the kind of the base",
            "Leave the model section out: a fine-tune has its base's.",
        )
    own = job.model_fields_set
    taken: dict[str, Any] = {name: getattr(base, name) for name in ("model", "loss") if name not in own}
    if "model" in taken:  # how the base was trained is not what it is
        taken["model"] = base.model.model_copy(update={"item_table": ItemTable()})
    text = dump_job(job.model_copy(update=taken))
    return parse_job(text, f"{job.name} with the {' and '.join(taken)} of {job.finetune.from_}") if taken else job


def keep(folder: Storage, weights: Mapping[str, Tensor]) -> None:
    """Writes ``folder/base`` with these weights of the model, unless it holds them already."""
    data = save({f"{MODEL_PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"})
    kept = (folder / BASE).manifest(BASE)
    if kept is not None and kept.files[BUNDLE_WEIGHTS]["sha256"] == hashlib.sha256(data).hexdigest():
        return
    with folder.replacing(BASE) as fresh:
        fresh.write_bytes(BUNDLE_WEIGHTS, data)
        fresh.write_manifest(BASE)


def base_sha256(folder: Storage) -> str:
    """What the checkpoints of the stage in ``folder`` name their base by."""
    return (folder / BASE).verified(BASE).sha256


def rows_of(base: Encoder, encoder: Encoder, dataset: Storage) -> Mapping[str, int]:
    """Vocabulary → how many of its first rows are the base's.

    Raises ArtefactError unless the dataset has the base's vocabulary, or continues it.
    """
    if encoder.identity == base.identity:
        return encoder.sizes
    found = [ancestor.rows for ancestor in encoder.ancestors if ancestor.identity == base.identity]
    if not found:
        raise ArtefactError(
            f"{dataset} has a vocabulary that was not built from the base's: its rows would be other items",
            f"the base's vocabulary, or one that continues it ({digest(base.identity)[:12]})",
            "Set data.vocabulary: {from: ...} to the base's bundle or dataset, and prepare again.",
        )
    return found[0]
