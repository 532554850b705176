"""What stands before everything that reads a request's headers: Ray Serve reads some of them before the API does.

Enters: the raw requests of clients. Leaves: those whose headers are text, without the ones by which a client could
steer Ray, and which the process has let in. Surprising choice: Ray decodes header bytes without a net, so that one that
is not UTF-8 would end as a 500; here it ends as a problem of the client's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from distft.serve.problems import Problem

STEERING = frozenset({b"x_request_timeout_seconds", b"x_request_disconnect_disabled", b"serve_multiplexed_model_id"})
"""Headers that Ray Serve follows: how long it waits, and for which model; clients have no say in these.

A dash is as good as an underscore.
"""

LET_IN = "distft.let_in"
"""Key of a request's scope that only this process can set."""

Around = Callable[[ASGIApp], ASGIApp]
"""Puts around an application what decides who may come in."""

_around: Around | None = None


def let_in_before_ray(api: ASGIApp, around: Around) -> ASGIApp:
    """The application to give to Ray Serve for ``api``; ``around`` is put before Ray's HTTP servers of this process.

    What is turned away then costs none of Ray's tasks, of which each request has several: in an overload that is what
    most requests cost. A request that comes another way, through Ray's own proxy, passes ``around`` behind Ray.
    """
    global _around
    _around = around
    other_way = around(api)

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        await (api if LET_IN in scope else other_way)(scope, receive, send)

    return behind


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its HTTP servers (``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``)."""
    return [Middleware(Guard)]


class Guard:
    """Refuses a request with 400 whose headers are not UTF-8, takes out those that steer Ray, and lets others in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app if _around is None else _around(_marked(app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        broken = next((name for name, value in headers if not (_is_text(name) and _is_text(value))), None)
        if broken is not None:
            what = f"The header {broken.decode('ascii', errors='replace')} is not UTF-8."
            await Problem(400, what).response()(scope, receive, send)
            return
        kept: Any = [(name, value) for name, value in headers if name.replace(b"-", b"_") not in STEERING]
        await self.app({**scope, "headers": kept}, receive, send)


def _marked(app: ASGIApp) -> ASGIApp:
    async def let_in(scope: Scope, receive: Receive, send: Send) -> None:
        scope[LET_IN] = True
        await app(scope, receive, send)

    return let_in


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
