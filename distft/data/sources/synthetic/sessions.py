"""Draws the sessions of a block of users: the generative model that the oracle inverts.

Enters: a shop and a block's number. Leaves: the block's events as flat arrays, user after user in time order.
Surprising choice: users are drawn in blocks of a fixed size, each with its own key, because numpy is fast on
blocks; the last block is drawn whole and cut, so that a user's events never depend on how many users there are.

Shape legend: U users of the block, M sessions (of all users), E events (of all sessions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distft.data.sources.synthetic.config import DAY_S, MAX_GAP_S
from distft.data.sources.synthetic.shop import USER_STREAM, Choice, Ints, Shop, generator

BLOCK_USERS = 1024
VIEW, CART, PURCHASE, SEARCH = range(4)
NOTHING = -1
START_MS = 1_704_067_200_000  # 2024-01-01 UTC
MIN_GAP_S = 5
_DRAWS_BEFORE_EXACT = 16


@dataclass(frozen=True)
class Wishes:
    """What stays hidden: the wanted item of every session, and the intent it was drawn from."""

    user_M: Ints
    number_M: Ints
    intent_M: Ints
    item_M: Ints
    buys_M: NDArray[np.bool_]


@dataclass(frozen=True)
class Events:
    """A block's events. ``user_E`` counts from the first user of all; ``item_E`` is NOTHING for a search, and
    ``word_E2`` is NOTHING where there is no such keyword.
    """

    user_E: Ints
    kind_E: NDArray[np.int8]
    item_E: Ints
    time_ms_E: Ints
    word_E2: Ints


class Simulator:
    """Draws the blocks of one shop."""

    def __init__(self, shop: Shop) -> None:
        taste = shop.taste
        self.shop = shop
        self.sessions = Choice(shop.sessions_S[None])
        self.views = Choice(shop.views_V[None])
        self.category = Choice(taste.category_KC)
        self.follow = Choice(taste.follow_CC)
        self.level = Choice(taste.level_KL)
        self.buy = Choice(taste.buy_ZG)
        self.browse = Choice(taste.browse_ZG)
        self.item = Choice(shop.share_N, shop.cell_starts)

    def block(self, number: int) -> Events:
        """The events of users ``number * BLOCK_USERS`` and on, as far as the shop has users."""
        config = self.shop.config
        rng = generator(config.users_seed, USER_STREAM, number)
        wishes = self._wishes(rng)
        first_user = number * BLOCK_USERS
        events = self._events(wishes, rng)
        kept = int(np.searchsorted(events.user_E, config.num_users - first_user))
        return Events(
            events.user_E[:kept] + first_user,
            events.kind_E[:kept],
            events.item_E[:kept],
            events.time_ms_E[:kept],
            events.word_E2[:kept],
        )

    # -- what users want -----------------------------------------------------------------------------------

    def _wishes(self, rng: np.random.Generator) -> Wishes:
        config = self.shop.config
        type_U = (rng.random(BLOCK_USERS) * config.num_user_types).astype(np.int64)
        count_U = self.sessions.draw_value(np.zeros(BLOCK_USERS, np.int64), rng.random(BLOCK_USERS))
        start_U = np.cumsum(count_U) - count_U
        user_M = np.repeat(np.arange(BLOCK_USERS), count_U)
        number_M = np.arange(len(user_M)) - start_U[user_M]

        category_M = self._categories(type_U[user_M], number_M, rng)
        level_M = self.level.draw_value(type_U[user_M], rng.random(len(user_M)))
        intent_M = category_M * config.num_price_levels + level_M
        buys_M = rng.random(len(user_M)) < config.purchase_share
        item_M = self._draw_items(self.buy, intent_M, rng)
        self._never_twice(Wishes(user_M, number_M, intent_M, item_M, buys_M), count_U, rng)
        return Wishes(user_M, number_M, intent_M, item_M, buys_M)

    def _categories(self, type_M: Ints, number_M: Ints, rng: np.random.Generator) -> Ints:
        """The category of each session: by the user's taste, or following from the session before."""
        category_M = self.category.draw_value(type_M, rng.random(len(type_M)))
        follows_M = (rng.random(len(type_M)) < self.shop.config.complement_share) & (number_M > 0)
        uniform_M = rng.random(len(type_M))
        for number in range(1, int(number_M.max()) + 1):
            at = np.flatnonzero(follows_M & (number_M == number))
            category_M[at] = self.follow.draw_value(category_M[at - 1], uniform_M[at])
        return category_M

    def _draw_items(self, cells: Choice, intent: Ints, rng: np.random.Generator) -> Ints:
        cell = cells.draw_value(intent, rng.random(len(intent)))
        return self.item.draw(cell, rng.random(len(intent)))

    def _never_twice(self, wishes: Wishes, count_U: Ints, rng: np.random.Generator) -> None:
        """Draws wanted items anew, in place, until none was bought before by the same user."""
        bought_US = np.full((BLOCK_USERS, int(count_U.max())), NOTHING)
        order = np.argsort(wishes.number_M, kind="stable")
        ends = np.cumsum(np.bincount(wishes.number_M))
        for number, end in enumerate(ends.tolist()):
            at = order[(ends[number - 1] if number else 0) : end]
            users = wishes.user_M[at]
            again = at[_bought(bought_US[users, :number], wishes.item_M[at])]
            for _ in range(_DRAWS_BEFORE_EXACT):
                if not len(again):
                    break
                wishes.item_M[again] = self._draw_items(self.buy, wishes.intent_M[again], rng)
                again = again[_bought(bought_US[wishes.user_M[again], :number], wishes.item_M[again])]
            for one in again.tolist():
                owned = bought_US[wishes.user_M[one], :number]
                wishes.item_M[one] = self._draw_unowned(int(wishes.intent_M[one]), owned, rng)
            bought_US[users, number] = np.where(wishes.buys_M[at], wishes.item_M[at], NOTHING)

    def _draw_unowned(self, intent: int, owned: Ints, rng: np.random.Generator) -> int:
        """One draw from what is left of the distribution: ends where drawing anew might go on for ever."""
        chance_N = self.shop.taste.buy_ZG[intent, self.shop.cell_N] * self.shop.share_N
        chance_N[owned[owned != NOTHING]] = 0
        return int(Choice(chance_N[None]).draw(np.zeros(1, np.int64), rng.random(1))[0])

    # -- what the shop sees --------------------------------------------------------------------------------

    def _events(self, wishes: Wishes, rng: np.random.Generator) -> Events:
        """A session's events in order: views, search, cart, purchase; all but the views may be missing."""
        config, num_sessions = self.shop.config, len(wishes.user_M)
        search_M = rng.random(num_sessions) < config.search_share
        cart_M = rng.random(num_sessions) < config.cart_share
        views_M = self.views.draw_value(np.zeros(num_sessions, np.int64), rng.random(num_sessions))
        length_M = search_M + views_M + cart_M + wishes.buys_M
        end_M = np.cumsum(length_M)
        start_M = end_M - length_M
        session_E = np.repeat(np.arange(num_sessions), length_M)

        kind_E = np.full(len(session_E), VIEW, np.int8)
        searches_E = (start_M + views_M)[search_M]
        kind_E[searches_E] = SEARCH
        kind_E[(end_M - 1 - wishes.buys_M)[cart_M]] = CART
        kind_E[end_M[wishes.buys_M] - 1] = PURCHASE
        return Events(
            user_E=wishes.user_M[session_E],
            kind_E=kind_E,
            item_E=self._items(wishes, session_E, kind_E, rng),
            time_ms_E=self._times(wishes, start_M, session_E, rng),
            word_E2=self._keywords(wishes.item_M[search_M], searches_E, len(session_E), rng),
        )

    def _items(self, wishes: Wishes, session_E: Ints, kind_E: NDArray[np.int8], rng: np.random.Generator) -> Ints:
        """The wanted item for purchases and some views and carts, else one near the intent."""
        config = self.shop.config
        fit = np.array([config.view_fit, config.cart_fit, 1.0, 1.0])
        item_E = wishes.item_M[session_E]
        other = np.flatnonzero(rng.random(len(session_E)) >= fit[kind_E])
        item_E[other] = self._draw_items(self.browse, wishes.intent_M[session_E[other]], rng)
        item_E[kind_E == SEARCH] = NOTHING
        return item_E

    def _times(self, wishes: Wishes, start_M: Ints, session_E: Ints, rng: np.random.Generator) -> Ints:
        """A user's sessions divide the days evenly; each lies somewhere in its part, with a pause after it."""
        config = self.shop.config
        part_M = config.days * DAY_S * 1000.0 / np.bincount(wishes.user_M)[wishes.user_M]
        room_M = part_M - config.session_slot_s() * 1000.0
        begin_M = (wishes.number_M * part_M + rng.random(len(part_M)) * room_M).astype(np.int64)
        gap_E = ((MIN_GAP_S + (MAX_GAP_S - MIN_GAP_S) * rng.random(len(session_E))) * 1000).astype(np.int64)
        passed_E = np.cumsum(gap_E)
        return START_MS + begin_M[session_E] + passed_E - passed_E[start_M][session_E]

    def _keywords(self, item_Q: Ints, place_Q: Ints, num_events: int, rng: np.random.Generator) -> Ints:
        """One or two different words of the wanted item's title, each replaced by a wrong one now and then."""
        config = self.shop.config
        title_QW = self.shop.title_NW[item_Q]
        num_searches, num_title = title_QW.shape
        first_Q = (rng.random(num_searches) * num_title).astype(np.int64)
        step_Q = 1 + (rng.random(num_searches) * (num_title - 1)).astype(np.int64)
        turn_Q2 = np.stack([first_Q, (first_Q + step_Q) % num_title], axis=1)
        word_Q2 = np.take_along_axis(title_QW, turn_Q2, axis=1)

        wrong_Q2 = (rng.random((num_searches, 2)) * (len(self.shop.words) - num_title)).astype(np.int64)
        for word_Q in np.sort(title_QW, axis=1).T:  # steps over the title's words, the lowest first
            wrong_Q2 += wrong_Q2 >= word_Q[:, None]
        word_Q2 = np.where(rng.random((num_searches, 2)) < config.wrong_keyword_share, wrong_Q2, word_Q2)
        word_Q2[rng.random(num_searches) >= config.two_word_share, 1] = NOTHING
        word_E2 = np.full((num_events, 2), NOTHING)
        word_E2[place_Q] = word_Q2
        return word_E2


def _bought(bought: Ints, item: Ints) -> NDArray[np.bool_]:
    return np.asarray((bought == item[:, None]).any(axis=1))
