"""Ends a trial that hangs, where its process is the training's only worker and nobody stands beside it.

Enters: signs of life of the trials' processes, once a second, through Ray's key-value store. Leaves: the end of a
process that gets no further for as long as the job allows, and a sentence about it; the trial then goes on from its
checkpoint. Surprising choice: the process tells of itself, from a thread. Nobody can ask it: Ray Tune waits inside of
its only call. A process that was stopped, or hangs in native code, tells nothing, and that is noticed alike.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import ray
import ray.exceptions
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from distft.train.nodes import outcome, started, state_then_kill
from distft.train.position import Sighting, here
from distft.train.watchdog import Watchdog

BEAT_S = 1.0
NAMESPACE = "distft-trials"


@contextmanager
def watched(key: str, timeout_s: float) -> Iterator[None]:
    """Tells under ``key`` where the training of this process stands, while the block runs in the training's thread."""
    here.restart()
    ended = threading.Event()
    thread = threading.Thread(target=_tell, args=(key, timeout_s, ended), daemon=True, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(BEAT_S)


def _tell(key: str, timeout_s: float, ended: threading.Event) -> None:
    context = ray.get_runtime_context()
    process = {"pid": os.getpid(), "node_id": context.get_node_id(), "node": ray.util.get_node_ip_address()}
    number, before, since_s = 0, (-1, -1), time.monotonic()
    while not ended.is_set():
        seen = here.look(time.monotonic() - since_s > timeout_s / 2)
        if (seen.marks, seen.beats) != before:
            before, since_s = (seen.marks, seen.beats), time.monotonic()
        number += 1
        sign = {"number": number, "process": process, "sighting": asdict(seen)}
        with suppress(ray.exceptions.RayError):  # the head may be starting anew; silence is what counts in the end
            _internal_kv_put(key, json.dumps(sign), overwrite=True, namespace=NAMESPACE)
        ended.wait(min(BEAT_S, timeout_s / 10))


class Watch:
    """Looks after the trials of one search, while it is open."""

    def __init__(self, timeout_s: float) -> None:
        self._search, self._timeout_s = uuid.uuid4().hex, timeout_s
        self._signs: dict[int, str] = {}
        self._dogs: dict[int, Watchdog] = {}
        self._looked_s = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        _internal_kv_del(f"{self._search}/", del_by_prefix=True, namespace=NAMESPACE)

    def key(self, number: int) -> str:
        """Under which a trial tells."""
        return f"{self._search}/{number}"

    def look(self, numbers: list[int]) -> Iterator[tuple[int, str]]:
        """Ends those of the running trials that hang, and gives for each its number and a sentence.

        To be called again and again; nothing happens before a trial's first sign of life.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < min(BEAT_S, self._timeout_s / 10):
            return
        self._looked_s = now_s
        for number in numbers:
            told = _internal_kv_get(self.key(number), namespace=NAMESPACE)
            if told is None:
                continue
            sign = json.loads(told)
            dog = self._dogs.get(number)
            if dog is None:
                dog = self._dogs[number] = Watchdog(self._timeout_s)
                dog.start([0], now_s)
            if told != self._signs.get(number):
                self._signs[number] = told
                dog.saw(0, Sighting(**{**sign["sighting"], "stack": tuple(sign["sighting"]["stack"])}), now_s)
                dog.asked(0, now_s)
            stall = dog.look(now_s)
            if stall is not None:
                state = outcome(started(sign["process"]["node_id"], state_then_kill, sign["process"]["pid"]))
                self.forget(number)
                yield number, _sentence(number, sign, stall.waited_s, state if stall.silent else None)

    def forget(self, number: int) -> None:
        """The process of a trial has gone, or the trial has ended: what it told means nothing any more."""
        self._dogs.pop(number, None)
        self._signs.pop(number, None)
        _internal_kv_del(self.key(number), namespace=NAMESPACE)


def _sentence(number: int, sign: dict[str, Any], waited_s: float, state: str | None) -> str:
    process, sighting = sign["process"], sign["sighting"]
    where = f"seen at step {sighting['step']} in: {sighting['phase']}"
    why = f". Its process does not answer: {state}" if state else ""
    return (
        f"Trial {number} (process {process['pid']} on {process['node']}) made no progress for {waited_s:.0f} s, last "
        f"{where}{why}"
    )
