"""When a trial ends early: asynchronous successive halving, without its race.

Enters: the values of a trial and of those before it. Leaves: whether it goes on. Surprising choice: a trial is compared
with all that were begun before it, once they have come as far or ended, and not with whatever has been reported by now.
So the same search makes the same decisions however fast its trials run, and after any interruption.

Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020 (the stopping variant).
See docs/decisions/0022-repeatable-searches.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from distft.sections.tune import Asha

Curve = Sequence[tuple[int, float]]
"""(epoch, value) of every validation of a trial, in order."""


def rungs(asha: Asha, epochs: int) -> Iterator[int]:
    """The epochs at which trials of at most ``epochs`` are judged; not the last one, where all has been spent."""
    epoch = asha.min_epochs
    while epoch < epochs:
        yield epoch
        epoch *= asha.reduction_factor


def best_of(curve: Curve, lower: bool) -> tuple[int, float] | None:
    """(epoch, value) of the best validation, the first of equal ones. None before the first."""
    if not curve:
        return None
    return min(curve, key=lambda one: one[1]) if lower else max(curve, key=lambda one: one[1])


def ends_at(curve: Curve, peers: Sequence[Curve], rule: Asha, epochs: int, lower: bool) -> int | None:
    """The epoch with whose validation a trial of at most ``epochs`` ends early; None while it goes on.

    At every rung that it has reached, its best value so far is compared with those that its peers had there; peers that
    never came so far do not count. It goes on if it is in the best 1/reduction_factor, as the quantile of the peers'
    values tells. ``lower``: smaller values are better.
    """
    share = 1 / rule.reduction_factor
    for rung in rungs(rule, epochs):
        own = _at(curve, rung, lower)
        others = [found[1] for peer in peers if (found := _at(peer, rung, lower)) is not None]
        if own is None or not others:
            continue
        cutoff = float(np.quantile(others, share if lower else 1 - share))
        if own[1] > cutoff if lower else own[1] < cutoff:
            return own[0]
    return None


def _at(curve: Curve, rung: int, lower: bool) -> tuple[int, float] | None:
    """(epoch of the first validation at a rung or after it, the best value until then); None if it never came there."""
    for index, (epoch, _) in enumerate(curve):
        if epoch >= rung:
            found = best_of(curve[: index + 1], lower)
            return (epoch, found[1]) if found else None
    return None
