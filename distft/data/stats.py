"""The account of a prepare: where every row of the logs went, and the errors that follow from it.

rows in = kept + rejected (with cancellations, which are set aside) + filtered, checked at run time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distft.data.sources.typed import CANCELLATION
from distft.errors import DataError, LeakError

NUM_EXAMPLES = 3


@dataclass
class Account:
    """Counts by reason and by event type."""

    rows_in: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add_read(self, result: Mapping[str, Any]) -> None:
        """Takes the result of one read task."""
        self.rows_in += result["rows"]
        self.rejected.update(result["rejected"])
        self.read.update(result["events"])
        for reason, examples in result["examples"].items():
            known = self.examples.setdefault(reason, [])
            known += examples[: NUM_EXAMPLES - len(known)]

    def check_rejected(self, max_share: float) -> None:
        """Raises DataError if too large a share of the rows is unusable, naming the main reason and examples."""
        if not self.rows_in:
            raise DataError("The event logs hold no records", "at least one", "Check data.events.")
        share = self.rejected_share
        if share <= max_share:
            return
        reasons = Counter({reason: count for reason, count in self.rejected.items() if reason != CANCELLATION})
        reason, count = min(reasons.items(), key=lambda one: (-one[1], one[0]))
        examples = "; ".join(self.examples[reason])
        raise DataError(
            f"{sum(reasons.values()):,} of {self.rows_in:,} rows are unusable ({share:.1%}), most of them ({count:,}) "
            f"for '{reason}': {examples}",
            f"at most {max_share:.1%}",
            "Correct the mapping of the log, or raise data.clean.max_rejected_share.",
        )

    @property
    def rejected_share(self) -> float:
        """Share of unusable rows; a cancellation is usable."""
        return (self.rejected.total() - self.rejected[CANCELLATION]) / max(self.rows_in, 1)

    def check_kept(self, minimum: tuple[int, int]) -> None:
        """Raises DataError if nothing is left after cleaning."""
        if self.kept.total():
            return
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted((self.rejected + self.filtered).items()))
        raise DataError(
            f"No rows are left after cleaning: of {self.rows_in:,} rows went {lost or 'none'}",
            f"users with {minimum[0]} events and items with {minimum[1]}",
            "Lower data.clean.min_user_events and min_item_events, or give more data.",
        )

    def check_sum(self) -> None:
        """The account must close: anything else is a mistake of prepare."""
        out = self.kept.total() + self.rejected.total() + self.filtered.total()
        assert out == self.rows_in, f"{self.rows_in} rows came in, {out} are accounted for"

    def to_json(self) -> dict[str, Any]:
        """What ``stats.json`` says of the rows."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept.total(),
            "rejected": {
                "total": self.rejected.total(),
                "share": round(self.rejected_share, 6),
                "by_reason": dict(self.rejected),
            },
            "filtered": {"total": self.filtered.total(), "by_reason": dict(self.filtered)},
            "events_read": dict(self.read),
            "events_kept": dict(self.kept),
        }


def check_leaks(leaks: Iterable[Mapping[str, Any]]) -> None:
    """Raises LeakError if any row of ``valid/`` or ``test/`` shows its target."""
    found = list(leaks)
    leaking = sum(one["leaking"] for one in found)
    if not leaking:
        return
    rows = sum(one["rows"] for one in found)
    example = next(one["example"] for one in found if one["example"])
    raise LeakError(
        f"{leaking:,} of {rows:,} targets ({leaking / rows:.1%}) have an event of their own moment in their history "
        f"(for instance {example}): baskets share one timestamp, and a model would see its answer",
        "histories that are strictly older than their targets",
        "Use data.split: {by: time, ...}; or ties: ordered, if the log's order within a moment is real.",
    )
