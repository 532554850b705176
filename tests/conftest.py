"""Fixtures that several test files share: one local Ray for all integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distft import cluster


@pytest.fixture(scope="session")
def ray_session() -> Iterator[dict[str, float]]:
    """The resources of a local Ray of four logical CPUs, started once for the whole run."""
    with cluster.connect(num_cpus=4) as resources:
        yield resources
