from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from distft.errors import ServingError, UsageError
from distft.serve.server import free_port
from distft.serve.tls import Certificate, check_certificate, decrypting
from tests.serve.over_http import over_http


async def mirror(scope: object, receive: object, send: object) -> None:
    request = Request(scope, receive)  # type: ignore[arg-type]
    told = {"body": (await request.body()).decode(), "proto": request.headers["x-forwarded-proto"]}
    await JSONResponse(told)(scope, receive, send)  # type: ignore[arg-type]


def test_clients_come_by_https_alone(files: Certificate, tmp_path: Path) -> None:
    check_certificate(files)
    port = free_port("127.0.0.1")
    trust = ssl.create_default_context(cafile=files.certificate)
    with over_http(mirror) as url, decrypting(files, ("127.0.0.1", port), int(url.rsplit(":", 1)[1]), tmp_path):
        with httpx.Client(verify=trust) as client:
            answer = client.post(f"https://127.0.0.1:{port}/", content="ü" * 100_000)
            assert answer.json() == {"body": "ü" * 100_000, "proto": "https"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(files.certificate)
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port)) as raw, pytest.raises(OSError):
            old.wrap_socket(raw, server_hostname="127.0.0.1")
        assert (tmp_path / "tls.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()


def test_files_that_do_not_go_together(files: Certificate, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--tls-cert is .*nothing.*No such file"):
        check_certificate(Certificate(str(tmp_path / "nothing"), files.key))
    with pytest.raises(UsageError, match="do not go together"):
        check_certificate(Certificate(files.key, files.certificate))
    with pytest.raises(UsageError, match="do not go together"):
        check_certificate(Certificate(files.certificate, files.certificate))


def test_a_port_that_is_taken_is_said(files: Certificate, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = ("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ServingError, match="did not start"), decrypting(files, address, 9, tmp_path):
            pass
