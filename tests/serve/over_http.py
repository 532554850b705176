"""A bundle's interface on a real port, without Ray: uvicorn in a thread; and clients of many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from distft.serve.server import free_port

OF_MANY = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
"""Of a client that many threads share: it closes no idle connection. httpcore 1.0.9 may give one that it closes to a
request that waits, which then never hears its answer (encode/httpcore#1110)."""


@contextmanager
def over_http(application: Any, **options: Any) -> Iterator[str]:
    """The URL of an ASGI application while the block runs."""
    port = free_port("127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="error", lifespan="off", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
