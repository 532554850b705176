"""How many requests may be answered at once: as many as are answered in time.

Enters: how long each admitted request took. Leaves: whether the next one may come in. Whoever is turned away learns it
at once, and those inside are answered in time, however many knock. Surprising choice: the bound is found by control
instead of being set, because what fits depends on how many replicas there are at the moment, on the model and on the
machine: it grows while answers come sooner than ``target_s`` and shrinks while they come later. What waits before this
process has looked at it is not in these times; so nobody comes in either while the process itself is behind.
"""

from __future__ import annotations

import asyncio
import time
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

BEAT_S = 0.01
MOST_BEHIND = 0.5
"""A process that is behind by so many times ``target_s`` lets nobody in: turning away is what it can do quickly."""

CROWDED, CROWD = 0.25, 4
"""Share of the bound that is in flight in a crowd, and requests in flight that are none."""


class Pulse:
    """How far the event loop is behind: a beat is due every ``BEAT_S``, and comes when its turn has come."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._beating: asyncio.Task[None] | None = None

    def behind_s(self) -> float:
        """Seconds that the running loop's next beat is late by now; the first call starts the beats."""
        if self._beating is None or self._beating.done():
            self._last_s = time.monotonic()
            self._beating = asyncio.get_running_loop().create_task(self._beat())
        return max(time.monotonic() - self._last_s - BEAT_S, 0.0)

    async def _beat(self) -> None:
        while True:
            self._last_s = time.monotonic()
            await asyncio.sleep(BEAT_S)


class Admission:
    """Counts requests in flight, and bounds them between ``least`` and ``most``."""

    def __init__(self, target_s: float, least: int, most: int) -> None:
        self.target_s, self.least, self.most = target_s, least, most
        self.limit = float(least)
        self.in_flight = 0
        self.pulse = Pulse()

    def follow(self, target_s: float, least: int) -> None:
        """Goes on with another target and lower bound."""
        self.target_s, self.least, self.limit = target_s, min(least, self.most), float(min(least, self.most))

    @property
    def is_full(self) -> bool:
        """True if nobody may come in now."""
        return self.in_flight >= int(self.limit)

    def is_behind(self) -> bool:
        """True while this process does not keep up with what is sent to it; needs a running event loop.

        Where few are inside, it is behind for another reason, such as a busy machine, and has nothing to turn away.
        """
        crowd = max(CROWDED * self.limit, CROWD)
        return self.pulse.behind_s() > MOST_BEHIND * self.target_s and self.in_flight > crowd

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
        bounded = scope["type"] == "http" and (scope["method"], scope["path"]) in BOUNDED
        if bounded and (self.admission.is_full or self.admission.is_behind()):
            self.refused()
            await self.full(scope, receive, send)
            return
        await self.app(scope, receive, send)
