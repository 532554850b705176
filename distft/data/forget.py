"""Drops one user from a dataset: the rows of all splits, features, popularity counts, rejected rows and examples.

Enters: a dataset and a user's id, or pseudonym. Leaves: the dataset without the user, in the place of the old one, or
the old one untouched. Surprising choice: nobody is renumbered. The user's number stays free, so that only the files
that held the user are written anew, and all others, and what was learnt of other users by their number, still fit.

What the log was like stays told in stats.json: it names nobody. Words that only this user searched for, and items that
nobody else saw, stay in the vocabularies: models know them by their row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distft.data.encode import Encoder
from distft.data.parquet import read_table, write_table
from distft.data.pseudonyms import replaced
from distft.data.ragged import from_table
from distft.errors import DataError
from distft.schema import NUM_RESERVED, SPLITS, UNKNOWN
from distft.storage import MANIFEST, Manifest, Storage

USERS, STATS, REPORT = "users.parquet", "stats.json", "report.html"
REJECTED = ("rejected/", "rejected_features/")
Page = Callable[[Mapping[str, Any]], str]


@dataclass
class Forgotten:
    """What was dropped: rows and events by split, and rejected rows."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    rejected: int = 0

    @property
    def anything(self) -> bool:
        """True if the dataset held something of the user."""
        return bool(sum(self.rows.values()) or self.rejected)


def forget(root: Storage, user: str, page: Page) -> Forgotten:
    """What of ``user`` the dataset below ``root`` held, and no longer holds; ``page`` renders its report anew.

    Raises DataError where it holds nothing of the user, ArtefactError where a file of it is damaged.
    """
    dataset = root / "dataset"
    manifest = dataset.verified("dataset")
    found = Forgotten()
    with root.replacing("dataset") as staging:
        files: dict[str, dict[str, Any]] = {}
        user_rows: set[int] = set()
        counts = np.zeros(0, np.int64)
        encoder = Encoder.load(dataset / "encoder")
        for name in sorted(manifest.files):
            split = name.split("/", 1)[0]
            held = _without(dataset, name, user) if name.startswith((*SPLITS, *REJECTED)) else None
            if held is None or not len(held.dropped):
                continue
            if split in SPLITS:
                found.rows[split] += len(held.dropped)
                found.events[split] += int(pc.sum(pc.list_value_length(held.dropped["item_row"])).as_py() or 0)
                user_rows |= set(held.dropped["user_row"].to_pylist())
                if split == "train":
                    counts = _added(counts, _targets(held.dropped, encoder))
            else:
                found.rejected += len(held.dropped)
            _folder(staging, name)
            write_table(staging, name, held.kept)
            files[name] = {**staging.describe(name), "rows": len(held.kept)}
        if not found.anything:
            raise DataError(
                f"{dataset} holds nothing of the user {user!r}", "the id of a user as the logs have it", "Correct it."
            )
        _write_encoder(staging, encoder, counts)
        _blank(dataset, staging, user_rows)
        stats = _stats(dataset.read_json(STATS), found, user, bool(user_rows))
        staging.write_json(STATS, stats)
        staging.write_bytes(REPORT, page(stats).encode())
        for name in staging.list():
            files.setdefault(name, staging.describe(name))
        for name in manifest.files.keys() - files.keys():
            _carry(dataset, staging, name)
            files[name] = manifest.files[name]
        info = _info(manifest, stats)
        staging.write_json(MANIFEST, vars(Manifest("dataset", files, dict(manifest.made_from), info)))
    return found


@dataclass(frozen=True)
class _Parted:
    """A table, in the rows that stay and those of the user."""

    kept: pa.Table
    dropped: pa.Table


def _without(dataset: Storage, name: str, user: str) -> _Parted | None:
    """The table of a file without the user's rows; None where it has none of them."""
    users = read_table(dataset, name, ["user_id"])["user_id"]
    rejected = name.startswith(REJECTED)
    if not rejected and not pc.any(pc.equal(users, user)).as_py():
        return None
    table = read_table(dataset, name)
    theirs = pc.fill_null(pc.equal(users, user), False).to_numpy(zero_copy_only=False).copy()
    if rejected:  # a row that could not be taken apart has no user, but its text may name one
        for place in np.flatnonzero(pc.is_null(users).to_numpy(zero_copy_only=False)):
            theirs[place] = _names(table["raw"][int(place)].as_py(), user)
    return _Parted(table.filter(pa.array(~theirs)), table.filter(pa.array(theirs)))


def _names(text: str | None, user: str) -> bool:
    return bool(text) and replaced(str(text), user, "")[1] > 0


def _targets(rows: pa.Table, encoder: Encoder) -> NDArray[np.int64]:
    """How often each item row is a target event in training rows."""
    histories = from_table(rows)
    counted = np.isin(histories.event, encoder.target_codes) & (histories.item_row >= NUM_RESERVED)
    return np.bincount(histories.item_row[counted], minlength=encoder.num_items)


def _added(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    return other if not len(one) else one + other


def _write_encoder(staging: Storage, encoder: Encoder, counts: NDArray[np.int64]) -> None:
    """The encoder with the user's events taken off the popularity counts; its rows, and so its identity, stay."""
    if len(counts):
        replace(encoder, counts=encoder.counts - counts).save(staging / "encoder")


def _blank(dataset: Storage, staging: Storage, user_rows: set[int]) -> None:
    """The users' features, with what is said of an unknown user in the place of the forgotten one."""
    if not user_rows or not dataset.exists(USERS):
        return
    table = read_table(dataset, USERS)
    theirs = pc.is_in(table["user_row"], pa.array(sorted(user_rows), pa.int32()))
    columns = {"user_row": table["user_row"]}
    for column in table.schema.names[1:]:
        kind = table.schema.field(column).type
        blank: Any = None if pa.types.is_floating(kind) else [] if pa.types.is_list(kind) else UNKNOWN
        values = table[column].to_pylist()
        columns[column] = pa.array(
            [blank if of_user else value for value, of_user in zip(values, theirs.to_pylist(), strict=True)], kind
        )
    write_table(staging, USERS, pa.table(columns, schema=table.schema))


def _stats(stats: dict[str, Any], found: Forgotten, user: str, was_kept: bool) -> dict[str, Any]:
    """The statistics: sizes of what is left, and no example that names the user."""
    for split, numbers in stats["splits"].items():
        numbers["rows"] -= found.rows[split]
        numbers["events"] -= found.events[split]
    stats["users"] -= int(was_kept)
    stats["forgotten"] = stats.get("forgotten", 0) + 1
    examples = stats["rejected"].get("examples", {})
    stats["rejected"]["examples"] = {
        reason: [text for text in texts if not _names(text, user)] for reason, texts in examples.items()
    }
    return stats


def _info(manifest: Manifest, stats: Mapping[str, Any]) -> dict[str, Any]:
    splits = {split: {key: stats["splits"][split][key] for key in ("rows", "events")} for split in SPLITS}
    return {**manifest.info, "splits": splits, "num_users": stats["users"], "forgotten": stats["forgotten"]}


def _folder(staging: Storage, name: str) -> None:
    folder = os.path.dirname(name)
    if folder:
        (staging / folder).make()


def _carry(dataset: Storage, staging: Storage, name: str) -> None:
    """Takes a file over as it is: a second name on a local disk, a copy anywhere else."""
    _folder(staging, name)
    if dataset.is_local:
        os.link(dataset.path / name, staging.path / name)
    else:
        staging.write_bytes(name, dataset.read_bytes(name))
