from __future__ import annotations

import os
from pathlib import Path

import pytest

from distft.errors import JobError, UsageError
from distft.jobfile import parse_job
from distft.serve.arrangement import Options, arranged, check_access, is_loopback
from distft.serve.keys import add_key
from distft.serve.tls import Certificate
from distft.storage import Storage
from tests.serve.bundles import JOB, write_bundle

REDIS = "redis://history.example:6379/2"


def test_a_store_for_every_cluster(bundle: Storage, tmp_path: Path) -> None:
    job, state = parse_job(JOB, "tiny.yaml"), str(tmp_path)
    one = arranged(job, bundle, Options(state=state), 1).keeping
    assert one and (one.store, one.state, one.shop, one.max_events) == ("embedded", state, "tiny", 1000)
    with pytest.raises(UsageError, match=r"embedded, and the cluster has 3 nodes.*redis://"):
        arranged(job, bundle, Options(state=state), 3)
    many = arranged(job, bundle, Options(history=REDIS, state="s3://bucket/state"), 3).keeping
    assert many and many.store == REDIS
    assert arranged(job, bundle, Options(history="none", state=state), 3).keeping is None
    assert arranged(job, bundle, Options(), 3).keeping is None
    remote = parse_job(JOB, "tiny.yaml", (f"serve.history={REDIS}",))
    assert (
        arranged(remote, bundle, Options(state=state), 3).keeping
        == arranged(job, bundle, Options(history=REDIS, state=state), 3).keeping
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(history="redis://", state="x"), "--history is redis://"),
        (Options(history="memory", state="x"), "--history is memory"),
        (Options(history="redis://:word@host:port", state="x"), r"--history is redis://…"),
        (Options(history=REDIS), "there is no --state"),
        (Options(state="s3://bucket/state"), "s3://bucket/state, and the embedded history store is a file"),
        (Options(state="x", pseudonym_key="key"), "--pseudonym-key is given"),
        (Options(keys="/nowhere/keys.json"), "No such file"),
        (Options(deny="/nowhere/deny.txt"), "deny-list /nowhere/deny.txt cannot be used: No such file"),
        (Options(tls=Certificate("/nowhere/cert.pem", "/nowhere/key.pem")), "--tls-cert is /nowhere/cert.pem"),
    ],
)
def test_options_that_do_not_go_together(bundle: Storage, options: Options, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        arranged(parse_job(JOB, "tiny.yaml"), bundle, options, 1)
    assert "word" not in str(caught.value)


def test_a_bundle_holds_no_password() -> None:
    with pytest.raises(JobError, match="URL without a password"):
        parse_job(JOB, "tiny.yaml", ("serve.history=redis://:word@host/0",))


def test_users_are_known_by_the_pseudonyms_of_the_dataset(tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(os.urandom(32))
    other.write_bytes(os.urandom(32))
    job = parse_job(JOB, "tiny.yaml", (f"data.pseudonyms={{key_file: {key}}}",))
    bundle = write_bundle(Storage(tmp_path))
    options = Options(state=str(tmp_path / "state"))
    named = arranged(job, bundle, options, 1).pseudonyms
    assert named and named.key_file == str(key)
    elsewhere = arranged(job, bundle, Options(state=options.state, pseudonym_key=str(other)), 1).pseudonyms
    assert elsewhere and elsewhere.key_file == str(other), "a bundle that tells of no key cannot be checked"
    key.unlink()
    with pytest.raises(UsageError, match="there is no file"):
        arranged(job, bundle, options, 1)


def test_without_keys_only_loopback(tmp_path: Path) -> None:
    add_key(str(tmp_path / "keys.json"), "shop")
    for host in ("127.0.0.1", "localhost", "127.1.2.3"):
        assert is_loopback(host)
        check_access(host, Options())
    for host in ("0.0.0.0", "192.0.2.7", "no such host"):
        with pytest.raises(UsageError, match="Without API keys"):
            check_access(host, Options())
        check_access(host, Options(keys=str(tmp_path / "keys.json")))
