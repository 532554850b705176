"""Real history stores for tests: a SQLite file, and a Redis server of this machine's own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from distft.data.encode import RawEvent
from distft.serve.server import free_port


def view(item: int | str, time_ms: int, event: str = "view") -> RawEvent:
    return RawEvent(f"i{item}", event, time_ms)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a server on loopback that writes every change to ``folder``; skips where Debian's is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt install redis-server)")
    port = free_port("127.0.0.1")
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    with subprocess.Popen([program, *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL) as process:
        try:
            url = f"redis://127.0.0.1:{port}/0"
            with redis.Redis.from_url(url) as client:
                _wait_for(client)
            yield url
        finally:
            process.kill()


def _wait_for(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)
