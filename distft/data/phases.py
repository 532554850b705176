"""The phases of prepare, and what the driver does between them; who runs the tasks is the caller's matter.

Enters: the read tasks of the logs. Leaves: a staging folder that holds a whole dataset with its manifest.

Four times something is known only when all of the log was seen: where each user's events lie (read), what the
k-core needs (clean), order and statistics of the vocabularies (count), and the shards themselves (write). Events
pass from one phase to the next through work files; the driver sees counts and vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from distft.data import tasks
from distft.data.clean import K_CORE_ITEM, K_CORE_USER
from distft.data.core import write_cores
from distft.data.encode import Encoder
from distft.data.features import FeatureSpec
from distft.data.partition import load_arrays
from distft.data.profile import Periods, Profile
from distft.data.split import Plan, plan_split
from distft.data.stats import Account, check_labels, check_leaks, feature_stats, split_warnings
from distft.data.values import learn_bounds
from distft.data.vocabulary import Start, build_encoder, count_items, encode_users, write_rejected, write_users
from distft.schema import NUM_RESERVED, SPLITS

if TYPE_CHECKING:
    import polars as pl

    from distft.data.sources.base import FeatureTable, ReadTask

Task = Callable[..., dict[str, Any]]
Tables = tuple["FeatureTable | None", "FeatureTable | None"]
Page = Callable[[dict[str, Any]], str]
Each = Callable[[str, Task, Sequence[tuple[Any, ...]], Sequence[int] | None], list[dict[str, Any]]]

REPORT = "report.html"
"""The page of a dataset that tells what is in it."""


class Phases:
    """One prepare. ``each(phase, task, calls, weights)`` gives the results of ``task(*call)`` in the calls' order.

    ``tables``: the features of items and of users, if there are any.
    """

    def __init__(self, context: tasks.Context, start: Start, tables: Tables, each: Each) -> None:
        self._context, self._job, self._start, self._tables, self._each = context, context.job, start, tables, each
        self._account = Account()
        self._features: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._partitions = range(context.num_partitions)

    def run(
        self, reads: Sequence[tuple[int, ReadTask]], made_from: dict[str, Any], page: Page | None = None
    ) -> dict[str, Any]:
        """Runs all phases; gives the statistics. ``page`` turns them into the report, if there is to be one."""
        write_rejected(self._context.staging, dict(zip(("items", "users"), self._tables, strict=True)))
        cleaned = self._clean(self._read(reads))
        span = self._span(cleaned)
        plan = plan_split(self._job.data.split, self._job.seed, span[1])
        minimum = (self._job.data.clean.min_user_events, self._job.data.clean.min_item_events)
        core = write_cores(self._context.work, [(one["users"], one["items"]) for one in cleaned], minimum, plan)
        self._account.filtered.update({K_CORE_USER: core.dropped_for_user, K_CORE_ITEM: core.dropped_for_item})
        counted, profile = self._count(plan, span)
        self._account.check_kept(minimum)
        self._account.check_sum()
        targets = np.sum([one["targets"] for one in counted], axis=0).tolist()
        self._account.check_targets(targets, self._job.data.target_events, plan, span)
        users = [one["users"] for one in counted]
        items = count_items(self._context.work, self._names("count"))
        encoder = self._with_bounds(self._encoder(items))
        encoder.save(self._context.staging / "encoder")
        splits = self._write(plan, users)
        check_labels(sum(targets), [one[split].get("positives") for one in splits for split in SPLITS])
        stats = self._stats(plan, encoder, splits, span) | {"users": sum(users), "profile": profile.to_json(items)}
        for split, times in profile.split_times().items():
            stats["splits"][split] |= times
        if page is not None:
            self._context.staging.write_bytes(REPORT, page(stats).encode())
        return self._commit(encoder, stats, splits, made_from)

    def _read(self, reads: Sequence[tuple[int, ReadTask]]) -> list[dict[str, list[int]]]:
        """For every partition, its record batches in each exchange file."""
        calls = [(number, source, task) for number, (source, task) in enumerate(reads)]
        exchange: list[dict[str, list[int]]] = [{} for _ in self._partitions]
        weights = [task.num_bytes for _, task in reads]
        for number, result in enumerate(self._each("read", self._task(tasks.read), calls, weights)):
            self._account.add_read(result)
            for place, partition in enumerate(result["partitions"]):
                exchange[partition].setdefault(f"read-{number:05d}", []).append(place)
        self._account.check_rejected(self._job.data.clean.max_rejected_share)
        return exchange

    def _clean(self, exchange: Sequence[dict[str, list[int]]]) -> list[dict[str, Any]]:
        cleaned = self._each("clean", self._task(tasks.clean), list(enumerate(exchange)), None)
        for one in cleaned:
            self._account.filtered.update(one["filtered"])
        for name in self._context.work.list():
            if name.startswith("read-"):
                self._context.work.delete(name)
        return cleaned

    def _span(self, cleaned: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Times of the first and the last event."""
        filled = [one for one in cleaned if one["events"]]
        if not filled:
            self._account.check_kept((1, 1))
        return min(one["first_ms"] for one in filled), max(one["last_ms"] for one in filled)

    def _count(self, plan: Plan, span: tuple[int, int]) -> tuple[list[dict[str, Any]], Profile]:
        """What each partition keeps, and what all of them look like together."""
        periods = Periods.of_span(*span) if self._start.has_clock else None
        calls = [(number, plan, periods) for number in self._partitions]
        counted = self._each("count", self._task(tasks.count), calls, None)
        profile = Profile(self._context.event_names, periods)
        for one in counted:
            self._account.kept.update(one["kept"])
            profile.add(one["profile"])
        return counted, profile

    def _names(self, what: str) -> list[str]:
        """The work files of all partitions."""
        return [f"{what}-{number:05d}" for number in self._partitions]

    def _encoder(self, counted: pl.DataFrame) -> Encoder:
        work = self._context.work
        specs: tuple[FeatureSpec, ...] = ()
        items, table = self._tables
        if table is not None:
            found = [load_arrays(work, name, ["user_ids", "trains"]) for name in self._names("users")]
            ids, trains = (np.concatenate([one[name] for one in found]) for name in ("user_ids", "trains"))
            columns = encode_users(table, ids, trains, self._job.data.encode, self._start.base)
            write_users(self._context.staging, columns)
            self._features["users"] = feature_stats(table, ids, columns, 0)
            specs = tuple(column.spec for column in columns)
        counts = (work, self._names("count"))
        encoder = build_encoder(self._job, self._start, counted, counts, items, specs)
        if items is not None:
            self._features["items"] = feature_stats(items, encoder.item_ids, encoder.features, NUM_RESERVED)
        return encoder

    def _with_bounds(self, encoder: Encoder) -> Encoder:
        """The encoder with the ends that the values of events are set to, if the job wants any."""
        shares, base = self._job.data.clean.clip_value, self._start.base
        if shares is None:
            return encoder
        known = base.value_bounds if base else None
        bounds, self._values = learn_bounds(self._context.work, self._names("values"), shares, known)
        return replace(encoder, value_bounds=bounds)

    def _write(self, plan: Plan, users: Sequence[int]) -> list[dict[str, Any]]:
        firsts = np.concatenate([[0], np.cumsum(users)]).tolist()
        calls = [(number, plan, firsts[number]) for number in self._partitions]
        written = self._each("write", self._task(tasks.write), calls, None)
        check_leaks(leak for one in written for split in ("valid", "test") for leak in one[split]["leaks"])
        return written

    def _stats(
        self, plan: Plan, encoder: Encoder, written: Sequence[dict[str, Any]], span: tuple[int, int]
    ) -> dict[str, Any]:
        splits = {split: _summed([one[split] for one in written]) for split in SPLITS}
        for split in SPLITS[1:]:
            splits[split]["unknown_share"] = round(splits[split]["unknown_targets"] / max(splits[split]["rows"], 1), 6)
        times = {"first_ms": span[0], "last_ms": span[1]} if self._start.has_clock else {}
        if plan.by == "time":
            times |= {"valid_start_ms": plan.valid_start_ms, "test_start_ms": plan.test_start_ms}
        return {
            **self._account.to_json(),
            "items": encoder.num_items - NUM_RESERVED,
            "query_tokens": len(encoder.token_words) - NUM_RESERVED,
            "has_clock": self._start.has_clock,
            "times": times,
            "splits": splits,
            "features": self._features,
            "values": self._values,
            "warnings": split_warnings(splits, plan.by),
            **_continued(encoder),
        }

    def _commit(
        self,
        encoder: Encoder,
        stats: dict[str, Any],
        written: Sequence[dict[str, Any]],
        made_from: dict[str, Any],
    ) -> dict[str, Any]:
        staging = self._context.staging
        staging.delete_tree("work")
        staging.write_json("stats.json", stats)
        rows = {
            f"{split}/{number:05d}.parquet": one[split]["rows"]
            for number, one in enumerate(written)
            for split in SPLITS
        }
        info = {
            "splits": {split: {key: stats["splits"][split][key] for key in ("rows", "events")} for split in SPLITS},
            "num_items": stats["items"] + NUM_RESERVED,
            "num_users": stats["users"],
            "num_shards": len(written),
            "has_clock": self._start.has_clock,
            "ordered": self._job.data.split.by != "random",
            "warnings": stats["warnings"],
            **({"pseudonyms": self._context.key_digest} if self._context.key_digest else {}),
            **_continued(encoder),
        }
        staging.write_manifest("dataset", made_from, info, rows)
        return stats

    def _task(self, task: Callable[..., dict[str, Any]]) -> Task:
        return partial(task, self._context)


def _continued(encoder: Encoder) -> dict[str, Any]:
    """What is told of an encoder that continues another one: the rows that are that one's, and those appended."""
    if not encoder.ancestors:
        return {}
    base, sizes = encoder.ancestors[-1], encoder.sizes
    appended = {name: sizes[name] - base.rows[name] for name in sizes}
    return {"vocabulary": {"from": base.identity, "base_rows": dict(base.rows), "appended_rows": appended}}


def _summed(accounts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in accounts[0] if name != "leaks"]
    return {name: sum(one[name] for one in accounts) for name in names}
