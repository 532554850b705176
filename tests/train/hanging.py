"""Workers of Ray Train that hang in one of three ways at step 5, for the tests of the supervision."""

from __future__ import annotations

import ctypes
import functools
import time
from typing import Any

import torch
import torch.distributed as dist

from distft.train import loop


def sleeps_for_ever() -> None:
    if dist.get_rank() == 1:
        time.sleep(10_000)


def holds_the_interpreter() -> None:
    if dist.get_rank() == 1:
        ctypes.PyDLL(None).sleep(10_000)  # unlike CDLL it does not let go of the interpreter


def waits_for_each_other() -> None:
    dist.recv(torch.zeros(1), src=1 - dist.get_rank())


WAYS = {"sleep": sleeps_for_ever, "native": holds_the_interpreter, "collective": waits_for_each_other}


def hanging_worker(config: dict[str, Any], way: str) -> Any:
    real = loop.train_step

    def train_step(engine: Any, batches: Any, empty: Any, step: int, rate: float) -> Any:
        if step == 5:
            WAYS[way]()
        return real(engine, batches, empty, step, rate)

    loop.train_step = train_step
    return loop.ray_worker(config)


def worker(way: str) -> Any:
    return functools.partial(hanging_worker, way=way)
