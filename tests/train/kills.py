"""Trains and saves at every step until it is killed in the midst of a checkpoint; then looks what is left.

Two ways to die. At a chosen file operation of the writer thread (opening, renaming, removing): SIGKILL by its own hand,
so that every gap between two operations is met. Or after a chosen time, from outside: that also meets the bytes of a
file on their way. All kills of one run hit the same folder, each attempt going on from what the last one left.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from distft.models.weights import read_slices, read_weights
from distft.sections.train import Checkpoint as Rules
from distft.storage import Storage
from distft.train.checkpoint import FOLDER, committed, newest
from distft.train.saving import BEST, Saver
from tests.train.ranks import group
from tests.train.test_checkpoint import advance, assert_same, stage, start, state_of

ZERO_STAGE = 2
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "shutil.rmtree"}
MOST_OPERATIONS = 90  # of the writer thread, over about three checkpoints
LONGEST_S = 0.15


@dataclass
class Tally:
    """What the kills met."""

    kills: int = 0
    intact: int = 0
    half_written: int = 0
    """Kills that left files which no manifest lists, or an unfinished removal."""


def _die_at(operation: int, root: str) -> None:
    """Arms this process: SIGKILL at the writer thread's ``operation``-th file operation below ``root``."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and threading.current_thread().name == "checkpoint" and str(args[0]).startswith(root):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def train_until_killed(rank: int, world_size: int, store: str, place: str, operation: int) -> None:
    """What each rank runs: notes beside the storage what it is about to save, and what it knows to be committed."""
    torch.set_num_threads(1)
    folder, notes = Storage(f"{place}/run"), Path(place) / "notes"
    with group(rank, world_size, store):
        engine, progress = start(stage(ZERO_STAGE), folder)
        saver = Saver(folder, engine, Rules(keep=2))
        if operation:
            _die_at(operation, folder.uri)
        Path(store, f"ready-{rank}").touch()
        while True:
            advance(engine, progress, 1)
            progress.best_step = progress.step // 3 * 3
            tensors = {f"{name}@{offset}": values for name, (offset, values) in state_of(engine).items()}
            save_file(tensors, notes / f"{progress.step}-{rank}")
            step = str(progress.step)
            saver.save(progress, lambda _, step=step: (notes / f"committed-{step}").touch())


def _kill(place: Path, world_size: int, draw: random.Random, number: int) -> None:
    """One attempt, until one of its ranks is killed; the others then end by themselves, or are ended."""
    store = place / f"store-{number}"
    store.mkdir()
    victim, by_itself = draw.randrange(world_size), draw.random() < 0.5
    operations = [
        draw.randrange(1, MOST_OPERATIONS) if by_itself and rank == victim else 0 for rank in range(world_size)
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "deepspeed"])
    ranks = [
        context.Process(target=train_until_killed, args=(rank, world_size, str(store), str(place), operations[rank]))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    if not by_itself:
        while not (store / f"ready-{victim}").exists():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, LONGEST_S))
        ranks[victim].kill()
    ranks[victim].join(60)
    assert ranks[victim].exitcode == -signal.SIGKILL, ranks[victim].exitcode
    for process in ranks:
        process.join(0.2)
        process.kill()
        process.join()


def _noted(notes: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights and moments of a step, whole, as the ranks had them when they saved."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for path in sorted(notes.glob(f"{step}-*")):
        for key, values in load_file(path).items():
            name, offset = key.rsplit("@", 1)
            parts.setdefault(name, {})[int(offset)] = values
    return {name: torch.cat([found[offset] for offset in sorted(found)]) for name, found in parts.items()}


def _check(place: Path, tally: Tally) -> None:
    """Asserts that the newest committed checkpoint is there, no older than known, and holds what was saved."""
    folder, notes = Storage(place / "run"), place / "notes"
    known = max((int(path.name.split("-")[1]) for path in notes.glob("committed-*")), default=0)
    found = newest(folder)
    tally.kills += 1
    if found is None:
        assert not known, f"step {known} was committed, and is gone"
    else:
        assert not found.passed_over and found.progress.step >= known
        expected = _noted(notes, found.progress.step)
        parts: dict[str, dict[int, torch.Tensor]] = {}
        for kind in ("weights", "optimizer"):
            for name, offset, values in read_slices(found.storage, found.manifest, found.state, kind):
                parts.setdefault(name, {})[offset] = values
        got = {name: torch.cat([found[offset] for offset in sorted(found)]) for name, found in parts.items()}
        got["steps"] = torch.tensor([float(found.state["optimizer"]["steps"])])
        assert_same({name: got[name] for name in expected}, expected)
    if folder.exists(BEST):
        read_weights(folder / folder.read_json(BEST)["checkpoint"])
    whole = committed(folder / FOLDER)
    listed = {
        f"{FOLDER}/{name}/{file}" for name in whole for file in (folder / FOLDER / name).manifest("checkpoint").files
    }
    listed |= {f"{FOLDER}/{name}/manifest.json" for name in whole} | {BEST, "latest.json"}
    tally.half_written += bool(set(folder.list()) - listed) or len(whole) > 3
    tally.intact += 1


def kill(place: Path, world_size: int, count: int, seed: int) -> Tally:
    """The tally of ``count`` kills; raises AssertionError at the first that lost or changed anything.

    In a process group of one rank.
    """
    (place / "notes").mkdir()
    draw, tally = random.Random(seed), Tally()
    for number in range(count):
        _kill(place, world_size, draw, number)
        _check(place, tally)
    return tally
