"""What a person sees while a stage runs: where it is, a bar, a line of the training, a table of the trials.

Where there is no terminal, a line every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from distft.terminal.console import Terminal
from distft.terminal.results import fine_tuning

if TYPE_CHECKING:
    from distft.stages import Watcher

LOG_EVERY_S = 5.0
MAX_TRIALS_SHOWN = 12


@contextmanager
def watching(terminal: Terminal, what: str = "") -> Iterator[Watcher]:
    """A watcher whose progress is shown on stderr while the block runs; ``what`` is said before it."""
    from distft.stages import Watcher

    width = terminal.err.width
    columns = (
        TextColumn("  {task.description}"),
        *([BarColumn(bar_width=30 if width >= 120 else 10)] if width >= 70 else []),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _Bars(*columns, console=terminal.err, transient=True, disable=not terminal.err.is_terminal) as bars:
        display = _Display(terminal, bars)
        if what:
            display.begin(what)
        yield Watcher(display.stage, display.progress, display.metrics, display.trials)


class _Bars(Progress):
    """The progress bars, below a table if there is one."""

    above: Table | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()


class _Display:
    """Shows stages, one bar, and training lines; where there is no terminal, a line every few seconds."""

    def __init__(self, terminal: Terminal, bars: _Bars) -> None:
        self.terminal, self.bars = terminal, bars
        self.bar: TaskID | None = None
        self.what = ""
        self.started_s = self.logged_s = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.ended: set[int] = set()

    def begin(self, what: str) -> None:
        """Says what starts, and lets a bar run up and down until it is known how far it is."""
        self.started_s, self.first, self.what = time.monotonic(), None, ""
        self.terminal.stage(what, "…")
        self.bar = self.bars.add_task("starting", total=None, count="", note="")

    def stage(self, name: str, state: str) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bar = self.bars.above = None
        if state == "starts":
            self.begin(name)
        elif state == "skipped":
            self.terminal.stage(name, "is up to date")
        else:
            self.terminal.stage(name, f"done in {time.monotonic() - self.started_s:.1f} s")

    def progress(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, "")

    def metrics(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "warning":
            self.terminal.warn(line["message"])
        elif line["kind"] == "start":
            fine_tuning(self.terminal, line)
        elif line["kind"] == "valid":
            names = [name for name in ("ndcg@10", "hr@10", "loss") if name in line]
            found = ", ".join(f"{name} {line[name]:.4f}" for name in names)
            self._log(f"epoch {line['epoch']}: validation {found}", always=True)
        else:
            self._show("training steps", line["step"], line["total_steps"], self._training_note(line))

    def trials(self, trials: Sequence[Mapping[str, Any]], total: int) -> None:
        """A table of the running and the best trials; where there is no terminal, a line for each that has ended."""
        from distft.report.trials import ended_line

        ended = [trial for trial in trials if trial["status"] != "running"]
        for trial in ended:
            if trial["number"] not in self.ended:
                self.ended.add(trial["number"])
                if not self.terminal.err.is_terminal:
                    self._log(ended_line(trial), always=True)
                elif trial["status"] == "failed":  # the table has no room for the reason
                    self.terminal.warn(ended_line(trial))
        if self.terminal.err.is_terminal:
            self.bars.above = _trials_table(trials)
        self._show("trials", len(ended), total, "")

    def _training_note(self, line: Mapping[str, Any]) -> str:
        """Loss, how long the rest takes, speed, share of the time spent on reading, rate: what the width allows."""
        now_s = time.monotonic()
        if self.first is None or line["step"] <= self.first[0]:
            self.first = (line["step"], now_s)
        steps, took_s = line["step"] - self.first[0], now_s - self.first[1]
        left = _duration((line["total_steps"] - line["step"]) * took_s / steps) if steps else "…"
        parts = [f"loss {line['loss']:.3f}", f"{left} left", f"{line['tokens_per_s']:,.0f} tokens/s"]
        parts += [f"data wait {line['data_wait_share']:.1%}", f"rate {line['learning_rate']:.1e}"]
        width = self.terminal.err.width
        room = (
            width - 50 - (30 if width >= 120 else 10 if width >= 70 else -2) if self.terminal.err.is_terminal else 999
        )
        while len(parts) > 1 and len(", ".join(parts)) > room:
            parts.pop()
        return ", ".join(parts)

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        if self.bar is None:
            self.bar = self.bars.add_task(what, total=total, count="", note="")
        if what != self.what:
            self.what = what
            self.bars.reset(self.bar, total=total, description=what)
        self.bars.update(self.bar, completed=done, total=total, count=f"{done:,}/{total:,}", note=note)
        self._log(f"{what} {done:,}/{total:,}  {note}".rstrip())

    def _log(self, text: str, always: bool = False) -> None:
        """A plain line where no bar can be drawn."""
        if self.terminal.err.is_terminal and not always:
            return
        if always or time.monotonic() - self.logged_s >= LOG_EVERY_S:
            self.logged_s = time.monotonic()
            self.terminal.say(f"  {text}")


def _trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The running trials, then the best of those that have ended."""
    from distft.report.groups import figure
    from distft.report.trials import outcome, ranked, short_names, value_text

    running = [trial for trial in trials if trial["status"] == "running"]
    metric = trials[0]["metric"] if trials else ""
    rest = ranked([trial for trial in trials if trial["status"] != "running"], metric)
    names = short_names(list(trials[0]["effective"])) if trials else {}
    table = Table(header_style="")
    for name in ("trial", *names.values(), metric, ""):
        width = {"trial": 5, metric: len(metric)}.get(name)  # never cut
        justify: Literal["left", "right"] = "right" if name else "left"
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True, min_width=width)
    for trial in [*running, *rest][:MAX_TRIALS_SHOWN]:
        values = (value_text(value) for value in trial["effective"].values())
        ended = "failed" if trial["status"] == "failed" else outcome(trial)
        table.add_row(str(trial["number"]), *values, figure(trial["best_value"]), ended)
    return table


def _duration(seconds: float) -> str:
    """A time to wait, as precisely as anybody wants to know it: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
