"""What the service stands: its speed beside the same model without Ray, overload, kills, bursts, clients that leave.

Run:  .venv/bin/python benchmarks/serving.py speed|kills|controller|burst|overload|leave

An untrained model of 64 dimensions ranks 50,000 items for histories of 50 events, k = 10 (``served_shop.py``). Clients
run on the same cores. ``speed``: closed loops of wrk against the service with one replica and against ``PlainServer``:
the same predictor and batching behind FastAPI and uvicorn in one process; half of what each reached is then sent
evenly. ``leave``: 200 clients ask at once among a million items, and all hang up after a moment; their work is the CPU
time of the model's process, against that of the same requests when everybody stays. Each verb adds its part to
``benchmarks/results/serving.json``.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from load import Outcome, closed_loop, leave, open_loop, request_bytes
from ranking import processor
from served_shop import bodies, write_shop

from distft import cluster
from distft.serve import server
from distft.storage import Storage

RESULTS = Path(__file__).parent / "results" / "serving.json"
NUM_ITEMS = 50_000
NUM_REQUESTS = 200
CLIENTS = 64
CROWD = 14
"""Clients that need three replicas, where ``target_ongoing_requests`` is 4; the interface lets 10 in at least."""
SECONDS = 10


def main() -> None:
    verb, *rest = sys.argv[1:] or [""]
    if verb == "plain":  # the other process of ``speed``
        plain_server(*rest)
        return
    measure = globals().get(f"measure_{verb}")
    if measure is None:
        raise SystemExit(__doc__)
    measured = measure()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    busy = {"processor": processor(), "load_before": round(LOAD_BEFORE, 2)}
    results[verb] = {"command": f"benchmarks/serving.py {verb}", **busy, **measured}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[verb], indent=2))


LOAD_BEFORE = os.getloadavg()[0]


def requests(num_items: int = NUM_ITEMS) -> list[bytes]:
    return [request_bytes(json.dumps(body).encode()) for body in bodies(num_items, NUM_REQUESTS)]


@contextmanager
def served(overrides: Sequence[str] = (), num_items: int = NUM_ITEMS, cpus: int = 4) -> Iterator[server.Service]:
    """The service of a made-up shop on an embedded Ray that counts ``cpus``, however many there are."""
    with tempfile.TemporaryDirectory(prefix="distft-bench-") as folder:
        bundle = write_shop(Storage(folder), num_items, tuple(overrides))
        with cluster.connect(num_cpus=cpus):
            service = server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"))
            try:
                yield service
            finally:
                service.stop()


def port_of(service: server.Service) -> int:
    return int(service.url.rsplit(":", 1)[1])


def run_wrk(port: int, clients: int, seconds: int) -> dict[str, Any]:
    """Wrk sends the ready-made bodies, one after the other, on ``clients`` connections."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        lines = [json.dumps(json.dumps(body)) for body in bodies(NUM_ITEMS, NUM_REQUESTS)]
        script.write("local bodies = {" + ",\n".join(lines) + "}\nlocal i = 0\n")
        script.write('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n')
        script.write("request = function() i = i % #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end\n")
        script.write(
            'done = function(s, l, r) io.write(string.format("{\\"answers\\": %d, \\"us\\": %d, \\"p50_us\\": %d,'
            ' \\"p99_us\\": %d, \\"bad\\": %d}", s.requests, s.duration, l:percentile(50), l:percentile(99),'
            " s.errors.status + s.errors.timeout + s.errors.connect + s.errors.read)) end\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", script.name]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v1/recommend"], capture_output=True, text=True, check=True
        )
    told = json.loads(done.stdout[done.stdout.index('{"answers"') :])
    return {
        "clients": clients,
        "answers_per_s": round(told["answers"] / told["us"] * 1e6, 1),
        "p50_ms": round(told["p50_us"] / 1000, 2),
        "p99_ms": round(told["p99_us"] / 1000, 2),
        "not_200": told["bad"],
    }


def plain_server(bundle: str, port: str) -> None:
    """The same interface, predictor and batching in one process, without Ray."""
    import torch
    import uvicorn

    from distft.serve.api import build_api
    from distft.serve.batching import Batcher
    from distft.serve.predictor import Accepted, Predictor, Query, Recommendation

    torch.set_num_threads(1)
    predictor = Predictor.load(Storage(bundle))
    settings = predictor.job.serve
    batcher = Batcher[Accepted, Recommendation](predictor.answer, settings.max_batch_size, settings.batch_wait_s, 1024)

    class PlainServer:
        async def recommend(self, query: Query) -> Recommendation:
            return await batcher.ask(predictor.accept(query))

        async def describe(self) -> dict[str, Any]:
            return predictor.describe()

        async def ready(self) -> str:
            return predictor.version

    uvicorn.run(build_api(PlainServer()), host="127.0.0.1", port=int(port), log_level="warning")


@contextmanager
def plainly_served(bundle: Storage) -> Iterator[int]:
    port = server.free_port("127.0.0.1")
    command = [sys.executable, __file__, "plain", bundle.uri, str(port)]
    with subprocess.Popen(command) as process:
        try:
            deadline_s = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.2)
            yield port
        finally:
            process.terminate()


def measure_speed() -> dict[str, Any]:
    with served(("serve.max_replicas=1",)) as service:
        with plainly_served(service.bundle) as plain_port:
            ports = {"ray_serve": port_of(service), "plain": plain_port}
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
            for port in ports.values():
                run_wrk(port, CLIENTS, 4)
            for _ in range(3):  # in turns, so that both meet the same machine
                for name, port in ports.items():
                    rounds[name].append(run_wrk(port, CLIENTS, SECONDS))
            best = {name: statistics.median(one["answers_per_s"] for one in some) for name, some in rounds.items()}
            half = min(best.values()) / 2
            even: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
            for _ in range(3):
                for name, port in ports.items():
                    even[name].append(asyncio.run(open_loop(port, requests(), half, SECONDS)).summary())
    p99 = {name: statistics.median(one["p99_ms"] for one in some) for name, some in even.items()}
    return {
        "answers_per_s": best,
        "share_of_plain": round(best["ray_serve"] / best["plain"], 3),
        "half_load_per_s": round(half, 1),
        "half_load_p99_ms": p99,
        "p99_added_ms": round(p99["ray_serve"] - p99["plain"], 2),
        "rounds": rounds,
        "half_load_rounds": even,
    }


def measure_overload() -> dict[str, Any]:
    """Half of what it can do, five times what it can do, and half again."""
    with served(("serve.max_replicas=1",)) as service:
        port, wanted = port_of(service), requests()
        asyncio.run(closed_loop(port, wanted, 32, 4))
        reached = asyncio.run(closed_loop(port, wanted, 32, 10)).summary()["answers_per_s"]
        before = replicas(service)
        half = asyncio.run(open_loop(port, wanted, reached / 2, 15)).summary()
        overload = asyncio.run(open_loop(port, wanted, reached * 5, 60)).summary()
        after = asyncio.run(open_loop(port, wanted, reached / 2, 15)).summary()
        restarts = len(set(before) - set(replicas(service)))
    turned_away = sum(count for status, count in overload["statuses"].items() if status in ("429", "503"))
    return {
        "reached_per_s": reached,
        "half_load": half,
        "five_times": overload,
        "half_load_afterwards": after,
        "p99_of_accepted_against_half_load": round(overload["p99_ms"] / half["p99_ms"], 2),
        "turned_away": turned_away,
        "of_these_with_retry_after": overload["with_retry_after"],
        "restarts": restarts,
    }


def replicas(service: server.Service, name: str = "") -> list[int]:
    """Process ids of the service's replicas whose name contains ``name``."""
    children = psutil.Process().children(recursive=True)
    found = []
    for child in children:
        try:
            text = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "ray::ServeReplica:" in text and name in text:
            found.append(child.pid)
    return found


class ProxyRetries(threading.Thread):
    """Counts the requests that the proxy in front of the service sends again because who had them has died.

    It starts anew, and counts anew, whenever its servers change; so it is asked all the time.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop, self.seen = stop, 0
        (self.socket,) = {
            Path(word).with_name("admin.sock")
            for child in psutil.Process().children(recursive=True)
            if "haproxy" in child.name()
            for word in child.cmdline()
            if word.endswith("haproxy.cfg")
        }

    def run(self) -> None:
        before = 0
        while not self.stop.wait(0.05):
            try:
                now = self.told()
            except OSError:  # between two of its processes
                continue
            self.seen += now - before if now >= before else now
            before = now

    def told(self) -> int:
        """The sum over backends of what the proxy says now."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.socket))
            line.sendall(b"show stat\n")
            answer = b"".join(iter(partial(line.recv, 1 << 16), b"")).decode()
        rows = csv.DictReader(answer.removeprefix("# ").splitlines())
        return sum(int(row["wretr"] or 0) + int(row["wredis"] or 0) for row in rows if row["svname"] == "BACKEND")


def measure_kills() -> dict[str, Any]:
    """A replica of the model or of the ingress is killed every 10 s, while clients that retry twice go on."""
    overrides = ("serve.min_replicas=2", "serve.max_replicas=2", "serve.num_ingress_replicas=2")
    with served(overrides) as service:
        wait_for_replicas(service, 2, 60)
        stop, back_s = threading.Event(), list[float]()

        def kill() -> None:
            names = ("ServeReplica:model-", "ServeReplica:ingress")
            for number in range(12):
                if stop.wait(10 if number else 5):
                    return
                running = replicas(service, names[number % 2])
                os.kill(running[0], signal.SIGKILL)
                killed_s = time.perf_counter()
                while len(set(replicas(service, names[number % 2])) - {running[0]}) < 2 and not stop.wait(0.05):
                    pass
                back_s.append(round(time.perf_counter() - killed_s, 2))

        killer, proxy = threading.Thread(target=kill), ProxyRetries(stop)
        killer.start()
        proxy.start()
        outcome = asyncio.run(open_loop(port_of(service), requests(), 50, 120, max_retries=2, wait_s=0.2))
        stop.set()
        killer.join()
        proxy.join()
    return {"kills": len(back_s), "process_back_s": back_s, "retries_by_the_proxy": proxy.seen, **failed(outcome)}


def wait_for_replicas(service: server.Service, number: int, timeout_s: float) -> float:
    """Seconds until so many replicas of the model run, as Ray Serve tells."""
    from ray import serve

    started_s = time.perf_counter()
    while True:
        application = serve.status().applications[f"model-{service.model_version}"]
        if application.deployments["model"].replica_states.get("RUNNING", 0) == number:
            return round(time.perf_counter() - started_s, 2)
        if time.perf_counter() - started_s > timeout_s:
            raise SystemExit(f"not {number} replicas after {timeout_s} s: {application}")
        time.sleep(0.1)


def failed(outcome: Outcome) -> dict[str, Any]:
    summary = outcome.summary()
    failures = sum(count for status, count in summary["statuses"].items() if status != "200")
    return {"failed": failures, **summary}


def measure_controller() -> dict[str, Any]:
    """Ray Serve's controller is killed while 50 requests a second come in."""
    with served(("serve.max_replicas=1",)) as service:
        children = psutil.Process().children(recursive=True)
        (controller,) = [one for one in children if "ray::ServeController" in " ".join(one.cmdline())]

        def kill() -> None:
            controller.kill()

        timer = threading.Timer(5, kill)
        timer.start()
        outcome = asyncio.run(open_loop(port_of(service), requests(), 50, 40))
        timer.join()
    return failed(outcome)


def measure_burst() -> dict[str, Any]:
    """One replica, a crowd that needs three, and calm again."""
    overrides = (
        "serve.max_replicas=3", "serve.target_ongoing_requests=4", "serve.max_batch_size=8",
        "serve.upscale_delay_s=2", "serve.downscale_delay_s=5",
    )  # fmt: skip
    with served(overrides) as service:
        port, wanted, seen = port_of(service), requests(), list[tuple[float, int]]()
        stop, started_s = threading.Event(), time.perf_counter()

        def watch() -> None:
            while not stop.wait(0.25):
                number = len(replicas(service, "ServeReplica:model-"))
                if not seen or seen[-1][1] != number:
                    seen.append((round(time.perf_counter() - started_s, 1), number))

        watcher = threading.Thread(target=watch)
        watcher.start()
        phases = [(30.0, 5), (0.0, 45), (30.0, 40)]
        outcomes = []
        for rate, seconds in phases:
            if rate:
                outcomes.append(failed(asyncio.run(open_loop(port, wanted, rate, seconds))))
            else:
                outcomes.append(failed(asyncio.run(closed_loop(port, wanted, CROWD, seconds))))
        stop.set()
        watcher.join()
    return {
        "phases": [
            f"{rate:g}/s for {seconds} s" if rate else f"{CROWD} clients for {seconds} s" for rate, seconds in phases
        ],
        "replicas_at_s": seen,
        "failed": sum(one["failed"] for one in outcomes),
        "outcomes": outcomes,
    }


LEAVING = 200
STAY_S = 0.3
MANY_ITEMS = 1_000_000


def measure_leave() -> dict[str, Any]:
    """What the model still computes for clients that have gone."""
    # A replica takes as many as ask at once, so that what is measured is not what was turned away.
    overrides = ("serve.max_replicas=1", "serve.target_ongoing_requests=200", "serve.request_timeout_s=60")
    rounds = []
    with served(overrides, MANY_ITEMS) as service:
        port = port_of(service)
        (pid,) = replicas(service, "ServeReplica:model-")
        model = psutil.Process(pid)
        wanted = [request_bytes(json.dumps(body).encode()) for body in bodies(MANY_ITEMS, LEAVING)]
        asyncio.run(closed_loop(port, wanted, 16, 5))  # warm
        for _ in range(3):
            begun_s = cpu_s(model)
            stayed = asyncio.run(open_loop(port, wanted, 1e6, LEAVING / 1e6)).summary()
            whole_s = cpu_s(model) - begun_s
            time.sleep(2)
            begun_s = cpu_s(model)
            asyncio.run(leave(port, wanted, STAY_S))
            until_left_s = cpu_s(model) - begun_s
            time.sleep(1)
            second_s = cpu_s(model)
            time.sleep(9)
            later_s, idle_from_s = cpu_s(model) - second_s, cpu_s(model)
            time.sleep(9)  # what it takes to be asked for its health and its figures
            later_s = max(0.0, later_s - (cpu_s(model) - idle_from_s))
            shown = {
                "stayed": stayed["statuses"],
                "whole_cpu_s": whole_s,
                "until_left_cpu_s": until_left_s,
                "later_than_a_second_cpu_s": later_s,
                "stopped_share": 1 - later_s / (whole_s - until_left_s),
            }
            rounds.append({key: round(value, 3) if isinstance(value, float) else value for key, value in shown.items()})
    return {"items": MANY_ITEMS, "clients": LEAVING, "stay_s": STAY_S, "rounds": rounds}


def cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU that a process took so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
