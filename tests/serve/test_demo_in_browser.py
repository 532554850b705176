"""The demo shop as a visitor finds it: a real Chromium clicks, types and tabs through it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from distft.data.features import FeatureColumn, FeatureSpec
from distft.errors import ServingError
from distft.serve import server
from distft.serve.api import build_api
from distft.serve.arrangement import Options
from distft.serve.door import Door
from distft.serve.explaining import REASONS
from distft.serve.keys import Keyring, add_key
from distft.serve.predictor import Predictor
from distft.serve.server import Service
from distft.storage import Storage
from tests.report.browser import browsing
from tests.serve.bundles import CATEGORIES, EVENTS, NUM_ITEMS, encoder, write_bundle
from tests.serve.over_http import over_http
from tests.serve.test_api import InProcess

pytestmark = pytest.mark.proof

PATIENCE_S = 30.0
HOSTILE = {
    0: '<img src="nowhere" onerror="document.title = \'owned\'"><script>document.title = "owned"</script>',
    1: "M" * 300,
    2: "‮reversed‬ \"quoted\" & 'apart'",
    3: "red mug",
    4: "red mug, small",
}
BACK = "shift and tab"
HOSTILE_CATEGORY = "<b>toys</b> & \"games\" 'x'"

FOCUS_IS_SEEN = """
const one = document.activeElement;
const styles = [getComputedStyle(one), getComputedStyle(one, "::after")];
const drawn = styles.some((style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2);
return drawn && one.getBoundingClientRect().width > 0;
"""


def titled(events: tuple[str, ...] = EVENTS) -> Any:
    """The tiny shop with titles, of which some are hostile, and one hostile category."""
    plain = encoder()
    titles = ["", "", *(HOSTILE.get(number, f"thing {number}") for number in range(NUM_ITEMS))]
    category, price = plain.features
    vocabulary = ("", "", *CATEGORIES[:-1], HOSTILE_CATEGORY)
    return replace(
        plain,
        event_names=events,
        features=(
            replace(category, spec=replace(category.spec, vocabulary=vocabulary)),
            price,
            FeatureColumn(FeatureSpec("title", "text"), texts=np.array(titles, object)),
        ),
    )


class Visitor:
    """A browser in the shop, and what one may see of it."""

    def __init__(self, driver: Any) -> None:
        from selenium.webdriver.common.keys import Keys

        self.driver, self.keys = driver, Keys
        self.sent: list[dict[str, Any]] = []

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        found = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        return list(self.driver.execute_script(found, selector))

    def until(self, holds: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if found := holds():
                    return found
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < deadline, (self.text("body"), self.driver.get_log("browser"))
            time.sleep(0.05)

    def settled(self) -> None:
        """Waits until the list is the answer to the latest request."""
        shown = "const list = document.getElementById('list');"
        self.until(
            lambda: self.driver.execute_script(
                shown + "return !list.hasAttribute('aria-busy') && !!list.children.length"
            )
        )

    def shown(self) -> list[str]:
        items = "return [...document.querySelectorAll('#list > li')].map(one => one.dataset.item)"
        return list(self.driver.execute_script(items))

    def history(self) -> list[str]:
        return self.texts("#events .deed")

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            chain = ActionChains(self.driver)
            if key == BACK:
                chain = chain.key_down(self.keys.SHIFT).send_keys(self.keys.TAB).key_up(self.keys.SHIFT)
            else:
                chain = chain.send_keys(key)
            chain.perform()

    def requests(self, path: str) -> list[dict[str, Any]]:
        """The bodies that the page has sent to a path, in order."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.sent.append(message["params"]["request"])
        of_path = [one for one in self.sent if one["url"].endswith(path) and one["method"] == "POST"]
        return [json.loads(one["postData"]) for one in of_path]

    def hosts(self) -> set[str]:
        self.requests("")
        return {"/".join(one["url"].split("/")[:3]) for one in self.sent}

    def overflow(self) -> int:
        return int(self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def visiting(url: str, width: int = 1280, scheme: str = "light", key: str | None = None) -> Iterator[Visitor]:
    """A visitor at ``<url>/demo`` who has given the key that the page asks for, where one is needed."""
    with browsing(f"{url}/demo", width, scheme) as driver:
        visitor = Visitor(driver)
        if key:
            visitor.until(lambda: visitor.one("#key").is_displayed())
            visitor.one("#key").send_keys(key, visitor.keys.ENTER)
        visitor.settled()
        yield visitor
        severe = [entry for entry in driver.get_log("browser") if "status of" not in entry["message"]]
        assert not severe, "no error but those of the network"
        assert visitor.hosts() == {url}, "the page talks to its own service alone"


def listed_by_api(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = http.post("/v1/recommend", json=body)
    assert answer.status_code == 200
    return list(answer.json()["items"])


# -- the real service, with keys and histories ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return add_key(str(file), "visitors"), file


@pytest.fixture(scope="module")
def service(ray_session: object, key: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("shop")
    bundle = write_bundle(Storage(root), encoding=titled())
    options = Options(state=str(root / "state"), keys=str(key[1]))
    running = server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"), options=options)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(service: Service, key: tuple[str, Path]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {key[0]}"}, timeout=30) as client:
        yield client


@pytest.mark.ray
def test_a_stranger_is_asked_for_a_key_once(service: Service, key: tuple[str, Path]) -> None:
    with visiting(service.url, key=key[0]) as visitor:
        assert visitor.one("#main").is_displayed() and not visitor.one("#key-form").is_displayed()
        visitor.driver.refresh()
        visitor.settled()
        assert not visitor.one("#key-form").is_displayed(), "this tab knows it"
        visitor.one("#leave-key").click()
        visitor.until(lambda: visitor.one("#key").is_displayed())
        assert not visitor.one("#main").is_displayed()
        assert visitor.driver.execute_script("return sessionStorage.length + localStorage.length") == 0
        assert visitor.driver.get_cookies() == []
        visitor.one("#key").send_keys("wrong", visitor.keys.ENTER)
        visitor.until(lambda: "does not accept" in visitor.text("#key-wrong"))
        assert visitor.focused().get_attribute("id") == "key"
        visitor.one("#key").send_keys("clé", visitor.keys.ENTER)
        assert "ASCII" in visitor.text("#key-wrong")
        visitor.one("#key").clear()
        visitor.one("#key").send_keys(key[0], visitor.keys.ENTER)
        visitor.settled()
        assert len(visitor.all("#items .card")) == 24


@pytest.mark.ray
def test_a_visitor_browses_searches_looks_and_buys(service: Service, key: tuple[str, Path], http: httpx.Client) -> None:
    with visiting(service.url, key=key[0]) as visitor:

        def as_the_api_says() -> None:
            """The list is the answer to what the page says that the visitor has done."""
            visitor.settled()
            sent = visitor.requests("/v1/recommend")[-1]
            assert [event["event"] for event in sent["history"]] == expected_events
            answer = listed_by_api(http, sent)
            assert visitor.shown() == [item["item_id"] for item in answer]
            reasons = [reason for item in answer for reason in item.get("because", [])]
            signs = ["+" if reason["effect"] > 0 else "−" for reason in reasons]
            told = visitor.texts("#list .effect")
            assert [text[0] if float(text[1:]) else "0" for text in told] == [
                sign if float(text[1:]) else "0" for sign, text in zip(signs, told, strict=True)
            ]

        # Browsing
        expected_events: list[str] = []
        assert "Nothing is known of you" in visitor.text("#news") and visitor.history() == []
        assert not visitor.all("#list .because") and not visitor.all("#list .moved")
        as_the_api_says()
        cards = "return [...document.querySelectorAll('#items .card')].map(one => one.dataset.item)"
        first = visitor.driver.execute_script(cards)
        assert first == [f"i{number}" for number in range(24)]
        visitor.one("#next").click()
        visitor.until(lambda: visitor.driver.execute_script(cards) == [f"i{number}" for number in range(24, 48)])
        assert visitor.text("#found") == "60 items, 25 to 48" and visitor.text("#page") == "Page 2 of 3"
        visitor.one("#previous").click()
        visitor.until(lambda: visitor.driver.execute_script(cards) == first)
        # Filtering
        visitor.one("#filters select").send_keys("garden")
        garden = [item["item_id"] for item in http.get("/v1/items?filter=category:garden&limit=24").json()["items"]]
        visitor.until(lambda: visitor.driver.execute_script(cards) == garden)
        assert all(text.startswith("garden") for text in visitor.texts("#items .card p.small"))
        visitor.one("#everything").click()
        visitor.until(lambda: visitor.driver.execute_script(cards) == first)
        # Searching
        popular = visitor.shown()
        visitor.one("#q").send_keys("red mug", visitor.keys.ENTER)
        visitor.until(lambda: visitor.driver.execute_script(cards) == ["i3", "i4"])
        expected_events += ["search"]
        as_the_api_says()
        assert visitor.history() == ["Searched for “red mug”"] and visitor.shown() != popular
        assert set(visitor.texts("#list .why")) == {"Searched for “red mug”"}
        assert visitor.texts("#list .moved.new"), "what was not on the popularity list is marked"
        # Looking
        visitor.one("#items .card .open").click()
        visitor.until(lambda: visitor.one("#detail").is_displayed())
        assert visitor.focused().text == "red mug" and "i3" in visitor.text("#detail")
        expected_events += ["view"]
        as_the_api_says()
        assert visitor.history()[0] == "Viewed red mug" and "Viewed red mug" in visitor.texts("#list .why")
        # Buying
        before = visitor.shown()
        visitor.one('#detail button[aria-label="Buy: red mug"]').click()
        expected_events += ["purchase"]
        as_the_api_says()
        visitor.one('#items button[aria-label="Add to cart: red mug, small"]').click()
        expected_events += ["cart"]
        as_the_api_says()
        after = visitor.shown()
        assert after != before and "i4" not in after, "as the model was evaluated, nothing that was seen"
        assert visitor.history() == [
            "Put into the cart red mug, small", "Bought red mug", "Viewed red mug", "Searched for “red mug”",
        ]  # fmt: skip
        whys = visitor.texts("#list .why")
        assert len(whys) == REASONS * len(after) and "Bought red mug" in whys
        shares = [float(bar.get_attribute("style").split(":")[1].strip(" ;")) for bar in visitor.all("#list .bar")]
        assert max(shares) == 1 and min(shares) >= 0 and len(set(shares)) > 1
        # Taking back
        visitor.one('#events button[aria-label="Remove: Bought red mug"]').click()
        expected_events.remove("purchase")
        as_the_api_says()
        assert "Bought red mug" not in visitor.texts("#list .why") and len(visitor.history()) == 3
        visitor.one("#reset").click()
        expected_events.clear()
        visitor.until(lambda: visitor.history() == [])
        as_the_api_says()
        assert visitor.shown() == popular
        assert all(not request.get("user_id") for request in visitor.requests("/v1/recommend"))
        assert visitor.requests("/v1/events") == [], "nothing was kept"


@pytest.mark.ray
def test_changes_of_places_are_those_between_two_lists(service: Service, key: tuple[str, Path]) -> None:
    with visiting(service.url, key=key[0]) as visitor:
        kinds = set()
        for number in (7, 12, 19, 5, 20):
            before = visitor.shown()
            visitor.one(f'#items [data-item="i{number}"] button[aria-label^="Buy"]').click()
            visitor.settled()
            for place, item in enumerate(visitor.shown()):
                said = visitor.texts(f'#list [data-item="{item}"] .moved .unseen')
                if item not in before:
                    expected = ["new in the list"]
                else:
                    by = before.index(item) - place
                    places = f"{abs(by)} place{'s' if abs(by) > 1 else ''}"
                    expected = [f"{'up' if by > 0 else 'down'} {places}"] if by else []
                assert said == expected, (item, before)
                kinds.update(text.split()[0] for text in said)
        assert kinds == {"new", "up", "down"}


@pytest.mark.ray
def test_the_service_remembers_and_forgets(service: Service, key: tuple[str, Path], http: httpx.Client) -> None:
    user = "somebody/ü"
    with visiting(service.url, key=key[0]) as visitor:
        visitor.one('#items [data-item="i7"] button[aria-label^="Buy"]').click()
        visitor.settled()
        visitor.one("#user").clear()
        visitor.one("#remember").click()
        assert "Enter a user id" in visitor.text("#forgotten") and not visitor.one("#remember").is_selected()
        visitor.one("#user").send_keys(user)
        visitor.one("#remember").click()
        visitor.until(lambda: visitor.requests("/v1/recommend")[-1].get("user_id") == user)
        visitor.settled()
        visitor.one('#items [data-item="i9"] button[aria-label^="Add"]').click()
        visitor.settled()
        assert [len(body["events"]) for body in visitor.requests("/v1/events")] == [1, 1]
        last = visitor.requests("/v1/recommend")[-1]
        assert last["user_id"] == user and "history" not in last
        kept = listed_by_api(http, {"user_id": user, "k": 8, "explain": True})
        assert visitor.shown() == [item["item_id"] for item in kept]
        assert {reason["item_id"] for item in kept for reason in item["because"]} == {"i7", "i9"}
        assert not visitor.all("#events button"), "the service forgets all or nothing"
        visitor.one("#forget").click()
        visitor.until(lambda: visitor.text("#forgotten") == f"2 events of {user} forgotten.")
        visitor.settled()
        assert not visitor.one("#remember").is_selected() and visitor.history() == []
        assert http.post("/v1/recommend", json={"user_id": user}).json()["source"] == "popularity"
        assert "user_id" not in visitor.requests("/v1/recommend")[-1]


@pytest.mark.ray
def test_all_of_it_works_by_keyboard(service: Service, key: tuple[str, Path]) -> None:
    with visiting(service.url, key=key[0]) as visitor:
        tab, enter = visitor.keys.TAB, visitor.keys.ENTER

        def to(selector: str, step: str = tab) -> None:
            """Tabs on to an element; the focus is seen wherever it stops."""
            for _ in range(80):
                visitor.press(step)
                seen = visitor.driver.execute_script(FOCUS_IS_SEEN)
                assert seen, visitor.focused().get_attribute("outerHTML")
                if visitor.driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
                    return
            raise AssertionError(f"{selector} is not reached")

        visitor.driver.execute_script("document.activeElement.blur()")
        visitor.driver.refresh()
        visitor.settled()
        visitor.press(tab)
        assert visitor.focused().text == "Skip to the shop"
        visitor.press(enter)
        assert visitor.focused().get_attribute("id") == "shop-title"
        to("#q")
        visitor.press(*"red mug", enter)
        visitor.until(lambda: len(visitor.all("#items .card")) == 2)
        visitor.settled()
        to("#items .open")
        visitor.press(enter)
        visitor.until(lambda: visitor.focused().get_attribute("id") == "detail-title")
        visitor.settled()
        to('#detail [aria-label="Buy: red mug"]')
        visitor.press(enter)
        visitor.settled()
        assert visitor.focused().get_attribute("aria-label") == "Buy: red mug", "the focus stays"
        visitor.press(visitor.keys.ESCAPE)
        assert visitor.focused().text == "red mug" and not visitor.one("#detail").is_displayed()
        to("#list .open")
        visitor.press(enter)
        visitor.until(lambda: visitor.focused().get_attribute("id") == "detail-title")
        visitor.settled()
        assert len(visitor.history()) == 4
        to('a[href="#history-title"]', BACK)
        visitor.press(enter)
        assert visitor.focused().get_attribute("id") == "history-title"
        for left in (3, 2, 1, 0):
            to("#events button") if left == 3 else None
            visitor.press(enter)
            visitor.until(lambda left=left: len(visitor.history()) == left)
            inside = "return document.activeElement.matches('#events button, #history-title')"
            assert visitor.driver.execute_script(inside), "the next one has the focus"
        visitor.settled()
        assert "Nothing is known" in visitor.text("#news")


@pytest.mark.ray
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (800, "light"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen(service: Service, key: tuple[str, Path], width: int, scheme: str) -> None:
    with visiting(service.url, width, scheme, key[0]) as visitor:
        assert visitor.overflow() <= 0
        for number in (0, 1, 2):
            visitor.one(f'#items [data-item="i{number}"] .open').send_keys(visitor.keys.ENTER)
            visitor.settled()
            assert visitor.overflow() <= 0, number
            visitor.one(f'#items [data-item="i{number}"] button[aria-label^="Buy"]').send_keys(visitor.keys.ENTER)
            visitor.settled()
        assert visitor.overflow() <= 0 and len(visitor.history()) == 6
        for shown in visitor.all("button, select, input"):
            box = shown.rect
            assert box["x"] >= -1 and box["x"] + box["width"] <= width + 1, shown.get_attribute("outerHTML")
        paper = visitor.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(246, 244, 239)") == (scheme == "light")


# -- the interface alone, for what a whole service would not show ---------------------------------------------------


@contextmanager
def served(bundle: Storage, keyring: Keyring | None = None) -> Iterator[tuple[str, InProcess]]:
    backend = InProcess(Predictor.load(bundle))
    with over_http(Door(build_api(backend), keyring)) as url:
        yield url, backend


def test_texts_of_the_catalogue_stay_texts(tmp_path: Path) -> None:
    with served(write_bundle(Storage(tmp_path), encoding=titled())) as (url, _), visiting(url) as visitor:
        titles = visitor.texts("#items .card .open")
        assert titles[:5] == list(HOSTILE.values())
        for number in range(3):
            visitor.one(f'#items [data-item="i{number}"] .open').click()
            visitor.settled()
            assert visitor.text("#detail-title") == HOSTILE[number]
            assert visitor.history()[0] == f"Viewed {HOSTILE[number]}"
        assert HOSTILE_CATEGORY in "".join(visitor.texts("#filters option"))
        values = "return [...document.querySelectorAll('#filters option')].map(one => one.value)"
        assert HOSTILE_CATEGORY in visitor.driver.execute_script(values)
        option = visitor.driver.execute_script(
            "return [...document.querySelectorAll('#filters option')].find(one => one.value === arguments[0])",
            HOSTILE_CATEGORY,
        )
        option.click()
        visitor.until(lambda: set(visitor.texts("#items .card p.small")) == {HOSTILE_CATEGORY})
        visitor.one("#q").send_keys(HOSTILE[0], visitor.keys.ENTER)
        visitor.until(lambda: HOSTILE[0] in visitor.text("#found"))
        visitor.settled()
        assert visitor.driver.title == "tiny: demo shop"
        assert len(visitor.all("img")) == 1 and len(visitor.all("script")) == 1 and not visitor.all("main b")
        made_html = "try { document.body.innerHTML = '<p>'; return 'made' } catch (error) { return error.name }"
        assert visitor.driver.execute_script(made_html) == "TypeError", "the policy forbids it to the page, too"
        assert "TrustedHTML" in visitor.driver.get_log("browser")[0]["message"]


def test_a_service_without_histories_says_so(bundle: Storage) -> None:
    with served(bundle) as (url, _), visiting(url) as visitor:
        assert not visitor.one("#remember").is_enabled() and not visitor.one("#user").is_enabled()
        assert "keeps no histories" in visitor.text("#remember-text")


def test_a_model_of_other_events_gets_other_buttons(tmp_path: Path) -> None:
    """Ids alone, no view and no search: what the model does not know is neither offered nor sent."""
    events = ("purchase", "wish_list", "rating")
    bare = replace(encoder(), event_names=events, features=(), token_words=("", ""))
    with served(write_bundle(Storage(tmp_path), encoding=bare)) as (url, _), visiting(url) as visitor:
        assert visitor.texts("#items .card .open")[:2] == ["i0", "i1"]
        assert not visitor.one("#filters").is_displayed()
        assert visitor.texts("#items .card:first-child .actions button") == ["Buy", "Wish list"]
        visitor.one("#q").send_keys("i5", visitor.keys.ENTER)
        visitor.until(lambda: visitor.texts("#items .card .open")[:2] == ["i5", "i50"])
        visitor.one("#items .open").click()
        visitor.until(lambda: visitor.one("#detail").is_displayed())
        assert visitor.history() == []
        visitor.one('#detail button[aria-label="Rate 4 of 5: i5"]').click()
        visitor.settled()
        visitor.one('#detail button[aria-label="Wish list: i5"]').click()
        visitor.settled()
        assert visitor.history() == ["Wish list: i5", "Rated 4 of 5: i5"]
        sent = visitor.requests("/v1/recommend")[-1]["history"]
        assert [(event["event"], event.get("value")) for event in sent] == [("rating", 4), ("wish_list", None)]


def test_what_is_only_busy_is_asked_again_and_what_fails_is_told(bundle: Storage) -> None:
    with served(bundle) as (url, backend), visiting(url) as visitor:
        before = visitor.shown()
        backend.failure = ServingError("The model is not available")
        visitor.one('#items [data-item="i7"] button[aria-label^="Buy"]').click()
        visitor.until(lambda: "cannot answer at the moment. Trying again in 1 s (1 of 3)." in visitor.text("#waiting"))
        backend.failure = None
        visitor.until(lambda: not visitor.one("#waiting").is_displayed())
        visitor.settled()
        assert visitor.shown() != before and not visitor.one("#failure").is_displayed()
        backend.failure = ServingError("The model is not available")
        visitor.one('#items [data-item="i9"] button[aria-label^="Buy"]').click()
        visitor.until(lambda: visitor.one("#failure").is_displayed())
        assert visitor.text("#failure-text") == "The model is not available."
        assert len(visitor.requests("/v1/recommend")) == 1 + 2 + 4
        backend.failure = None
        visitor.one("#again").click()
        visitor.until(lambda: not visitor.one("#failure").is_displayed())
        visitor.settled()
        assert "Bought i9" in visitor.texts("#list .why")


def test_a_key_that_asks_too_often_is_waited_for(bundle: Storage, tmp_path: Path) -> None:
    secret = add_key(str(tmp_path / "keys.json"), "slow", 1.0)
    with served(bundle, Keyring(tmp_path / "keys.json")) as (url, _), visiting(url, key=secret) as visitor:
        assert len(visitor.all("#items .card")) == 24 and visitor.shown()
        visitor.one('#items [data-item="i7"] button[aria-label^="Buy"]').click()
        visitor.one('#items [data-item="i8"] button[aria-label^="Buy"]').click()
        visitor.until(lambda: "more often than it may" in visitor.text("#waiting"))
        visitor.settled()
        assert len(visitor.requests("/v1/recommend")[-1]["history"]) == 2
        assert not visitor.one("#failure").is_displayed()


def test_a_service_that_has_gone_is_told_as_that(bundle: Storage) -> None:
    with browsing("about:blank", 1280) as driver:
        visitor = Visitor(driver)
        with served(bundle) as (url, _):
            driver.get(f"{url}/demo")
            visitor.settled()
        visitor.one('#items [data-item="i7"] button[aria-label^="Buy"]').click()
        visitor.until(lambda: "cannot be reached. Trying again" in visitor.text("#waiting"))
        visitor.until(lambda: visitor.one("#failure").is_displayed())
        assert visitor.text("#failure-text") == "The service cannot be reached."
