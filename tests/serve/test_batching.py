from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from distft.serve.batching import Batch, Batcher, Overloaded


class Gate:
    """A computation that notes its batches and, from the second on, waits until it is opened."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.begun = threading.Event()

    def __call__(self, queries: Sequence[int]) -> list[int]:
        self.batches.append(list(queries))
        self.begun.set()
        assert self.open.wait(10)
        if 13 in queries:
            raise ValueError("13")
        return [-query for query in queries]


def test_those_who_wait_while_it_computes_make_up_the_next_batch() -> None:
    gate, seen = Gate(), []

    async def crowd() -> list[int]:
        batcher = Batcher[int, int](gate, 4, 0.0, 100, seen.append)
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.to_thread(gate.begun.wait)
        others = [asyncio.create_task(batcher.ask(number)) for number in range(1, 7)]
        await asyncio.sleep(0)
        gate.open.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(crowd()) == [0, -1, -2, -3, -4, -5, -6]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [(batch.size, batch.num_waiting) for batch in seen] == [(1, 6), (4, 2), (2, 0)]


def test_whoever_has_gone_is_not_computed() -> None:
    gate, seen = Gate(), list[Batch]()

    async def crowd() -> None:
        batcher = Batcher[int, int](gate, 4, 0.0, 100, seen.append)
        tasks = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(gate.begun.wait)
        tasks += [asyncio.create_task(batcher.ask(number)) for number in range(1, 7)]
        await asyncio.sleep(0)
        for task in tasks[:6]:
            task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert await tasks[6] == -6

    asyncio.run(crowd())
    assert gate.batches == [[0], [6]] and sum(batch.num_cancelled for batch in seen) == 5


def test_a_failed_batch_fails_its_own_queries_alone() -> None:
    gate = Gate()
    gate.open.set()

    async def one_after_the_other() -> None:
        batcher = Batcher[int, int](gate, 4, 0.0, 100)
        with pytest.raises(ValueError, match="13"):
            await batcher.ask(13)
        assert await batcher.ask(1) == -1

    asyncio.run(one_after_the_other())


def test_no_more_wait_than_the_bound() -> None:
    gate = Gate()

    async def crowd() -> None:
        batcher = Batcher[int, int](gate, 4, 0.0, 2)
        tasks = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(gate.begun.wait)
        tasks += [asyncio.create_task(batcher.ask(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 requests"):
            await batcher.ask(3)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, -1, -2]

    asyncio.run(crowd())


def test_an_idle_model_waits_for_company_where_it_is_asked_to() -> None:
    gate = Gate()
    gate.open.set()

    async def crowd() -> list[int]:
        batcher = Batcher[int, int](gate, 4, 0.02, 100)
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.001)
        return await asyncio.gather(first, batcher.ask(2))

    assert asyncio.run(crowd()) == [-1, -2]
    assert gate.batches == [[1, 2]]
