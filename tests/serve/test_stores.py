"""One contract for the stores of histories: the embedded one and the one in a Redis server."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.encode import RawEvent
from distft.errors import ArtefactError, ServingError, StorageError, UsageError
from distft.serve.eventlog import EventLog
from distft.serve.redis_store import RedisStore
from distft.serve.sqlite_store import FILE, SqliteStore
from distft.serve.store import Addition, HistoryStore
from distft.storage import Storage
from tests.serve.stores import redis_server, view

Open = Callable[[], HistoryStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again, for at most five events a user."""
    if request.param == "sqlite":
        yield lambda: SqliteStore(tmp_path, 5)
        return
    url = request.getfixturevalue("server")
    yield lambda: RedisStore(url, "shop", 5)
    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.fixture
def store(reopen: Open) -> Iterator[HistoryStore]:
    opened = reopen()
    yield opened
    opened.close()


def test_events_come_back_in_time_order_and_those_of_one_moment_as_they_came(store: HistoryStore) -> None:
    search = RawEvent(None, "search", 5, "red \u2028 mug")
    rating = RawEvent("i9", "rating", 7, None, 4.5)
    assert store.add([Addition("u", [view(3, 5), search, view(1, 5)]), Addition("u", [rating, view(2, 2)])]) == [3, 2]
    assert store.events("u") == [view(2, 2), view(3, 5), search, view(1, 5), rating]
    assert store.events("nobody") == []


def test_an_event_that_is_sent_again_is_not_added_twice(store: HistoryStore, reopen: Open) -> None:
    events = [view(1, 1), view(1, 1, "cart"), RawEvent("i1", "search", 1, "mug")]
    assert store.add([Addition("u", events)]) == [3]
    assert store.add([Addition("u", [*events, view(1, 2)]), Addition("v", events[:1])]) == [1, 1]
    assert store.add([Addition("w", [view(1, 1), view(1, 1)]), Addition("w", [view(1, 1)])]) == [1, 0]
    store.close()
    again = reopen()
    assert again.add([Addition("u", events)]) == [0]
    assert len(again.pending(100).lines) == 6
    again.close()


def test_the_latest_events_are_kept(store: HistoryStore) -> None:
    store.add([Addition("u", [view(at, at) for at in range(9, 0, -1)])])
    assert [event.time_ms for event in store.events("u")] == [5, 6, 7, 8, 9]
    store.add([Addition("u", [view(0, 9)])])
    assert [event.item_id for event in store.events("u")] == ["i6", "i7", "i8", "i9", "i0"]


def test_a_bundle_is_taken_over_once_and_not_logged(store: HistoryStore) -> None:
    store.add([Addition("u", [view(1, 1)])])
    bundle = [Addition("u", [view(1, 1), view(2, 2)]), Addition("v", [view(3, 3)])]
    assert store.fill("first", bundle) == 2
    assert store.events("u") == [view(1, 1), view(2, 2)] and store.events("v") == [view(3, 3)]
    assert len(store.pending(100).lines) == 1
    assert store.fill("first", [Addition("w", [view(1, 1)])]) == 0 and store.events("w") == []
    assert store.fill("second", [Addition("w", [view(1, 1)])]) == 1


def test_who_is_forgotten_does_not_come_back_with_a_bundle_but_may_return(store: HistoryStore) -> None:
    store.fill("first", [Addition("u", [view(1, 1), view(2, 2)])])
    store.add([Addition("u", [view(3, 3)]), Addition("v", [view(3, 3)])])
    assert store.forget("u") == 3 and store.erasing() == ["u"]
    assert store.events("u") == [] and [user for user, _ in store.pending(9).lines] == ["v"]
    store.erased("u")
    assert store.erasing() == [] and store.forget("nobody") == 0
    assert store.fill("second", [Addition("u", [view(1, 1)]), Addition("v", [view(1, 1)])]) == 1
    assert store.events("u") == []
    assert store.add([Addition("u", [view(4, 4)])]) == [1]
    assert store.events("u") == [view(4, 4)]


def lines(state: Path) -> list[dict[str, object]]:
    files = sorted((state / "log").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]


def test_every_event_is_in_the_log_once_wherever_the_writer_was_killed(reopen: Open, tmp_path: Path) -> None:
    store, state = reopen(), Storage(tmp_path / "state")
    log = EventLog(store, state)
    store.add([Addition("u", [view(1, 1), RawEvent(None, "search", 2, "red mug")])])
    assert log.flush() == 2 and log.flush() == 0
    store.add([Addition("v", [RawEvent("i3", "rating", 3, None, 4.0)])])
    written = store.pending(10)
    log._write(written.segment, [line for _, line in written.lines])  # and killed before the store knew of it
    store.add([Addition("u", [view(4, 4)])])
    store.close()
    again = reopen()
    EventLog(again, state).flush()
    again.close()
    assert lines(tmp_path / "state") == [
        {"user_id": "u", "event": "view", "timestamp": 1, "item_id": "i1"},
        {"user_id": "u", "event": "search", "timestamp": 2, "query": "red mug"},
        {"user_id": "v", "event": "rating", "timestamp": 3, "item_id": "i3", "value": 4.0},
        {"user_id": "u", "event": "view", "timestamp": 4, "item_id": "i4"},
    ]


def test_forgetting_that_was_interrupted_is_ended(reopen: Open, tmp_path: Path) -> None:
    store, state = reopen(), Storage(tmp_path / "state")
    log = EventLog(store, state)
    for at in (1, 2):
        store.add([Addition("u", [view(at, at)]), Addition("v", [view(at, at)])])
        log.flush()
    store.add([Addition("u", [view(3, 3)])])
    unfinished = store.pending(10)
    log._write(unfinished.segment, [line for _, line in unfinished.lines])
    store.forget("u")  # and killed
    store.close()
    again = reopen()
    EventLog(again, state).recover()
    assert again.erasing() == []
    again.close()
    assert [line["user_id"] for line in lines(tmp_path / "state")] == ["v", "v"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


_events = st.lists(
    st.builds(RawEvent, st.sampled_from(["i1", "i2", "i:3"]), st.sampled_from(["view", "cart"]), st.integers(0, 4)),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b:c", "ü"]), _events), max_size=8))
def test_both_stores_hold_what_a_plain_list_would(
    server: str, scratch: Path, additions: list[tuple[str, list[RawEvent]]]
) -> None:
    with redis.Redis.from_url(server) as client:
        client.flushall()
    expected: dict[str, list[RawEvent]] = {}
    stores = (RedisStore(server, "shop", 5), SqliteStore(Path(tempfile.mkdtemp(dir=scratch)), 5))
    for user, events in additions:
        for store in stores:
            store.add([Addition(user, events)])
        history = expected.setdefault(user, [])
        history += [event for place, event in enumerate(events) if event not in history + events[:place]]
        history.sort(key=lambda event: event.time_ms or 0)
        del history[:-5]
    for store in stores:
        assert {user: store.events(user) for user in expected} == expected
        store.close()


def test_nothing_of_who_was_forgotten_stays_in_the_files(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, 100)
    for at in range(300):
        store.add([Addition("somebody-secret", [view(at, at)]), Addition(f"other-{at}", [view(at, at)])])
    log = EventLog(store, Storage(tmp_path))
    log.flush()
    store.forget("somebody-secret")
    log.erase("somebody-secret")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(b"other-299" in file.read_bytes() for file in files)
    assert not any(b"somebody-secret" in file.read_bytes() for file in files)
    store.close()


def test_only_its_user_reads_the_file(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "state", 5).close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else entirely" * 100)
    with pytest.raises(ArtefactError, match=f"{FILE} is damaged.*--state"):
        SqliteStore(tmp_path, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--state"):
        SqliteStore(tmp_path / "file", 5)


def test_two_services_may_write_to_one_server_at_a_time(server: str) -> None:
    with redis.Redis.from_url(server) as client:
        client.flushall()
    stores = [RedisStore(server, "shop", 1_000) for _ in range(2)]
    groups = [[Addition("u", [view(at, at // 3)])] for at in range(120)]
    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(lambda store: [store.add(group)[0] for group in groups], stores))
    assert [sum(both) for both in zip(*counts, strict=True)] == [1] * 120
    assert [len(store.events("u")) for store in stores] == [120, 120]
    assert Counter(event.item_id for event in stores[0].events("u")) == {f"i{at}": 1 for at in range(120)}
    assert len(stores[0].pending(1_000).lines) == 120
    for store in stores:
        store.close()


def test_what_another_service_has_logged_is_not_taken_out_twice(server: str) -> None:
    with redis.Redis.from_url(server) as client:
        client.flushall()
    slow, quick = (RedisStore(server, "shop", 5) for _ in range(2))
    slow.add([Addition("u", [view(1, 1)])])
    mine = slow.pending(10)
    quick.add([Addition("u", [view(2, 2)])])
    quick.logged(quick.pending(10))
    quick.add([Addition("u", [view(3, 3)])])
    with pytest.raises(ServingError, match="Segment 1 of the event log was written by another service, which is at 2"):
        slow.logged(mine)
    assert [json.loads(line)["timestamp"] for _, line in slow.pending(10).lines] == [3]
    slow.close()
    quick.close()


def test_what_comes_after_the_wish_to_be_forgotten_is_logged_once_the_rest_is_erased(server: str) -> None:
    with redis.Redis.from_url(server) as client:
        client.flushall()
    store = RedisStore(server, "shop", 5)
    store.add([Addition("u", [view(1, 1)])])
    store.forget("u")
    store.add([Addition("u", [view(2, 2)]), Addition("v", [view(3, 3)])])
    assert [user for user, _ in store.pending(10).lines] == ["v"]
    store.logged(store.pending(10))
    store.erased("u")
    assert [user for user, _ in store.pending(10).lines] == ["u"]
    store.close()


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"history store at 127\.0\.0\.1 does not answer") as caught:
        RedisStore("redis://:secret-word@127.0.0.1:9/0", "shop", 5)
    assert "secret-word" not in str(caught.value)
    with redis_server(tmp_path) as url:
        store = RedisStore(url, "shop", 5)
    with pytest.raises(ServingError, match="does not answer"):
        store.events("u")
