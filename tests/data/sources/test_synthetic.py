"""The made-up shop: what its log looks like, that it never changes, and that its oracle is exact."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from distft.data.sources.base import RawHistory, event_schema, rejected_schema
from distft.data.sources.synthetic.config import SESSION_PAUSE_S, Config
from distft.data.sources.synthetic.oracle import ShopOracle
from distft.data.sources.synthetic.sessions import BLOCK_USERS
from distft.data.sources.synthetic.shop import build_shop
from distft.data.sources.synthetic.source import Synthetic
from distft.data.sources.synthetic.words import brand_words, category_words, style_words

TINY: dict[str, Any] = {
    "num_users": 60_000,
    "num_items": 12,
    "num_categories": 2,
    "num_price_levels": 2,
    "num_brands": 2,
    "num_styles": 2,
    "num_user_types": 2,
    "min_sessions": 2,
    "mean_sessions": 2.5,
    "max_sessions": 3,
    "mean_views": 1,
    "max_views": 1,
    "purchase_share": 0.7,
    "view_fit": 0.2,
    "two_word_share": 0.2,
    "min_items_per_keyword": 1,
}
FROZEN_EVENTS = 221496
FROZEN_DIGEST = "15bec4d643c76883"
KINDS = ("view", "cart", "purchase", "search")


def table(config: Config) -> pa.Table:
    source = Synthetic(config)
    return pa.concat_tables([batch.events for task in source.read_tasks() for batch in source.read(task)])


def user_histories(events: pa.Table) -> list[RawHistory]:
    """Each user's whole log."""
    user = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1, [len(user)]])
    columns = [events[name].to_pylist() for name in ("item_id", "event", "time_ms", "query")]
    return [RawHistory(*(column[a:b] for column in columns)) for a, b in itertools.pairwise(bounds)]


def before(history: RawHistory, end: int) -> RawHistory:
    return RawHistory(history.item_ids[:end], history.events[:end], history.time_ms[:end], history.queries[:end])


def purchases(history: RawHistory) -> list[int]:
    return [place for place, event in enumerate(history.events) if event == "purchase"]


@pytest.fixture(scope="module")
def quickstart() -> pa.Table:
    return table(Config())


@pytest.fixture(scope="module")
def users(quickstart: pa.Table) -> list[RawHistory]:
    """The first hundreds of users, each with the whole log."""
    return user_histories(quickstart.slice(0, 40_000))[:-1]


@pytest.fixture(scope="module")
def held_out(users: list[RawHistory]) -> list[tuple[RawHistory, str]]:
    """The last purchases of some users, with the events before them."""
    pairs = []
    for history in users[:400]:
        places = purchases(history)
        if places:
            pairs.append((before(history, places[-1]), str(history.item_ids[places[-1]])))
    return pairs


def log_likelihood(oracle: ShopOracle, pairs: list[tuple[RawHistory, str]]) -> np.ndarray:
    row = {item_id: row for row, item_id in enumerate(oracle.shop.item_ids())}
    return np.log([oracle.predict(history)[row[item_id]] for history, item_id in pairs])


# -- the log -----------------------------------------------------------------------------------------------


def test_batches_have_the_schema_of_a_source(quickstart: pa.Table) -> None:
    source = Synthetic(Config(num_users=BLOCK_USERS + 1))
    (task,) = source.read_tasks()
    batches = list(source.read(task))
    assert [batch.events.schema for batch in batches] == [event_schema()] * 2
    assert [batch.rejected.schema for batch in batches] == [rejected_schema()] * 2
    assert sum(batch.rejected.num_rows for batch in batches) == 0
    rows = np.concatenate([batch.events["row"].to_numpy() for batch in batches])
    assert rows.tolist() == list(range(1, len(rows) + 1))
    assert sum(quickstart[name].null_count for name in ("row", "user_id", "event", "time_ms")) == 0


def test_the_quickstart_shop_is_frozen(quickstart: pa.Table) -> None:
    digest = hashlib.sha256()
    for name in ("user_id", "item_id", "event", "time_ms", "query", "value"):
        digest.update(repr(quickstart[name].to_pylist()).encode())
    assert quickstart.num_rows == FROZEN_EVENTS
    assert digest.hexdigest()[:16] == FROZEN_DIGEST


def test_a_users_events_do_not_depend_on_tasks_or_other_users() -> None:
    many = Synthetic(Config(num_users=3 * BLOCK_USERS))
    few = table(Config(num_users=BLOCK_USERS + 10))
    blocks = {}
    for block in (2, 1, 0):  # any order, one task each
        task = many.read_tasks()[0].__class__("synthetic/one", 1, {"first": block, "end": block + 1})
        (blocks[block],) = (batch.events for batch in pickle.loads(pickle.dumps(many)).read(task))
    joined = pa.concat_tables([blocks[0], blocks[1], blocks[2]]).drop_columns("row")
    assert joined.equals(table(many.config).drop_columns("row"))
    assert joined.slice(0, few.num_rows).equals(few.drop_columns("row"))


def test_another_seed_is_another_log() -> None:
    assert not table(Config(num_users=5, seed=2)).equals(table(Config(num_users=5, seed=1)))


def test_read_tasks_cover_all_blocks_and_grow_with_the_log() -> None:
    tasks = Synthetic(Config(num_users=200_000)).read_tasks()
    covered = [block for task in tasks for block in range(task.position["first"], task.position["end"])]
    assert covered == list(range(math.ceil(200_000 / BLOCK_USERS)))
    assert 10 <= len(tasks) <= 30
    assert all(task.num_bytes > 0 for task in tasks)


def test_searches_have_words_and_no_item_and_everything_else_the_reverse(quickstart: pa.Table) -> None:
    searches = np.array([event == "search" for event in quickstart["event"].to_pylist()])
    assert set(quickstart["event"].to_pylist()) == set(KINDS) == set(Config().event_names())
    assert (quickstart["item_id"].is_null().to_numpy() == searches).all()
    assert (quickstart["query"].is_valid().to_numpy() == searches).all()
    assert (quickstart["value"].is_valid().to_numpy() == quickstart["quantity"].is_valid().to_numpy()).all()


def test_time_strictly_increases_and_no_item_is_bought_twice(users: list[RawHistory]) -> None:
    for history in users:
        assert (np.diff(history.time_ms) > 0).all()
        bought = [history.item_ids[place] for place in purchases(history)]
        assert len(set(bought)) == len(bought)


def test_never_twice_holds_where_a_user_buys_almost_all_of_a_cell() -> None:
    config = Config(**{**TINY, "num_users": 500, "purchase_noise": 1e-6, "purchase_share": 1.0, "num_items": 16})
    for history in user_histories(table(config)):
        bought = [history.item_ids[place] for place in purchases(history)]
        assert len(set(bought)) == len(bought)


def test_thirty_percent_of_purchases_follow_a_search_and_ten_percent_of_keywords_are_wrong(
    users: list[RawHistory],
) -> None:
    titles = dict(
        zip(*(Synthetic(Config()).items().table[name].to_pylist() for name in ("item_id", "title")), strict=True)
    )
    num_purchases = num_searched = num_words = num_wrong = 0
    for history in users:
        for place in purchases(history):
            num_purchases += 1
            for index in range(place - 1, max(-1, place - 3), -1):
                if history.events[index] not in ("search", "cart"):
                    break
                if history.events[index] == "search":
                    words = str(history.queries[index]).split()
                    num_searched += 1
                    num_words += len(words)
                    num_wrong += sum(word not in titles[history.item_ids[place]].split() for word in words)
    assert num_searched / num_purchases == pytest.approx(0.3, abs=0.02)
    assert num_wrong / num_words == pytest.approx(0.1, abs=0.015)


def test_items_have_features_and_every_keyword_fits_twenty_of_them() -> None:
    features = Synthetic(Config()).items()
    assert (features.key, features.numeric, features.text) == ("item_id", ("price",), ("title",))
    assert features.table.column_names == ["item_id", "category", "brand", "style", "price", "title"]
    assert len(set(features.table["item_id"].to_pylist())) == 1000
    fits = Counter(word for title in features.table["title"].to_pylist() for word in title.split())
    assert set(fits) == set(build_shop(Config()).words)
    assert min(fits.values()) >= Config().min_items_per_keyword == 20
    prices = features.table["price"].to_numpy()
    assert prices.min() > 0
    assert (np.round(prices, 2) == prices).all()


def test_words_are_all_different_in_a_shop_of_any_size() -> None:
    words = [*brand_words(9000), *category_words(500), *style_words(500)]
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and word == word.casefold() for word in words)


def test_sessions_can_be_told_apart(users: list[RawHistory]) -> None:
    for history in users[:500]:
        gap_ms = np.diff(history.time_ms)
        pauses = gap_ms >= SESSION_PAUSE_S * 1000
        assert (gap_ms[~pauses] <= 120_000).all()
        after_purchase = np.array([event == "purchase" for event in history.events[:-1]])
        assert pauses[after_purchase].all()
        assert pauses.sum() + 1 >= Config().min_sessions


def test_identity_follows_the_config() -> None:
    assert Synthetic(Config()).identity() == Synthetic(Config()).identity()
    assert Synthetic(Config()).identity() != Synthetic(Config(search_share=0.4)).identity()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_brands": 60}, "min_items_per_keyword"),
        ({"num_items": 200}, "4 x max_sessions"),
        ({"num_brands": 2}, "num_price_levels"),
        ({"num_categories": 400}, "num_categories x num_price_levels"),
        ({"mean_sessions": 3}, "must stand in this order"),
        ({"mean_views": 9}, "max_views"),
        ({"days": 3}, "raise days to"),
        ({"wrong_keyword_share": 0}, "greater than 0"),
        ({"nmu_users": 3}, "Extra inputs"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**keys)


# -- the oracle --------------------------------------------------------------------------------------------


def history_of(rows: list[tuple[str, str | None, str | None]], session_of: list[int]) -> RawHistory:
    times = [session * 10**8 + place * 1000 for place, session in enumerate(session_of)]
    return RawHistory(
        [item for _, item, _ in rows], [event for event, _, _ in rows], times, [query for _, _, query in rows]
    )


class Naive:
    """The generative model written out once more: sums over every combination of what is hidden."""

    def __init__(self, config: Config) -> None:
        self.shop = build_shop(config)
        self.config, self.taste = config, self.shop.taste
        self.row = {item_id: row for row, item_id in enumerate(self.shop.item_ids())}

    def posterior(self, sessions: list[list[tuple[str, str | None, str | None]]]) -> np.ndarray:
        """Of the wanted item of the last session, which has no purchase yet."""
        total = np.zeros(len(self.row))
        for taste in range(self.config.num_user_types):
            self._visit(taste, sessions, -1, frozenset(), 1.0, total)
        return total / total.sum()

    def _visit(
        self, taste: int, sessions: list[Any], previous: int, owned: frozenset[int], chance: float, total: Any
    ) -> None:
        session, rest = sessions[0], sessions[1:]
        for category, level in itertools.product(
            range(self.config.num_categories), range(self.config.num_price_levels)
        ):
            start = self._start(taste, category, previous) * self.taste.level_KL[taste, level]
            intent = category * self.config.num_price_levels + level
            wanted = self.taste.buy_ZG[intent, self.shop.cell_N] * self.shop.share_N
            wanted = np.array([0 if item in owned else share for item, share in enumerate(wanted)])
            for item, share in enumerate(wanted / wanted.sum()):
                here = chance * start * share * self._events(intent, item, session)
                if not here:
                    continue
                if not rest:
                    total[item] += here
                else:
                    bought = {item} if session and session[-1][0] == "purchase" else set()
                    self._visit(taste, rest, category, owned | bought, here, total)

    def _start(self, taste: int, category: int, previous: int) -> float:
        fresh = float(self.taste.category_KC[taste, category])
        if previous < 0:
            return fresh
        follows = self.config.complement_share
        return (1 - follows) * fresh + follows * float(self.taste.follow_CC[previous, category])

    def _events(self, intent: int, item: int, session: list[tuple[str, str | None, str | None]]) -> float:
        chance = 1.0
        for event, item_id, query in session:
            if event == "search":
                chance *= self._query(item, str(query).split())
                continue
            seen = self.row[str(item_id)]
            if event == "purchase":
                chance *= seen == item
                continue
            fit = self.config.view_fit if event == "view" else self.config.cart_fit
            other = self.taste.browse_ZG[intent, self.shop.cell_N[seen]] * self.shop.share_N[seen]
            chance *= fit * (seen == item) + (1 - fit) * other
        return chance

    def _query(self, item: int, words: list[str]) -> float:
        """Over all ordered choices of places in the title, and right or wrong at each."""
        title = [self.shop.words[word] for word in self.shop.title_NW[item]]
        wrong = self.config.wrong_keyword_share
        places = list(itertools.permutations(title, len(words)))
        chance = 0.0
        for place in places:
            one = 1.0
            for word, right in zip(words, place, strict=True):
                one *= (1 - wrong) * (word == right) + wrong * (word not in title) / (len(self.shop.words) - len(title))
            chance += one / len(places)
        return chance


def test_oracle_equals_the_sum_over_everything_hidden() -> None:
    naive = Naive(Config(**TINY))
    oracle = ShopOracle(naive.shop)
    ids, words = naive.shop.item_ids(), naive.shop.words
    brand, style, noun = (words[word] for word in naive.shop.title_NW[4])
    sessions = [
        [("view", ids[0], None), ("view", ids[7], None), ("purchase", ids[1], None)],
        [("view", ids[4], None), ("search", None, f"{style} {noun}"), ("cart", ids[4], None)],
        [("view", ids[1], None), ("view", ids[9], None), ("search", None, brand), ("cart", ids[5], None)],
    ]
    for end in range(1, 4):
        rows = [row for session in sessions[:end] for row in session]
        places = [number for number, session in enumerate(sessions[:end]) for _ in session]
        if end == 1:  # the purchase is what is asked for
            rows, places = rows[:-1], places[:-1]
            expected = naive.posterior([sessions[0][:-1]])
        else:
            expected = naive.posterior(sessions[:end])
        np.testing.assert_allclose(oracle.predict(history_of(rows, places)), expected, rtol=1e-9)


def test_oracle_after_a_closed_session_sums_over_the_sessions_ahead() -> None:
    """Sessions ahead are unseen: the n-th buys first with chance (1-p)^(n-1) p, if the user has so many."""
    naive = Naive(Config(**TINY))
    shop, p = naive.shop, naive.config.purchase_share
    first = [("view", shop.item_ids()[3], None), ("purchase", shop.item_ids()[3], None)]
    three_of_two = shop.sessions_S[3] / (shop.sessions_S[2] + shop.sessions_S[3])
    expected = naive.posterior([first, []]) + three_of_two * (1 - p) * naive.posterior([first, [], []])
    found = ShopOracle(shop).predict(history_of(first, [0, 0]))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)


def test_frequencies_of_simulated_users_with_one_prefix_match_the_oracle() -> None:
    config = Config(**TINY)
    oracle = ShopOracle(build_shop(config))
    ids = oracle.shop.item_ids()
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    histories: dict[tuple[Any, ...], RawHistory] = {}
    for history in user_histories(table(config)):
        session = np.concatenate([[0], np.cumsum(np.diff(history.time_ms) >= SESSION_PAUSE_S * 1000)]).tolist()
        for place in purchases(history):
            prefix = tuple(zip(session, history.events, history.item_ids, history.queries, strict=True))[:place]
            groups[prefix].append(str(history.item_ids[place]))
            histories[prefix] = before(history, place)
    frequent = [prefix for prefix, items in groups.items() if len(items) >= 60]
    assert len(frequent) >= 80
    assert {event for prefix in frequent for _, event, _, _ in prefix} == set(KINDS)
    statistic = degrees = 0.0
    for prefix in frequent:
        expected = oracle.predict(histories[prefix]) * len(groups[prefix])
        found = Counter(groups[prefix])
        observed = np.array([found[item_id] for item_id in ids])
        assert observed[expected == 0].sum() == 0
        large = expected >= 5
        cells = [(observed[large], expected[large]), (observed[~large].sum(), expected[~large].sum())]
        statistic += sum(float(((o - e) ** 2 / e).sum()) for o, e in cells if np.all(e > 0))
        degrees += large.sum() + (expected[~large].sum() > 0) - 1
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees), (statistic, degrees)


def test_what_carries_over_between_sessions_matches_simulated_users() -> None:
    """Counts of (bought before, bought next) against the oracle's sums over all histories with that item before."""
    config = Config(**{**TINY, "num_users": 6000})
    oracle = ShopOracle(build_shop(config))
    row = {item_id: row for row, item_id in enumerate(oracle.shop.item_ids())}
    observed, expected, variance = (np.zeros((config.num_items, config.num_items)) for _ in range(3))
    for history in user_histories(table(config)):
        for earlier, place in itertools.pairwise(purchases(history)):
            chances = oracle.predict(before(history, place))
            previous = row[str(history.item_ids[earlier])]
            observed[previous, row[str(history.item_ids[place])]] += 1
            expected[previous] += chances
            variance[previous] += chances * (1 - chances)
    again = np.eye(config.num_items, dtype=bool)
    assert observed[again].sum() == expected[again].sum() == 0
    z = (observed - expected)[~again] / np.sqrt(variance[~again])
    assert abs(z).max() < 4.5
    assert (z**2).mean() == pytest.approx(1, abs=0.4)


def test_probabilities_are_calibrated(held_out: list[tuple[RawHistory, str]]) -> None:
    oracle = ShopOracle(build_shop(Config()))
    ids = np.array(oracle.shop.item_ids())
    chances = np.concatenate([oracle.predict(history) for history, _ in held_out])
    hits = np.concatenate([ids == item_id for _, item_id in held_out])
    edges = [0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 1.01]
    for low, high in itertools.pairwise(edges):
        inside = (chances >= low) & (chances < high)
        expected = chances[inside].sum()
        deviation = math.sqrt((chances[inside] * (1 - chances[inside])).sum())
        assert abs(hits[inside].sum() - expected) < 4 * deviation + 1, (low, high)


@pytest.mark.parametrize(
    "wrong",
    [
        {"complement_share": 0.2},
        {"level_loyalty": 0.6},
        {"category_decay": 0.9},
        {"purchase_noise": 0.3},
        {"popularity_skew": 1.0},
        {"view_noise": 0.7},
        {"view_fit": 0.3},
        {"level_drift": 0.05},
        {"cart_fit": 0.95},
        {"wrong_keyword_share": 0.5},
        {"num_user_types": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_oracle_with_a_wrong_parameter_is_worse(
    held_out: list[tuple[RawHistory, str]], right: np.ndarray, wrong: dict[str, float]
) -> None:
    other = ShopOracle(build_shop(Config(**wrong)))  # type: ignore[arg-type]
    assert other.shop.item_ids() == build_shop(Config()).item_ids() or "num_user_types" in wrong
    assert log_likelihood(other, held_out).mean() < right.mean()


@pytest.fixture(scope="module")
def right(held_out: list[tuple[RawHistory, str]]) -> np.ndarray:
    return log_likelihood(ShopOracle(build_shop(Config())), held_out)


def test_queries_and_earlier_sessions_both_matter(held_out: list[tuple[RawHistory, str]], right: np.ndarray) -> None:
    deaf = log_likelihood(ShopOracle(build_shop(Config()), use_queries=False), held_out)
    assert right.mean() - deaf.mean() > 0.2
    last = []
    for history, item_id in held_out:
        gaps = np.flatnonzero(np.diff(history.time_ms) >= SESSION_PAUSE_S * 1000)
        start = int(gaps[-1]) + 1 if len(gaps) else 0
        whole = (history.item_ids, history.events, history.time_ms, history.queries)
        last.append((RawHistory(*(column[start:] for column in whole)), item_id))
    assert right.mean() - log_likelihood(ShopOracle(build_shop(Config())), last).mean() > 0.1


def test_the_shop_is_neither_trivial_nor_hopeless(held_out: list[tuple[RawHistory, str]], quickstart: pa.Table) -> None:
    source = Synthetic(Config())
    ids = source.shop.item_ids()
    is_purchase = np.array([event == "purchase" for event in quickstart["event"].to_pylist()])
    sold = Counter(quickstart["item_id"].filter(pa.array(is_purchase)).to_pylist())
    popularity = np.array([sold[item_id] for item_id in ids], np.float64)
    hits: Counter[str] = Counter()
    for history, item_id in held_out:
        bought = {history.item_ids[place] for place in purchases(history)}
        allowed = np.array([other not in bought for other in ids])
        recent = [item for item in dict.fromkeys(reversed(history.item_ids)) if item and item not in bought][:10]
        hits["oracle"] += item_id in best(source.oracle().scores(history, ids) * allowed, ids)
        hits["popularity"] += item_id in best(popularity * allowed, ids)
        hits["recent"] += item_id in recent
    rate = {name: count / len(held_out) for name, count in hits.items()}
    assert 0.45 < rate["oracle"] < 0.62
    assert rate["popularity"] < 0.1
    assert rate["recent"] < 0.6 * rate["oracle"]


def best(scores: np.ndarray, ids: list[str]) -> set[str]:
    return {ids[row] for row in np.argsort(-scores, kind="stable")[:10]}


def test_oracle_leaves_out_what_the_shop_does_not_know() -> None:
    oracle = ShopOracle(build_shop(Config()))
    ids = oracle.shop.item_ids()
    known = history_of([("view", ids[3], None), ("search", None, oracle.shop.words[0])], [0, 0])
    noisy = history_of(
        [
            ("view", "not of this shop", None),
            ("view", ids[3], None),
            ("rating", ids[5], None),
            ("search", None, f"{oracle.shop.words[0].upper()} xyzzy"),
        ],
        [0, 0, 0, 0],
    )
    np.testing.assert_array_equal(oracle.predict(known), oracle.predict(noisy))
    scores = oracle.scores(known, [ids[3], "not of this shop", ids[0]])
    assert scores[1] == 0
    np.testing.assert_array_equal(scores[[0, 2]], oracle.predict(known)[[3, 0]])


def test_oracle_of_an_empty_history_and_of_one_that_cannot_be() -> None:
    oracle = ShopOracle(build_shop(Config()))
    ids = oracle.shop.item_ids()
    assert oracle.predict(RawHistory([], [], [], [])).sum() == pytest.approx(1)
    twice = history_of([("purchase", ids[0], None), ("purchase", ids[0], None), ("view", ids[1], None)], [0, 1, 2])
    chances = oracle.predict(twice)
    assert chances.sum() == pytest.approx(1)
    assert chances[0] == 0


def test_a_second_store_has_the_items_and_other_customers() -> None:
    first, second = Config(num_users=50), Config(num_users=50, store_seed=2)
    assert first.open().items().table == second.open().items().table  # type: ignore[union-attr]
    assert not np.array_equal(build_shop(first).taste.category_KC, build_shop(second).taste.category_KC)
    same = Config(num_users=50, store_seed=1)
    logs = [[batch.events for task in one.open().read_tasks() for batch in one.open().read(task)] for one in
            (first, same, second)]  # fmt: skip
    assert logs[0] == logs[1] != logs[2]
    assert "store_seed" not in first.open().identity(), "a log that was made before has the same identity"
