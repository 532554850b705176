"""What a person sees: progress while a stage runs, tables at the end, one paragraph for a mistake.

Progress and messages go to stderr, results to stdout; with ``--json`` stdout holds one JSON object alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from distft.errors import DistftError
from distft.schema import SPLITS
from distft.storage import Storage

if TYPE_CHECKING:
    from distft.job import Job
    from distft.stages import Watcher

LOG_EVERY_S = 5.0
MAX_TRIALS_SHOWN = 12


class Terminal:
    """The console of one command."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = sys.stdout
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(stderr=True, highlight=False) if as_json else Console(file=self.stdout, highlight=False)

    def say(self, text: str) -> None:
        """A line for people."""
        self.err.print(text, markup=False)

    def stage(self, name: str, state: str) -> None:
        """Where a run is."""
        self.err.print(f"[bold]{escape(name)}[/] {escape(state)}")

    def fail(self, error: DistftError) -> None:
        """The paragraph that a mistake gets; where workers failed, also what is known of it."""
        self.err.print(f"[bold red]error[/] {escape(str(error))}")
        if error.details and "resume" in error.details:
            from distft.report.failure import text

            self.say(text(error.details))
            self.say(f"  page: {error.details['page']}")

    def warn(self, text: str) -> None:
        """A paragraph about what went on differently than it should."""
        self.err.print(f"[bold yellow]warning[/] {escape(text)}")

    def show(self, text: str) -> None:
        """Plain text that was asked for."""
        self.out.print(text, markup=False, soft_wrap=True)

    def result(self, value: Mapping[str, Any]) -> None:
        """The JSON object of ``--json``: the last line on stdout."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False, allow_nan=False), file=self.stdout, flush=True)

    @contextmanager
    def watching(self, what: str = "") -> Iterator[Watcher]:
        """A watcher whose progress is shown on stderr while the block runs; ``what`` is said before it."""
        from distft.stages import Watcher

        width = self.err.width
        columns = (
            TextColumn("  {task.description}"),
            *([BarColumn(bar_width=30 if width >= 120 else 10)] if width >= 70 else []),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with _Bars(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bars:
            display = _Display(self, bars)
            if what:
                display.begin(what)
            yield Watcher(display.stage, display.progress, display.metrics, display.trials)

    def exchange(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """One HTTP request and its answer, as JSON."""
        self.say(f"POST /v1/recommend {json.dumps(_shortened(request), ensure_ascii=False)}")
        text = json.dumps(answer, ensure_ascii=False)
        # One item a line: indented all the way, ten items would fill a screen.
        lines = text.replace('[{"item_id"', '[\n  {"item_id"').replace(', {"item_id"', ',\n  {"item_id"')
        print(text if self.as_json else lines, file=self.stdout, flush=True)

    def dataset(self, storage: str) -> None:
        """What became of the logs' rows, and what a person must know of the result."""
        from distft.report.evaluation import accounting, warnings

        self.counts_table(f"dataset  {storage}/dataset", accounting(Storage(storage) / "dataset"))
        for warning in warnings(Storage(storage) / "dataset"):
            self.err.print(f"[bold yellow]warning[/] {escape(warning)}")

    def data_report(self, storage: str) -> dict[str, Any]:
        """What is in a dataset: the numbers of its page, as small tables with bars; gives its ``stats.json``."""
        from distft.report import data as report

        stats: dict[str, Any] = (Storage(storage) / "dataset").read_json("stats.json")
        account = [
            (f"{row['fate']}{': ' if row['reason'] else ''}{report.plain(row['reason'])}", row["rows"], row["share"])
            for row in report.account(stats)
        ]
        rows = [(name, f"{count:,}", report.percent(share), _bar(share)) for name, count, share in account]
        self._table(f"dataset  {storage}/dataset", ("rows", "", "share", ""), rows)
        shapes = report.sparklines(stats)
        types = [
            (report.plain(row["name"]), f"{row['kept']:,}", report.percent(row["share"]), shapes.get(row["name"], ""))
            for row in report.type_rows(stats)
        ]
        span = report.span(stats)
        self._table("events", ("type", "kept", "share", " to ".join(span) if span else "(no times)"), types)
        splits = [
            (row["name"], f"{row['rows']:,}", " to ".join(row["dates"]) or "–", _share(row["cold"]))
            for row in report.split_rows(stats)
        ]
        self._table("splits", ("split", "rows", "first and last", "cold targets"), splits)
        self._table("users and items", ("", ""), report.key_figures(stats))
        self.say(f"report  {storage}/dataset/report.html")
        return stats

    def forgotten(self, storage: str, found: Mapping[str, Any]) -> None:
        """What a dataset no longer holds of a user, and what still does."""
        rows = [(f"{split}: rows, events", f"{found['rows'][split]:,}, {found['events'][split]:,}") for split in SPLITS]
        self.text_table(f"dropped from {storage}/dataset", [*rows, ("rejected rows", f"{found['rejected']:,}")])
        made = found["made_before"]
        if made:
            folders = ", ".join(f"{storage}/{name}" for name in made)
            self.warn(f"{folders} were made while the dataset held the user. Make them again: distft run JOB --force")
        self.say("The logs still hold the user, and so do copies: take the rows out there before you prepare again.")

    def training(self, summary: Mapping[str, Any]) -> None:
        """How far training went."""
        names = ("epochs", "steps", "best_step", "best_metric", "stopped_early")
        self.counts_table("training", [(name.replace("_", " "), summary.get(name)) for name in names])

    def fine_tuning(self, start: Mapping[str, Any]) -> None:
        """What is taken over from the base, what is frozen, and what the optimiser's state takes."""
        total = start["groups"][-1]
        table = Table(header_style="")
        for place, name in enumerate(("layers", "parameters", "trained", "optimiser")):
            table.add_column(name, justify="right" if place else "left")
        for row in start["groups"]:
            share = f"{row['trainable'] / max(1, row['parameters']):.1%}"
            table.add_row(row["group"], f"{row['parameters']:,}", share, f"{row['optimizer_bytes'] / 1e6:,.2f} MB")
        self.err.print(table)
        self.say(f"  {total['trainable']:,} of {total['parameters']:,} parameters train")
        for name in ("matched", "missing", "unexpected"):
            names = start[name]
            shown = "" if name == "matched" or not names else ": " + ", ".join(names[:6])
            self.say(f"  {name}: {len(names)} tensors{shown}{' …' if len(names) > 6 and shown else ''}")
        for vocabulary, rows in start["grown"].items():
            self.say(f"  new rows of {vocabulary}: {rows:,}")
        for epochs, groups in start["later"].items():
            self.say(f"  after {epochs} epochs also train: {', '.join(groups)}")
        if start["cached"]:
            self.say(f"  computed once: the outputs of {', '.join(start['cached'])}")

    def tuning(self, storage: str, summary: Mapping[str, Any]) -> None:
        """What a search found, and what it brought."""
        from distft.report.trials import gain_lines, summary_rows

        self.text_table("search", summary_rows(summary))
        for line in gain_lines(summary):
            self.show(line)
        self.say(f"report  {storage}/tune/index.html")
        self.say(f"best job  {storage}/tune/best.yaml")

    def evaluation(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """The metric table, a line for every way of grouping the targets, and where the report is."""
        from distft.report.groups import slice_lines, tested_metric

        title = f"{metrics['split']} split, {metrics['num_targets']:,} targets, all items ranked"
        self.metrics_table(title, metrics)
        lines = slice_lines(metrics)
        if lines:
            self.show(f"{tested_metric(metrics)} of the model, and targets:")
        for name, text in lines:
            self.show(f"  {name}: {text}")
        self.against_table(metrics)
        if "pointwise" in metrics:
            self.predictions_table(metrics["pointwise"])
        self.say(f"report  {job.storage}/report/index.html")

    def metrics_table(self, title: str, metrics: Mapping[str, Any]) -> None:
        """The model's metrics beside the baselines', and how surely they differ."""
        from distft.report.evaluation import baselines, table_rows
        from distft.report.groups import chances, tested_metric

        names = baselines(metrics)
        found = chances(metrics, names)
        last = (f"p, {tested_metric(metrics)}", "", "", *found) if found else ()
        self._metrics(title, table_rows(metrics), names, last)

    def predictions_table(self, part: Mapping[str, Any]) -> None:
        """How well labels or values were predicted, beside the baselines."""
        from distft.report.pointwise import baselines, table_rows

        title = f"predictions of {part['num_targets']:,} targets"
        self._metrics(title, table_rows(part), baselines(part))

    def _metrics(
        self, title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], last: Sequence[str] = ()
    ) -> None:
        from distft.report.evaluation import SHORT
        from distft.report.groups import figure

        table = Table(header_style="")
        table.add_column("metric", overflow="fold")
        table.add_column("model", justify="right", style="bold", overflow="fold")
        table.add_column("95% interval", justify="right", style="dim", overflow="fold")
        for name in names:
            table.add_column(SHORT.get(name, name), justify="right", overflow="fold")
        for row in rows:
            interval = "–".join(figure(bound) for bound in row["interval"]) if row["interval"] else ""
            others = [figure(value, row["metric"]) for value in row["baselines"]]
            table.add_row(row["metric"], figure(row["model"], row["metric"]), interval, *others)
        if last:
            table.add_row(*last)
        self._titled(title, table)

    def against_table(self, metrics: Mapping[str, Any]) -> None:
        """The model beside another bundle's, if it was compared with one."""
        from distft.report.groups import against_rows, figure

        rows = against_rows(metrics)
        if not rows:
            return
        rival = metrics["against"]
        table = Table(header_style="")
        for name in ("metric", "model", rival["name"], "difference", "95% interval", "p"):
            table.add_column(name, justify="left" if name == "metric" else "right", overflow="fold")
        for row in rows:
            values = (row["metric"], figure(row["model"]), figure(row["rival"]))
            table.add_row(*values, row["difference"], row["interval"], row["p"])
        common, all_ = rival["num_common_targets"], metrics["num_targets"]
        self._titled(
            f"against {rival['name']} {rival['model_version']}, which knows {common:,} of {all_:,} targets", table
        )

    def replayed(self, result: Mapping[str, Any]) -> None:
        """What a running service answered, beside what was evaluated."""
        served, evaluated = result["served"], result["evaluated"]
        rows = [(name, f"{value:.4f}", f"{served[name]:.4f}", "") for name, value in evaluated.items()]
        title = f"{result['num_targets']:,} test targets at {result['endpoint']}, model {result['model_version']}"
        self._table(title, ("metric", "evaluated", "served", ""), rows)
        allowed = f"{result['allowed_metric_difference']:.2g}"
        self.show(f"largest difference of a metric {result['largest_metric_difference']:.2g} (allowed {allowed})")
        lists = f"{result['equal_lists']:,} of {result['num_targets']:,} lists equal"
        self.show(f"largest difference of a score {result['largest_score_difference']:.2g}, {lists}")

    def _titled(self, title: str, table: Table) -> None:
        self.out.print(f"[bold]{escape(title)}[/]", soft_wrap=True)  # rich would break a title at the table's width
        self.out.print(table)

    def findings(self, findings: Sequence[Mapping[str, str]]) -> None:
        """What was looked at on each node; below, what to do about what is not well."""
        colours = {"ok": "green", "warning": "bold yellow", "error": "bold red"}
        table = Table(header_style="")
        for name in ("node", "", "", "found"):
            table.add_column(name, overflow="fold")
        for one in findings:
            state = f"[{colours[one['state']]}]{one['state']}[/]"
            table.add_row(one["node"], one["what"], state, escape(one["found"]))
        self.out.print(table)
        for one in findings:
            if one["remedy"]:
                self.out.print(f"{one['node']}, {one['what']}: {one['remedy']}", markup=False, soft_wrap=True)

    def chaos(self, report: Mapping[str, Any]) -> None:
        """What got done while parts of a cluster were killed."""
        rows = [("goodput", report["goodput"]), ("seconds", report["seconds"]), ("kills", report["kills"])]
        rows += [("steps kept", report["steps_kept"]), ("steps lost", report["steps_lost"])]
        rows += [(f"mean seconds {phase}", took_s) for phase, took_s in report["phases_s"].items()]
        rows += [(name.replace("_", " "), report[name]) for name in ("requests", "requests_failed") if name in report]
        self.counts_table("chaos", rows)

    def pass_on(self, text: str) -> None:
        """What a job on a cluster said, as it is."""
        stream = sys.stderr if self.as_json else self.stdout
        stream.write(text)
        stream.flush()

    def jobs(self, jobs: Sequence[Any]) -> None:
        """A line for every job of a cluster."""
        table = Table(header_style="")
        for name in ("job", "status", "exit", "began", "storage"):
            table.add_column(name, overflow="fold", no_wrap=name in ("job", "began"))
        for job in jobs:
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_ms / 1000))
            code = "" if job.exit_code is None else str(job.exit_code)
            table.add_row(job.id, job.status.lower(), code, began, escape(job.storage))
        self.out.print(table)

    def checks(self, verdict: Mapping[str, Any]) -> None:
        """What a guard found of a new model."""
        rows = [
            (check["name"], "passed" if check["passed"] else "REFUSED", check["found"], check["wanted"])
            for check in verdict.get("checks", ())
        ]
        if rows:
            self.text_table(f"model {verdict['model_version']}", rows)

    def deployment(self, verdict: Mapping[str, Any]) -> None:
        """What came of a promotion."""
        self.checks(verdict)
        self.say(f"model {verdict['model_version']} answers now, in the place of {verdict['replaced']}")

    def text_table(self, title: str, rows: Sequence[tuple[str, ...]]) -> None:
        """Rows of words."""
        table = Table(show_header=False)
        for _ in rows[0]:
            table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._titled(title, table)

    def _table(self, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Words to the left, numbers to the right; a last column after two numbers is drawn, not read."""
        table = Table(header_style="", show_header=any(names))
        for place, name in enumerate(names):
            table.add_column(name, justify="right" if 0 < place < 3 else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._titled(title, table)

    def counts_table(self, title: str, rows: list[tuple[str, Any]]) -> None:
        """Names and numbers."""
        table = Table(show_header=False)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        for name, value in rows:
            table.add_row(name, _shown(value))
        self._titled(title, table)


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
            self.terminal.fine_tuning(line)
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


def _bar(share: float, width: int = 20) -> str:
    """A bar of block characters; what is there at all is seen."""
    eighths = max(round(8 * width * share), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _share(share: float | None) -> str:
    from distft.report.data import percent

    return "–" if share is None else percent(share)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """A time to wait, as precisely as anybody wants to know it: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _shortened(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the middle of a long history left out."""
    history = list(request.get("history", []))
    shown: list[Any] = history if len(history) <= 3 else [*history[:1], f"… {len(history) - 2} more …", *history[-1:]]
    return {**request, "history": shown}
