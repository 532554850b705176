"""prepare as one would write it in an hour: dictionaries and loops over rows. What the fast one is checked against."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tests.data.logs import TYPES

DAY_MS = 86_400_000
Event = tuple[int, str | None, str, str | None, float, float]  # time_ms, item, type, query, value, quantity


@dataclass
class Naive:
    """Cleaned sequences, and rows (user, history, target) of each split."""

    train: dict[str, list[Event]]
    valid: list[tuple[str, list[Event], Event]]
    test: list[tuple[str, list[Event], Event]]
    items: list[str]
    filtered: Counter[str]


def usable(records: Sequence[Sequence[str]]) -> dict[str, list[Event]]:
    """The good records of each user in the order of (time, log)."""
    users: dict[str, list[Event]] = defaultdict(list)
    for row in records:
        if len(row) != 7:
            continue
        user, item, what, when, words, price, pieces = row
        if not user or what not in TYPES or (not item and what != "find") or not when.isdigit():
            continue
        try:
            value = float(price)
        except ValueError:
            continue
        users[user].append((int(when) * 1000, item or None, TYPES[what], words or None, value, float(pieces)))
    return {user: sorted(users[user], key=lambda event: event[0]) for user in sorted(users)}


def repeats(event: Event, earlier: list[Event], repeat_ms: int) -> bool:
    """True if an equal event is at most so long ago; never where that is 0."""
    return repeat_ms > 0 and any(old[1:] == event[1:] and event[0] - old[0] <= repeat_ms for old in earlier)


def clean(
    users: dict[str, list[Event]], minimum: int, before: float, filtered: Counter[str], repeat_ms: int = 0
) -> dict[str, list[Event]]:
    """Without duplicates, cancelled events and what the k-core drops of the events ``before`` a time."""
    for user, events in users.items():
        distinct: list[Event] = []
        for event in events:
            if event in distinct:
                filtered["duplicate"] += event[5] >= 0
            else:
                distinct.append(event)
        kept: list[Event] = []
        for event in distinct:
            if event[5] >= 0:
                kept.append(event)
                continue
            for earlier in reversed(kept):
                if earlier[1:3] == event[1:3]:
                    kept = [one for one in kept if one is not earlier]
                    filtered["cancelled"] += 1
                    break
        users[user] = [event for place, event in enumerate(kept) if not repeats(event, kept[:place], repeat_ms)]
        filtered["repeated"] += len(kept) - len(users[user])
    while True:
        old = [(user, event) for user, events in users.items() for event in events if event[0] < before]
        per_user = Counter(user for user, _ in old)
        few = {user for user in per_user if per_user[user] < minimum}
        filtered["k_core_user"] += sum(per_user[user] for user in few)
        users = {
            user: [event for event in events if event[0] >= before or user not in few] for user, events in users.items()
        }
        per_item = Counter(event[1] for user, event in old if user not in few and event[1] is not None)
        rare = {item for item in per_item if per_item[item] < minimum}
        filtered["k_core_item"] += sum(per_item[item] for item in rare)
        users = {
            user: [event for event in events if event[0] >= before or event[1] not in rare]
            for user, events in users.items()
        }
        if not rare:
            return {user: events for user, events in users.items() if events}


def by_time(records: Sequence[Sequence[str]], minimum: int, days: int, targets: set[str]) -> Naive:
    """Everything for ``split: {by: time}`` with windows of ``days``."""
    filtered: Counter[str] = Counter()
    once = clean(usable(records), 1, 0, Counter())
    last = max(event[0] for events in once.values() for event in events)
    test_start = last - days * DAY_MS + 1
    valid_start = test_start - days * DAY_MS
    users = clean(usable(records), minimum, valid_start, filtered)
    train = {user: [event for event in events if event[0] < valid_start] for user, events in users.items()}
    train = {user: events for user, events in train.items() if events}

    def rows(start: int, end: int) -> list[tuple[str, list[Event], Event]]:
        return [
            (user, [old for old in events if old[0] < event[0]], event)
            for user, events in users.items()
            for event in events
            if start <= event[0] < end and event[2] in targets and event[1] is not None
        ]

    known = {event[1] for events in users.values() for event in events if event[0] < test_start and event[1]}
    counts = Counter(event[1] for events in train.values() for event in events if event[2] in targets)
    items = sorted(known, key=lambda item: (-counts[item], item))
    return Naive(train, rows(valid_start, test_start), rows(test_start, last + 1), items, filtered)


def leave_one_out(records: Sequence[Sequence[str]], minimum: int, targets: set[str], repeat_ms: int = 0) -> Naive:
    """Everything for ``split: {by: leave_one_out, ties: ordered}``."""
    filtered: Counter[str] = Counter()
    users = clean(usable(records), minimum, float("inf"), filtered, repeat_ms)
    naive = Naive({}, [], [], [], filtered)
    known = set()
    for user, events in users.items():
        places = [place for place, event in enumerate(events) if event[2] in targets and event[1] is not None]
        if len(places) < 3:
            naive.train[user] = events
            known |= {event[1] for event in events}
            continue
        naive.train[user] = events[: places[-2]]
        naive.valid.append((user, events[: places[-2]], events[places[-2]]))
        naive.test.append((user, events[: places[-1]], events[places[-1]]))
        known |= {event[1] for event in events[: places[-1]]}
    naive.train = {user: events for user, events in naive.train.items() if events}
    counts = Counter(event[1] for events in naive.train.values() for event in events if event[2] in targets)
    naive.items = sorted((item for item in known if item), key=lambda item: (-counts[item], item))
    return naive
