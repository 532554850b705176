"""API keys: who may ask the service, and how often.

Enters: a file of keys, and the ``Authorization`` header of a request. Leaves: the name of the key, or a Problem: 401
for a key that is unknown, 429 for one that asks too often. The file holds SHA-256 hashes, never keys: a key is 256 bits
of chance, so that a slow hash would protect nothing, and cost every request. Surprising choice: the file is followed,
so that a key is added or taken away without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distft import atomic
from distft.errors import UsageError
from distft.serve.followed import Followed
from distft.serve.problems import Problem
from distft.storage import canonical_json, explained

PREFIX = "distft_"
"""Begins every key, so that scanners of source code know one that leaked."""

MAX_HEADER_CHARS = 200
BURST_S = 1.0
"""A key that was quiet may ask for so many seconds' worth at once."""


class Key(BaseModel):
    """One key as the file holds it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class KeyFile(BaseModel):
    """The file of keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    keys: list[Key]


def new_key(name: str, requests_per_s: float | None = None) -> tuple[str, Key]:
    """A key made by chance, and what a file holds of it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), requests_per_s=requests_per_s)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises UsageError saying what is wrong with it."""
    try:
        keys = KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _unusable(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None
    names = [key.name for key in keys]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise _unusable(path, f"the name {double} stands twice")
    return keys


def write_keys(path: Path, keys: list[Key]) -> None:
    """Writes the file whole, for this user alone. Raises StorageError."""
    with explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_local(path, canonical_json(KeyFile(keys=keys).model_dump(exclude_none=True)))
        os.chmod(path, 0o600)


def add_key(file: str, name: str, requests_per_s: float | None = None) -> str:
    """The new key, whose hash the file now holds. Raises UsageError for a name that is taken or no name."""
    path = Path(file)
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise UsageError(f"{file} has a key {name} already", "another name", "Or revoke that one first.")
    try:
        secret, key = new_key(name, requests_per_s)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None
    write_keys(path, [*keys, key])
    return secret


def remove_key(file: str, name: str) -> None:
    """Takes a key out of the file. Raises UsageError where it has none of this name."""
    keys = read_keys(Path(file))
    kept = [key for key in keys if key.name != name]
    if len(kept) == len(keys):
        known = ", ".join(key.name for key in keys) or "no key at all"
        raise UsageError(f"{file} has no key {name}", f"one of: {known}")
    write_keys(Path(file), kept)


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"The keys in {path} cannot be used: {reason}", "a file that 'distft keys new' made")


@dataclass
class Bucket:
    """Requests that a key may still make (a token bucket): ``rate`` more every second, never above a burst."""

    rate: float
    left: float = field(init=False)
    at_s: float = field(init=False, default=-float("inf"))

    def __post_init__(self) -> None:
        self.left = self.size

    @property
    def size(self) -> float:
        """What a key that was quiet may ask for at once."""
        return max(1.0, self.rate * BURST_S)

    def wait_s(self, now_s: float) -> float:
        """0 for a request that is allowed, and counted; else the seconds until the next one is."""
        self.left = min(self.size, self.left + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0


class Keyring:
    """The keys of a file, followed as it changes. For one thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UsageError where the file cannot be used."""
        self._keys, self._clock = Followed(path, read_keys, clock), clock
        self._buckets: dict[str, Bucket] = {}

    def admit(self, authorization: str | None) -> str:
        """The name of the key in the header. Raises Problem 401 or 429."""
        now_s = self._clock()
        scheme, _, secret = (authorization or "")[:MAX_HEADER_CHARS].partition(" ")
        digest = hashlib.sha256(secret.strip().encode()).hexdigest()
        found: Key | None = None
        for key in self._keys.value():  # all of them, each compared in constant time: how long it takes tells nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None or scheme.lower() != "bearer":
            what = "The API key is not known." if authorization else "An API key is needed."
            raise Problem(
                401, f"{what} Send it as 'Authorization: Bearer KEY'.", headers={"WWW-Authenticate": "Bearer"}
            )
        self._count(found, now_s)
        return found.name

    def _count(self, key: Key, now_s: float) -> None:
        if key.requests_per_s is None:
            return
        bucket = self._buckets.get(key.name)
        if bucket is None or bucket.rate != key.requests_per_s:
            bucket = self._buckets[key.name] = Bucket(key.requests_per_s)
        wait_s = bucket.wait_s(now_s)
        if wait_s > 0:
            what = f"The key {key.name} may ask {key.requests_per_s:g} times a second."
            raise Problem(429, what, retry_after_s=max(1, -int(-wait_s // 1)))
