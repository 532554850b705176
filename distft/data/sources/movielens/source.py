"""``source: movielens``: the layouts in which MovieLens is passed around.

``ratings.dat`` (``user::item::rating::seconds``, with movies.dat and users.dat beside it, in Latin-1),
``*.inter`` (tab-separated with a header of ``name:type``, ``.item`` and ``.user`` beside it), and a plain file of
"user item" a line in time order, which has no clock; with ``sas_to_original_items.txt`` and
``sas_to_original_users.txt`` ("number raw" a line) beside movies.dat and users.dat, its items and users have features
too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from distft.data.sources.base import EventBatch, FeatureTable, Oracle, ReadTask
from distft.data.sources.columns import check_columns
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.movielens.config import Config
from distft.data.sources.records import CsvDialect, csv_header, read_csv
from distft.data.sources.typed import Mapping, Typing
from distft.errors import DataError
from distft.schema import ITEM_ID, TIMESTAMP, USER_ID, VALUE
from distft.storage import Storage

_RATING = {USER_ID: "user", ITEM_ID: "item", VALUE: "rating", TIMESTAMP: "time"}
_DIALECTS = {
    "dat": CsvDialect(":", ("user", "", "item", ".1", "rating", ".2", "time"), quote=False, encoding="latin-1"),
    "inter": CsvDialect("\t", quote=False),
    "plain": CsvDialect(" ", ("user", "item"), quote=False),
}
_COLUMNS = {
    "dat": _RATING,
    "inter": {USER_ID: "user_id:token", ITEM_ID: "item_id:token", VALUE: "rating:float", TIMESTAMP: "timestamp:float"},
    "plain": {USER_ID: "user", ITEM_ID: "item"},
}
_NUMBERS = "sas_to_original_{}.txt"
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovieLens:
    """The log that a config names, and the tables beside it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        suffix = PurePosixPath(config.path).suffix
        self._layout = {".dat": "dat", ".inter": "inter"}.get(suffix, "plain")
        self.has_clock = self._layout != "plain" and config.clock

    def read_tasks(self) -> list[ReadTask]:
        source = self._log()
        self._check(source)
        return [ReadTask(source.name, source.num_bytes(), {"folder": source.folder.uri, "file": source.file})]

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        source = Input(task.file, Storage(task.position["folder"]), task.position["file"])
        self._check(source)
        typing = Typing(Mapping(_COLUMNS[self._layout], self._config.event_names(), event="rating"), task.file)
        titles = self._titles() if self._config.ids == "title" else {}
        for records in read_csv(source, _DIALECTS[self._layout]):
            yield _named(typing.batch(records), titles)

    def identity(self) -> dict[str, Any]:
        source = self._log()
        beside = (self._beside(name) for name in self._names_beside())
        files = [source.identity(), *(other.identity() for other in beside if other is not None)]
        return {"files": files, **self._config.model_dump(mode="json", include={"ids", "clock"}, exclude_defaults=True)}

    def items(self) -> FeatureTable | None:
        found, titles = self._numbered_items(), self._titles() if self._config.ids == "title" else {}
        if found is None or not titles:
            return found
        ids = [titles[number] for number in found.table["item_id"].to_pylist()]
        first = np.sort(np.unique(ids, return_index=True)[1])
        table = found.table.set_column(0, "item_id", pa.array(ids, pa.string())).take(first)
        return replace(found, table=table, num_repeated=len(ids) - len(first))

    def _titles(self) -> dict[str, str]:
        """Item number → title and year. Raises DataError where no file tells them."""
        found = self._numbered_items()
        if found is None:
            what = f"ids: title, and no file beside {self._log().name} tells the titles of its movies"
            raise DataError(what, "movies.dat, or the .item file of the log", "Leave ids out, or fetch that file.")
        columns = [found.table[name].to_pylist() for name in ("item_id", "title", "year")]
        return {number: _with_year(title, year) for number, title, year in zip(*columns, strict=True)}

    def _numbered_items(self) -> FeatureTable | None:
        if self._layout == "inter":
            return self._typed_items()
        movies = self._dat("movies.dat")
        if movies is None:
            return None
        numbers = self._numbers("items") if self._layout == "plain" else {movie: movie for movie, *_ in movies}
        if numbers is None:
            return None
        known = {movie: (title, genres) for movie, title, genres in movies}
        rows = [(number, *known[movie]) for number, movie in numbers.items() if movie in known]
        return _items([(number, title, genres.split("|"), _year(title)) for number, title, genres in rows])

    def users(self) -> FeatureTable | None:
        if self._layout == "inter":
            rows = self._typed("user")
            columns = ("user_id:token", "gender:token", "age:token", "occupation:token")
            return _users([tuple(row[name] for name in columns) for row in rows]) if rows else None
        users = self._dat("users.dat")
        if not users:
            return None
        known = {user: (gender, age, job) for user, gender, age, job, _ in users}
        numbers = self._numbers("users") if self._layout == "plain" else {user: user for user in known}
        told: list[tuple[str, ...]] = [
            (number, *known[user]) for number, user in (numbers or {}).items() if user in known
        ]
        return _users(told) if told else None

    def oracle(self) -> Oracle | None:
        return None

    def _log(self) -> Input:
        return find_inputs(self._config.path)[0]

    def _check(self, source: Input) -> None:
        check_columns(source, csv_header(source, _DIALECTS[self._layout]), _COLUMNS[self._layout])

    def _names_beside(self) -> list[str]:
        if self._layout == "inter":
            stem = PurePosixPath(self._config.path).stem
            return [f"{stem}.item", f"{stem}.user"]
        tables = ["movies.dat", "users.dat"]
        return tables if self._layout == "dat" else [*tables, *(_NUMBERS.format(what) for what in ("items", "users"))]

    def _beside(self, name: str) -> Input | None:
        folder = self._log().folder
        return Input(f"{folder.uri}/{name}", folder, name) if folder.exists(name) else None

    def _dat(self, name: str) -> list[list[str]] | None:
        """The fields of every line of a ``::`` table beside the log."""
        source = self._beside(name)
        if source is None:
            return None
        text = source.folder.read_bytes(name).decode("latin-1")
        return [line.split("::") for line in text.splitlines() if line]

    def _numbers(self, what: str) -> dict[str, str] | None:
        """The log's number of an item or user → MovieLens's own id."""
        source = self._beside(_NUMBERS.format(what))
        if source is None:
            return None
        lines = source.folder.read_bytes(source.file).decode().splitlines()
        pairs = (line.split() for line in lines if line.strip())
        return {number: raw for number, raw in pairs}

    def _typed(self, ending: str) -> list[dict[str, str]]:
        """The rows of a ``name:type`` table beside the log."""
        source = self._beside(f"{PurePosixPath(self._config.path).stem}.{ending}")
        if source is None:
            return []
        header, *lines = source.folder.read_bytes(source.file).decode().splitlines()
        names = header.split("\t")
        return [dict(zip(names, line.split("\t"), strict=True)) for line in lines if line]

    def _typed_items(self) -> FeatureTable | None:
        names = ("item_id:token", "movie_title:token_seq", "class:token_seq", "release_year:token")
        rows = [tuple(row[name] for name in names) for row in self._typed("item")]
        return _items([(item, title, genres.split(), _number(year)) for item, title, genres, year in rows])


def _named(batch: EventBatch, titles: dict[str, str]) -> EventBatch:
    """The events with titles instead of numbers, as far as they have any."""
    if not titles:
        return batch
    names = [titles.get(number, number) for number in batch.events["item_id"].to_pylist()]
    place = batch.events.column_names.index("item_id")
    return replace(batch, events=batch.events.set_column(place, batch.events.schema.field(place), [names]))


def _with_year(title: str, year: float | None) -> str:
    return title if year is None or _YEAR.search(title) else f"{title} ({year:.0f})"


def _items(rows: list[tuple[str, str, list[str], float | None]]) -> FeatureTable | None:
    if not rows:
        return None
    item_id, title, genres, year = zip(*rows, strict=True)
    columns = {
        "item_id": pa.array(item_id, pa.string()),
        "title": pa.array(title, pa.string()),
        "genres": pa.array(genres, pa.list_(pa.string())),
        "year": pa.array(year, pa.float64()),
    }
    return FeatureTable(pa.table(columns), "item_id", numeric=("year",), text=("title",))


def _users(rows: list[tuple[str, ...]]) -> FeatureTable:
    user_id, gender, age, occupation = zip(*rows, strict=True)
    columns = {
        "user_id": pa.array(user_id, pa.string()),
        "gender": pa.array(gender, pa.string()),
        "age": pa.array([_number(value) for value in age], pa.float64()),
        "occupation": pa.array(occupation, pa.string()),
    }
    return FeatureTable(pa.table(columns), "user_id", numeric=("age",))


def _year(title: str) -> float | None:
    found = _YEAR.search(title)
    return float(found.group(1)) if found else None


def _number(text: str) -> float | None:
    return float(text) if text.isdigit() else None
