from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distft.data import ragged
from distft.data.encode import NO_TIME, Encoder, RawEvent
from distft.data.features import encode_features
from distft.data.parquet import read_table
from distft.data.sources.base import FeatureTable
from distft.errors import ArtefactError, DataError
from distft.schema import NUM_RESERVED, PAD, UNKNOWN, Feature
from distft.sections.features import Encode
from distft.storage import Storage


@pytest.fixture
def encoder() -> Encoder:
    return made()


def made(encode: Encode | None = None) -> Encoder:
    ids = np.array(["", "", "b", "a", "c"], np.object_)
    table = pa.table(
        {
            "item_id": ["a", "b", "z"],
            "price": [1.0, 3.0, 900.0],
            "title": ["First", None, "?"],
            "category": pa.array([["shoes", "red"], [], ["hats"]]),
            "brand": ["acme", None, "other"],
        }
    )
    features = FeatureTable(table, "item_id", numeric=("price",), text=("title",))
    trained = np.array([False, False, True, True, True])
    columns = encode_features(features, ids, trained, NUM_RESERVED, encode or Encode())
    counts = np.array([0, 0, 5, 5, 0])
    return Encoder(("view", "purchase", "search"), ("purchase",), True, ids, counts, ("", "", "red", "漢"), columns)


def test_save_and_load_give_the_same_encoder(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(Storage(tmp_path / "one"))
    loaded = Encoder.load(Storage(tmp_path / "one"))
    loaded.save(Storage(tmp_path / "two"))
    for name in Storage(tmp_path / "one").list():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert loaded.item_ids.tolist() == encoder.item_ids.tolist()
    assert loaded.token_words == encoder.token_words
    assert [column.spec.describe() for column in loaded.features] == [
        column.spec.describe() for column in encoder.features
    ]


def test_an_encoder_of_another_format_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    encoder.save(storage)
    storage.write_json("encoder.json", storage.read_json("encoder.json") | {"format": 99})
    with pytest.raises(ArtefactError, match="encoder format 99"):
        Encoder.load(storage)


def test_catalog_sizes_and_features(encoder: Encoder) -> None:
    catalog = encoder.catalog()
    assert (catalog.num_items, catalog.num_events, catalog.num_query_tokens) == (5, 4, 4)
    features = {feature.name: feature for feature in catalog.features}
    assert set(features) == {"price", "category", "brand"}
    price = features["price"].values
    assert price is not None
    assert price.tolist() == [0, 0, 1, -1, 0]  # mean 2, deviation 1; item z has no row and counts for nothing
    category = features["category"].codes
    assert category is not None
    assert category.tolist() == [PAD, UNKNOWN, UNKNOWN, 3, UNKNOWN]  # red, shoes: the first is shoes
    assert features["category"].size == 4


def test_matching_sees_every_category_of_an_item(encoder: Encoder) -> None:
    assert encoder.feature("category").matching({"red"}).tolist() == [False, False, False, True, False]
    assert not encoder.feature("category").matching({"", "nothing"}).any()
    with pytest.raises(DataError, match=r"'colour' is not an item feature .* price, title, category, brand"):
        encoder.feature("colour")


def test_popularity_ranks_by_count_then_row(encoder: Encoder) -> None:
    assert encoder.popularity.tolist() == [2, 3, 4]
    assert encoder.target_codes.tolist() == [2]


def test_unknown_words_and_ids_have_the_unknown_row(encoder: Encoder) -> None:
    assert encoder.item_rows(["a", "nope", "", "b"]).tolist() == [3, UNKNOWN, UNKNOWN, 2]
    assert encoder.tokens("RED ｒｅｄ, 漢字!") == [2, 2, 3, UNKNOWN]
    assert encoder.token_texts([2, 1, 3]) == ["red", "", "漢"]
    with pytest.raises(DataError, match=r"'buy' is not an event of this dataset.*view, purchase, search"):
        encoder.event_code("buy")


def test_events_are_encoded_in_time_order_and_decoded(encoder: Encoder) -> None:
    events = [
        RawEvent("a", "purchase", 30),
        RawEvent(None, "search", 10, "red hat"),
        RawEvent("zzz", "view", 30),
        RawEvent("b", "view", 20),
    ]
    rows = encoder.encode_events(events)
    assert rows.item_row.tolist() == [PAD, 2, 3, UNKNOWN]
    assert rows.event.tolist() == [3, 1, 2, 1]
    assert rows.query_offsets.tolist() == [0, 2, 2, 2, 2]
    assert rows.user_row.tolist() == [-1]
    raw = encoder.decode(rows, 0)
    assert raw.item_ids == [None, "b", "a", None]
    assert raw.events == ["search", "view", "purchase", "view"]
    assert raw.time_ms == [10, 20, 30, 30]
    assert raw.queries == ["red", None, None, None]


def test_events_without_times_keep_their_order(encoder: Encoder) -> None:
    rows = encoder.encode_events([RawEvent("a", "view"), RawEvent("b", "view", 1)])
    assert rows.item_row.tolist() == [3, 2]
    assert rows.time_ms.tolist() == [NO_TIME, 1]
    assert len(encoder.encode_events([])) == 1
    with pytest.raises(DataError, match="a view has no item_id"):
        encoder.encode_events([RawEvent(None, "view")])


def test_users_that_are_encoded_together_are_as_each_alone(encoder: Encoder) -> None:
    users = [
        [RawEvent("a", "purchase", 30), RawEvent(None, "search", 10, "red hat"), RawEvent("b", "view", 20)],
        [],
        [RawEvent("b", "view", 9), RawEvent("zzz", "view"), RawEvent(None, "search", 1, "漢 red")],
    ]
    together, alone = encoder.encode_users(users), ragged.concat([encoder.encode_events(events) for events in users])
    for field in fields(together):
        np.testing.assert_array_equal(getattr(together, field.name), getattr(alone, field.name), field.name)
    assert together.item_row.tolist() == [PAD, 2, 3, 2, UNKNOWN, PAD], "the third user's events stay as they were given"
    assert len(encoder.encode_users([])) == 0


def test_titles_fall_back_to_ids(encoder: Encoder) -> None:
    assert encoder.titles([2, 3, 4]) == ["b", "First", "c"]


def features_of(encoder: Encoder) -> dict[str, Feature]:
    return {feature.name: feature for feature in encoder.catalog().features}


def test_a_job_chooses_how_features_are_encoded(tmp_path: Path) -> None:
    encode = Encode.model_validate(
        {
            "numbers": {"scale": "unit", "missing": "indicator"},
            "categories": {"form": "one_hot"},
            "features": {"brand": {"form": "label", "missing": "zero"}},
        }
    )
    encoder = made(encode)
    encoder.save(Storage(tmp_path))
    for one in (encoder, Encoder.load(Storage(tmp_path))):  # a server has what training had
        found = features_of(one)
        assert list(found) == ["price", "price is missing", "category", "brand"]
        price, lacks, brand = found["price"].values, found["price is missing"].values, found["brand"].codes
        assert price is not None
        assert lacks is not None
        assert brand is not None
        assert price.tolist() == [0, 0.5, 1, 0, 0.5]  # PAD, then UNKNOWN and c at the mean of 1 and 3
        assert lacks.tolist() == [0, 1, 0, 0, 1]
        codes = found["category"].codes
        assert codes is not None
        assert codes.tolist() == [[PAD, PAD], [UNKNOWN, PAD], [UNKNOWN, PAD], [3, 2], [UNKNOWN, PAD]]
        assert brand.tolist() == [PAD, PAD, PAD, 2, PAD]
        assert one.feature("brand").codes.tolist() == [PAD, UNKNOWN, UNKNOWN, 2, UNKNOWN]


def test_a_missing_number_is_null_in_the_file(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(Storage(tmp_path))
    assert read_table(Storage(tmp_path), "items.parquet")["feature.price"].to_pylist() == [None, None, 1.0, -1.0, None]
