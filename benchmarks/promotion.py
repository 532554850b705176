"""What clients notice while the model behind a service is exchanged, or while a bad one is refused.

Run:  .venv/bin/python benchmarks/promotion.py redeploy|bad

A service of 50,000 items (``served_shop.py``), and clients that send 50 requests a second on connections that they
keep, evenly, whatever happens. ``redeploy``: five promotions one after the other, between two bundles. ``bad``: five
bundles that must never answer: a flipped byte, weights of another shape, weights that are NaN, a tenth of the items,
and a model so deep that it takes about twice the latency budget (which is twice what the running model takes).
Each verb adds its part to ``benchmarks/results/promotion.json``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import Connections, request_bytes
from ranking import processor
from safetensors.torch import load, save
from served_shop import bodies, write_shop

from distft import cluster
from distft.deploy.checks import Limits
from distft.deploy.live import Live
from distft.deploy.promotion import deploy
from distft.errors import RefusedError
from distft.serve import server
from distft.serve.arrangement import Options, served_bundle
from distft.storage import Storage

RESULTS = Path(__file__).parent / "results" / "promotion.json"
NUM_ITEMS, RATE, TIMES, PAUSE_S = 50_000, 50.0, 5, 9
PATIENT = Limits(max_latency_s=1.0)
DEEP = 40
"""Blocks of the slow model."""


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "clients":  # the other process
        ask(int(sys.argv[2]))
        return
    measure = {"redeploy": measure_redeploy, "bad": measure_bad}.get(verb)
    if measure is None:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory(prefix="distft-bench-") as folder, cluster.connect(num_cpus=4):
        bundle = shop(folder, "first")
        port = server.free_port("127.0.0.1")
        service = server.start(bundle, "127.0.0.1", port, options=Options(state=f"{folder}/state"))
        try:
            measured = measure(folder, port, bundle)
        finally:
            service.stop()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[verb] = {"command": f"benchmarks/promotion.py {verb}", "processor": processor(), **measured}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[verb], indent=2))


def shop(folder: str, name: str, num_items: int = NUM_ITEMS, *overrides: str) -> Storage:
    return write_shop(Storage(f"{folder}/{name}"), num_items, (f"name={name}", "serve.max_replicas=1", *overrides))


class Clients:
    """Requests at a fixed rate until stdin ends; counts status and model version of each."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: Counter[tuple[int, str]] = Counter()
        self.took_s: list[float] = []

    async def ask(self) -> None:
        wanted = [request_bytes(json.dumps(body).encode()) for body in bodies(NUM_ITEMS, 100)]
        connections, began_s, tasks, number = Connections(self.port), time.perf_counter(), set(), 0
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while not ended.done():
            task = asyncio.create_task(self.one(connections, wanted[number % len(wanted)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / RATE - time.perf_counter()))
        await asyncio.gather(*tasks)
        connections.close()

    async def one(self, connections: Connections, request: bytes) -> None:
        began_s = time.perf_counter()
        status, _, body = await connections.exchange(request)
        self.took_s.append(time.perf_counter() - began_s)
        version = json.loads(body)["model_version"] if status == 200 else ""
        self.seen[status, version] += 1


def ask(port: int) -> None:
    """The process of the clients."""
    clients = Clients(port)
    asyncio.run(clients.ask())
    seen = [[status, version, count] for (status, version), count in clients.seen.items()]
    print(json.dumps({"seen": seen, "took_s": clients.took_s}))


@contextmanager
def asking(port: int) -> Iterator[dict[str, Any]]:
    """Clients in a process of their own while the block runs; what they saw, afterwards."""
    command, seen = [sys.executable, __file__, "clients", str(port)], dict[str, Any]()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield seen
    finally:
        seen |= json.loads(process.communicate("")[0])


def told(clients: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """Counts by status and by the names of the models."""
    seen, took_s = clients["seen"], clients["took_s"]
    good = {name: sum(n for _, v, n in seen if v == version) for name, version in versions.items()}
    statuses = Counter[int]()
    for status, _, count in seen:
        statuses[status] += count
    total = sum(statuses.values())
    return {
        "requests": total,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "failed": total - statuses[200],
        "answered_by": good,
        "answered_by_others": statuses[200] - sum(good.values()),
        "p50_ms": round(float(np.percentile(took_s, 50)) * 1000, 1),
        "p99_ms": round(float(np.percentile(took_s, 99)) * 1000, 1),
        "max_ms": round(max(took_s) * 1000, 1),
    }


def measure_redeploy(folder: str, port: int, first: Storage) -> dict[str, Any]:
    """Five promotions, there and back."""
    other = shop(folder, "second")
    versions = {name: served_bundle(one)[0].version for name, one in (("first", first), ("second", other))}
    seconds = []
    with asking(port) as seen:
        for number in range(TIMES):
            time.sleep(PAUSE_S)
            began_s = time.monotonic()
            deploy(other if number % 2 == 0 else first, PATIENT)
            seconds.append(round(time.monotonic() - began_s, 1))
        time.sleep(PAUSE_S)
    return {"requests_per_s": RATE, "promotions": TIMES, "seconds_of_each": seconds, **told(seen, versions)}


def measure_bad(folder: str, port: int, first: Storage) -> dict[str, Any]:
    """Five bundles that are refused."""
    version = served_bundle(first)[0].version
    live = Live()
    golden = [request.query for request in live.golden(live.application)]
    budget_s = 2 * float(np.percentile(live.time(live.application, golden * 5), 95))
    live.close()
    bad = {
        "flipped byte": (shop(folder, "flipped"), PATIENT),
        "other shape": (shop(folder, "shape"), PATIENT),
        "NaN": (shop(folder, "nan"), PATIENT),
        "90% of the items missing": (shop(folder, "few", NUM_ITEMS // 10), PATIENT),
        "twice the latency budget": (
            shop(folder, "deep", NUM_ITEMS, f"model.num_blocks={DEEP}"),
            Limits(max_latency_s=budget_s),
        ),
    }
    file = bad["flipped byte"][0].path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    changed(bad["other shape"][0], lambda weight: weight[:, :-1].contiguous())
    changed(bad["NaN"][0], lambda weight: torch.full_like(weight, torch.nan))
    reasons = {}
    with asking(port) as seen:
        for name, (bundle, limits) in bad.items():
            try:
                deploy(bundle, limits)
            except RefusedError as error:
                reasons[name] = error.what[:300]
    return {
        "requests_per_s": RATE,
        "latency_budget_ms": round(budget_s * 1000, 1),
        "refused": reasons,
        "served": len(bad) - len(reasons),
        **told(seen, {"first": version}),
    }


def changed(bundle: Storage, change: Any) -> None:
    """Another first matrix in the weights, and a manifest that says so."""
    weights = load((bundle.path / "model.safetensors").read_bytes())
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name] = change(weights[name])
    bundle.write_bytes("model.safetensors", save(weights))
    bundle.write_manifest("bundle", {}, {})


if __name__ == "__main__":
    main()
