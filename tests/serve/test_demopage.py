"""The files of the demo, as they are served; what they do is tried in a browser (``test_demo_in_browser.py``)."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest

import distft
from distft.serve.demopage import PAGE, PARTS, POLICY
from distft.serve.keys import Keyring, add_key
from distft.serve.predictor import Predictor
from tests.serve.test_api import Client
from tests.serve.test_door import behind_a_door

FOLDER = Path(distft.__file__).parent / "serve" / "demo"


@pytest.fixture
def client(predictor: Predictor, tmp_path: Path) -> Client:
    """Of a service that asks for keys."""
    add_key(str(tmp_path / "keys.json"), "shop")
    return behind_a_door(predictor, Keyring(tmp_path / "keys.json"))


def text(suffix: str) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob(f"*{suffix}")}


@pytest.mark.parametrize("path", PARTS)
def test_every_part_is_served_to_everybody_under_its_policy(client: Client, path: str) -> None:
    name, media_type = PARTS[path]
    response = client("GET", path)
    assert response.status_code == 200 and response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == media_type
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_policy_lets_in_nobody_else() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("default-src") == "'none'" and rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'self'", "'none'"} and {"script-src", "connect-src"} <= set(rules)


@pytest.mark.parametrize("path", [f"{PAGE}/", f"{PAGE}/shop", f"{PAGE}/../v1/model", f"{PAGE}/shop.html", "/demo.html"])
def test_nothing_else_is_open(client: Client, path: str) -> None:
    response = client("GET", path)
    assert response.status_code == 401
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_all_files_are_parts() -> None:
    assert {name for name, _ in PARTS.values()} == {file.name for file in FOLDER.iterdir()}


MADE = {"detail-title"}
"""Names of what the scripts put into the page."""

STRANGE = re.compile(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage")


class Page(HTMLParser):
    """What a page refers to, has and calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := values.get(name))]
        self.ids += [value for value in [values.get("id")] if value]
        referring = ("for", "aria-labelledby", "aria-describedby")
        self.named += [one for name in referring for one in (values.get(name) or "").split()]
        self.inline += [name for name in values if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append(tag)


def parsed() -> Page:
    page = Page()
    page.feed((FOLDER / "shop.html").read_text(encoding="utf-8"))
    return page


def test_the_page_refers_to_its_own_parts_and_holds_no_code() -> None:
    page = parsed()
    assert not page.inline
    assert len(page.ids) == len(set(page.ids)) and set(page.named) <= {*page.ids, *MADE}
    outside = [link for link in page.links if not link.startswith("#")]
    assert {urljoin(PAGE, link) for link in outside} <= {*PARTS, "/docs"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_scripts_ask_this_service_alone_and_know_their_page() -> None:
    scripts = text(".js")
    for name, script in scripts.items():
        imported = re.findall(r'from "(.+?)"', script)
        assert {urljoin(f"{PAGE}/", one) for one in imported} <= set(PARTS), name
        assert not re.search(
            r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", script
        )
    assert set(re.findall(r'\bat\("([\w-]+)"\)', scripts["shop.js"])) <= {*parsed().ids, *MADE}
    assert not re.search(r"https?://|@import|url\(", text(".css")["shop.css"])
    asked = set(re.findall(r'["`](v1/\w+)', scripts["shop.js"]))
    assert asked == {"v1/model", "v1/items", "v1/recommend", "v1/events", "v1/users"}
