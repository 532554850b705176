"""Clients for measuring the service: an open loop at a fixed rate, a closed loop as fast as it goes, some that leave.

Enters: an address and ready-made requests. Leaves: the status, latency and number of attempts of each. The open loop
sends a request when its time has come, whether or not earlier ones were answered, and counts latency from that time, so
that a service that stalls is not spared what it would have got meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

READ_BYTES = 1 << 16


def request_bytes(body: bytes, path: str = "/v1/recommend") -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Outcome:
    """What a run of requests came to. ``latencies_s`` by status; status 0: no answer."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    retries: int = 0
    retry_after: int = 0
    seconds: float = 0.0

    def add(self, status: int, latency_s: float) -> None:
        self.latencies_s.setdefault(status, []).append(latency_s)

    def summary(self) -> dict[str, Any]:
        """Counts, and percentiles of the answers with status 200, in milliseconds."""
        good = np.array(self.latencies_s.get(200, [0.0])) * 1000
        statuses = Counter({status: len(some) for status, some in self.latencies_s.items()})
        return {
            "seconds": round(self.seconds, 1),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "answers_per_s": round(statuses[200] / self.seconds, 1),
            "p50_ms": round(float(np.percentile(good, 50)), 2),
            "p99_ms": round(float(np.percentile(good, 99)), 2),
            "max_ms": round(float(good.max()), 2),
            "with_retry_after": self.retry_after,
            "retries": self.retries,
        }


class Connections:
    """Connections that are kept for the next request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> tuple[int, bool]:
        """(status, does it have Retry-After); status 0 if the connection broke."""
        status, has_retry_after, _ = await self.exchange(request)
        return status, has_retry_after

    async def exchange(self, request: bytes) -> tuple[int, bool, bytes]:
        """(status, does it have Retry-After, body); status 0 if the connection broke."""
        writer = None
        try:
            kept = bool(self.idle)
            reader, writer = self.idle.pop() if kept else await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if b"connection: close" in head:
                writer.close()
            else:
                self.idle.append((reader, writer))
            return int(head.split(b" ", 2)[1]), b"retry-after:" in head, body
        except (OSError, asyncio.IncompleteReadError, IndexError):
            if writer is not None:
                writer.close()
            return 0, False, b""

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


async def open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, max_retries: int = 0, wait_s: float = 0.0
) -> Outcome:
    """``rate`` requests a second, evenly. What is not answered is tried again after ``wait_s`` or Retry-After."""
    outcome, connections = Outcome(), Connections(port)
    started_s = time.perf_counter()

    async def one(due_s: float, request: bytes) -> None:
        for attempt in range(max_retries + 1):
            status, has_retry_after = await connections.ask(request)
            outcome.retry_after += has_retry_after
            if status == 200 or attempt == max_retries:
                break
            outcome.retries += 1
            await asyncio.sleep(1.0 if has_retry_after else wait_s)
        outcome.add(status, time.perf_counter() - due_s)

    tasks = []
    for number in range(int(rate * seconds)):
        due_s = started_s + number / rate
        pause_s = due_s - time.perf_counter()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        elif number % 16 == 0:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(due_s, requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    outcome.seconds = time.perf_counter() - started_s
    connections.close()
    return outcome


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> Outcome:
    """As many requests as ``clients`` get answered, each sending the next when it has its answer."""
    outcome, connections = Outcome(), Connections(port)
    started_s = time.perf_counter()

    async def client(number: int) -> None:
        chosen = random.Random(number)
        while time.perf_counter() - started_s < seconds:
            sent_s = time.perf_counter()
            status, has_retry_after = await connections.ask(chosen.choice(requests))
            outcome.retry_after += has_retry_after
            outcome.add(status, time.perf_counter() - sent_s)

    await asyncio.gather(*(client(number) for number in range(clients)))
    outcome.seconds = time.perf_counter() - started_s
    connections.close()
    return outcome


async def leave(port: int, requests: list[bytes], stay_s: float) -> None:
    """Sends every request at once on a connection of its own, and hangs up after ``stay_s``."""

    async def client(request: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await asyncio.sleep(stay_s)
        writer.transport.abort()

    await asyncio.gather(*map(client, requests))
