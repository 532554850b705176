"""What a service is started with: the bundle, and what the person who starts it decides.

Enters: options of ``distft serve`` and the bundle's job. Leaves: an ``Arrangement`` that fits together, or a UsageError
before anything starts.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from distft.data.pseudonyms import open_pseudonyms
from distft.errors import UsageError
from distft.job import Job
from distft.jobfile import parse_job
from distft.sections.data import Pseudonyms as PseudonymKey
from distft.sections.serve import Serve
from distft.serve.denylist import read_deny_list
from distft.serve.door import DoorPolicy
from distft.serve.histories import Keeping
from distft.serve.keys import read_keys
from distft.serve.tls import Certificate, check_certificate
from distft.signing import check_signed, check_trusted_key
from distft.storage import Storage

INGRESS = "ingress"
HISTORIES = "histories"
MODEL_PREFIX = "model-"
"""Names of the applications."""

VERSION_CHARS = 12
"""Of the hash of a bundle's manifest, which names its model."""


@dataclass(frozen=True)
class Options:
    """What is decided when a service starts; each None leaves it to the bundle's job, or does without.

    ``history``: in the place of ``serve.history``. ``state``: folder of the histories and the event log; without one no
    histories are kept. ``pseudonym_key``: where the key of ``data.pseudonyms`` lies here. ``keys``: file of API keys;
    without one everybody on this machine is answered, and nobody else. ``request_log``: a file that gets a line for
    every request; ``log_users``: it may name users. ``tls``: HTTPS with this certificate, and nothing else. ``deny``:
    file of items that nobody is recommended. ``trusted_key``: only bundles that were signed with its other half are
    served.
    """

    history: str | None = None
    state: str | None = None
    pseudonym_key: str | None = None
    keys: str | None = None
    request_log: str | None = None
    log_users: bool = False
    tls: Certificate | None = None
    deny: str | None = None
    trusted_key: str | None = None


@dataclass(frozen=True)
class ServedBundle:
    """The facts of a bundle that its service is arranged by."""

    uri: str
    version: str
    settings: Serve
    event_names: Sequence[str]


@dataclass(frozen=True)
class Arrangement:
    """How a service is run: where it keeps histories (None: nowhere), by which key it names users there, who may ask
    (None: everybody), what is written of each request, which items are denied, whose signature a bundle needs (None:
    nobody's), in which folder the service's record is, and which bundle it was started with.
    """

    keeping: Keeping | None = None
    pseudonyms: PseudonymKey | None = None
    keys: str | None = None
    request_log: str | None = None
    policy: DoorPolicy = field(default_factory=DoorPolicy)
    deny: str | None = None
    trusted_key: str | None = None
    state: str | None = None
    bundle: str = ""


def served_bundle(bundle: Storage, trusted_key: str | None = None) -> tuple[ServedBundle, Job]:
    """The facts of a bundle, and its job. Raises ArtefactError for a damaged one, or one that is not trusted."""
    sha256 = bundle.verified("bundle").sha256
    if trusted_key is not None:
        check_signed(bundle, trusted_key, sha256)
    version = sha256[:VERSION_CHARS]
    job = parse_job(bundle.read_bytes("job.yaml").decode(), f"{bundle.uri}/job.yaml")
    event_names = (bundle / "encoder").read_json("encoder.json")["event_names"]
    return ServedBundle(bundle.uri, version, job.serve, event_names), job


def arranged(job: Job, bundle: Storage, options: Options, num_nodes: int) -> Arrangement:
    """What a service of ``num_nodes`` nodes is run by. Raises UsageError for options that do not go together."""
    keeping, pseudonyms = _kept(job, bundle, options, num_nodes)
    if options.keys is not None:
        read_keys(Path(options.keys))
    if options.tls is not None:
        check_certificate(options.tls)
    if options.deny is not None:
        read_deny_list(Path(options.deny))
    if options.trusted_key is not None:
        check_trusted_key(options.trusted_key)
    return Arrangement(
        keeping,
        pseudonyms,
        options.keys and os.path.abspath(options.keys),
        options.request_log and os.path.abspath(options.request_log),
        DoorPolicy(options.tls is not None, options.log_users),
        options.deny and os.path.abspath(options.deny),
        options.trusted_key and os.path.abspath(options.trusted_key),
        options.state and Storage(options.state).uri,
        bundle.uri,
    )


def check_access(host: str, options: Options) -> None:
    """Raises UsageError for a service without keys that other machines would reach."""
    if options.keys is None and not is_loopback(host):
        raise UsageError(
            f"Without API keys the service would answer everybody who reaches {host}",
            "keys, or an address of this machine alone",
            "Make a key with 'distft keys new NAME --file FILE' and give --keys FILE, or use --host 127.0.0.1.",
        )


def _kept(job: Job, bundle: Storage, options: Options, num_nodes: int) -> tuple[Keeping | None, PseudonymKey | None]:
    store = options.history or job.serve.history
    _check_store(store)
    if store == "none" or options.state is None:
        if options.history not in (None, "none"):
            raise UsageError(f"--history is {options.history}, and there is no --state", "a folder", "Give one.")
        return None, None
    if store == "embedded" and num_nodes > 1:
        raise UsageError(
            f"serve.history is embedded, and the cluster has {num_nodes} nodes",
            "a store that outlives each of them: redis://HOST:PORT/DB",
            "Set serve.history, or give --history. With --history none the service keeps no histories.",
        )
    if store == "embedded" and not Storage(options.state).is_local:
        what = f"--state is {options.state}, and the embedded history store is a file"
        raise UsageError(what, "a folder of this machine", "Or give --history redis://HOST:PORT/DB, or none.")
    key = _pseudonym_key(job, bundle, options)
    return Keeping(store, options.state, job.name, job.serve.history_events), key


def _check_store(store: str) -> None:
    if store in ("embedded", "none"):
        return
    url = urlsplit(store)
    try:
        found = url.scheme in ("redis", "rediss") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        found = False
    if not found:
        shown = store if "@" not in store else f"{url.scheme}://…"
        raise UsageError(f"--history is {shown}", "embedded, none, or redis://HOST:PORT/DB", "Correct it.")


def _pseudonym_key(job: Job, bundle: Storage, options: Options) -> PseudonymKey | None:
    """The key by which the dataset's users were named, checked against it where the bundle tells of one."""
    if job.data.pseudonyms is None:
        if options.pseudonym_key is not None:
            what = "--pseudonym-key is given, and the bundle's users have no pseudonyms"
            raise UsageError(what, "a bundle whose job has data.pseudonyms", "Leave the option out.")
        return None
    place = options.pseudonym_key or job.data.pseudonyms.key_file
    key = job.data.pseudonyms.model_copy(update={"key_file": place})
    pseudonyms = open_pseudonyms(key)
    manifest = bundle.manifest("bundle")
    wanted = manifest.info.get("pseudonyms") if manifest else None
    if pseudonyms is not None and wanted not in (None, pseudonyms.digest):
        what = f"{place} holds another key than the one that the bundle's users are named by"
        raise UsageError(what, "the key that the dataset was prepared with", "Give its place with --pseudonym-key.")
    return key


def is_loopback(host: str) -> bool:
    """True if only this machine reaches the address."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False
