"""The demo: a small shop front on the catalogue of the served model, for a person to click through.

Enters: nothing but the files of ``demo/``. Leaves: the routes of a page and its parts, which ask the service what any
client may ask. Surprising choice: there is nothing to build and no framework. Browsers read the files as they lie
here, under a policy that lets the page load only from and talk only to this service, and turns away every text that
would be used as HTML: a title of the catalogue cannot become a part of the page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Response

PAGE = "/demo"

_HTML = "text/html; charset=utf-8"
_CSS = "text/css; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"

PARTS = {
    PAGE: ("shop.html", _HTML),
    f"{PAGE}/shop.css": ("shop.css", _CSS),
    f"{PAGE}/shop.js": ("shop.js", _SCRIPT),
    f"{PAGE}/asking.js": ("asking.js", _SCRIPT),
    f"{PAGE}/showing.js": ("showing.js", _SCRIPT),
    f"{PAGE}/words.js": ("words.js", _SCRIPT),
    f"{PAGE}/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path → file and media type. None of them needs a key: they are the same for everybody and hold no data."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def add_demo(api: FastAPI) -> None:
    """Adds the routes of the page and its parts, which are read once."""
    for path, (name, media_type) in PARTS.items():
        content = files("distft.serve").joinpath("demo", name).read_bytes()
        api.add_api_route(path, _answering(content, media_type), include_in_schema=False)


def _answering(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def part() -> Response:
        return Response(content, media_type=media_type)

    return part
