"""Starts and stops the service for one bundle.

Enters: a bundle, an address. Leaves: a ``Service`` that has proved itself ready, or an error that says why not.
Surprising choice: the bundle is verified here before Ray Serve starts, so that a damaged file is told at once and
by name, instead of by a replica that fails again and again.

``distft.serve.app`` is imported inside the functions: Ray Serve reads its environment when it is imported, and
``cluster.connect`` sets it.
"""

from __future__ import annotations

import errno
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distft import cluster, promotions
from distft.errors import ServingError, UsageError
from distft.promotions import Attempt, bundle_at, note
from distft.serve.arrangement import Options, arranged, check_access, served_bundle
from distft.serve.golden import FILE as GOLDEN_FILE
from distft.serve.golden import read_golden
from distft.serve.tls import decrypting
from distft.storage import Storage

DEFAULT_PORT = 8000
DEFAULTS = Options()
STATE = "service"
START_TIMEOUT_S = 180.0
POLL_S = 0.25
SETTLED_S = 1.5
"""How long the service must have been ready: Ray Serve exchanges its proxy's process once more when the first replica
is up, 0.1 s after the first answer, and connections of that moment may be cut."""

ANSWER_TIMEOUT_S = 30.0

NUM_PORTS = 100
"""Ports of a service beside the one that clients know: of its proxy, and of the replicas of its ingress."""

QUIET_PORTS = range(32_100, 32_768)
"""Above those that services reserve, and below those that Linux gives to outgoing connections."""

Progress = Callable[[str, int, int], None]
"""(what is done now, steps done, steps in all)."""


@dataclass(frozen=True)
class Service:
    """A running service.

    ``bundle`` is what it serves; ``inner_url`` is where this machine reaches it, without TLS; ``folder`` holds the
    files of its HTTP proxy. ``held`` releases all that it uses.
    """

    url: str
    model_version: str
    bundle: Storage
    inner_url: str
    folder: Path = field(repr=False)
    held: ExitStack = field(repr=False)

    def stop(self) -> None:
        """Ends the service; nothing of it is left on the cluster."""
        self.held.close()

    def wait(self) -> None:
        """Blocks until the process is interrupted."""
        threading.Event().wait()

    def probe(self, key: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first golden request of the bundle, and the service's answer to it over HTTP. Raises ServingError."""
        request: dict[str, Any] = json.loads(self.bundle.read_bytes(GOLDEN_FILE).splitlines()[0])["request"]
        body, problem = _call(f"{self.inner_url}/v1/recommend", json.dumps(request).encode(), key)
        if body is None:
            raise ServingError(f"The service did not answer a golden request: {problem}")
        answer = _json(body)
        if answer.get("model_version") != self.model_version:
            raise ServingError(f"Another service answers at {self.url}: {body[:200].decode(errors='replace')}")
        return request, answer


@contextmanager
def serving(
    bundle: str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    progress: Progress | None = None,
    options: Options = DEFAULTS,
) -> Iterator[Service]:
    """Runs the block with the service of a bundle up, on an embedded Ray or the cluster of the environment."""
    check_port(host, port)
    check_access(host, options)
    place = bundle_at(bundle)
    _, job = served_bundle(place, options.trusted_key)
    arranged(job, place, options, 1)  # what can be told before Ray starts; it knows the number of nodes
    with cluster.connect(), _reachable_for_promotions(options.state):
        service = start(place, host, port, progress, options)
        try:
            yield service
        finally:
            service.stop()


def start(
    bundle: Storage,
    host: str,
    port: int,
    progress: Progress | None = None,
    options: Options = DEFAULTS,
    timeout_s: float = START_TIMEOUT_S,
) -> Service:
    """The service of a bundle, ready; Ray must be up.

    Raises ArtefactError for a damaged bundle, UsageError for a port in use, ServingError with the cause where the
    service does not become ready.
    """
    from distft.serve import app

    tell = progress or (lambda *_: None)
    tell("checking the bundle", 0, 3)
    check_port(host, port)
    check_access(host, options)
    served, job = served_bundle(bundle, options.trusted_key)
    read_golden(bundle, job.serve.max_k)
    arrangement = arranged(job, bundle, options, cluster.num_nodes())
    if app.is_running():
        raise UsageError("Ray Serve runs on this cluster already", "a cluster that serves nothing", "Stop that first.")
    tell("starting Ray Serve", 1, 3)
    with ExitStack() as undo:
        folder = Path(undo.enter_context(cluster.scratch_folder("distft-")))
        proxy = proxy_environment(folder, undo.enter_context(reserved_ports()))
        undo.callback(_shutdown)
        inner = (_ipv4(host), port) if options.tls is None else ("127.0.0.1", free_port("127.0.0.1"))
        app.deploy(served, arrangement, inner, proxy)
        tell("loading the model", 2, 3)
        url = f"{'http' if options.tls is None else 'https'}://{_reachable(host)}:{port}"
        service = Service(url, served.version, bundle, f"http://{_reachable(inner[0])}:{inner[1]}", folder, undo)
        _wait_until_ready(service, timeout_s, app.failures)
        if options.tls is not None:
            undo.enter_context(decrypting(options.tls, (_ipv4(host), port), inner[1], folder))
        if options.state is not None:
            note(Storage(options.state), Attempt(served.uri, served.version, "started"))
        tell("ready", 3, 3)
        return replace(service, held=undo.pop_all())


def default_state(bundle: str) -> str:
    """Where a service keeps its histories unless it is told: beside the bundle, or where it kept them before."""
    place = Storage(bundle)
    return place.uri if place.exists(promotions.FILE) else f"{place.uri.rpartition('/')[0]}/{STATE}"


@contextmanager
def _reachable_for_promotions(state: str | None) -> Iterator[None]:
    """Tells, while the block runs, who may read the state's folder how to reach the embedded Ray."""
    if state is None or cluster.is_remote() or not Storage(state).is_local:
        yield
        return
    way = Path(Storage(state).uri) / cluster.WAY
    way.parent.mkdir(parents=True, exist_ok=True)
    cluster.tell_way(way)
    try:
        yield
    finally:
        way.unlink(missing_ok=True)


def check_port(host: str, port: int) -> None:
    """Raises UsageError if nothing can listen there."""
    if not 1 <= port <= 65_535:  # getaddrinfo would take it modulo 65,536
        raise _unusable(host, port, "ports go from 1 to 65535")
    _bound(host, port)


def free_port(host: str) -> int:
    """A port of this machine's address where nothing listens. Raises UsageError for an address of another one.

    Not one of those that the system gives to outgoing connections, if it can be: one of these could take it before it
    is used, seconds later.
    """
    for port in random.sample(QUIET_PORTS, len(QUIET_PORTS)):
        with suppress(UsageError):
            return _bound(host, port)
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    """The port that was bound for a moment; 0 takes any free one."""
    address = _ipv4(host)
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise _unusable(host, port, error) from error


def _ipv4(host: str) -> str:
    """The address of a host in figures; ``localhost`` may have one of IPv6 too. Raises UsageError."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        if ":" not in host:
            raise _unusable(host, 0, error) from error
        raise UsageError(
            f"{host} is an address of IPv6, over which Ray Serve's proxy does not reach its replicas",
            "an address of IPv4",
            "Use --host 127.0.0.1, or --host 0.0.0.0 for all networks of this machine.",
        ) from error


def _unusable(host: str, port: int, error: OSError | str) -> UsageError:
    if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        remedy = "Choose an address of this machine with --host, such as 127.0.0.1."
        return UsageError(f"{host} cannot be listened on: {getattr(error, 'strerror', error)}", "", remedy)
    reason = getattr(error, "strerror", None) or error
    what = f"Port {port} of {host} cannot be used: {reason}"
    return UsageError(what, "a free port of this machine", "Choose another with --port.")


_PROXY_PORTS = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")


def proxy_environment(folder: Path, ports: range) -> dict[str, str]:
    """Environment that gives Ray Serve's HAProxy its own files and ports; by default two of them on a host collide.

    Worst is the port of the fallback, which answers while no replica does: two services listen on it at once, and
    either gets the other's requests. And a replica that starts anew may take the port of another service's that died.
    """
    paths = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    numbers = dict(zip(_PROXY_PORTS, ports, strict=False))
    replicas = ports[len(numbers) :]
    numbers |= {"DIRECT_INGRESS_MIN_HTTP_PORT": replicas[0], "DIRECT_INGRESS_MAX_HTTP_PORT": replicas[-1]}
    files = {f"HAPROXY_{name}": folder / file for name, file in paths.items()}
    return {f"RAY_SERVE_{name}": str(value) for name, value in {**files, **numbers}.items()}


@contextmanager
def reserved_ports() -> Iterator[range]:
    """Ports of this machine that no other service uses while the block runs.

    They lie between those of Ray's workers and those of outgoing connections. The one below them is held, which
    marks the range as taken. Raises UsageError where none is left.
    """
    for first in range(20_000, 32_000, NUM_PORTS + 1):
        with socket.socket() as mark:
            try:
                mark.bind(("127.0.0.1", first))
            except OSError:
                continue
            ports = range(first + 1, first + 1 + NUM_PORTS)
            if all(map(_is_free, ports)):
                yield ports
                return
    what = f"No {NUM_PORTS} ports in a row are free between 20000 and 32000"
    raise UsageError(what, "room for the service's proxy and replicas", "Stop other services on this machine.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _shutdown() -> None:
    from distft.serve import app

    with cluster.ending():
        app.shutdown()


def _wait_until_ready(service: Service, timeout_s: float, failures: Callable[[], dict[str, str]]) -> None:
    deadline = time.monotonic() + timeout_s
    ready_since = float("inf")
    while time.monotonic() - ready_since < SETTLED_S:
        problem = _not_ready(service)
        if problem is None:
            ready_since = min(ready_since, time.monotonic())
        else:
            ready_since = float("inf")
            for name, message in failures().items():
                raise ServingError(f"{name} did not start: {message}")
        if time.monotonic() > deadline:
            raise ServingError(
                f"The service was not ready after {timeout_s:g} s: {problem}",
                "",
                "Look whether the cluster has a free CPU for every replica of serve.min_replicas.",
            )
        time.sleep(POLL_S)


def _not_ready(service: Service) -> str | None:
    """Why the service cannot be told to be up, or None: ready is only what serves this bundle's model."""
    body, problem = _call(f"{service.inner_url}/readyz")
    if body is None:
        return problem
    if _json(body).get("model_version") == service.model_version:
        return None
    return f"another service answers at {service.url}: {body[:200].decode(errors='replace')}"


def _call(url: str, data: bytes | None = None, key: str | None = None) -> tuple[bytes | None, str]:
    """(body, "") of a GET (or of a POST of ``data``) with an API key, or (None, why there is none)."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=ANSWER_TIMEOUT_S) as response:
            return response.read(), ""
    except urllib.error.HTTPError as error:
        body = error.read()
        return None, str(_json(body).get("detail") or f"HTTP {error.code} {body[:200].decode(errors='replace')}")
    except OSError as error:
        return None, str(error)


def _json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; empty if it holds none."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _reachable(host: str) -> str:
    """The host as this machine reaches it."""
    return "127.0.0.1" if host == "0.0.0.0" else host
