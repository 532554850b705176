"""What every request passes on its way in, and every answer on its way out: keys, security headers, a line in the log.

Enters: HTTP. Leaves: the application's answer with the headers that keep a browser from doing anything with it, or 401
or 429 before the body is read. Surprising choice: the log names the route and not the path, because a path may hold a
user's id; ids and queries are in it only where ``log_users`` asks for them.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from logging.handlers import WatchedFileHandler
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distft.serve import demopage
from distft.serve.keys import Keyring
from distft.serve.problems import Problem

OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs", *demopage.PARTS)
"""Paths that need no key: what a load balancer asks, the description of the interface, and the files of the demo,
which asks for a key itself. All else does."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = "default-src 'none'; frame-ancestors 'none'"
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)
HSTS = "max-age=31536000"
MAX_REQUEST_ID_CHARS = 100

requests_log = logging.getLogger("distft.requests")


@dataclass(frozen=True)
class DoorPolicy:
    """``tls``: clients come by HTTPS alone. ``log_users``: the log may name users (paths as they were asked for)."""

    tls: bool = False
    log_users: bool = False


class Door:
    """The ASGI application with the policy around it; without ``keyring`` everybody is let in."""

    def __init__(self, app: ASGIApp, keyring: Keyring | None = None, policy: DoorPolicy | None = None) -> None:
        self.app, self.keyring, self.policy = app, keyring, policy or DoorPolicy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, who = time.perf_counter(), 500, None
        request = Request(scope)
        request_id = request.headers.get("x-request-id", "")[:MAX_REQUEST_ID_CHARS]  # Ray Serve gives one to each

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *self._headers(request)]}
            await send(message)

        try:
            if self.keyring is not None and not _is_open(request.url.path):
                who = self.keyring.admit(request.headers.get("authorization"))
            await self.app(scope, receive, answer)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        finally:
            self._log(scope, request_id, status, who, time.perf_counter() - began)

    def _headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        headers = {**HEADERS, "Content-Security-Policy": _policy(request.url.path)}
        if self.policy.tls:
            headers["Strict-Transport-Security"] = HSTS
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def _log(self, scope: Scope, request_id: str, status: int, key: str | None, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        line = {
            "request_id": request_id,
            "method": scope["method"],
            "route": scope["path"] if self.policy.log_users else route or "(none)",
            "status": status,
            "ms": round(took_s * 1000, 2),
            "key": key,
        }
        requests_log.info(json.dumps(line)[1:-1])


def _policy(path: str) -> str:
    """What a browser may do with the answer."""
    if path in demopage.PARTS:
        return demopage.POLICY
    return DOCS_POLICY if path.startswith(("/docs", "/static-offline-docs")) else POLICY


def log_requests(path: Path) -> None:
    """Writes a line of JSON for every request to a file, which may be moved away (by logrotate) at any time."""
    handler = WatchedFileHandler(path)
    handler.setFormatter(logging.Formatter('{"time": "%(asctime)s.%(msecs)03dZ", %(message)s}', "%Y-%m-%dT%H:%M:%S"))
    handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
    requests_log.addHandler(handler)
    requests_log.setLevel(logging.INFO)
    requests_log.propagate = False


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/static-offline-docs/")
