"""Reads a model's weights, from a training checkpoint or from a bundle, and nothing that could run code.

Enters: a folder with a manifest. Leaves: parameter name → tensor. A checkpoint holds each parameter in flat slices,
written by as many ranks as trained it; here they are put together again, for any number of ranks and any way of
cutting. Surprising choice: bytes are hashed in the same pass that reads them, so what is used is what was verified.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from distft.errors import ArtefactError
from distft.models.adapters import merged
from distft.storage import MANIFEST, Manifest, Storage

BUNDLE_WEIGHTS = "model.safetensors"
MODEL_PREFIX = "model."
BASE = "base"
"""Folder and kind of the artefact that holds what a fine-tuning started from."""


def read_weights(storage: Storage) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, parameters in fp32; what a loss owns is left out.

    ``storage`` is a bundle or a committed checkpoint. Raises ArtefactError if it is neither, or damaged.
    """
    if not storage.exists(MANIFEST):
        raise ArtefactError(
            f"There is no checkpoint or bundle at {storage}", f"a folder with a {MANIFEST}", "Train or export first."
        )
    described = storage.read_json(MANIFEST)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind == "bundle":
        manifest = storage.manifest("bundle")
        assert manifest is not None
        return load(read_verified(storage, manifest, BUNDLE_WEIGHTS))
    manifest, state = read_state(storage)
    tensors = merged(_with_base(storage, state) | assemble(storage, manifest, state))
    size = len(MODEL_PREFIX)
    return {name[size:]: tensor for name, tensor in tensors.items() if name.startswith(MODEL_PREFIX)}


def _with_base(storage: Storage, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint of a fine-tuning does not hold, because it did not train; nothing for any other."""
    if not state.get("base"):
        return {}
    folder = base_of(storage)
    return read_base(folder, state["base"])


def base_of(checkpoint: Storage) -> Storage:
    """Where the base of a fine-tuning lies, seen from one of its checkpoints."""
    return Storage(checkpoint.uri.rsplit("/", 2)[0]) / BASE


def read_base(folder: Storage, sha256: str) -> dict[str, Tensor]:
    """The weights that a fine-tuning started from, by their names there. Raises ArtefactError if they are not whole.

    ``sha256`` of its manifest: a checkpoint belongs to the base that it names and to no other.
    """
    manifest = folder.manifest(BASE)
    if manifest is None or manifest.sha256 != sha256:
        problem = "is missing" if manifest is None else "is another one"
        raise ArtefactError(
            f"{folder}, which holds the weights that did not train, {problem}",
            "the base that the fine-tuning started from, beside its checkpoints",
            "Restore the whole folder of the stage from a copy, or fine-tune again with --force.",
        )
    return load(read_verified(folder, manifest, BUNDLE_WEIGHTS))


def read_state(storage: Storage) -> tuple[Manifest, dict[str, Any]]:
    """A checkpoint's manifest, and its state: the cursor, and which file holds which slice of what."""
    manifest = storage.manifest("checkpoint")
    if manifest is None:
        raise ArtefactError(
            f"There is no checkpoint at {storage}", f"a folder with a {MANIFEST}", "Give the path of another one."
        )
    if sealed(manifest) != manifest:
        raise ArtefactError(
            f"{storage}/{MANIFEST} is not as it was written", "", "Restore it from a copy, or use another checkpoint."
        )
    names = [name for name in manifest.files if name.startswith("state-")]
    if len(names) != 1:
        raise ArtefactError(f"{storage}/{MANIFEST} lists {len(names)} state files", "one", "Use another checkpoint.")
    read_verified(storage, manifest, names[0])
    state = storage.read_json(names[0])
    if not isinstance(state, dict):
        raise ArtefactError(f"{storage}/{names[0]} holds no state", "a JSON object", "Use another checkpoint.")
    return manifest, state


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with a checksum of itself in its ``info``: it lists those of all files but its own."""
    info = {key: value for key, value in manifest.info.items() if key != "seal"}
    return replace(manifest, info={**info, "seal": replace(manifest, info=info).sha256})


def read_verified(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """A file's bytes; raises ArtefactError unless they are those that the manifest lists."""
    expected = manifest.files.get(name)
    if expected is None or not storage.exists(name):
        raise ArtefactError(f"{storage}/{name} is missing", "", "Restore it from a copy, or use another checkpoint.")
    data = storage.read_bytes(name)
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        storage.verify_file(name, expected)  # says which of the two differs
        raise ArtefactError(f"{storage}/{name} changed while it was read", "", "Let only one run write there.")
    return data


def read_slices(
    storage: Storage, manifest: Manifest, state: Mapping[str, Any], part: str
) -> Iterator[tuple[str, int, Tensor]]:
    """(key, offset, flat values) of every slice of ``part``, "weights" or "optimizer", one file after another.

    Keys are parameter names; in "optimizer" they are the name of the state, a slash, and the parameter's name.
    """
    for rank in state["ranks"]:
        if rank.get(part) is None:
            continue
        for key, values in load(read_verified(storage, manifest, rank[part])).items():
            name = key if part == "weights" else key.split("/", 1)[1]
            yield key, int(rank["offsets"][name]), values


def assemble(storage: Storage, manifest: Manifest, state: Mapping[str, Any], tables: bool = True) -> dict[str, Tensor]:
    """Every parameter and buffer, whole; not those of sharded tables without ``tables``.

    Raises ArtefactError where slices leave a gap.
    """
    flat: dict[str, Tensor] = {}
    table = state.get("table")
    wanted = {name: shape for name, shape in state["shapes"].items() if tables or not table or name != table["name"]}
    filled = dict.fromkeys(wanted, 0)
    for name, offset, values in read_slices(storage, manifest, state, "weights"):
        if name not in flat:
            flat[name] = torch.empty(math.prod(wanted[name]), dtype=values.dtype)
        flat[name][offset : offset + values.numel()] = values
        filled[name] += values.numel()
    if table and tables:
        name, shape = table["name"], wanted[table["name"]]
        flat[name] = torch.empty(math.prod(shape))
        for file, first, step in table_files(state, "table"):
            values = load(read_verified(storage, manifest, file))["weight"]
            flat[name].view(shape)[first::step] = values
            filled[name] += values.numel()
    for name, shape in wanted.items():
        if filled[name] != math.prod(shape):
            raise ArtefactError(
                f"{storage} holds {filled[name]} of the {math.prod(shape)} elements of {name}",
                "every element once",
                "Use another checkpoint.",
            )
    return {name: flat[name].view(shape) for name, shape in wanted.items() if name in flat}


def table_files(state: Mapping[str, Any], part: str) -> list[tuple[str, int, int]]:
    """(file, first, step) of every rank's rows of a sharded table: the rows first, first + step, first + 2 step, ...

    ``part``: "table", in whose files they are "weight" [n, D], or "optimizer-table", with the state of the same rows.
    """
    ranks = [rank for rank in state["ranks"] if rank.get(part)]
    return [(rank[part], int(rank["rows"]["first"]), int(rank["rows"]["step"])) for rank in ranks]


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives ``model`` these weights. Raises ArtefactError naming what is missing, unexpected or of another shape."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in sorted(own.keys() - weights.keys())]
    problems += [f"{name} is unexpected" for name in sorted(weights.keys() - own.keys())]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model has {list(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    if problems:
        raise ArtefactError(
            f"The weights do not belong to this model: {'; '.join(problems[:5])}{' ...' if len(problems) > 5 else ''}",
            "weights of the same model section, trained on this dataset",
            "Evaluate or export the model with the job and the storage that trained it.",
        )
    model.load_state_dict(dict(weights))
