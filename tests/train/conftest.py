"""A process group of one rank in the test's own process: no spawn, no Ray. And real disks that are small."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.train.ranks import group


@pytest.fixture(scope="session")
def _session_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole run: DeepSpeed remembers the first group of a process."""
    with group(0, 1, str(tmp_path_factory.mktemp("group"))):
        yield


@pytest.fixture
def one_rank(_session_group: None) -> Iterator[None]:
    """Rank 0 of 1, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a real file system of a size such as "96k"; gives its folder."""

    def make(size: str) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system takes root")
        mounted.callback(subprocess.run, ["umount", str(place)], check=True)
        return place

    with ExitStack() as mounted:
        yield make
