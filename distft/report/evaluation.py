"""Renders ``report/index.html``: one self-contained page with the metrics, the training curves and the data.

Enters: the job, its storage, the metrics. Leaves: HTML text. No script and no outside resource, so the page opens
from a mail or an object store as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distft import __version__
from distft.job import Job
from distft.jobfile import dump_job
from distft.report import pointwise
from distft.report.groups import (
    against_rows,
    chances,
    figure,
    signed,
    slice_tables,
    tested_metric,
)
from distft.report.rows import metric_rows
from distft.schema import lower_is_better
from distft.storage import Storage

if TYPE_CHECKING:
    from distft.evaluate.examples import Example

PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 44, 352, 12, 170


def render(job: Job, root: Storage, metrics: Mapping[str, Any], weights: str, visitors: Sequence[Example] = ()) -> str:
    """The page of one evaluation; ``weights`` says of what, ``visitors`` are shown as examples."""
    environment = Environment(loader=PackageLoader("distft", "report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"figure": figure, "signed": signed, "words": words}
    dataset = (root / "dataset").manifest("dataset")
    info = dataset.info if dataset else {}
    return environment.get_template("evaluation.html").render(
        job=job,
        job_yaml=dump_job(job),
        metrics=metrics,
        excluded=EXCLUDED[metrics["exclude_seen"]],
        num_items=max(0, info.get("num_items", 2) - 2),
        baselines=baselines(metrics),
        rows=table_rows(metrics),
        chances=chances(metrics, baselines(metrics)),
        tested=tested_metric(metrics),
        short=SHORT,
        slices=slice_tables(metrics, baselines(metrics)),
        against=against_rows(metrics),
        visitors=visitors,
        plots=_plots(job, root),
        data=[*accounting(root / "dataset"), *sizes(root / "dataset")],
        meanings=MEANINGS,
        pointwise=_predictions(metrics.get("pointwise")),
        weights=weights,
        version=__version__,
    )


EXCLUDED = {
    "all": ", without those of the history",
    "targets": ", without those of the history's target events",
    "none": "",
}
BASELINES = ("popularity", "recently_seen", "co_occurrence", "oracle")
SHORT = {"popularity": "popular", "recently_seen": "recent", "co_occurrence": "co-occ.", "oracle": "oracle"}
"""Their names where a table must fit 80 columns."""

MEANINGS = {
    "popularity": "The same list for everybody: the items with most target events in training.",
    "recently_seen": "The items of the visitor's own history, the latest first, then the popular ones.",
    "co_occurrence": "The items that others had close to the latest ones of the visitor's history, then the popular "
    "ones.",
    "oracle": "Knows how the made-up shop works and what the visitor did, but not what they came for: the best that "
    "any recommender could reach.",
}
SHOWN = ("hr", "ndcg", "mrr")
SHOWN_ONCE = ("coverage", "novelty", "arp", "gini")
"""What lists are like: shown at one k, told at all in metrics.json."""


def table_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: its name, the model's value and interval, and the baselines' (None where not defined).

    Left out is what only repeats another row where a list has one target: recall@k and map@k, and of the metrics
    at 1 all but hr@1.
    """
    ks = sorted({int(name.split("@")[1]) for name in metrics["model"] if "@" in name})
    names = [f"{family}@{k}" for family in SHOWN for k in ks if k > 1 or family == "hr"]
    names += [f"{family}@{10 if 10 in ks else max(ks)}" for family in SHOWN_ONCE if ks]
    return metric_rows(metrics, names, baselines(metrics))


def words(name: str) -> str:
    """A name of metrics.json as words."""
    return name.replace("co_occurrence", "co-occurrence").replace("_", " ")


def baselines(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the baselines, in the order in which they are shown."""
    return [name for name in BASELINES if name in metrics["baselines"]]


def accounting(dataset: Storage) -> list[tuple[str, int]]:
    """What became of every row of the logs: kept, rejected or filtered, with the reason."""
    if not dataset.exists("stats.json"):
        return []
    stats = dataset.read_json("stats.json")
    rows = [("rows in the logs", stats["rows_in"]), ("events kept", stats["kept"])]
    for group in ("rejected", "filtered"):
        reasons = sorted(stats[group]["by_reason"].items())
        rows += [(f"{group}: {reason.replace('_', ' ')}", count) for reason, count in reasons if count]
    tables = {name: table["rejected"]["total"] for name, table in stats.get("features", {}).items()}
    return rows + [(f"unusable records of data.{name}", count) for name, count in tables.items() if count]


def warnings(dataset: Storage) -> list[str]:
    """What a person must know of a dataset although it was made."""
    return list(dataset.read_json("stats.json").get("warnings", [])) if dataset.exists("stats.json") else []


def sizes(dataset: Storage) -> list[tuple[str, int | str]]:
    """How large the dataset and its splits are, and the days that it covers."""
    if not dataset.exists("stats.json"):
        return []
    stats = dataset.read_json("stats.json")
    rows: list[tuple[str, int | str]] = [(name, stats[name]) for name in ("users", "items") if name in stats]
    splits = stats.get("splits", {})
    if splits:
        rows += [("events to train on", splits["train"]["events"])]
        rows += [(f"{name} targets", splits[split]["rows"]) for name, split in SPLIT_NAMES.items()]
    times = stats.get("times", {})
    names = (("first day", "first_ms"), ("validation from", "valid_start_ms"), ("test from", "test_start_ms"))
    rows += [(name, _day(times[key])) for name, key in (*names, ("last day", "last_ms")) if key in times]
    return rows


SPLIT_NAMES = {"validation": "valid", "test": "test"}


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, tz=timezone.utc).strftime("%Y-%m-%d")


def _predictions(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the section on predictions takes; None where there is nothing to tell."""
    if part is None:
        return None
    return {
        "pointwise": part,
        "rows": pointwise.table_rows(part),
        "names": pointwise.baselines(part),
        "meanings": pointwise.MEANINGS,
        "curve": pointwise.calibration_plot(part),
    }


def _plots(job: Job, root: Storage) -> list[dict[str, Any]]:
    name = "finetune/metrics.jsonl" if "finetune" in job.stages else "train/metrics.jsonl"
    if not root.exists(name):
        return []
    lines = [json.loads(line) for line in root.read_bytes(name).splitlines()]
    metric = job.train.early_stopping.metric if job.train.early_stopping else "ndcg@10"
    trained = [line for line in lines if line["kind"] == "train"]
    validated = [line for line in lines if line["kind"] == "valid"]
    best = min if lower_is_better(metric) else max
    plots = [_plot("training loss", trained, "loss"), _plot(f"validation {metric}", validated, metric, mark=best)]
    return [plot for plot in plots if plot]


def _plot(title: str, lines: Sequence[Mapping[str, Any]], key: str, mark: Any = None) -> dict[str, Any] | None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if len(points) < 2:
        return None
    x_low, x_high = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / max(1e-12, x_high - x_low)
        up = (y - low) / max(1e-12, high - low)
        return (
            round(PLOT_LEFT + across * (PLOT_RIGHT - PLOT_LEFT), 1),
            round(PLOT_BOTTOM - up * (PLOT_BOTTOM - PLOT_TOP), 1),
        )

    best = mark(points, key=lambda point: point[1]) if mark else None
    return {
        "title": title,
        "points": " ".join(f"{x},{y}" for x, y in (place(*point) for point in points)),
        "mark": place(*best) if best else None,
        "first": f"{points[0][1]:.4g}",
        "last": f"{points[-1][1]:.4g}",
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "x_low": f"{x_low:,}",
        "x_high": f"{x_high:,}",
        "x_label": "step",
    }
