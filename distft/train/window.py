"""What happened between two lines of the journal: loss, learning rate, speed, and how long reading was waited for."""

from __future__ import annotations

import time

from distft.train.step import StepResult


class Window:
    """What happened since the last line of the journal."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets everything and starts the clock."""
        self.started = time.perf_counter()
        self.steps = self.count = self.tokens = 0
        self.loss_sum = self.waited_s = self.rate = 0.0

    def add(self, result: StepResult, rate: float, waited_s: float) -> None:
        """Adds one step."""
        self.steps += 1
        self.count += result.count
        self.tokens += result.num_tokens
        self.loss_sum += result.loss_sum
        self.waited_s += waited_s
        self.rate = rate

    def line(self) -> dict[str, float]:
        """Mean loss a target, learning rate, seconds a step, events a second, share of the time spent on reading."""
        took_s = max(1e-9, time.perf_counter() - self.started)
        return {
            "loss": self.loss_sum / max(1, self.count),
            "learning_rate": self.rate,
            "step_s": round(took_s / max(1, self.steps), 6),
            "tokens_per_s": round(self.tokens / took_s, 1),
            "data_wait_share": round(self.waited_s / took_s, 4),
        }
