"""Lists of a table of histories against the predictor's answers to the same users, one by one."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from distft.data.encode import RawEvent
from distft.data.histories import encoded
from distft.errors import DataError
from distft.recommend.scoring import BATCH_USERS, BatchScorer
from distft.schema import Histories
from distft.serve.predictor import Predictor, Query
from tests.recommend.made import table, users
from tests.serve.bundles import encoder, events


def strange(seed: int) -> list[RawEvent]:
    """A history out of order, in some of which times, items and types are missing or unknown."""
    rng = np.random.default_rng(seed)
    history = [events(seed, 20)[place] for place in rng.permutation(20)[: rng.integers(0, 20)]]
    changes = {
        0: lambda one: replace(one, time_ms=None),
        1: lambda one: replace(one, item_id="nobody knows") if one.item_id else one,
        2: lambda one: replace(one, query="mug of nothing"),
        3: lambda one: replace(one, value=float(rng.normal())),
        4: lambda one: replace(one, time_ms=7),
    }
    kinds = rng.choice([9, 9, 9, *range(5 if seed % 2 else 1, 5), *([0] if seed % 3 == 0 else [])], len(history))
    return [changes[int(kind)](one) if int(kind) in changes else one for kind, one in zip(kinds, history, strict=True)]


def row_of(histories: Histories, row: int) -> dict[str, list[object]]:
    first, last = histories.offsets[row], histories.offsets[row + 1]
    queries = [
        histories.query_tokens[histories.query_offsets[event] : histories.query_offsets[event + 1]].tolist()
        for event in range(first, last)
    ]
    names = ("item_row", "event", "time_ms", "value")
    return {**{name: getattr(histories, name)[first:last].tolist() for name in names}, "queries": queries}


def test_many_histories_are_encoded_as_each_by_itself() -> None:
    known, all_users = encoder(), {f"u{seed}": strange(seed) for seed in range(300)}
    found = encoded(table(all_users), known)
    assert len(found) == 300 and len(fields(found)) == len(fields(known.encode_events([])))
    for number, history in enumerate(all_users.values()):
        assert row_of(found, number) == row_of(known.encode_events(history), 0), history


def test_a_slice_of_a_table_is_encoded_as_its_own_rows() -> None:
    whole = table(users(0, 60))
    part = encoded(whole.slice(17, 30), encoder())
    expected = encoded(whole, encoder())
    assert [row_of(part, row) for row in range(30)] == [row_of(expected, 17 + row) for row in range(30)]


def test_events_of_types_that_the_model_does_not_know_are_left_out() -> None:
    known = events(3, 9)
    mixed = [*known[:2], RawEvent("i1", "share", 5), *known[2:], RawEvent(None, "call", None)]
    both = encoded(table({"a": mixed, "b": known}), encoder())
    assert row_of(both, 0) == row_of(both, 1)


def test_columns_that_tell_nothing_may_be_missing_and_one_of_nulls_is_of_no_type() -> None:
    users = {"a": [RawEvent("i3", "view"), RawEvent("i4", "cart")], "b": []}
    whole = table(users)
    expected = encoded(whole, encoder())
    for changed in (
        whole.drop_columns(["time_ms", "query", "value"]),
        whole.set_column(4, "query", pa.array([[None, None], []], pa.list_(pa.null()))),
    ):
        found = encoded(changed, encoder())
        assert [row_of(found, row) for row in (0, 1)] == [row_of(expected, row) for row in (0, 1)]


def test_an_event_without_the_item_that_it_is_about_is_an_error() -> None:
    with pytest.raises(DataError, match="a cart has no item_id"):
        encoded(table({"a": [RawEvent("i1", "view", 3), RawEvent(None, "cart", 4)]}), encoder())


@pytest.mark.parametrize("name", ["item_id", "time_ms", "query", "value"])
def test_a_column_with_another_number_of_entries_names_the_user(name: str) -> None:
    whole = table({"a": [RawEvent("i1", "view", 3)], "b": [RawEvent("i2", "cart", 4), RawEvent("i3", "view", 5)]})
    place = whole.column_names.index(name)
    # As many in all, so that only a look at each user tells.
    shifted = pa.array([whole[name].to_pylist()[1], whole[name].to_pylist()[0]], whole.schema.field(name).type)
    with pytest.raises(DataError, match=f"User a has 1 events and 2 entries of {name}"):
        encoded(whole.set_column(place, name, shifted), encoder())


def test_a_column_that_is_no_list_is_named_with_its_type() -> None:
    whole = table({"a": [RawEvent("i1", "view", 3)]})
    with pytest.raises(DataError, match="The column item_id is string"):
        encoded(whole.set_column(1, "item_id", pa.array(["i1"])), encoder())


@pytest.mark.parametrize("rule", [None, "all", "targets", "none"])
@pytest.mark.parametrize("deny", [(), ("i3", "i7", "i11", "not an item")])
def test_lists_are_what_the_service_answers(predictor: Predictor, rule: str | None, deny: tuple[str, ...]) -> None:
    everybody = users(0, BATCH_USERS + 40)
    found = BatchScorer(predictor, 7, rule, deny).lists(table(everybody))  # type: ignore[arg-type]
    assert found["user_id"].to_pylist() == list(everybody)
    seen = {None: None, "all": True, "none": False}
    for row, history in zip(found.to_pylist(), everybody.values(), strict=True):
        if rule == "targets":
            bought = tuple(one.item_id for one in history if one.event == "purchase" and one.item_id)
            query = Query(history, 7, exclude_seen=False, exclude_items=(*bought, *deny))
        else:
            query = Query(history, 7, exclude_seen=seen[rule], exclude_items=deny)
        answer = predictor.recommend([query])[0]
        assert row["item_id"] == answer.item_ids
        assert row["score"] == pytest.approx(answer.scores, abs=1e-5)
        assert row["source"] == answer.source


def test_a_list_ends_where_no_items_are_left(predictor: Predictor) -> None:
    denied = [f"i{number}" for number in range(57)]
    lists = BatchScorer(predictor, 7, "none", denied).lists(table(users(0, 3)))
    assert [sorted(row) for row in lists["item_id"].to_pylist()] == [["i57", "i58", "i59"]] * 3


def test_nobody_gets_no_lists(predictor: Predictor) -> None:
    assert len(BatchScorer(predictor, 7).lists(table({}))) == 0
