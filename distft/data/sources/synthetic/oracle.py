"""The best reachable recommender of the made-up shop: the exact chance of every item to be bought next.

Enters: a user's raw history. Leaves: probabilities. It knows the shop's parameters and what the shop observes, and
sums over what is hidden: the user's type, each session's intent and wanted item. Sessions form a hidden Markov
model (type and category carry over), so one forward pass is exact (Rabiner 1989).
Surprising choice: a history that ends inside a session is taken to lead to a purchase in that session, because a
target is the purchase that comes next in the log; one that ends with a purchase is followed by sessions unseen.

Shape legend: K user types, C categories, L price levels, Z intents (C x L), G cells, N items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from distft.data.sources.base import RawHistory
from distft.data.sources.synthetic.config import SESSION_PAUSE_S
from distft.data.sources.synthetic.shop import Floats, Ints, Shop


@dataclass
class Session:
    """What was observed of one session: items viewed or put into the cart, keywords of searches, the purchase."""

    views: list[int] = field(default_factory=list)
    carts: list[int] = field(default_factory=list)
    searches: list[list[int]] = field(default_factory=list)
    purchase: int | None = None


@dataclass(frozen=True)
class Evidence:
    """A session's likelihood before its purchase, by intent and wanted item.

    ``far_Z`` for the wanted items that were not touched; ``near_TZ`` for the ``touched`` ones; both are multiplied
    by ``query_N``, the likelihood of the searches.
    """

    far_Z: Floats
    touched: Ints
    near_TZ: Floats
    query_N: Floats | None


class Stock:
    """What a user has not bought yet."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.share_N = shop.share_N.copy()
        self.left_G = np.bincount(shop.cell_N, shop.share_N)

    def remove(self, item: int) -> None:
        """Takes an item out."""
        self.left_G[self.shop.cell_N[item]] -= self.share_N[item]
        self.share_N[item] = 0

    def scale_Z(self) -> Floats:
        """What the chances of an intent's remaining items must be divided by."""
        return np.asarray(self.shop.taste.buy_ZG @ self.left_G)


class ShopOracle:
    """See ``distft.data.sources.base.Oracle``."""

    def __init__(self, shop: Shop, *, use_queries: bool = True) -> None:
        """``use_queries=False`` gives the best recommender that does not read keywords."""
        self.shop = shop
        self.use_queries = use_queries
        self._row_of = {item_id: row for row, item_id in enumerate(shop.item_ids())}
        self._word_of = {word: row for row, word in enumerate(shop.words)}

    def scores(self, history: RawHistory, item_ids: list[str]) -> Floats:
        """Probability of each item [N] to be the next purchase; 0 for items that the shop does not have."""
        chance_N = self.predict(history)
        rows = np.array([self._row_of.get(item_id, -1) for item_id in item_ids], np.int64)
        return np.where(rows >= 0, chance_N[rows], 0.0)

    def predict(self, history: RawHistory) -> Floats:
        """The same for all items, in the shop's order; sums to 1."""
        sessions = list(self._sessions(history))
        open_session = Session()
        if sessions and sessions[-1].purchase is None:
            open_session = sessions.pop()
            ahead = False
        else:
            ahead = True
        stock = Stock(self.shop)
        belief_KC = self._first_KC()
        for session in sessions:
            belief_KC = self._update(belief_KC, self._session_likelihood(session, stock))
            if session.purchase is not None:
                stock.remove(session.purchase)
            belief_KC = self._next(belief_KC)
        if ahead:
            belief_KC = self._until_purchase(belief_KC, len(sessions))
        return self._item_chances(belief_KC, self._evidence(open_session), stock)

    # -- the hidden chain ----------------------------------------------------------------------------------

    def _first_KC(self) -> Floats:
        category_KC = self.shop.taste.category_KC
        return np.asarray(category_KC / len(category_KC))

    def _next(self, belief_KC: Floats) -> Floats:
        """Type and category of the next session, given those of this one."""
        taste, follows = self.shop.taste, self.shop.config.complement_share
        fresh_KC = belief_KC.sum(axis=1, keepdims=True) * taste.category_KC
        return np.asarray((1 - follows) * fresh_KC + follows * (belief_KC @ taste.follow_CC))

    def _update(self, belief_KC: Floats, likelihood_Z: Floats) -> Floats:
        """Bayes' rule for one session; a session that this shop cannot produce teaches nothing."""
        level_KL = self.shop.taste.level_KL
        posterior_KC = belief_KC * (level_KL @ likelihood_Z.reshape(-1, level_KL.shape[1]).T)
        total = posterior_KC.sum()
        return posterior_KC / total if total > 0 else belief_KC

    def _until_purchase(self, belief_KC: Floats, num_seen: int) -> Floats:
        """Type and category of the next session that buys: the ``n``-th from here with chance
        (1 - p)^(n - 1) p, as far as the user has so many sessions.
        """
        config = self.shop.config
        at_least_S = self.shop.sessions_S[::-1].cumsum()[::-1]
        total_KC, weight = np.zeros_like(belief_KC), config.purchase_share
        for number in range(num_seen + 1, max(config.max_sessions, num_seen + 1) + 1):
            total_KC += weight * belief_KC * (at_least_S[number] if number < len(at_least_S) else 1.0)
            weight *= 1 - config.purchase_share
            belief_KC = self._next(belief_KC)
        return np.asarray(total_KC / total_KC.sum())

    # -- one session ---------------------------------------------------------------------------------------

    def _evidence(self, session: Session) -> Evidence:
        """Each view (cart) shows the wanted item with chance ``fit``, else one drawn by the intent."""
        config, taste = self.shop.config, self.shop.taste
        seen = [(item, config.view_fit) for item in session.views]
        seen += [(item, config.cart_fit) for item in session.carts]
        touched = np.unique(np.array([item for item, _ in seen], np.int64))
        far_Z = np.ones(len(taste.buy_ZG))
        near_TZ = np.ones((len(touched), len(far_Z)))
        for item, fit in seen:
            other_Z = (1 - fit) * taste.browse_ZG[:, self.shop.cell_N[item]] * self.shop.share_N[item]
            far_Z *= other_Z
            near_TZ *= other_Z + fit * (touched == item)[:, None]
        return Evidence(far_Z, touched, near_TZ, self._query_likelihood(session))

    def _query_likelihood(self, session: Session) -> Floats | None:
        """Chance of the session's keywords for every wanted item, or None without any.

        A search takes different places of the title at random, and replaces each word with a wrong one
        independently: m fitting words of n have chance (1-w)^m w^(n-m) (W-m)!/W! / (V-W)^(n-m).
        """
        wrong, num_words = self.shop.config.wrong_keyword_share, len(self.shop.words)
        title_NW = self.shop.title_NW
        width = title_NW.shape[1]
        query_N: Floats | None = None
        for words in session.searches if self.use_queries else []:
            fitting_N = sum(((title_NW == word).any(axis=1).astype(np.int64) for word in words), np.zeros(1, np.int64))
            chance_M = np.array(
                [
                    (1 - wrong) ** fitting
                    * (wrong / (num_words - width)) ** (len(words) - fitting)
                    / math.perm(width, fitting)
                    for fitting in range(min(len(words), width) + 1)
                ]
            )
            chance_N = chance_M[np.minimum(fitting_N, len(chance_M) - 1)]
            query_N = chance_N if query_N is None else query_N * chance_N
        return query_N

    def _session_likelihood(self, session: Session, stock: Stock) -> Floats:
        """Likelihood [Z] of a whole session, up to a factor that is the same for all intents."""
        evidence = self._evidence(session)
        buy_ZG, cell_N = self.shop.taste.buy_ZG, self.shop.cell_N
        item = session.purchase
        if item is not None:
            near = np.flatnonzero(evidence.touched == item)
            seen_Z = evidence.near_TZ[near[0]] if len(near) else evidence.far_Z
            return np.asarray(seen_Z * buy_ZG[:, cell_N[item]] * (stock.share_N[item] > 0) / stock.scale_Z())
        weight_N = stock.share_N if evidence.query_N is None else stock.share_N * evidence.query_N
        weight_G = stock.left_G if evidence.query_N is None else np.bincount(cell_N, weight_N, len(stock.left_G))
        likelihood_Z = (buy_ZG @ weight_G) * evidence.far_Z
        wanted_ZT = buy_ZG[:, cell_N[evidence.touched]] * weight_N[evidence.touched]
        likelihood_Z += (wanted_ZT * (evidence.near_TZ.T - evidence.far_Z[:, None])).sum(axis=1)
        return np.asarray(likelihood_Z / stock.scale_Z())

    def _item_chances(self, belief_KC: Floats, evidence: Evidence, stock: Stock) -> Floats:
        """Posterior [N] of the wanted item of a session that is not over."""
        taste, cell_N = self.shop.taste, self.shop.cell_N
        prior_Z = (belief_KC.T @ taste.level_KL).ravel() / stock.scale_Z()
        score_N = ((prior_Z * evidence.far_Z) @ taste.buy_ZG)[cell_N]
        near_T = ((prior_Z * evidence.near_TZ) * taste.buy_ZG[:, cell_N[evidence.touched]].T).sum(axis=1)
        score_N[evidence.touched] = near_T
        score_N *= stock.share_N
        if evidence.query_N is not None:
            score_N *= evidence.query_N
        return np.asarray(score_N / score_N.sum())

    # -- reading a history ---------------------------------------------------------------------------------

    def _sessions(self, history: RawHistory) -> Iterator[Session]:
        """The history cut where it pauses, and after every purchase. What the shop does not know is left out."""
        session, last_ms = Session(), None
        rows = zip(history.item_ids, history.events, history.time_ms, history.queries, strict=True)
        for item_id, event, time_ms, query in rows:
            if session.purchase is not None or (last_ms is not None and time_ms - last_ms >= SESSION_PAUSE_S * 1000):
                yield session
                session = Session()
            last_ms = time_ms
            self._add(session, event, self._row_of.get(item_id or ""), query)
        if last_ms is not None:
            yield session

    def _add(self, session: Session, event: str, item: int | None, query: str | None) -> None:
        if event == "search":
            words = [self._word_of[word] for word in (query or "").casefold().split() if word in self._word_of]
            session.searches.append(words)
        elif item is None:
            return
        elif event == "view":
            session.views.append(item)
        elif event == "cart":
            session.carts.append(item)
        elif event == "purchase":
            session.purchase = item
