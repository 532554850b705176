from __future__ import annotations

import shutil
import subprocess

import pytest

from distft.serve.predictor import Predictor
from distft.serve.tls import Certificate
from distft.storage import Storage
from tests.serve.bundles import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A small bundle that no test changes."""
    return write_bundle(Storage(tmp_path_factory.mktemp("serve")))


@pytest.fixture(scope="session")
def predictor(bundle: Storage) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for 127.0.0.1 that vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", *command.split(), *names], check=True, capture_output=True)
    return Certificate(str(folder / "cert.pem"), str(folder / "key.pem"))
