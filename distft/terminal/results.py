"""What a person sees of a result: a table or two, and what it means.

Each function shows one kind of result on a terminal; what it gives to ``Terminal.result`` is up to the verb.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from distft.schema import SPLITS
from distft.storage import Storage
from distft.terminal.console import Terminal

if TYPE_CHECKING:
    from distft.job import Job


def exchange(terminal: Terminal, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """One HTTP request and its answer, as JSON."""
    terminal.say(f"POST /v1/recommend {json.dumps(_shortened(request), ensure_ascii=False)}")
    text = json.dumps(answer, ensure_ascii=False)
    # One item a line: indented all the way, ten items would fill a screen.
    lines = text.replace('[{"item_id"', '[\n  {"item_id"').replace(', {"item_id"', ',\n  {"item_id"')
    print(text if terminal.as_json else lines, file=terminal.stdout, flush=True)


def dataset(terminal: Terminal, storage: str) -> None:
    """What became of the logs' rows, and what a person must know of the result."""
    from distft.report.evaluation import accounting, warnings

    terminal.counts(f"dataset  {storage}/dataset", accounting(Storage(storage) / "dataset"))
    for warning in warnings(Storage(storage) / "dataset"):
        terminal.warn(warning)


def data_report(terminal: Terminal, storage: str) -> dict[str, Any]:
    """What is in a dataset: the numbers of its page, as small tables with bars; gives its ``stats.json``."""
    from distft.report import data as report

    stats: dict[str, Any] = (Storage(storage) / "dataset").read_json("stats.json")
    account = [
        (f"{row['fate']}{': ' if row['reason'] else ''}{report.plain(row['reason'])}", row["rows"], row["share"])
        for row in report.account(stats)
    ]
    rows = [(name, f"{count:,}", report.percent(share), _bar(share)) for name, count, share in account]
    terminal.columns(f"dataset  {storage}/dataset", ("rows", "", "share", ""), rows)
    shapes = report.sparklines(stats)
    types = [
        (report.plain(row["name"]), f"{row['kept']:,}", report.percent(row["share"]), shapes.get(row["name"], ""))
        for row in report.type_rows(stats)
    ]
    span = report.span(stats)
    terminal.columns("events", ("type", "kept", "share", " to ".join(span) if span else "(no times)"), types)
    splits = [
        (row["name"], f"{row['rows']:,}", " to ".join(row["dates"]) or "–", _share(row["cold"]))
        for row in report.split_rows(stats)
    ]
    terminal.columns("splits", ("split", "rows", "first and last", "cold targets"), splits)
    terminal.columns("users and items", ("", ""), report.key_figures(stats))
    terminal.say(f"report  {storage}/dataset/report.html")
    return stats


def forgotten(terminal: Terminal, storage: str, found: Mapping[str, Any]) -> None:
    """What a dataset no longer holds of a user, and what still does."""
    rows = [(f"{split}: rows, events", f"{found['rows'][split]:,}, {found['events'][split]:,}") for split in SPLITS]
    terminal.texts(f"dropped from {storage}/dataset", [*rows, ("rejected rows", f"{found['rejected']:,}")])
    made = found["made_before"]
    if made:
        folders = ", ".join(f"{storage}/{name}" for name in made)
        terminal.warn(f"{folders} were made while the dataset held the user. Make them again: distft run JOB --force")
    terminal.say("The logs still hold the user, and so do copies: take the rows out there before you prepare again.")


def training(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    """How far training went."""
    names = ("epochs", "steps", "best_step", "best_metric", "stopped_early")
    terminal.counts("training", [(name.replace("_", " "), summary.get(name)) for name in names])


def fine_tuning(terminal: Terminal, start: Mapping[str, Any]) -> None:
    """What is taken over from the base, what is frozen, and what the optimiser's state takes."""
    total = start["groups"][-1]
    table = Table(header_style="")
    for place, name in enumerate(("layers", "parameters", "trained", "optimiser")):
        table.add_column(name, justify="right" if place else "left")
    for row in start["groups"]:
        share = f"{row['trainable'] / max(1, row['parameters']):.1%}"
        table.add_row(row["group"], f"{row['parameters']:,}", share, f"{row['optimizer_bytes'] / 1e6:,.2f} MB")
    terminal.err.print(table)
    terminal.say(f"  {total['trainable']:,} of {total['parameters']:,} parameters train")
    for name in ("matched", "missing", "unexpected"):
        names = start[name]
        shown = "" if name == "matched" or not names else ": " + ", ".join(names[:6])
        terminal.say(f"  {name}: {len(names)} tensors{shown}{' …' if len(names) > 6 and shown else ''}")
    for vocabulary, rows in start["grown"].items():
        terminal.say(f"  new rows of {vocabulary}: {rows:,}")
    for epochs, groups in start["later"].items():
        terminal.say(f"  after {epochs} epochs also train: {', '.join(groups)}")
    if start["cached"]:
        terminal.say(f"  computed once: the outputs of {', '.join(start['cached'])}")


def tuning(terminal: Terminal, storage: str, summary: Mapping[str, Any]) -> None:
    """What a search found, and what it brought."""
    from distft.report.trials import gain_lines, summary_rows

    terminal.texts("search", summary_rows(summary))
    for line in gain_lines(summary):
        terminal.show(line)
    terminal.say(f"report  {storage}/tune/index.html")
    terminal.say(f"best job  {storage}/tune/best.yaml")


def evaluation(terminal: Terminal, job: Job, metrics: Mapping[str, Any]) -> None:
    """The metric table, a line for every way of grouping the targets, and where the report is."""
    from distft.report.groups import slice_lines, tested_metric

    title = f"{metrics['split']} split, {metrics['num_targets']:,} targets, all items ranked"
    _ranking_metrics(terminal, title, metrics)
    lines = slice_lines(metrics)
    if lines:
        terminal.show(f"{tested_metric(metrics)} of the model, and targets:")
    for name, text in lines:
        terminal.show(f"  {name}: {text}")
    _against(terminal, metrics)
    if "pointwise" in metrics:
        _predictions(terminal, metrics["pointwise"])
    terminal.say(f"report  {job.storage}/report/index.html")


def _ranking_metrics(terminal: Terminal, title: str, metrics: Mapping[str, Any]) -> None:
    """The model's metrics beside the baselines', and how surely they differ."""
    from distft.report.evaluation import baselines, table_rows
    from distft.report.groups import chances, tested_metric

    names = baselines(metrics)
    found = chances(metrics, names)
    last = (f"p, {tested_metric(metrics)}", "", "", *found) if found else ()
    _metrics(terminal, title, table_rows(metrics), names, last)


def _predictions(terminal: Terminal, part: Mapping[str, Any]) -> None:
    """How well labels or values were predicted, beside the baselines."""
    from distft.report.pointwise import baselines, table_rows

    title = f"predictions of {part['num_targets']:,} targets"
    _metrics(terminal, title, table_rows(part), baselines(part))


def _metrics(
    terminal: Terminal, title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], last: Sequence[str] = ()
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
    terminal.titled(title, table)


def _against(terminal: Terminal, metrics: Mapping[str, Any]) -> None:
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
    terminal.titled(
        f"against {rival['name']} {rival['model_version']}, which knows {common:,} of {all_:,} targets", table
    )


def replayed(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """What a running service answered, beside what was evaluated."""
    served, evaluated = result["served"], result["evaluated"]
    rows = [(name, f"{value:.4f}", f"{served[name]:.4f}", "") for name, value in evaluated.items()]
    title = f"{result['num_targets']:,} test targets at {result['endpoint']}, model {result['model_version']}"
    terminal.columns(title, ("metric", "evaluated", "served", ""), rows)
    allowed = f"{result['allowed_metric_difference']:.2g}"
    terminal.show(f"largest difference of a metric {result['largest_metric_difference']:.2g} (allowed {allowed})")
    lists = f"{result['equal_lists']:,} of {result['num_targets']:,} lists equal"
    terminal.show(f"largest difference of a score {result['largest_score_difference']:.2g}, {lists}")


def findings(terminal: Terminal, findings: Sequence[Mapping[str, str]]) -> None:
    """What was looked at on each node; below, what to do about what is not well."""
    colours = {"ok": "green", "warning": "bold yellow", "error": "bold red"}
    table = Table(header_style="")
    for name in ("node", "", "", "found"):
        table.add_column(name, overflow="fold")
    for one in findings:
        state = f"[{colours[one['state']]}]{one['state']}[/]"
        table.add_row(one["node"], one["what"], state, escape(one["found"]))
    terminal.out.print(table)
    for one in findings:
        if one["remedy"]:
            terminal.out.print(f"{one['node']}, {one['what']}: {one['remedy']}", markup=False, soft_wrap=True)


def chaos(terminal: Terminal, report: Mapping[str, Any]) -> None:
    """What got done while parts of a cluster were killed."""
    rows = [("goodput", report["goodput"]), ("seconds", report["seconds"]), ("kills", report["kills"])]
    rows += [("steps kept", report["steps_kept"]), ("steps lost", report["steps_lost"])]
    rows += [(f"mean seconds {phase}", took_s) for phase, took_s in report["phases_s"].items()]
    rows += [(name.replace("_", " "), report[name]) for name in ("requests", "requests_failed") if name in report]
    terminal.counts("chaos", rows)


def jobs(terminal: Terminal, jobs: Sequence[Any]) -> None:
    """A line for every job of a cluster."""
    table = Table(header_style="")
    for name in ("job", "status", "exit", "began", "storage"):
        table.add_column(name, overflow="fold", no_wrap=name in ("job", "began"))
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_ms / 1000))
        code = "" if job.exit_code is None else str(job.exit_code)
        table.add_row(job.id, job.status.lower(), code, began, escape(job.storage))
    terminal.out.print(table)


def checks(terminal: Terminal, verdict: Mapping[str, Any]) -> None:
    """What a guard found of a new model."""
    rows = [
        (check["name"], "passed" if check["passed"] else "REFUSED", check["found"], check["wanted"])
        for check in verdict.get("checks", ())
    ]
    if rows:
        terminal.texts(f"model {verdict['model_version']}", rows)


def deployment(terminal: Terminal, verdict: Mapping[str, Any]) -> None:
    """What came of a promotion."""
    checks(terminal, verdict)
    terminal.say(f"model {verdict['model_version']} answers now, in the place of {verdict['replaced']}")


def _bar(share: float, width: int = 20) -> str:
    """A bar of block characters; what is there at all is seen."""
    eighths = max(round(8 * width * share), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _share(share: float | None) -> str:
    from distft.report.data import percent

    return "–" if share is None else percent(share)


def _shortened(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the middle of a long history left out."""
    history = list(request.get("history", []))
    shown: list[Any] = history if len(history) <= 3 else [*history[:1], f"… {len(history) - 2} more …", *history[-1:]]
    return {**request, "history": shown}
