"""Services of their own, one after the other: a cluster has one Ray Serve at a time."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from distft import cluster
from distft.errors import ServingError
from distft.serve import app, server
from distft.serve.arrangement import Options
from distft.serve.keys import add_key
from distft.serve.tls import Certificate
from distft.storage import Storage
from tests.serve.bundles import as_json, events, write_bundle
from tests.serve.over_http import OF_MANY
from tests.serve.stores import redis_server

pytestmark = [pytest.mark.ray, pytest.mark.proof]


def test_a_model_that_scores_otherwise_is_not_served(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(Storage(tmp_path), golden_shift=1e-3)
    port = server.free_port("127.0.0.1")
    folders: list[str] = []
    make = cluster.scratch_folder

    @contextmanager
    def noted(prefix: str) -> Iterator[str]:
        with make(prefix) as folder:
            folders.append(folder)
            yield folder

    monkeypatch.setattr(cluster, "scratch_folder", noted)
    with pytest.raises(ServingError, match="does not score as it was exported: golden request 1"):
        server.start(bundle, "127.0.0.1", port)
    server.check_port("127.0.0.1", port)
    assert len(folders) == 1 and not Path(folders[0]).exists()


def test_more_requests_than_may_wait_are_told_to_come_again(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "QUEUED_BATCHES", 1)
    bundle = write_bundle(Storage(tmp_path), ("serve.max_batch_size=1",))
    service = server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"))
    try:
        client = httpx.Client(base_url=service.url, timeout=60, limits=OF_MANY)
        with client as http, ThreadPoolExecutor(50) as pool:
            responses = list(pool.map(lambda _: http.post("/v1/recommend", json={}), range(300)))
    finally:
        service.stop()
    turned_away = [response for response in responses if response.status_code != 200]
    assert 0 < len(turned_away) < 300
    for response in turned_away:
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"


def serve(bundle: Storage, *options: str) -> subprocess.Popen[str]:
    port = str(server.free_port("127.0.0.1"))
    command = [sys.executable, "-m", "distft", "serve", bundle.uri, "--port", port, *(options or ("--no-auth",))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def started(process: subprocess.Popen[str]) -> tuple[str, str]:
    """(model version, URL) once the service says that it is up."""
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"serving (\w+) at (\S+)", line):
            return found[1], found[2]
    raise AssertionError("".join(said))


def test_a_service_in_a_hostile_network(files: Certificate, tmp_path: Path) -> None:
    """HTTPS, a key, and a kill of everything: what was accepted is there when it starts again, once."""
    bundle = write_bundle(Storage(tmp_path))
    keys = str(tmp_path / "keys.json")
    key = add_key(keys, "shop")
    options = ("--tls-cert", files.certificate, "--tls-key", files.key, "--keys", keys)
    trust = ssl.create_default_context(cafile=files.certificate)
    told = {"user_id": "anna", "events": as_json(events(2, 15))}
    for accepted in (15, 0):
        with serve(bundle, *options) as process:
            _, url = started(process)
            assert url.startswith("https://127.0.0.1:")
            with httpx.Client(base_url=url, verify=trust, timeout=60) as http:
                assert http.post("/v1/events", json=told).status_code == 401
                http.headers["authorization"] = f"Bearer {key}"
                answer = http.post("/v1/events", json=told)
                assert answer.json() == {"accepted": accepted, "duplicates": 15 - accepted}
                assert "max-age" in answer.headers["strict-transport-security"]
                assert http.post("/v1/recommend", json={"user_id": "anna"}).json()["source"] == "model"
            process.kill()
            process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while _is_answering(url):
            assert time.monotonic() < deadline, "HTTPS outlived its service"
            time.sleep(0.2)
        time.sleep(5)  # for the rest of a killed Ray to end
    log = [line for file in (tmp_path / "service" / "log").iterdir() for line in file.read_text().splitlines()]
    assert len(log) == 15 and all('"user_id": "anna"' in line for line in log)


def _is_answering(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=2).close()
    except OSError:
        return False
    return True


def replicas_below(pid: int, name: str) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children(recursive=True) if name in " ".join(one.cmdline())]


def _model_at(url: str) -> str:
    """The version of the model that answers there."""
    try:
        response = httpx.get(f"{url}/v1/model", timeout=5)
    except httpx.HTTPError:
        return "none"
    return str(response.json()["model_version"]) if response.status_code == 200 else "none"


def test_two_services_on_one_host_never_answer_for_each_other(tmp_path: Path) -> None:
    """Not when they start at the same moment, on Rays of their own, and not while one of them cannot answer."""
    bundles = [write_bundle(Storage(tmp_path / name), (f"name={name}",)) for name in ("first", "second")]
    with serve(bundles[0]) as first, serve(bundles[1]) as second:
        try:
            for bundle, process in zip(bundles, (first, second), strict=True):
                version, url = started(process)
                assert bundle.verified("bundle").sha256.startswith(version)
                with httpx.Client(base_url=url, timeout=60) as http:
                    answers = [http.post("/v1/recommend", json={}).json() for _ in range(50)]
                assert {answer["model_version"] for answer in answers} == {version}
            (ingress,) = replicas_below(second.pid, "ray::ServeReplica:ingress")
            ingress.kill()
            answered: set[str] = set()
            deadline = time.monotonic() + 60
            while answered != {"none", version} and time.monotonic() < deadline:
                answered.add(_model_at(url))
            assert answered == {"none", version}, "it was away for a while, and then it was itself"
        finally:
            for process in (first, second):
                process.send_signal(signal.SIGINT)
            for process in (first, second):
                process.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (130, 130)


def test_a_killed_service_leaves_neither_its_port_nor_its_files(tmp_path: Path) -> None:
    with serve(write_bundle(Storage(tmp_path))) as process:
        _, url = started(process)
        words = {word for one in psutil.Process(process.pid).children() for word in one.cmdline()}
        folders = [Path(word) for word in words if re.fullmatch(r"/tmp/distft-[a-z0-9_-]+", word)]
        assert len(folders) == 2 and all(folder.is_dir() for folder in folders)
        process.kill()
        process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(folder.exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    server.check_port("127.0.0.1", int(url.rsplit(":", 1)[1]))


def test_histories_in_a_redis_server(ray_session: object, tmp_path: Path) -> None:
    """They outlive the service and its machine: the next service, with another state, has them."""
    bundle, told = write_bundle(Storage(tmp_path)), {"user_id": "anna", "events": as_json(events(2, 15))}
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as url:
        for accepted, state in ((15, "first"), (0, "second")):
            options = Options(history=url, state=str(tmp_path / state))
            service = server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"), options=options)
            try:
                with httpx.Client(base_url=service.url, timeout=60) as http:
                    assert http.post("/v1/events", json=told).json()["accepted"] == accepted
                    assert http.post("/v1/recommend", json={"user_id": "anna"}).json()["source"] == "model"
            finally:
                service.stop()
        (log,) = (tmp_path / "first" / "log").iterdir()
        assert len(log.read_text().splitlines()) == 15 and not (tmp_path / "second" / "log").exists()
