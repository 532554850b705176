"""SIGKILL of the process that keeps histories, at any moment: what it accepted is kept, and in the log once.

With Redis another service goes on writing meanwhile, as while one takes over from the other.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from distft.serve.histories import Histories, Keeping
from tests.serve.stores import redis_server

pytestmark = pytest.mark.proof

NUM_KILLS = 12

WRITER = """
import asyncio, sys
from distft.data.encode import RawEvent
from distft.serve.histories import Histories, Keeping

async def write(first, keeping):
    histories = Histories(keeping, flush_s=0.01)
    print("ready", flush=True)
    async def client(number):
        at = first
        while True:
            at += 1
            await histories.add(f"u{number}", [RawEvent(f"i{at}", "view", at)])
            print(number, at, flush=True)
            if number == 0 and at % 7 == 0:
                print("gone", at, await histories.forget("gone"), flush=True)
            if number == 1 and at % 5 == 0:
                await histories.add("gone", [RawEvent("i1", "view", at)])
    await asyncio.gather(*(client(number) for number in range(4)))

asyncio.run(write(int(sys.argv[1]), Keeping(sys.argv[2], sys.argv[3], "shop", 100_000)))
"""


def writer(first: int, keeping: Keeping) -> subprocess.Popen[str]:
    """A service that accepts events until it is killed, once it has begun."""
    command = [sys.executable, "-c", WRITER, str(first), keeping.store, keeping.state]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def accepted_until_killed(process: subprocess.Popen[str], wanted: int) -> list[tuple[int, int]]:
    """(client, event) of all that was accepted before the process was killed, after so many lines."""
    with process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(wanted)]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [(int(line[0]), int(line[1])) for line in whole if line and line[0] != "gone"]


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_nothing_accepted_is_lost_or_told_twice(kind: str, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with ExitStack() as running:
        store = kind if kind == "embedded" else running.enter_context(redis_server(tmp_path / "server"))
        kill_again_and_again(Keeping(store, str(tmp_path / "state"), "shop", 100_000))


def kill_again_and_again(keeping: Keeping) -> None:
    draw = random.Random(3)
    accepted: list[tuple[int, int]] = []
    other = writer(500_000, keeping) if keeping.store != "embedded" else None
    for number in range(NUM_KILLS):
        accepted += accepted_until_killed(writer(1_000 * number, keeping), draw.randrange(1, 120))
    assert len(accepted) > 10 * NUM_KILLS
    if other is not None:
        theirs = accepted_until_killed(other, 1)
        assert len(theirs) > 10 * NUM_KILLS
        accepted += theirs

    async def found() -> dict[int, list[int | None]]:
        histories = Histories(keeping)
        await histories.forget("gone")
        kept = {number: [event.time_ms for event in await histories.events(f"u{number}")] for number in range(4)}
        await histories.close()
        return kept

    kept = asyncio.run(found())
    for number, at in accepted:
        assert at in kept[number]
    files = sorted((Path(keeping.state) / "log").glob("*.jsonl"))
    logged = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    times = Counter((line["user_id"], line["timestamp"]) for line in logged)
    assert set(times.values()) == {1}
    assert set(times) == {(f"u{number}", at) for number, every in kept.items() for at in every}
