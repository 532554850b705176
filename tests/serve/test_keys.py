from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from distft.errors import UsageError
from distft.serve import keys
from distft.serve.followed import RELOAD_S
from distft.serve.keys import Keyring, add_key, read_keys, remove_key
from distft.serve.problems import Problem


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def refused(ring: Keyring, header: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        ring.admit(header)
    return caught.value


def test_the_file_holds_no_key_and_only_its_user_reads_it(file: Path) -> None:
    secret = add_key(str(file), "shop")
    assert secret.startswith(keys.PREFIX) and len(secret) > 40
    assert secret not in file.read_text() and stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert Keyring(file).admit(f"Bearer {secret}") == "shop"
    assert Keyring(file).admit(f"bearer  {secret} ") == "shop"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer ü", "Bearer {}x"]
)
def test_who_has_no_key_is_told_how_to_send_one(file: Path, header: str | None) -> None:
    secret = add_key(str(file), "shop")
    problem = refused(Keyring(file), None if header is None else header.format(secret))
    assert problem.status == 401 and "Bearer KEY" in problem.detail and secret not in problem.detail
    assert problem.response().headers["www-authenticate"] == "Bearer"


def test_keys_are_exchanged_without_a_restart(file: Path) -> None:
    clock = Clock()
    old = add_key(str(file), "old")
    ring = Keyring(file, clock)
    new = add_key(str(file), "new")
    assert refused(ring, f"Bearer {new}").status == 401
    clock.now_s += RELOAD_S
    assert (ring.admit(f"Bearer {old}"), ring.admit(f"Bearer {new}")) == ("old", "new")
    remove_key(str(file), "old")
    clock.now_s += RELOAD_S
    assert ring.admit(f"Bearer {new}") == "new" and refused(ring, f"Bearer {old}").status == 401
    file.write_text("{")
    clock.now_s += RELOAD_S
    assert ring.admit(f"Bearer {new}") == "new", "a file that cannot be read locks nobody out"
    file.unlink()
    clock.now_s += RELOAD_S
    assert ring.admit(f"Bearer {new}") == "new"


def test_every_key_has_its_own_rate(file: Path) -> None:
    clock = Clock()
    slow, fast = add_key(str(file), "slow", 0.25), add_key(str(file), "fast", 3)
    free = add_key(str(file), "free")
    ring = Keyring(file, clock)
    assert ring.admit(f"Bearer {slow}") == "slow"
    problem = refused(ring, f"Bearer {slow}")
    assert (problem.status, problem.retry_after_s) == (429, 4)
    assert [ring.admit(f"Bearer {fast}") for _ in range(3)] == ["fast"] * 3
    assert refused(ring, f"Bearer {fast}").retry_after_s == 1
    assert all(ring.admit(f"Bearer {free}") for _ in range(1000))
    clock.now_s += 1
    assert ring.admit(f"Bearer {fast}") == "fast" and refused(ring, f"Bearer {slow}").retry_after_s == 3
    clock.now_s += 3
    assert ring.admit(f"Bearer {slow}") == "slow"


def test_mistakes_in_the_file_are_named(file: Path) -> None:
    add_key(str(file), "shop")
    with pytest.raises(UsageError, match="has a key shop already"):
        add_key(str(file), "shop")
    with pytest.raises(UsageError, match=r"no key other.*one of: shop"):
        remove_key(str(file), "other")
    with pytest.raises(UsageError, match="name is 'a b'"):
        add_key(str(file), "a b")
    with pytest.raises(UsageError, match="requests_per_s is -1"):
        add_key(str(file), "late", -1)
    assert [key.name for key in read_keys(file)] == ["shop"]
    value = json.loads(file.read_text())
    for wrong, told in [
        ({"keys": value["keys"] * 2}, "shop stands twice"),
        ({"keys": [{"name": "x", "sha256": "abc"}]}, r"keys\.0\.sha256"),
        ({"keys": [], "more": 1}, "more"),
    ]:
        file.write_text(json.dumps(wrong))
        with pytest.raises(UsageError, match=told):
            read_keys(file)
    with pytest.raises(UsageError, match="No such file"):
        read_keys(file.parent / "nothing")
