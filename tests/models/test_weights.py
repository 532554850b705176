"""Weights from checkpoints and bundles, written here by hand in the format that they document."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from distft.errors import ArtefactError
from distft.models.weights import read_weights, sealed
from distft.storage import MANIFEST, Storage


def write_checkpoint(path: Path, offsets: tuple[int, int] = (0, 4)) -> Storage:
    """Two ranks hold four and two elements of ``model.a``; the first also a buffer and a parameter of the loss."""
    storage = Storage(path)
    storage.write_bytes(
        "weights-ab-00000.safetensors",
        save({"model.a": torch.arange(4.0), "model.n": torch.tensor([7]), "loss.w": torch.ones(1)}),
    )
    storage.write_bytes("weights-ab-00001.safetensors", save({"model.a": torch.tensor([4.0, 5.0])}))
    state = {
        "shapes": {"model.a": [3, 2], "model.n": [], "loss.w": [1]},
        "ranks": [
            {"weights": "weights-ab-00000.safetensors", "offsets": {"model.a": offsets[0], "model.n": 0, "loss.w": 0}},
            {"weights": "weights-ab-00001.safetensors", "offsets": {"model.a": offsets[1]}},
        ],
    }
    storage.write_json("state-ab.json", state)
    seal(storage)
    return storage


def seal(storage: Storage) -> None:
    storage.write_json(MANIFEST, vars(sealed(storage.write_manifest("checkpoint"))))


def test_slices_are_put_together_and_the_losss_own_are_left_out(tmp_path: Path) -> None:
    weights = read_weights(write_checkpoint(tmp_path))
    assert weights.keys() == {"a", "n"}
    assert torch.equal(weights["a"], torch.arange(6.0).view(3, 2))
    assert torch.equal(weights["n"], torch.tensor(7))


def test_a_bundle_gives_its_one_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("model.safetensors", save({"a": torch.ones(2)}))
    storage.write_manifest("bundle")
    assert torch.equal(read_weights(storage)["a"], torch.ones(2))


@pytest.mark.parametrize("name", ["weights-ab-00001.safetensors", "state-ab.json"])
def test_a_changed_file_is_named(name: str, tmp_path: Path) -> None:
    storage = write_checkpoint(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=name):
        read_weights(storage)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    storage = write_checkpoint(tmp_path)
    storage.delete("weights-ab-00000.safetensors")
    with pytest.raises(ArtefactError, match=r"weights-ab-00000\.safetensors is missing"):
        read_weights(storage)


def test_a_gap_between_slices_is_found(tmp_path: Path) -> None:
    storage = write_checkpoint(tmp_path)
    state = storage.read_json("state-ab.json")
    state["ranks"].pop()
    storage.write_json("state-ab.json", state)
    storage.delete("manifest.json")
    seal(storage)
    with pytest.raises(ArtefactError, match=r"4 of the 6 elements of model\.a"):
        read_weights(storage)


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no checkpoint or bundle"):
        read_weights(Storage(tmp_path))
    Storage(tmp_path).write_manifest("dataset")
    with pytest.raises(ArtefactError, match="holds a dataset"):
        read_weights(Storage(tmp_path))
