"""The account of a prepare: where every row of the logs went, and the errors that follow from it.

rows in = kept + rejected (with cancellations, which are set aside) + filtered, checked at run time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from distft.data.clean import CANCELLED, K_CORE_ITEM, K_CORE_USER, LEFT_OUT, UNLABELLED
from distft.data.sources.records import OPEN_QUOTE, UNDECODABLE, WRONG_COLUMNS
from distft.data.sources.times import FORMS
from distft.data.sources.typed import BAD_TIMESTAMP, CANCELLATION
from distft.data.split import DAY_MS, TEST, TRAIN, Plan
from distft.errors import DataError, LeakError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distft.data.features import FeatureColumn
    from distft.data.sources.base import FeatureTable

NUM_EXAMPLES = 3

HOPELESS_SHARE = 0.9
"""From this share of unusable rows on it is no remedy to allow for them."""

_REMEDIES = {
    BAD_TIMESTAMP: f"Timestamps may be {FORMS}: convert the column, or correct its mapping and timestamp_unit",
    WRONG_COLUMNS: "Correct the separator of the log, or its lines",
    OPEN_QUOTE: "Close or remove the quotes",
    UNDECODABLE: "Convert the log to UTF-8",
}


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
        if result["left_out"]:
            self.filtered[LEFT_OUT] += result["left_out"]
        self.rejected.update(result["rejected"])
        self.read.update(result["events"])
        for reason, examples in result["examples"].items():
            known = self.examples.setdefault(reason, [])
            known += examples[: NUM_EXAMPLES - len(known)]

    def check_rejected(self, max_share: float) -> None:
        """Raises DataError if too large a share of the rows is unusable, naming the main reason and examples."""
        if not self.rows_in:
            raise DataError("The event logs hold no records", "at least one", "Check data.events.")
        if self.filtered[LEFT_OUT] == self.rows_in:
            what = f"where and where_not of data.events leave out all {self.rows_in:,} rows"
            raise DataError(what, "at least one row", "Correct their values: they are compared letter by letter.")
        share = self.rejected_share
        if share <= max_share:
            return
        reasons = Counter({reason: count for reason, count in self.rejected.items() if reason != CANCELLATION})
        reason, count = min(reasons.items(), key=lambda one: (-one[1], one[0]))
        examples = "; ".join(self.examples[reason])
        remedy = _REMEDIES.get(reason, "Correct the mapping of the log")
        if share < HOPELESS_SHARE:
            remedy += ", or raise data.clean.max_rejected_share"
        raise DataError(
            f"{sum(reasons.values()):,} of {self.rows_in:,} rows are unusable ({share:.1%}), most of them ({count:,}) "
            f"for '{reason}': {examples}",
            f"at most {max_share:.1%}",
            remedy,
        )

    @property
    def rejected_share(self) -> float:
        """Share of unusable rows among those that the job wants to read; a cancellation is usable."""
        wanted = self.rows_in - self.filtered[LEFT_OUT]
        return (self.rejected.total() - self.rejected[CANCELLATION]) / max(wanted, 1)

    def check_kept(self, minimum: tuple[int, int]) -> None:
        """Raises DataError if nothing is left after cleaning."""
        if self.kept.total():
            return
        gone = self.rejected + self.filtered
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(gone.items()))
        expected, remedy = "rows that are usable and not cancelled", "Correct the mapping of the log."
        if self.k_core:
            expected = f"users with {minimum[0]} events and items with {minimum[1]}"
            remedy = "Lower data.clean.min_user_events and min_item_events, or give more data."
        elif gone[CANCELLATION] + gone[CANCELLED]:
            remedy = "Check the sign of the column that is mapped as quantity: a negative one cancels a purchase."
        raise DataError(
            f"No rows are left after cleaning: of {self.rows_in:,} rows went {lost or 'none'}", expected, remedy
        )

    @property
    def k_core(self) -> int:
        """Events that fell for their user or item having too few."""
        return self.filtered[K_CORE_USER] + self.filtered[K_CORE_ITEM]

    def check_targets(
        self, targets: Sequence[int], wanted: Sequence[str], plan: Plan, span_ms: tuple[int, int]
    ) -> None:
        """Raises DataError if no event is left to train or to test on; ``targets``: those of TRAIN, VALID and TEST."""
        if targets[TRAIN] and targets[TEST]:
            return
        aim = "test" if targets[TRAIN] else "train"
        kept, read = (sum(counts[name] for name in wanted) for counts in (self.kept, self.read))
        names = " or ".join(wanted)
        what = f"No {names} event is left to {aim} on: of {read:,} in the log, {kept:,} were kept"
        if self.k_core:
            what += f", {self.k_core:,} events of all types fell to the minima of data.clean"
        if plan.by == "time":
            days = (span_ms[1] - span_ms[0]) / DAY_MS
            valid = (plan.test_start_ms - plan.valid_start_ms) / DAY_MS
            test = (span_ms[1] + 1 - plan.test_start_ms) / DAY_MS
            what += f"; the log spans {days:.1f} days, of which data.split takes the last {valid:g} + {test:g}"
        need = f"{names} events in the {aim}ing part"
        if plan.by == "leave_one_out" and aim == "test":
            need = "a user with three of them"
        raise DataError(what, need, self._target_remedy(read, kept, aim, plan))

    def _target_remedy(self, read: int, kept: int, aim: str, plan: Plan) -> str:
        if not read:
            return "Correct event_types of data.events, or data.target_events."
        if not kept and self.filtered[UNLABELLED]:
            return "None of them has a value for data.label: map the column of the log that holds it as value."
        if not kept and not self.k_core:
            return "See what was filtered: they are duplicates or cancelled, so check the mapping of quantity."
        if not kept:
            return "Lower data.clean's minima, or give more data."
        if plan.by == "time":
            change = "Shorten the windows" if aim == "train" else "Lengthen the test window"
            lower = " lower data.clean's minima," if self.k_core and aim == "train" else ""
            return f"{change} of data.split,{lower} or give more data."
        if plan.by == "random":
            return "Change the shares of data.split, or give more data."
        return "Give more data, or use data.split: {by: time, ...}."

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
                "examples": self.examples,
            },
            "filtered": {"total": self.filtered.total(), "by_reason": dict(self.filtered)},
            "events_read": dict(self.read),
            "events_kept": dict(self.kept),
        }


def split_warnings(splits: Mapping[str, Mapping[str, Any]], by: str) -> list[str]:
    """What a person must know of the splits although the run goes on, in sentences."""
    if splits["valid"]["rows"]:
        return []
    remedy = {"time": "Lengthen data.split.valid_days", "random": "Raise data.split.valid_share"}.get(by, "Change it")
    return [
        "The validation split is empty: training cannot tell its best checkpoint nor stop early, and keeps the last "
        f"one. {remedy}, or give more data."
    ]


def check_labels(num_targets: int, positives: Sequence[int | None]) -> None:
    """Raises DataError if all targets have one label; ``positives``: how many are 1, None where there are no labels."""
    counted = [number for number in positives if number is not None]
    if not counted or 0 < sum(counted) < num_targets:
        return
    which = "positive" if sum(counted) else "negative"
    raise DataError(
        f"By data.label all of the {num_targets:,} targets are {which}", "some of each", "Change data.label."
    )


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


def feature_stats(
    table: FeatureTable, ids: NDArray[np.object_], columns: Iterable[FeatureColumn], reserved: int
) -> dict[str, Any]:
    """What became of a table's records and of its numbers: records = used + not in the log + repeated + rejected.

    ``missing`` counts the rows with an id (from ``reserved`` on) that have no number or category.
    """
    used = pc.sum(pc.is_in(table.table[table.key], value_set=pa.array(ids[reserved:], pa.string()))).as_py() or 0
    reasons = Counter[str]() if table.rejected is None else Counter(table.rejected["reason"].to_pylist())
    encoded = [column for column in columns if column.spec.kind != "text"]
    return {
        "records": len(table.table) + table.num_repeated + reasons.total(),
        "used": used,
        "not_in_log": len(table.table) - used,
        "repeated": table.num_repeated,
        "rejected": {"total": reasons.total(), "by_reason": dict(reasons)},
        "bad_numbers": table.bad_numbers,
        "missing": {column.spec.name: int(column.absent()[reserved:].sum()) for column in encoded},
        "clipped": {column.spec.name: column.num_clipped for column in encoded if column.spec.kind == "number"},
    }
