"""A process group of one rank in the test's own process: no spawn, no Ray."""

from __future__ import annotations

from collections.abc import Iterator

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
