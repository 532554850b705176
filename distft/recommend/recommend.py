"""Recommendations for every user of a folder of histories, by actors of Ray Data, into Parquet.

Enters: a bundle, and histories as ``export`` writes them. Leaves: ``lists/part-*.parquet`` with a row a user, and a
manifest once all are there. Surprising choice: actors write the parts themselves, each whole or not at all, and only
say so: a run that was killed goes on with the parts that are missing, and no list goes through Ray's object store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from distft.cluster import quiet_data
from distft.data.histories import FOLDER
from distft.data.histories import SCHEMA as HISTORIES
from distft.data.parquet import OPTIONS, read_table
from distft.errors import ArtefactError, DistftError, RunError, UsageError, revived
from distft.jobfile import parse_job
from distft.lock import locked
from distft.recommend.scoring import BatchScorer
from distft.schema import ExcludeSeen
from distft.serve.arrangement import VERSION_CHARS
from distft.serve.predictor import Predictor
from distft.storage import MANIFEST, Storage, digest

LISTS, WANTED, KIND = "lists", "wanted.json", "recommendations"
PART_USERS = 1 << 14
"""Users of a part: what a killed actor does again."""
ERROR = "error"
NEEDED = ("user_id", "item_id", "event")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked of every user: ``k`` items; rules as in ``BatchScorer``."""

    k: int = 20
    exclude_seen: ExcludeSeen | None = None
    deny: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``end`` of a file of histories, and the file of their lists."""

    name: str
    source: str
    start: int
    end: int


@dataclass(frozen=True)
class Task:
    """What is asked, of which model, for whom; found fit to be done."""

    bundle: Storage
    model_sha256: str
    histories: Storage
    files: dict[str, str]
    wanted: Wanted

    @classmethod
    def of(cls, bundle: Storage, histories: Storage | None, wanted: Wanted) -> Task:
        """``histories``: a folder of Parquet files, by default those of the bundle.

        Raises ArtefactError where there is no bundle or there are no histories, UsageError for a wrong ``k``.
        """
        manifest = bundle.verified("bundle")
        largest = parse_job(bundle.read_bytes("job.yaml").decode(), f"{bundle}/job.yaml").serve.max_k
        if not 1 <= wanted.k <= largest:
            raise UsageError(f"-k is {wanted.k}", f"1 to {largest}", "serve.max_k of the bundle's job says how many.")
        return cls(bundle, manifest.sha256, *_histories(bundle, histories), wanted)

    def describe(self) -> dict[str, Any]:
        """What the lists are made from: JSON."""
        return {
            "bundle": self.model_sha256,
            "histories": self.files,
            "k": self.wanted.k,
            "exclude_seen": self.wanted.exclude_seen,
            "deny": digest(sorted(self.wanted.deny)),
            "part_users": PART_USERS,
        }


def recommend(task: Task, out: Storage, *, force: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Writes the lists of all users below ``out``, those that are missing; gives the counts. Ray must be up.

    Raises UsageError where ``out`` holds lists of another model, other histories or other rules, and not ``force``.
    """
    with locked(out):
        out.sweep()
        _begin(out, task.describe(), force)
        lists, parts = out / LISTS, list(_parts(task.histories, sorted(task.files)))
        users = {part.name: part.end - part.start for part in parts}
        todo = [] if lists.exists(MANIFEST) else _missing(lists, parts)
        if todo:
            _score(task, lists, todo, sum(users.values()), progress)
        if not lists.exists(MANIFEST):
            lists.write_manifest(KIND, task.describe(), {"users": sum(users.values())}, users)
    return {
        "users": sum(users.values()),
        "scored_now": sum(users[part.name] for part in todo),
        "parts": len(parts),
        "k": task.wanted.k,
        "model_version": task.model_sha256[:VERSION_CHARS],
        "lists": lists.uri,
    }


def _histories(bundle: Storage, histories: Storage | None) -> tuple[Storage, dict[str, str]]:
    """(The folder, SHA-256 of each of its Parquet files). Raises ArtefactError."""
    place = histories or bundle / FOLDER
    files = [name for name in place.list() if name.endswith(".parquet")]
    if not files:
        remedy = "Export with serve.export_histories, or give --histories a folder of Parquet files."
        raise ArtefactError(f"There are no histories at {place}", "Parquet files with a row a user", remedy)
    return place, {name: str(place.describe(name)["sha256"]) for name in files}


def _begin(out: Storage, described: dict[str, Any], force: bool) -> None:
    """Notes what the folder's lists are made from. Raises UsageError where it is something else."""
    if out.exists(WANTED):
        before = out.read_json(WANTED)
        known = before if isinstance(before, dict) else {}
        other = [key for key in described if known.get(key) != described[key]]
        if other and not force:
            what = f"{out} holds lists with another {', '.join(other)}"
            raise UsageError(
                what, "an empty folder, or the same again", "Give another --out, or --force to replace them."
            )
        if force:
            out.delete_tree(LISTS)
    elif (out / LISTS).list():
        raise UsageError(
            f"{out / LISTS} holds files, and nothing says of what", "a folder of lists", "Give another --out."
        )
    out.write_json(WANTED, described)
    (out / LISTS).make()


def _parts(place: Storage, files: Sequence[str]) -> Iterator[Part]:
    """The parts of all files, in order. Raises UsageError for a file that holds no histories."""
    number = 0
    for source in files:
        for start, end in _spans(_num_rows(place, source)):
            yield Part(f"part-{number:06}.parquet", source, start, end)
            number += 1


def _spans(num_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + PART_USERS, num_rows)) for start in range(0, num_rows, PART_USERS)]


def _num_rows(place: Storage, source: str) -> int:
    try:
        with place.open_input(source) as stream:
            file = pq.ParquetFile(stream)
            names, num_rows = file.schema_arrow.names, file.metadata.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtefactError(f"{place}/{source} cannot be read: {error}", "a Parquet file", "Make it again.") from error
    lacking = [name for name in NEEDED if name not in names]
    if lacking:
        expected = f"the columns {', '.join(HISTORIES.names)}, the last three of which may be missing"
        raise UsageError(
            f"{place}/{source} has no column {', '.join(lacking)}", expected, "docs/serving.md has their types."
        )
    return int(num_rows)


def _missing(lists: Storage, parts: Sequence[Part]) -> list[Part]:
    there = set(lists.list())
    return [part for part in parts if part.name not in there]


def _score(task: Task, lists: Storage, todo: Sequence[Part], num_users: int, progress: Progress | None) -> None:
    """Has all parts written by actors, as many as there are CPUs. Raises what one of them met."""
    done = num_users - sum(part.end - part.start for part in todo)
    actors = max(1, min(len(todo), int(ray.cluster_resources().get("CPU", 1))))
    with quiet_data():
        items = ray.data.from_items([vars(part) for part in todo], override_num_blocks=len(todo))
        scored = items.map_batches(
            Worker,
            fn_constructor_args=(task, lists),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        )
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in filter(None, table[ERROR].to_pylist()):
                raise revived(json.loads(text))
            done += sum(table["users"].to_pylist())
            if progress:
                progress("recommending to users", done, num_users)
    left = _missing(lists, todo)
    if left:
        raise RunError(f"{len(left)} parts were not written", "", "Run the command again: it goes on with them.")


class Worker:
    """An actor: one copy of the model, and the file of histories that it read last."""

    def __init__(self, task: Task, lists: Storage) -> None:
        torch.set_num_threads(1)
        self.place, self.out = task.histories, lists
        predictor = Predictor.load(task.bundle, verify=False)
        self.scorer = BatchScorer(predictor, task.wanted.k, task.wanted.exclude_seen, task.wanted.deny)
        self._name, self._table = "", HISTORIES.empty_table()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Writes the lists of each part; gives a row with the number of its users, or with the error."""
        rows = []
        for value in batch.to_pylist():
            part = Part(**value)
            try:
                self._write(part)
                rows.append({"users": part.end - part.start, ERROR: ""})
            except DistftError as error:
                rows.append({"users": 0, ERROR: json.dumps(error.to_json())})
        return pa.Table.from_pylist(rows)

    def _write(self, part: Part) -> None:
        if self._name != part.source:
            self._name, self._table = part.source, read_table(self.place, part.source)
        lists = self.scorer.lists(self._table.slice(part.start, part.end - part.start))
        with self.out.writing(part.name) as stream:
            pq.write_table(lists, stream, **OPTIONS)
