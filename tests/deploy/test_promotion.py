"""Promotions on a running service, with clients that keep asking."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
import torch
from ray import serve
from safetensors.torch import load, save

from distft.deploy.checks import Limits
from distft.deploy.live import Live, TrialPlan
from distft.deploy.promotion import deploy, roll_back
from distft.errors import RefusedError, UsageError
from distft.promotions import read_record
from distft.serve import server
from distft.serve.arrangement import MODEL_PREFIX, Options, served_bundle
from distft.serve.server import Service
from distft.serve.trial import Trial
from distft.signing import FILE, sign
from distft.storage import Storage
from tests.serve.bundles import encoder, write_bundle
from tests.test_signing import write_pair

pytestmark = pytest.mark.ray

PATIENT = Limits(max_latency_s=5.0)
"""Other tests run on the same cores."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_pair(tmp_path_factory.mktemp("keys"), "shop")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, keys: tuple[str, str]) -> Callable[..., Storage]:
    def made(name: str, **options: object) -> Storage:
        bundle = write_bundle(Storage(tmp_path_factory.mktemp(name)), (f"name={name}",), **options)  # type: ignore[arg-type]
        sign(bundle, keys[0])
        return bundle

    return made


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def service(
    ray_session: object, make: Callable[..., Storage], state: Storage, keys: tuple[str, str]
) -> Iterator[Service]:
    options = Options(state=state.uri, trusted_key=keys[1])
    running = server.start(make("first"), "127.0.0.1", server.free_port("127.0.0.1"), options=options)
    yield running
    running.stop()


@contextmanager
def clients(service: Service, number: int = 2) -> Iterator[Counter[tuple[int, str]]]:
    """Keep asking while the block runs; counts (status, model version)."""
    seen: Counter[tuple[int, str]] = Counter()
    stop = threading.Event()

    def ask(seed: int) -> None:
        body = {"history": [{"event": "view", "item_id": f"i{seed}"}], "k": 5}
        with httpx.Client(base_url=service.url, timeout=30) as http:
            while not stop.wait(0.02):
                answer = http.post("/v1/recommend", json=body)
                seen[answer.status_code, answer.json().get("model_version", "")] += 1

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def version_of(bundle: Storage) -> str:
    return served_bundle(bundle)[0].version


def served(service: Service) -> str:
    return str(httpx.get(f"{service.url}/readyz", timeout=30).json()["model_version"])


def models() -> set[str]:
    return {name for name in serve.status().applications if name.startswith(MODEL_PREFIX)}


def test_models_are_exchanged_without_a_gap_and_back(
    service: Service, make: Callable[..., Storage], state: Storage
) -> None:
    second = make("second")
    versions = service.model_version, version_of(second)
    with clients(service) as seen:
        verdict = deploy(second, PATIENT)
        assert served(service) == versions[1]
        back = roll_back()
        assert served(service) == versions[0]
    assert all(check.passed for check in verdict.checks)
    assert [check.name for check in verdict.checks] == [
        "bundle",
        "items",
        "golden",
        "metric",
        "metric of both",
        "coverage",
        "latency",
    ]
    assert (verdict.model_version, verdict.replaced) == (versions[1], versions[0])
    assert (back.model_version, back.replaced) == (versions[0], versions[1])
    assert set(seen) == {(200, version) for version in versions}
    assert models() == {f"{MODEL_PREFIX}{versions[0]}"}
    record = read_record(state)
    assert [attempt.outcome for attempt in record.attempts] == ["started", "promoted", "rolled back"]
    assert record.running is not None and record.running.version == versions[0]
    with pytest.raises(UsageError, match=r"runs model .* already"):
        deploy(Storage(record.running.bundle), PATIENT)


def flipped(bundle: Storage) -> None:
    file = bundle.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def weights_changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Storage], None]:
    def changed(bundle: Storage) -> None:
        weights = load((bundle.path / "model.safetensors").read_bytes())
        name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
        weights[name] = change(weights[name])
        bundle.write_bytes("model.safetensors", save(weights))
        bundle.delete(FILE)
        bundle.write_manifest("bundle", {}, {})

    return changed


BAD = {
    "flipped byte": (flipped, {}, PATIENT, "bundle", "model.safetensors has SHA-256"),
    "wrong shape": (weights_changed(lambda w: w[:, :-1].contiguous()), {}, PATIENT, "start", "The weights"),
    "not a number": (weights_changed(lambda w: w.fill_(torch.nan)), {}, PATIENT, "start", "no numbers"),
    "other scores": (None, {"golden_shift": 0.1}, PATIENT, "start", "does not score as it was exported"),
    "few items": (None, {"encoding": encoder(6)}, PATIENT, "items", "10.0% of the running model's 60 items"),
    "worse": (None, {"seed": 2}, PATIENT, "metric of both", "the running model 0.6309"),
    "no good": (None, {}, replace(PATIENT, min_metric=0.9), "metric", "ndcg@10 0.6309"),
    "too slow": (None, {}, replace(PATIENT, max_latency_s=1e-4), "latency", "ms for 95% of 30 answers"),
}


SLOW = ("wrong shape", "not a number", "other scores", "too slow")
"""These start replicas, which Ray Serve tries three times."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.proof) if kind in SLOW else kind for kind in BAD]
)
def test_a_bad_bundle_never_answers(
    service: Service, make: Callable[..., Storage], state: Storage, keys: tuple[str, str], kind: str
) -> None:
    spoil, options, limits, check, reason = BAD[kind]
    bundle = make(kind.replace(" ", "-"), **options)
    if spoil is not None:
        spoil(bundle)
        if spoil is not flipped:
            sign(bundle, keys[0])
    before = served(service)
    with clients(service) as seen, pytest.raises(RefusedError) as refused:
        deploy(bundle, limits)
    assert f"by the check '{check}'" in refused.value.what and reason in refused.value.what
    assert set(seen) == {(200, before)} and served(service) == before
    assert models() == {f"{MODEL_PREFIX}{before}"}
    last = read_record(state).attempts[-1]
    assert last.outcome == "refused" and reason in last.reason and not last.checks[-1]["passed"]


def test_what_nobody_signed_is_refused(service: Service, make: Callable[..., Storage]) -> None:
    bundle = make("unsigned")
    bundle.delete(FILE)
    with pytest.raises(RefusedError, match=r"by the check 'bundle': .* is not signed"):
        deploy(bundle, PATIENT)


def test_a_model_that_was_lost_cannot_be_gone_back_to(service: Service, state: Storage) -> None:
    before = read_record(state).before
    assert before is not None
    shutil.rmtree(before.bundle)
    with pytest.raises(RefusedError, match="There is no bundle at"):
        roll_back()


@pytest.mark.proof
def test_a_trial_on_real_requests_comes_first_and_what_a_kill_left_is_taken_away(
    service: Service, make: Callable[..., Storage], state: Storage
) -> None:
    left, third = make("left"), make("third")
    live = Live()
    live.start(served_bundle(left)[0], 60)
    running = read_record(state).running
    assert running is not None
    gone = Trial("canary", "model-gone", 1.0, "gone", time.time() + 60)
    live.follow(served_bundle(Storage(running.bundle))[0], trial=gone)  # as a process would find it that starts now
    live.close()
    assert len(models()) == 2 and served(service) == running.version
    old, new = served(service), version_of(third)
    plans = [TrialPlan("shadow", 1.0, 3.0), TrialPlan("canary", 0.5, 3.0)]
    with pytest.raises(RefusedError, match="by the check 'shadow': no request came"):
        deploy(third, PATIENT, plans[:1])
    assert models() == {f"{MODEL_PREFIX}{old}"}
    with clients(service) as seen:
        verdict = deploy(third, PATIENT, plans)
    shadow, canary = verdict.checks[-2:]
    assert shadow.name == "shadow" and "100% of the items alike" in shadow.found
    assert canary.name == "canary" and " 0 failed" in canary.found
    assert set(seen) == {(200, old), (200, new)} and served(service) == new
