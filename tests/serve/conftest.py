from __future__ import annotations

import pytest

from distft.serve.predictor import Predictor
from distft.storage import Storage
from tests.serve.bundles import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A small bundle that no test changes."""
    return write_bundle(Storage(tmp_path_factory.mktemp("serve")))


@pytest.fixture(scope="session")
def predictor(bundle: Storage) -> Predictor:
    return Predictor.load(bundle)
