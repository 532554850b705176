"""What another thread sees of a training: its marks, its stack, and whether it waits for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from distft.train.position import Position, Sighting


def test_marks_count_and_a_step_stays_until_the_next():
    position = Position()
    position.at("reading", 3)
    position.at("forward pass")
    seen = position.look()
    assert (seen.marks, seen.phase, seen.step, seen.stack) == (2, "forward pass", 3, ())
    assert seen.rss_bytes > 1e6
    position.restart()
    assert position.look().marks == 0


def seen_while(block: threading.Event, work: Callable[[], object]) -> Sighting:
    """A sighting, with its stack, of a thread that works until the event is set."""
    ready, positions = threading.Event(), []

    def train() -> None:
        positions.append(Position())
        ready.set()
        work()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    ready.wait()
    time.sleep(0.1)
    seen = positions[0].look(with_stack=True)
    block.set()
    thread.join()
    return seen


def test_the_stack_is_the_training_threads_and_says_where_it_stands():
    block = threading.Event()
    seen = seen_while(block, lambda: block.wait(10))
    assert "threading.py" in seen.stack[-1] and "in wait" in seen.stack[-1]
    assert any("test_position.py" in frame for frame in seen.stack)
    assert not seen.waits


def test_a_rank_in_a_collective_is_seen_to_wait():
    block, names = threading.Event(), {}
    exec(compile("def barrier(block): block.wait(10)", "/site/torch/distributed/distributed_c10d.py", "exec"), names)
    assert seen_while(block, lambda: names["barrier"](block)).waits
