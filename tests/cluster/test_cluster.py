"""A head and two nodes with addresses of their own: submitting, training, serving, and what goes wrong there."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, can_make_namespaces, local_cluster
from distft.serve.keys import new_key, write_keys
from tests.cluster.jobs import CPUS, JOB, Client, asking, checkpoint, equal_weights, trains, until

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and the command ip"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalCluster]:
    with local_cluster(2, CPUS) as made:
        yield made


@pytest.fixture(scope="module")
def client(nodes: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("client")
    (folder / "job.yaml").write_text(JOB)
    (folder / "data").mkdir()
    (folder / "data" / "large.csv").write_bytes(os.urandom(20_000_000))  # sent along, it would be noticed
    return Client(nodes, folder)


@pytest.fixture(scope="module")
def calm(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    storage = tmp_path_factory.mktemp("calm")
    told = client.submit(storage, follow=True)
    assert (told["status"], told["exit_code"]) == ("SUCCEEDED", 0)
    return storage


@pytest.fixture(scope="module")
def service(client: Client, calm: Path) -> Iterator[tuple[str, str]]:
    """(address, key) of the service of that run's bundle, on the cluster."""
    secret, key = new_key("proof")
    write_keys(calm / "keys.json", [key])
    jobs = client.jobs
    words = f"python -m distft serve {calm}/bundle --host 0.0.0.0 --port 8000 --keys {calm}/keys.json"
    id_ = jobs.submit_job(entrypoint=words, runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}})
    url = f"http://{client.cluster.head.ip}:8000"
    try:
        until(lambda: answers(f"{url}/readyz"), "a ready service")
    except AssertionError:
        print(jobs.get_job_logs(id_))
        raise
    yield f"{url}/v1/recommend", secret
    jobs.stop_job(id_)
    until(lambda: jobs.get_job_status(id_).is_terminal(), "the end of the service")


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_runs_on(client: Client) -> Iterator[None]:
    """A test that failed leaves its training no room to take from the next one."""
    yield
    for job in client.run("jobs", "list")[1]["jobs"]:
        if job["status"] in ("PENDING", "RUNNING"):
            client.run("jobs", "stop", job["id"])
            client.ended(job["id"])


def training(storage: Path, calm: Path) -> Path:
    """An empty run on the same dataset."""
    subprocess.run(["cp", "-r", calm / "dataset", storage / "dataset"], check=True)
    return storage


def test_who_has_no_token_or_another_one_is_refused(client: Client) -> None:
    for token, status in (("", 401), ("ab" * 32, 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = json.dumps({"entrypoint": "id"}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{client.cluster.url}/api/jobs/", body, headers))
        with refused.value:
            assert refused.value.code == status
        code, _, said = client.run("submit", "job.yaml", "--storage", "/tmp/x", RAY_AUTH_TOKEN=token, HOME="/nowhere")
        assert code == 2
        assert f"({status})" in said


def test_what_does_not_fit_is_told_at_once_with_the_exit_code_of_a_mistake(client: Client, tmp_path: Path) -> None:
    began_s = time.monotonic()
    words = ("submit", "job.yaml", "--storage", str(tmp_path / "run"), "--set", "scaling.num_workers=5", "--follow")
    code, told, said = client.run(*words)
    assert code == 2, said
    assert told["exit_code"] == 2
    assert "5 workers of 1.9 CPU each do not fit on this cluster of 6 CPU" in said
    assert "Set scaling.num_workers to 2" in said
    assert time.monotonic() - began_s < 30
    assert not (tmp_path / "run" / "dataset").exists()


def test_a_job_is_trained_evaluated_and_served_on_two_nodes(calm: Path, service: tuple[str, str]) -> None:
    assert checkpoint(calm)[1] == 2
    assert json.loads((calm / "report" / "metrics.json").read_text())["model"]["hr@10"] > 0
    with asking(*service) as outcomes:
        until(lambda: len(outcomes) >= 5, "five answers")
    assert not any(outcomes), outcomes


def test_a_model_is_promoted_by_a_submitted_job_and_taken_back_and_no_request_is_lost(
    client: Client, calm: Path, service: tuple[str, str], tmp_path: Path
) -> None:
    second = tmp_path / "second"
    subprocess.run(["cp", "-r", calm, second], check=True)
    words = ("export", "job.yaml", "--storage", str(second), "--set", "serve.num_ingress_replicas=2", "--force")
    code, _, said = client.run(*words)
    assert code == 0, said
    first = served_model(*service)
    with asking(*service) as outcomes:
        for verb in (f"deploy {second}/bundle", "deploy --rollback"):
            before = len(outcomes)
            run_on_cluster(client, f"python -m distft {verb}")
            assert (served_model(*service) == first) == ("--rollback" in verb)
            assert len(outcomes) > before + 10
    assert not any(outcomes), set(outcomes)


def run_on_cluster(client: Client, command: str) -> None:
    """Runs a command as a job to its good end."""
    jobs = client.jobs
    id_ = jobs.submit_job(entrypoint=command)
    until(lambda: jobs.get_job_status(id_).is_terminal(), f"the end of {command}")
    assert jobs.get_job_status(id_).value == "SUCCEEDED", jobs.get_job_logs(id_)


def served_model(url: str, key: str) -> str:
    """The version of the model that a service answers with."""
    request = urllib.request.Request(url.replace("recommend", "model"), headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["model_version"])


def test_a_lost_gcs_and_a_lost_node_leave_the_result_as_it_was(
    client: Client, calm: Path, service: tuple[str, str], tmp_path: Path
) -> None:
    nodes, storage = client.cluster, training(tmp_path, calm)
    id_ = client.submit(storage, "stages=[train]")["id"]
    until(lambda: checkpoint(storage)[0] >= 20, "a checkpoint")
    with asking(*service) as outcomes:
        nodes.kill_gcs()
        time.sleep(8)
        nodes.start_gcs()
        before = checkpoint(storage)[0]
        until(lambda: checkpoint(storage)[0] > before, "a step without, or after, the GCS")
    assert len(outcomes) > 20
    assert not any(outcomes), set(outcomes)
    struck = next(node for node in nodes.nodes if trains(node))
    nodes.remove(struck)
    nodes.add_node()
    ended = client.ended(id_)
    assert ended["exit_code"] == 0, ended
    assert equal_weights(storage, calm)
