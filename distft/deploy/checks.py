"""What a new model must show before users meet it, as plain functions of what was measured.

Enters: answers of the new and the running model to the same requests, their catalogues, how long answers took. Leaves:
one ``Check`` each, passed or not, in words that a person reads. Surprising choice: a metric that is lower only by
chance does not refuse a model: it must be lower than its share of the running one's, and surely so by the evaluation's
paired test, for a few hundred requests cannot tell 0.34 from 0.35.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distft.evaluate.metrics import per_list
from distft.evaluate.resampling import compare
from distft.serve.predictor import Recommendation

K = 10
METRIC = f"ndcg@{K}"
SURE = 0.05
"""The p-value of a difference that is not by chance."""
MISSED = 1 << 30
"""The rank of a target that is not in the list."""


@dataclass(frozen=True)
class Limits:
    """What is asked of a new model.

    ``min_metric``: its ndcg@10 on the golden requests of its own bundle. ``min_of_before``: the same, as a share of
    what the running model's bundle says of its test split. ``min_of_running``: its ndcg@10 as a share of the running
    model's, on the same requests (those of both bundles); it is refused where it is surely below. ``min_items``: share
    of the running model's items that it knows. ``min_coverage``: number of different items that it recommends, as a
    share of the running model's. ``max_latency_s``: 95% of answers, asked for one by one; None: the running service's
    ``serve.target_latency_s``.
    """

    min_metric: float = 0.0
    min_of_before: float = 0.5
    min_of_running: float = 0.95
    min_items: float = 0.9
    min_coverage: float = 0.5
    max_latency_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Check:
    """One question about a new model. ``found`` and ``wanted`` in words."""

    name: str
    passed: bool
    found: str
    wanted: str

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Answered:
    """Requests whose targets are known, and the answers of both models to them, in the same order."""

    targets: Sequence[str]
    new: Sequence[Recommendation]
    running: Sequence[Recommendation]


def floor(answered: Answered, limits: Limits, before: float | None) -> Check:
    """Whether the metric on the bundle's own requests is high enough at all; ``before``: the running bundle's."""
    if not answered.targets:
        return Check("metric", True, "the bundle's golden requests have no targets", "nothing")
    found = _mean(_ranks(answered.targets, answered.new))
    wanted = max(limits.min_metric, limits.min_of_before * (before or 0.0))
    return Check("metric", found >= wanted, f"{METRIC} {found:.4f}", f"at least {wanted:.4f}")


def against_running(answered: Answered, limits: Limits) -> Check:
    """Whether the new model is about as good as the running one on the same requests."""
    if not answered.targets:
        return Check("metric of both", True, "no golden requests with targets", "nothing")
    new_T, old_T = _ranks(answered.targets, answered.new), _ranks(answered.targets, answered.running)
    new, old = _mean(new_T), _mean(old_T)
    difference = compare(new_T, old_T, np.arange(len(new_T)), [K], seed=1)[METRIC]
    worse = new < limits.min_of_running * old and difference["p_value"] < SURE
    found = f"{METRIC} {new:.4f}, the running model {old:.4f}, on {len(new_T)} requests (p {difference['p_value']:.3f})"
    wanted = f"not surely below {limits.min_of_running:.0%} of the running model's"
    return Check("metric of both", not worse, found, wanted)


def known_items(new: NDArray[np.object_], running: NDArray[np.object_], limits: Limits) -> Check:
    """Whether the new model still knows the items of the running one."""
    known = set(new.tolist())  # numpy compares texts pair by pair
    share = sum(item in known for item in running.tolist()) / len(running) if len(running) else 1.0
    found = f"{share:.1%} of the running model's {len(running):,} items"
    return Check("items", share >= limits.min_items, found, f"at least {limits.min_items:.0%}")


def coverage(answered: Answered, limits: Limits) -> Check:
    """Whether the new model recommends as many different items as the running one."""
    new, running = (len({item for one in some for item in one.item_ids}) for some in (answered.new, answered.running))
    wanted = limits.min_coverage * running
    found = f"{new} different items in {len(answered.new)} lists, the running model {running}"
    return Check("coverage", new >= wanted, found, f"at least {limits.min_coverage:.0%} of the running model's")


def latency(took_s: Sequence[float], budget_s: float) -> Check:
    """Whether 95% of the answers came within the budget."""
    found_s = float(np.percentile(took_s, 95))
    found = f"{found_s * 1000:.1f} ms for 95% of {len(took_s)} answers"
    return Check("latency", found_s <= budget_s, found, f"at most {budget_s * 1000:.1f} ms")


def _ranks(targets: Sequence[str], answers: Sequence[Recommendation]) -> NDArray[np.int64]:
    return np.array(
        [
            answer.item_ids.index(target) + 1 if target in answer.item_ids else MISSED
            for target, answer in zip(targets, answers, strict=True)
        ],
        np.int64,
    )


def _mean(rank_T: NDArray[np.int64]) -> float:
    return float(per_list(rank_T, [K])[METRIC].mean())
