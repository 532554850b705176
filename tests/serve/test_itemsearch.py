"""The catalogue against looking at every item."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from distft.data.encode import Encoder
from distft.data.features import FeatureColumn, FeatureSpec
from distft.errors import QueryError
from distft.schema import NUM_RESERVED
from distft.serve.itemsearch import ItemQuery, ItemSearch
from distft.storage import Storage
from tests.serve import bundles

ITEMS = [
    # id, title, categories, price
    ("A-1", "Red Mug", ["kitchen"], 2.95),
    ("b2", "Blue mugs, set of 4", ["kitchen", "gifts", "kitchen"], 12.5),
    ("c3", "", ["garden"], None),
    ("d4", "Straße in Öl", [], 1000.0),
    ("e5", "红色杯子", ["gifts"], 0.01),
    ("!?", "ＦＵＬＬ　ｗｉｄｔｈ", ["a:b"], 7.0),
    ("g7", "smug <b>face</b>", ["garden", "kitchen"], 3.0),
]
COUNTS = [5, 9, 1, 0, 7, 3, 2]
BY_COUNT = ["b2", "e5", "A-1", "!?", "g7", "c3", "d4"]


def shop() -> Encoder:
    vocabulary = ("", "", "a:b", "garden", "gifts", "kitchen")
    codes = [[0], [1], *([vocabulary.index(name) for name in names] or [1] for _, _, names, _ in ITEMS)]
    price = FeatureSpec("price", "number", mean=10.0, std=4.0, low=0.0, high=1000.0)
    raw = np.array([np.nan, np.nan, *(np.nan if price is None else price for *_, price in ITEMS)])
    return Encoder(
        event_names=("view",),
        target_events=("view",),
        has_clock=False,
        item_ids=np.array(["", "", *(item_id for item_id, *_ in ITEMS)], object),
        counts=np.array([0, 0, *COUNTS], np.int64),
        features=(
            FeatureColumn(FeatureSpec("title", "text"), texts=np.array(["", "", *(t for _, t, *_ in ITEMS)], object)),
            FeatureColumn(
                FeatureSpec("kind", "category", multiple=True, vocabulary=vocabulary),
                offsets=np.cumsum([0, *map(len, codes)]),
                codes=np.array([code for some in codes for code in some], np.int32),
            ),
            FeatureColumn(price, values=((raw - 10) / 4).astype(np.float32)),
        ),
    )


@pytest.fixture(scope="module")
def search() -> ItemSearch:
    return ItemSearch(shop(), "v1")


def found(search: ItemSearch, *filters: str, text: str | None = None, **more: object) -> list[str]:
    page = search.page(replace(ItemQuery(text, filters), **more))
    assert page.num_found >= len(page.items)
    return [item.item_id for item in page.items]


def test_all_items_come_by_popularity_a_page_at_a_time(search: ItemSearch) -> None:
    assert found(search) == BY_COUNT
    pages = [search.page(ItemQuery(offset=offset, limit=3)) for offset in (0, 3, 6, 9)]
    assert [[item.item_id for item in page.items] for page in pages] == [BY_COUNT[:3], BY_COUNT[3:6], ["d4"], []]
    assert {page.num_found for page in pages} == {7} and {page.model_version for page in pages} == {"v1"}


def test_an_item_is_told_in_the_shop_s_own_words(search: ItemSearch) -> None:
    items = {item.item_id: item for item in search.page(ItemQuery()).items}
    assert items["A-1"].title == "Red Mug" and items["A-1"].features == {"kind": ["kitchen"], "price": 2.95}
    assert items["b2"].features["kind"] == ["kitchen", "gifts"]
    assert items["c3"].title is None and items["c3"].features == {"kind": ["garden"]}
    assert items["d4"].features == {"price": 1000.0}
    assert items["g7"].title == "smug <b>face</b>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mug", ["b2", "A-1"]),
        ("MUGS", ["b2"]),
        ("red mug", ["A-1"]),
        ("mug kitchen", ["b2", "A-1"]),
        ("gift", ["b2", "e5"]),
        ("ÖL straße", ["d4"]),
        ("ol", []),
        ("杯", ["e5"]),
        ("full width", ["!?"]),
        ("a-1", ["A-1"]),
        ("4", ["b2"]),
        ("!?", ["!?"]),
        ("?!", []),
        ("b", ["b2", "!?", "g7"]),
        ("a", ["A-1", "!?"]),
        ("red blue", []),
        ("%", []),
        (".*", []),
    ],
)
def test_every_word_begins_a_word_of_the_item(search: ItemSearch, text: str, expected: list[str]) -> None:
    assert found(search, text=text) == expected


def test_the_item_whose_id_was_typed_stands_first() -> None:
    encoder = bundles.encoder()
    items = found(ItemSearch(encoder, "v1"), text="i5", limit=100)
    assert items == ["i5", *(f"i{number}" for number in range(50, 60))]
    assert found(ItemSearch(encoder, "v1"), text=" i57 ") == ["i57"]


def test_filters_are_one_of_each_feature(search: ItemSearch) -> None:
    assert found(search, "kind:garden") == ["g7", "c3"]
    assert found(search, "kind:garden", "kind:gifts") == ["b2", "e5", "g7", "c3"]
    assert found(search, "kind:kitchen", text="mug") == ["b2", "A-1"]
    assert found(search, "kind:a:b") == ["!?"]
    assert found(search, "kind:") == found(search, "kind:nothing") == []


@pytest.mark.parametrize("text", ["colour:red", "kind", "price:3", "title:x", ":"])
def test_a_filter_that_is_none_is_named(search: ItemSearch, text: str) -> None:
    with pytest.raises(QueryError, match="NAME:VALUE with a NAME of: kind") as raised:
        search.page(ItemQuery(filter=("kind:garden", text)))
    assert raised.value.field == "filter.1"


def test_ids_are_answered_in_their_order_once_each(search: ItemSearch) -> None:
    assert found(search, item_ids=("g7", "nothing", "A-1", "g7", "")) == ["g7", "A-1"]
    assert found(search, "kind:garden", item_ids=("A-1", "g7")) == ["g7"]


def test_what_is_denied_is_not_listed(search: ItemSearch) -> None:
    allowed_N = np.ones(len(ITEMS) + NUM_RESERVED, np.bool_)
    allowed_N[NUM_RESERVED + 1] = False
    page = search.page(ItemQuery(num_values=10), allowed_N)
    assert [item.item_id for item in page.items] == BY_COUNT[1:] and page.num_found == 6
    assert dict(page.values["kind"])["gifts"] == 1
    assert not search.page(ItemQuery(item_ids=("b2",)), allowed_N).items
    assert not search.page(ItemQuery("b2"), allowed_N).items
    assert found(search) == BY_COUNT, "nothing of a query is left for the next"


def test_values_are_counted_as_if_their_own_filter_were_another(search: ItemSearch) -> None:
    page = search.page(ItemQuery(filter=("kind:garden",), num_values=10))
    assert page.values == {"kind": [("kitchen", 3), ("garden", 2), ("gifts", 2), ("a:b", 1)]}
    assert search.page(ItemQuery("mug", num_values=1)).values == {"kind": [("kitchen", 2)]}
    assert search.page(ItemQuery()).values == {}


def test_random_catalogues_are_searched_as_item_by_item() -> None:
    """Two features, filters on both, words: against Python's own loops."""
    rng = np.random.default_rng(3)
    size, words = 400, ["mug", "mugs", "red", "lamp", "lam", "box"]
    first = rng.integers(1, 5, size + NUM_RESERVED)
    lengths = rng.integers(1, 4, size + NUM_RESERVED)
    second = rng.integers(1, 6, int(lengths.sum()))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    names = ("", "", "red", "green", "blue", "mug tree")
    titles = [" ".join(rng.choice(words, 3)) for _ in range(size)]
    encoder = replace(
        shop(),
        item_ids=np.array(["", "", *(f"i{number}" for number in range(size))], object),
        counts=np.concatenate([[0, 0], rng.integers(0, 9, size)]),
        features=(
            FeatureColumn(FeatureSpec("title", "text"), texts=np.array(["", "", *titles], object)),
            FeatureColumn(
                FeatureSpec("a", "category", vocabulary=names[:5]), np.arange(size + 3), first.astype(np.int32)
            ),
            FeatureColumn(FeatureSpec("b", "category", True, vocabulary=names), ends, second.astype(np.int32)),
        ),
    )
    of_item = {
        f"i{row - 2}": (
            titles[row - 2],
            {names[first[row]]} - {""},
            {names[code] for code in second[ends[row] : ends[row + 1]]} - {""},
        )
        for row in range(2, size + 2)
    }
    order = sorted(of_item, key=lambda item: -encoder.counts[int(item[1:]) + 2])

    def holds(item: str, text: str | None, a: set[str], b: set[str]) -> bool:
        title, in_a, in_b = of_item[item]
        all_words = re.findall(r"\w+", " ".join([item, title, *in_a, *in_b]))
        starts = all(any(word.startswith(start) for word in all_words) for start in (text or "").split())
        return starts and (not a or bool(a & in_a)) and (not b or bool(b & in_b))

    search = ItemSearch(encoder, "v1")
    for text, a, b in [
        (None, {"red"}, {"blue", "mug tree"}), ("mug", set(), set()), ("mugs re", {"red", "green"}, set()),
        ("i3", set(), {"green"}), ("lam", {"blue"}, {"blue"}), ("tree", set(), set()),
    ]:  # fmt: skip
        filters = (*(f"a:{value}" for value in a), *(f"b:{value}" for value in b))
        page = search.page(ItemQuery(text, filters, limit=size, num_values=9))
        expected = [item for item in order if holds(item, text, a, b)]
        assert sorted(one.item_id for one in page.items) == sorted(expected) and page.num_found == len(expected)
        assert [one.item_id for one in page.items if one.item_id != text] == [one for one in expected if one != text]
        assert expected, "the case finds something"
        for value, count in page.values["b"]:
            assert count == sum(value in of_item[item][2] for item in order if holds(item, text, a, set()))
        for value, count in page.values["a"]:
            assert count == sum(value in of_item[item][1] for item in order if holds(item, text, set(), b))


def test_a_catalogue_of_ids_alone_is_listed() -> None:
    bare = ItemSearch(replace(bundles.encoder(), features=()), "v1")
    page = bare.page(ItemQuery(limit=2, num_values=9))
    assert [(item.item_id, item.title, item.features) for item in page.items] == [("i0", None, {}), ("i1", None, {})]
    assert page.values == {}
    with pytest.raises(QueryError, match="have no categories"):
        bare.page(ItemQuery(filter=("category:toys",)))


def test_the_search_of_a_bundle_is_that_of_its_encoder(bundle: Storage) -> None:
    search = ItemSearch(Encoder.load(bundle / "encoder"), "v1")
    page = search.page(ItemQuery(filter=("category:toys",), limit=100, num_values=9))
    assert {item.features["category"][0] for item in page.items} == {"toys"}
    assert sum(count for _, count in page.values["category"]) == bundles.NUM_ITEMS
