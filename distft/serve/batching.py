"""Dynamic batching: requests that wait while a batch is computed make up the next one.

Enters: queries, one at a time. Leaves: the answer to each, computed together with those that waited beside it. A query
whose caller has gone is not computed, and none waits where too many wait already. Lengths are grouped where padding
would cost something, inside the models (``models/packing.py``). Surprising choice: an idle model starts at once
instead of waiting for company: under load batches fill by themselves, because the others arrive while it computes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from distft.errors import ServingError

_Query = TypeVar("_Query")
_Answer = TypeVar("_Answer")


class Overloaded(ServingError):
    """So many requests wait already that another one would not be answered in time."""


@dataclass(frozen=True)
class Batch:
    """What one batch was: queries that were computed, queries whose callers had gone, and seconds."""

    size: int
    num_cancelled: int
    num_waiting: int
    waited_s: float
    computed_s: float


@dataclass(frozen=True)
class _Waiting(Generic[_Query, _Answer]):
    query: _Query
    answer: asyncio.Future[_Answer]
    since_s: float


class Batcher(Generic[_Query, _Answer]):
    """Batches the calls of ``compute``, which runs in one thread of its own, so that the event loop stays free.

    ``wait_s``: how long the first query of a batch waits for others while nothing is computed. ``max_waiting``: more
    are refused. ``seen`` is told of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[_Query]], Sequence[_Answer]],
        max_batch_size: int,
        wait_s: float,
        max_waiting: int,
        seen: Callable[[Batch], None] = lambda _: None,
    ) -> None:
        self.max_batch_size, self.wait_s, self.max_waiting = max_batch_size, wait_s, max_waiting
        self._compute, self._seen = compute, seen
        self._waiting: deque[_Waiting[_Query, _Answer]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._running: asyncio.Task[None] | None = None

    async def ask(self, query: _Query) -> _Answer:
        """The answer to one query. Raises Overloaded where too many wait, and what ``compute`` raises."""
        if len(self._waiting) >= self.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already")
        loop = asyncio.get_running_loop()
        waiting = _Waiting[_Query, _Answer](query, loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._work())
        return await waiting.answer

    async def _work(self) -> None:
        """Computes batches until nobody waits."""
        if self.wait_s and len(self._waiting) < self.max_batch_size:
            await asyncio.sleep(self.wait_s)
        while self._waiting:
            await self._answer(*self._next())

    def _next(self) -> tuple[list[_Waiting[_Query, _Answer]], int]:
        """(the next batch, number of queries left out because their callers have gone), oldest first."""
        batch: list[_Waiting[_Query, _Answer]] = []
        num_cancelled = 0
        while self._waiting and len(batch) < self.max_batch_size:
            one = self._waiting.popleft()
            if one.answer.done():
                num_cancelled += 1
            else:
                batch.append(one)
        return batch, num_cancelled

    async def _answer(self, batch: list[_Waiting[_Query, _Answer]], num_cancelled: int) -> None:
        started_s = time.perf_counter()
        if batch:
            loop = asyncio.get_running_loop()
            try:
                answers = await loop.run_in_executor(self._thread, self._compute, [one.query for one in batch])
            except Exception as error:  # whatever it is, it is their answer; the next batch may fare better
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
            else:
                for one, answer in zip(batch, answers, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(answer)
        waited_s = started_s - batch[0].since_s if batch else 0.0
        took_s = time.perf_counter() - started_s
        self._seen(Batch(len(batch), num_cancelled, len(self._waiting), waited_s, took_s))
