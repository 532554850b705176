"""How many requests may be answered at once: as many as are answered in time.

Enters: how long each admitted request took. Leaves: whether the next one may come in. Whoever is turned away learns it
at once, and those inside are answered in time, however many knock. Surprising choice: the bound is found by control
instead of being set, because what fits depends on how many replicas there are at the moment, on the model and on the
machine: it grows while answers come sooner than ``target_s`` and shrinks while they come later.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from distft.serve.problems import RETRY_AFTER_S, Problem

BOUNDED = frozenset({("POST", "/v1/recommend")})
"""Requests that the model answers."""

FULL = "More requests are waiting for the model than it can answer in time."

GAIN = 0.2
"""Requests that the bound grows by for an answer that took no time at all: it settles within about 5 × ``target_s``."""
MOST_LATE = 2.0
"""One answer that is late by more than so many times ``target_s`` says no more than one that is late by so many."""


class Admission:
    """Counts requests in flight, and bounds them between ``least`` and ``most``."""

    def __init__(self, target_s: float, least: int, most: int) -> None:
        self.target_s, self.least, self.most = target_s, least, most
        self.limit = float(least)
        self.in_flight = 0

    def follow(self, target_s: float, least: int) -> None:
        """Goes on with another target and lower bound."""
        self.target_s, self.least, self.limit = target_s, min(least, self.most), float(min(least, self.most))

    @property
    def is_full(self) -> bool:
        """True if nobody may come in now."""
        return self.in_flight >= int(self.limit)

    def enter(self) -> bool:
        """True if one more request may come in, which is then counted until it leaves."""
        if self.is_full:
            return False
        self.in_flight += 1
        return True

    def leave(self, took_s: float | None) -> None:
        """An admitted request has ended; ``took_s`` is None where it got no answer, which says nothing."""
        was_used = 2 * self.in_flight > self.limit
        self.in_flight -= 1
        if took_s is None:
            return
        early = max((self.target_s - took_s) / self.target_s, -MOST_LATE)
        if early < 0 or was_used:  # a bound that nobody comes near is not known to be too low
            self.limit = min(max(self.limit + GAIN * early, self.least), self.most)


class Bounded:
    """An ASGI application that turns requests for the model away from another while that is full.

    It does so before anything of the request is read: in an overload this is what most of them cost.
    """

    def __init__(self, app: ASGIApp, admission: Admission, refused: Callable[[], None]) -> None:
        self.app, self.admission, self.refused = app, admission, refused
        self.full = Problem(503, FULL, retry_after_s=RETRY_AFTER_S).response()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self.admission.is_full and (scope["method"], scope["path"]) in BOUNDED:
            self.refused()
            await self.full(scope, receive, send)
            return
        await self.app(scope, receive, send)
