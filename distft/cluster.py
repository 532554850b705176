"""The way to a Ray cluster: attaches to the one that the environment names, or starts one in this process.

The only caller of ``ray.init``. A job that was submitted to a cluster finds ``RAY_ADDRESS`` set by Ray and runs
there; anywhere else an embedded Ray is started on free ports, with token authentication on, and ended with the
block. Surprising choice: never ``address="auto"``, which may attach to somebody's cluster.
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from distft.errors import RunError, UsageError

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Environment of an embedded Ray: see docs/decisions/0007-embedded-ray.md for each."""

SERVE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "4",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": "1s",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": "500ms",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "distft.serve.guard:middlewares",
}
"""Environment of the processes of Ray Serve: see docs/decisions/0006-serving-route.md."""

OBJECT_STORE_BYTES = 512 * 1024**2
NODE_TIMEOUT_S = 120.0
"""A node that has not answered by then: the first task starts a worker and imports torch."""
LOGGING: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def is_remote() -> bool:
    """True where the environment names a cluster, as it does in a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS"))


WAY = "ray.json"
"""File that says how the Ray of a service is reached, where it is embedded."""


def tell_way(file: Path) -> None:
    """Writes where the embedded Ray of this process is and its token, for nobody but this user."""
    import ray

    token = os.environ.get("RAY_AUTH_TOKEN") or Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    value = {"address": ray.get_runtime_context().gcs_address, "token": token}
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(value, stream)


def go_way(file: Path) -> None:
    """Lets ``connect`` attach to the Ray that ``tell_way`` wrote of. Raises UsageError where none is told of."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        what = f"{file} does not say where a service runs: {getattr(error, 'strerror', None) or error}"
        remedy = "Start it with 'distft serve', give its folder with --state, or set RAY_ADDRESS."
        raise UsageError(what, "the folder of a service that is up", remedy) from error
    os.environ |= {"RAY_ADDRESS": value["address"], "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": value["token"]}


def num_nodes() -> int:
    """Nodes of the cluster that are alive; Ray must be up."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def nodes() -> dict[str, dict[str, Any]]:
    """What Ray tells of nodes that are alive, by address (with the id's beginning where two have the same)."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    return {
        node["NodeManagerAddress"]
        if addresses.count(node["NodeManagerAddress"]) == 1
        else f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node
        for node in alive
    }


def on_each(
    nodes: Mapping[str, Mapping[str, Any]],
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    timeout_s: float = NODE_TIMEOUT_S,
) -> dict[str, Any]:
    """What the function gives on each node, run there in a process of Ray's; or the text of what went wrong."""
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    waiting = {}
    for name, node in nodes.items():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
        waiting[name] = task.remote(*arguments[name])
    ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=timeout_s)
    answers: dict[str, Any] = {}
    for name, reference in waiting.items():
        try:
            answers[name] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            answers[name] = f"no answer in {timeout_s:.0f} s"
        except (ray.exceptions.RayError, ImportError) as error:
            answers[name] = str(error).strip().splitlines()[-1]
    return answers


@contextmanager
def connect(num_cpus: int | None = None) -> Iterator[dict[str, float]]:
    """Runs the block with Ray up and gives the cluster's resources; ends an embedded Ray afterwards.

    Inside another such block, or where Ray is up already, it just uses that one.
    """
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    remote = os.environ.get("RAY_ADDRESS")
    for name, value in {**QUIET, **SERVE}.items():
        os.environ.setdefault(name, value)
    with ExitStack() as undo:
        options: dict[str, Any] = {"address": remote}
        if not remote:
            if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
                # Ray would make one in the home folder, which need not be there, and use it for every cluster.
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            options = {
                "address": "local",
                "num_cpus": num_cpus,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                # Within, because Ray opens its own folder to everybody.
                "_temp_dir": os.path.join(
                    undo.enter_context(scratch_folder("distft-ray-", kept_if_failed=True)), "ray"
                ),
            }
        undo.callback(_end)
        with _interrupted_afterwards():
            try:
                ray.init(**options, **LOGGING)
            except Exception as error:  # Ray has no class of its own for it
                if "timed out during startup" not in str(error):
                    raise
                what, remedy = "Ray did not start in its time", "See what else runs here, and give the command again."
                raise RunError(what, "a machine with a processor to spare", remedy) from error
        yield ray.cluster_resources()


def _end() -> None:
    import ray

    with ending():
        ray.shutdown()


@contextmanager
def ending() -> Iterator[None]:
    """For a block that ends actors or Ray itself: nothing interrupts it, or parts of a cluster would stay.

    Ray tells of the end of actors on this process's stdout as if something had failed; nothing of that is shown.
    """
    with _on_signals(signal.SIG_IGN), redirect_stdout(io.StringIO()):
        yield


def logs_folder() -> str:
    """Where Ray writes its logs, on the machine that runs the head."""
    import ray

    return str(ray.worker.global_worker.node.get_logs_dir_path()) if ray.is_initialized() else "Ray's session folder"


_HEIR = """
import os, shutil, signal, sys, time
folder, goodbye = sys.argv[1], sys.stdin.read()

def names_it(process):
    try:
        with open(f"{process}/cmdline", "rb") as stream:
            text = stream.read()
        if folder.encode() in text or not text.startswith(b"ray::"):
            return folder.encode() in text
        return any(os.readlink(f"{process}/fd/{number}").startswith(folder) for number in os.listdir(f"{process}/fd"))
    except OSError:
        return False

def end(number):
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) != os.getpid() and names_it(f"/proc/{name}"):
            try:
                os.kill(int(name), number)
            except OSError:
                pass

if not goodbye:
    time.sleep(2)
end(signal.SIGTERM)
if not goodbye:
    time.sleep(1)
    end(signal.SIGKILL)
if goodbye != "keep":
    shutil.rmtree(folder, ignore_errors=True)
"""
"""Waits for the word, or the sudden end, of the process that started it, and ends what still names the folder on its
command line, or is of Ray and has a file of it open, then: nothing, if all went well. (Ray's agents do not name it,
and outlive a raylet that ended while they started.) It also removes the folder, unless it is told to keep it: the
process that started it may be killed while it says goodbye."""


@contextmanager
def scratch_folder(prefix: str, *, kept_if_failed: bool = False) -> Iterator[str]:
    """A folder for the block's processes, which goes with it; ``kept_if_failed`` for logs that somebody will want then.

    Nothing of it stays where this process is killed either. In /tmp, whatever TMPDIR says, because a socket's path may
    have no more than 107 characters; and only this user may enter it.
    """
    folder = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    command = [sys.executable, "-I", "-S", "-c", _HEIR, folder]
    # A session of its own, or Ctrl-C would reach it too.
    heir = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    failed = False
    try:
        yield folder
    except RunError:
        failed = kept_if_failed
        raise
    finally:
        heir.communicate(b"keep" if failed else b"goodbye")
        if not failed:  # should the heir have been killed
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data without its own progress bars, its log of plans, and the warnings that its own settings raise."""
    import ray.data

    logger = logging.getLogger("ray.data")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        logger.setLevel(logging.ERROR)
        settings = ray.data.DataContext.get_current()
        bars, settings.enable_progress_bars = settings.enable_progress_bars, False
        try:
            yield
        finally:
            settings.enable_progress_bars = bars
            logger.setLevel(level)


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect when the block has ended, which half a cluster could not; a second one at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    with _on_signals(note):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    """Handles SIGINT and SIGTERM so while the block runs, also where Ray would put its own handler of SIGTERM.

    Ray's ends the process without cleaning up, and stays when Ray has ended.
    """
    import ray._private.utils as ray_utils

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    rays, ray_utils.set_sigterm_handler = ray_utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = rays
        for number, old in before.items():
            signal.signal(number, old)
