"""The failure page: all facts in it, nothing that is not known, nothing from outside."""

from __future__ import annotations

from typing import Any

from distft.report.failure import REMEDIES, render, text
from distft.train import failure
from distft.train.failure import Failure

STALL = Failure(
    cause="stall",
    what="Rank 1 made no progress for 20 s",
    rank=1,
    num_workers=4,
    reached=58,
    step=57,
    phase="forward pass",
    node="10.0.0.7",
    pid=4711,
    followed=(0, 2),
    stack=("a.py:3 in forward",),
    at="2026-01-02T03:04:05+00:00",
)
MORE = {
    "before": [],
    "checkpoint": "/runs/a/train/checkpoints/step-50",
    "resume": "cd /runs && distft train 'a b.yaml'",
}


def details(**changes: Any) -> dict[str, Any]:
    return {**STALL.to_json(), **MORE, **changes}


def test_the_page_has_rank_cause_checkpoint_and_command():
    told = text(details())
    page = render("shop", "train", details(what="Rank 1 said <b>no</b>"))
    for words in (
        "1 of 4",
        "stall",
        "step 57, in: forward pass",
        "step 58",
        "4711 on 10.0.0.7",
        "ranks 0, 2",
        "step-50",
    ):
        assert words in told and words in page
    assert "cd /runs && distft train 'a b.yaml'" in told
    assert "&lt;b&gt;no&lt;/b&gt;" in page and "a.py:3" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_what_is_not_known_is_left_out():
    all_ = details(rank=None, phase="", pid=None, followed=[], stack=[], log="", checkpoint=None)
    told = text(all_)
    assert "all alike of 4" in told and "none yet" in told
    for words in ("process", "last seen", "failed because", "log"):
        assert words not in told
    assert "Where the rank stood" not in render("shop", "train", all_)


def test_attempts_before_are_listed():
    page = render("shop", "train", details(before=[Failure("killed", "Rank 3 was killed", 3).to_json()]))
    assert "Rank 3 was killed" in page and "Attempts before" in page


def test_every_cause_has_a_remedy():
    causes = {value for name, value in vars(failure).items() if name.isupper() and isinstance(value, str)}
    assert causes - {failure.FAILURES, failure.PAGE} == REMEDIES.keys()
