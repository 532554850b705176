from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from distft.errors import StorageError
from distft.storage import Storage
from distft.train import tensorfile
from distft.train.tensorfile import read_rows, write_tensors


def test_safetensors_reads_what_was_written_in_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "CHUNK_BYTES", 7)
    draw = torch.Generator().manual_seed(1)
    tensors = {str(kind): (torch.rand(5, generator=draw) * 9).to(kind) for kind in tensorfile._DTYPES}
    tensors |= {"": torch.zeros(0), "ünï": torch.rand(3, 4, generator=draw), "strided": torch.arange(6.0)[::2]}
    described = write_tensors(Storage(tmp_path), "a.safetensors", tensors)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert described == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    found = load(data)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_tensors(Storage("/proc"), "a.safetensors", {"a": torch.ones(3)})


@pytest.mark.parametrize("chunk_bytes", [1, 50, 1 << 22])
def test_rows_are_read_a_piece_at_a_time(chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"weight": torch.rand(7, 3), "sum_sq": torch.rand(7), "none": torch.zeros(0, 3)}
    write_tensors(Storage(tmp_path), "a.safetensors", tensors)
    monkeypatch.setattr(tensorfile, "CHUNK_BYTES", chunk_bytes)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in tensors}
    for name, start, rows in read_rows(Storage(tmp_path), "a.safetensors"):
        assert start == sum(len(part) for part in found[name])
        assert len(rows) == 1 or rows.numel() * 4 <= chunk_bytes
        found[name].append(rows)
    assert found["none"] == [] and len(found["weight"]) == {1: 7, 50: 2, 1 << 22: 1}[chunk_bytes]
    assert all(torch.equal(torch.cat(found[name]), tensors[name]) for name in ("weight", "sum_sq"))
