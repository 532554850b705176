"""The page of a search: everything is on it, nothing of the outside, also where little is known."""

from __future__ import annotations

import re
from typing import Any

import pytest

from distft.report.trials import ended_line, gain_lines, outcome, ranked, short_names
from distft.report.tuning import render

RATE, BATCH = "train.learning_rate", "train.batch_size"


def trial(
    number: int, rate: float, batch: int, *curve: float, status: str = "finished", error: str = ""
) -> dict[str, Any]:
    best = max(curve, default=None)
    return {
        "number": number,
        "effective": {RATE: rate, BATCH: batch},
        "status": status,
        "curve": [(epoch + 1, value) for epoch, value in enumerate(curve)],
        "best_value": None if error else best,
        "best_epoch": curve.index(best) + 1 if best is not None else 0,
        "epochs": len(curve),
        "train_s": 3.0,
        "valid_s": 1.0,
        "error": error,
        "metric": "ndcg@10",
    }


TRIALS = [
    trial(0, 1e-3, 64, 0.1, 0.2, 0.3),
    trial(1, 1e-2, 128, 0.2, 0.4, 0.35),
    trial(2, 1e-4, 64, 0.05, status="ended early"),
    trial(3, 1.0, 128, status="failed", error="The loss of step 3 is <nan>"),
]


def summary(**more: Any) -> dict[str, Any]:
    told = [{"trial": one["number"], "values": one["effective"], "value": one["best_value"], "epoch": one["best_epoch"],
             "status": one["status"], "error": one["error"]} for one in TRIALS]  # fmt: skip
    return {
        "metric": "ndcg@10",
        "num_trials": 4,
        "by_status": {"ended early": 1, "failed": 1, "finished": 2},
        "best": told[1],
        "own": told[0],
        "seconds": 90.0,
        "concurrent": 2,
        "overhead_share": 0.25,
        "gain": {"test": {"metric": "ndcg@10", "best": 0.4, "own": 0.3, "difference": 0.1, "interval": [0.05, 0.15],
                          "p_value": 0.0001, "num_targets": 100}},
        **more,
    }  # fmt: skip


def test_the_page_has_every_trial_and_three_plots_and_needs_nothing_from_outside():
    page = render("shop", summary(), TRIALS)
    assert page.count("<svg") == 3 and page.count("<tr><td>") >= 4
    assert "all 3 epochs" in page and "ended at epoch 1" in page and "&lt;nan&gt;" in page
    assert "+0.1000 ndcg@10" in page and "+0.0500 to +0.1500" in page
    assert page.count('class="trial best') == 2 and page.count('class="point best') == 2, "the best trial, in each plot"
    assert not re.findall(r"<script|https?://|NaN|nan\b(?!&gt;)", page)


def test_without_a_batch_size_there_is_no_map_and_one_value_of_a_key_is_no_division_by_zero():
    some = [
        {**one, "effective": {"model": {"kind": kind}, "seed": 1}} for one, kind in zip(TRIALS, "abca", strict=True)
    ]
    told = {"values": some[0]["effective"]}
    page = render("shop", summary(best={**summary()["best"], **told}, own={**summary()["own"], **told}), some)
    assert page.count("<svg") == 2


def test_where_all_that_is_known_is_one_trial_it_says_that_nothing_was_brought():
    only = summary()["own"]
    assert gain_lines(summary(best=only)) == ["The job's own values were the best: the search brought nothing."]
    assert render("shop", summary(best=only), TRIALS[:1]).count("<svg") == 3


@pytest.mark.parametrize(("metric", "order"), [("ndcg@10", [1, 0, 2, 3]), ("loss", [2, 0, 1, 3])])
def test_the_best_come_first_and_those_without_a_value_last(metric, order):
    assert [one["number"] for one in ranked(TRIALS, metric)] == order


def test_names_are_short_as_long_as_they_tell_keys_apart():
    assert short_names([RATE, BATCH]) == {RATE: "learning rate", BATCH: "batch size"}
    assert short_names(["model.kind", "loss.kind"]) == {"model.kind": "model.kind", "loss.kind": "loss.kind"}
    assert ended_line(TRIALS[0]).endswith("(the job's own values): ndcg@10 0.3000, all 3 epochs")
    assert outcome(TRIALS[3]) == "failed: The loss of step 3 is <nan>"
