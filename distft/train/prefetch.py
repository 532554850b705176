"""Reads the next step's micro-batches while the current step computes.

Enters: a function of (epoch, step), called in the order of an epoch's steps. Leaves: what it gives, one step ahead.
Surprising choice: one thread that is handed one call at a time, and no queue: what is read ahead is a pure function
of its place, so that nothing has to be emptied or put back when a training ends, stops early or fails. An error of
the function is raised where its step is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from distft.schema import Batch

Place = tuple[int, int]
Read = Callable[[int, int], list[Batch]]


class Prefetch:
    """The micro-batches of one step after another."""

    def __init__(self, read: Read, steps_per_epoch: int, num_epochs: int, device: torch.device) -> None:
        self._read, self._steps, self._epochs = read, steps_per_epoch, num_epochs
        self._pins = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[Place, Future[list[Batch]]] | None = None

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """The micro-batches of this step; those of the step after it are read from now on."""
        ahead = self._ahead if self._ahead and self._ahead[0] == (epoch, step) else self._begin((epoch, step))
        found = ahead[1].result()
        following = (epoch, step + 1) if step + 1 < self._steps else (epoch + 1, 0)
        self._ahead = self._begin(following) if following[0] < self._epochs else None
        return found

    def close(self) -> None:
        """Ends the thread, after at most the step that it is reading."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, place: Place) -> tuple[Place, Future[list[Batch]]]:
        return place, self._thread.submit(self._get, *place)

    def _get(self, epoch: int, step: int) -> list[Batch]:
        batches = self._read(epoch, step)
        return [_pinned(batch) for batch in batches] if self._pins else batches


def _pinned(batch: Batch) -> Batch:
    """The same batch in memory from which a GPU copies by itself."""
    return Batch(**{name: tensor.pin_memory() for name, tensor in batch.tensors()})
