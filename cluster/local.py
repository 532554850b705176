"""A Ray cluster of several nodes on one machine, to try out what one node cannot show.

Enters: how many nodes, of how many CPUs. Leaves: a cluster that asks for a token, until the block ends. With root each
node has a network namespace, and so an address and an interface of its own, on a bridge; without, the nodes are
processes that share the machine's loopback. Surprising choice: nothing is written down for the clean-up. A bridge
carries its owner's process in its alias, namespaces carry the bridge's number, and what runs in them is ours: a start
removes what owners that are gone have left. Processes are ended by their ids, never by ``ray stop``.

    .venv/bin/python cluster/local.py --nodes 2 --env cluster.env
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distft import cluster
from distft.errors import EXIT_INTERRUPTED, RunError, UsageError

BRIDGE = "distft"
"""Interfaces of this name and a number: the number is also that of the network 198.18.NUMBER.0/24 (RFC 2544: for
tests, routed nowhere), and part of the names of its namespaces."""
CABLE = "dft"
"""The bridge's ends of its cables: this, the number and the node's name, which has to be short."""
SETTINGS = Path("/etc/netns")
"""What lies here in a folder of a namespace's name stands there in the place of the files in /etc: ``man ip-netns``."""
NUM_NETWORKS = 200
LOCK = "/run"
"""A folder that is always there: its lock lets one process at a time make or remove networks."""
GCS_PORT, DASHBOARD_PORT = 6379, 8265
OBJECT_STORE_BYTES = 100 * 10**6
START_TIMEOUT_S, END_TIMEOUT_S = 90.0, 20.0


@dataclass
class Node:
    """One Ray node. ``namespace`` and ``link`` (the bridge's end of its cable) are empty where it is but processes."""

    name: str
    ip: str
    folder: Path
    namespace: str = ""
    link: str = ""

    def inside(self, command: list[str]) -> list[str]:
        """The command, to be run on this node."""
        return ["ip", "netns", "exec", self.namespace, *command] if self.namespace else command

    def pids(self) -> list[int]:
        """Ids of all processes that run on this node."""
        if self.namespace:
            return namespace_pids(self.namespace)
        return [pid for pid in _processes() if _names(pid, str(self.folder))]

    def pid_of(self, program: str) -> int | None:
        """The process of this node that runs Ray's ``raylet`` or ``gcs_server``."""
        return next((pid for pid in self.pids() if os.path.basename(_program(pid)) == program), None)

    def kill(self) -> None:
        """SIGKILL for all of its processes at once, as if its power failed."""
        _end(self.pids)


@dataclass
class LocalCluster:
    """A head that runs no work, and nodes that do; made by ``local_cluster``."""

    head: Node
    token: str
    folder: Path
    num_cpus: int
    network: int | None
    gcs_port: int = GCS_PORT
    dashboard_port: int = DASHBOARD_PORT
    nodes: list[Node] = field(default_factory=list)
    started: int = 0
    _gcs: tuple[list[str], dict[str, str]] | None = None
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where Ray's processes find the head."""
        return f"{self.head.ip}:{self.gcs_port}"

    @property
    def url(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head.ip}:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment must hold."""
        return {"RAY_API_SERVER_ADDRESS": self.url, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add_node(self) -> Node:
        """One more node, up. Raises RunError."""
        self.started += 1
        node = _placed(f"n{self.started}", self.started + 2, self.network, self.folder)
        self.nodes.append(node)
        arguments = [f"--address={self.address}", f"--num-cpus={self.num_cpus}"]
        self._start(node, arguments)
        return node

    def remove(self, node: Node) -> None:
        """Ends a node, and takes its cable and its address away."""
        node.kill()
        self.nodes.remove(node)
        if node.namespace:
            _ip("link", "del", node.link)
            _delete(node.namespace)
        shutil.rmtree(node.folder, ignore_errors=True)

    def cut(self, node: Node) -> None:
        """Pulls a node's cable: packets are lost from now on, and no connection is closed."""
        _ip("link", "set", node.link, "down")

    def mend(self, node: Node) -> None:
        """Plugs it in again."""
        _ip("link", "set", node.link, "up")

    def kill_gcs(self) -> None:
        """SIGKILL for the head's GCS, the cluster's memory."""
        pid = self.head.pid_of("gcs_server")
        assert pid is not None, "there is none"
        self._gcs = (_words(pid, "cmdline"), dict(word.split("=", 1) for word in _words(pid, "environ") if "=" in word))
        os.kill(pid, signal.SIGKILL)

    def start_gcs(self) -> None:
        """Starts the GCS again with the same command; it reads what it had stored."""
        assert self._gcs is not None, "kill_gcs comes before"
        command, environment = self._gcs
        quiet: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        started = subprocess.Popen(self.head.inside(command), env=environment, start_new_session=True, **quiet)
        self._children.append(started)

    def start_head(self) -> None:
        """Brings the head up. Raises RunError."""
        where = ["--dashboard-host=0.0.0.0", f"--dashboard-port={self.dashboard_port}", f"--port={self.gcs_port}"]
        self._start(self.head, ["--head", "--num-cpus=0", *where])

    def _start(self, node: Node, arguments: list[str]) -> None:
        node.folder.mkdir()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--disable-usage-stats", *arguments]
        command += [f"--node-ip-address={node.ip}", f"--temp-dir={node.folder}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-gpus=0"]
        with (node.folder / "start.txt").open("wb") as said:
            quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
            try:
                code = subprocess.run(
                    node.inside(command), env=self._node_environment(), timeout=START_TIMEOUT_S, check=False, **quiet
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            text = (node.folder / "start.txt").read_text(errors="replace")[-2000:]
            raise RunError(f"The node {node.name} did not start: {text}")

    def _node_environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mine["PATH"] = f"{Path(sys.executable).parent}:{mine.get('PATH', os.defpath)}"
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        # Without a store of its own a GCS that ends takes the whole cluster with it.
        store = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.folder / "gcs")}
        return {**mine, **cluster.QUIET, **cluster.SERVE, **ours, **store}

    def keep(self, replace_after_s: float | None, poll_s: float = 0.5) -> None:
        """Replaces nodes, and starts the GCS again, so long after they have died; until interrupted."""
        missed_s: dict[str, float] = {}
        while True:
            time.sleep(poll_s)
            if replace_after_s is None:
                continue
            gone = [node for node in self.nodes if node.pid_of("raylet") is None]
            now_s = time.monotonic()
            for node in gone:
                if now_s - missed_s.setdefault(node.name, now_s) >= replace_after_s:
                    self.remove(node)
                    self.add_node()
            self._keep_gcs(missed_s, now_s, replace_after_s)

    def _keep_gcs(self, missed_s: dict[str, float], now_s: float, replace_after_s: float) -> None:
        pid = self.head.pid_of("gcs_server")
        if pid is not None:
            missed_s.pop("gcs", None)
            with suppress(OSError):
                environment = dict(word.split("=", 1) for word in _words(pid, "environ") if "=" in word)
                self._gcs = (_words(pid, "cmdline"), environment)
        elif now_s - missed_s.setdefault("gcs", now_s) >= replace_after_s:
            self.start_gcs()
            missed_s.pop("gcs")


@contextmanager
def local_cluster(num_nodes: int, num_cpus: int = 1, namespaces: bool | None = None) -> Iterator[LocalCluster]:
    """Runs the block with a head and so many nodes up; nothing of them is left afterwards.

    ``namespaces``: None for where this user can make them. Raises UsageError, RunError.
    """
    wanted = can_make_namespaces() if namespaces is None else namespaces
    with ExitStack() as undo:
        folder = Path(undo.enter_context(cluster.scratch_folder("distft-net-")))
        network = undo.enter_context(_network()) if wanted else None
        head = _placed("head", 2, network, folder)
        made = LocalCluster(head, secrets.token_hex(32), folder, num_cpus, network)
        if network is None:
            made.gcs_port, made.dashboard_port = _free_port(), _free_port()
        undo.callback(_end_all, made)
        made.start_head()
        for _ in range(num_nodes):
            made.add_node()
        yield made


def can_make_namespaces() -> bool:
    """True for root on a machine with the command ``ip``, where that may make a namespace."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    probe = f"{BRIDGE}-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", probe)
    return made


def _end_all(made: LocalCluster) -> None:
    _end(lambda: [pid for node in (made.head, *made.nodes) for pid in node.pids()])
    for child in made._children:
        child.wait()


# -- networks ----------------------------------------------------------------------------------------------


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _network() -> Iterator[int]:
    """A bridge for this process, with the address 198.18.NUMBER.1; gives the number."""
    with _one_at_a_time():
        _sweep()
        network = next((number for number in range(NUM_NETWORKS) if _claim(number)), None)
    if network is None:
        raise UsageError(f"All {NUM_NETWORKS} networks are in use", "", "End other local clusters.")
    try:
        _ip("addr", "add", f"198.18.{network}.1/24", "dev", f"{BRIDGE}{network}")
        _ip("link", "set", f"{BRIDGE}{network}", "up")
        yield network
    finally:
        with _one_at_a_time():
            _remove(network)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    lock = os.open(LOCK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _claim(number: int) -> bool:
    name = f"{BRIDGE}{number}"
    if os.path.exists(f"/sys/class/net/{name}"):
        return False
    _ip("link", "add", name, "type", "bridge")
    _ip("link", "set", name, "alias", _identity(os.getpid()))
    return True


def _sweep() -> None:
    """Removes the networks whose owner is gone; one without an owner was killed as it made it."""
    bridges = {name for name in os.listdir("/sys/class/net") if name.removeprefix(BRIDGE).isdigit()}
    spaces = {name.split("-")[0] for name in _namespaces() if name.partition("-")[0].removeprefix(BRIDGE).isdigit()}
    cables = {name.split("-")[0].removeprefix(CABLE) for name in os.listdir("/sys/class/net") if name.startswith(CABLE)}
    kept = {path.name.split("-")[0].removeprefix(BRIDGE) for path in SETTINGS.glob(f"{BRIDGE}*-*")}
    for name in bridges | spaces | {f"{BRIDGE}{number}" for number in cables | kept if number.isdigit()}:
        alias = Path(f"/sys/class/net/{name}/ifalias")
        owner = alias.read_text().strip() if alias.exists() else ""
        pid = owner.split("-")[0]
        if not pid or _identity(int(pid)) != owner:
            _remove(int(name.removeprefix(BRIDGE)))


def _remove(number: int) -> None:
    """Ends what runs in the namespaces of a network, and removes them, and it.

    The cables go by themselves with their namespace, but that lives on while a connection waits for its other end,
    which nobody will hear of any more: up to a quarter of an hour. So they are taken away first.
    """
    spaces = [name for name in _namespaces() if name.startswith(f"{BRIDGE}{number}-")]
    for name in spaces:
        _end(lambda name=name: namespace_pids(name))  # type: ignore[misc]
    for link in os.listdir("/sys/class/net"):
        if link.startswith(f"{CABLE}{number}-"):
            _ip("link", "del", link)
    for name in {*spaces, *(path.name for path in SETTINGS.glob(f"{BRIDGE}{number}-*"))}:
        _delete(name)
    if os.path.exists(f"/sys/class/net/{BRIDGE}{number}"):
        _ip("link", "del", f"{BRIDGE}{number}")


def _delete(namespace: str) -> None:
    if namespace in _namespaces():
        _ip("netns", "del", namespace)
    shutil.rmtree(SETTINGS / namespace, ignore_errors=True)
    with suppress(OSError):  # others have settings there
        SETTINGS.rmdir()


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def namespace_pids(namespace: str) -> list[int]:
    """Ids of the processes in a namespace; none if it is gone."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def _placed(name: str, place: int, network: int | None, folder: Path) -> Node:
    """A node's namespace with its interface ``eth0`` at 198.18.NETWORK.PLACE, and nothing running in it yet."""
    if network is None:
        return Node(name, "127.0.0.1", folder / name)
    address, space = f"198.18.{network}.{place}", f"{BRIDGE}{network}-{name}"
    node = Node(name, address, folder / name, space, f"{CABLE}{network}-{name}")
    inside = ("-n", node.namespace)
    _ip("netns", "add", node.namespace)
    # No name server is reached from there, and torch looks up the name of every peer: twenty seconds of a training's
    # start would be waiting for an answer. One that refuses is as good as none, and says so at once.
    (SETTINGS / node.namespace).mkdir(parents=True, exist_ok=True)
    (SETTINGS / node.namespace / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    _ip("link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    _ip("link", "set", node.link, "master", f"{BRIDGE}{network}", "up")
    _ip(*inside, "addr", "add", f"{node.ip}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "route", "add", "default", "via", f"198.18.{network}.1")
    return node


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- processes ---------------------------------------------------------------------------------------------


def _identity(pid: int) -> str:
    """A process, told from a later one of the same id by when it began; empty if it is gone."""
    try:
        return f"{pid}-{Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[19]}"
    except (OSError, IndexError):
        return ""


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _words(pid: int, what: str) -> list[str]:
    return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace").rstrip("\0").split("\0")


def _program(pid: int) -> str:
    try:
        return _words(pid, "cmdline")[0]
    except OSError:
        return ""


def _names(pid: int, folder: str) -> bool:
    """True for a process of Ray that names the folder on its command line, or has a file of it open."""
    try:
        words = _words(pid, "cmdline")
        if any(folder in word for word in words) or not words[0].startswith("ray"):
            return any(folder in word for word in words)
        return any(os.readlink(one).startswith(folder) for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _end(pids: Callable[[], list[int]]) -> None:
    """SIGKILL for the processes, also those that they start meanwhile, until there are none."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while (now := pids()) and time.monotonic() < deadline_s:
        for pid in now:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


# -- the command -------------------------------------------------------------------------------------------


def main() -> int:
    """Brings a cluster up and keeps it until interrupted."""
    words = argparse.ArgumentParser(description="A Ray cluster of several nodes on this machine, until Ctrl-C.")
    words.add_argument("--nodes", type=int, default=2, help="nodes beside the head, which runs no work")
    words.add_argument("--cpus", type=int, default=1, help="logical CPUs of each")
    words.add_argument("--env", metavar="FILE", help="write what a client's shell needs there, instead of showing it")
    words.add_argument("--processes", action="store_true", help="no network namespaces, also for root")
    words.add_argument("--replace-after", type=float, metavar="S", help="replace nodes, and a GCS, that died S s ago")
    asked = words.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with local_cluster(asked.nodes, asked.cpus, False if asked.processes else None) as made:
            _tell(made, asked.env)
            made.keep(asked.replace_after)
    except KeyboardInterrupt:
        print("Ended.", file=sys.stderr)
    return EXIT_INTERRUPTED


def _tell(made: LocalCluster, file: str | None) -> None:
    text = "".join(f"export {name}={value}\n" for name, value in made.environment.items())
    addresses = ", ".join(f"{node.name} {node.ip}" for node in (made.head, *made.nodes))
    if file is None:
        print(text, end="", flush=True)
    else:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
    print(
        f"up: {addresses}" + (f"; in another shell:  . {os.path.join('.', file)}" if file else ""),
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
