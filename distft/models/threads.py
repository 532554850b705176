"""Independent pieces of work on a CPU, side by side: each on one thread, from its beginning to its end.

Enters: a function and its arguments. Leaves: the results, in order. torch would rather split every operation over its
threads and wait for all of them after each; with pieces small enough for the cache that is a thousand waits a step, and
on a machine that does something else besides, each may last until another program gives a core back. Surprising
choice: torch keeps the number of threads for each thread, but lets a new one begin with the number that was set last,
so the number is set anew when the pool stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def each(function: Callable[..., _Result], *arguments: Sequence[Any]) -> list[_Result]:
    """``list(map(function, *arguments))``, on as many threads as torch may use; outside of autograd."""
    inference = torch.is_inference_mode_enabled()

    def run(*given: Any) -> _Result:
        with torch.inference_mode(inference), torch.no_grad():  # a new thread would have autograd on
            return function(*given)

    threads = torch.get_num_threads()
    if threads < 2 or len(arguments[0]) < 2:
        return list(map(run, *arguments))
    return list(_pool(threads).map(run, *arguments))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads are all there and run torch's operations alone."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pieces")
    together = threading.Barrier(threads)

    def begin(_: int) -> None:
        torch.set_num_threads(1)
        together.wait()

    list(pool.map(begin, range(threads)))
    torch.set_num_threads(threads)
    return pool
