"""The trials of a search in words: rows of the live table, of the terminal and of the page.

Enters: trials and the summary of a search as JSON values. Leaves: texts. Surprising choice: keys are shown by their
last name, as long as no two of a search share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distft.report.groups import chance, figure, signed
from distft.schema import lower_is_better

Trials = Sequence[Mapping[str, Any]]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key → how it is shown: its last name, with a space for an underscore; all of it where two share that."""
    last = [key.rpartition(".")[2] for key in keys]
    shown = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    return {key: name.replace("_", " ") for key, name in zip(keys, shown, strict=True)}


def value_text(value: Any) -> str:
    """A tried value: numbers with three digits, anything else as in YAML."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def values_text(values: Mapping[str, Any]) -> str:
    """All values of a trial in one line."""
    names = short_names(list(values))
    return ", ".join(f"{names[key]} {value_text(value)}" for key, value in values.items())


def ranked(trials: Trials, metric: str) -> list[Mapping[str, Any]]:
    """The trials, best first; those without a value last."""
    sign = 1 if lower_is_better(metric) else -1
    return sorted(trials, key=lambda one: (one["best_value"] is None, sign * (one["best_value"] or 0.0), one["number"]))


def outcome(trial: Mapping[str, Any]) -> str:
    """How a trial ended, or where it is."""
    if trial["status"] == "failed":
        return f"failed: {trial['error']}"
    epochs = trial["epochs"]
    if trial["status"] == "running":
        return f"epoch {epochs}" if epochs else "starting"
    return f"all {epochs} epochs" if trial["status"] == "finished" else f"ended at epoch {epochs}"


def ended_line(trial: Mapping[str, Any]) -> str:
    """The line for a trial that has ended."""
    own = " (the job's own values)" if trial["number"] == 0 else ""
    found = "" if trial["best_value"] is None else f" {trial['metric']} {figure(trial['best_value'])},"
    return f"trial {trial['number']}: {values_text(trial['effective'])}{own}:{found} {outcome(trial)}"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a search found, for the terminal and the page."""
    best, own = summary["best"], summary["own"]
    by_status = ", ".join(f"{count} {status}" for status, count in summary["by_status"].items())
    rows = [
        ("trials", f"{summary['num_trials']} ({by_status})"),
        ("best", f"trial {best['trial']}: {values_text(best['values'])}"),
        (f"its validation {summary['metric']}", f"{figure(best['value'])} after epoch {best['epoch']}"),
        ("the job's own values", values_text(own["values"])),
        (f"their validation {summary['metric']}", own["error"] or figure(own["value"])),
    ]
    minutes = f"{summary['seconds'] / 60:.1f} min, {summary['concurrent']} at a time"
    rows.append(("time", f"{minutes}; {summary['overhead_share']:.0%} of it neither training nor validation"))
    return rows


def gain_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the search brought, in sentences."""
    if summary["best"]["trial"] == summary["own"]["trial"]:
        return ["The job's own values were the best: the search brought nothing."]
    lines = []
    for split, words in (("test", "test split, which chose nothing"), ("valid", "validation split, which chose")):
        gain = summary["gain"].get(split)
        if gain:
            between = " to ".join(signed(bound) for bound in gain["interval"])
            lines.append(
                f"{signed(gain['difference'])} {gain['metric']} against the job's own values on the {words} "
                f"(95% interval {between}, p {chance(gain['p_value'])}; {figure(gain['own'])} → {figure(gain['best'])})"
            )
    return lines
