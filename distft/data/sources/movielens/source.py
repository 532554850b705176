"""``source: movielens``: the layouts in which MovieLens is passed around.

``ratings.dat`` (``user::item::rating::seconds``, with movies.dat and users.dat beside it, in Latin-1),
``*.inter`` (tab-separated with a header of ``name:type``, ``.item`` and ``.user`` beside it), and a plain file of
"user item" a line in time order, which has no clock; with ``sas_to_original_items.txt`` ("number raw" a line) and
movies.dat beside it, its items have titles and genres too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from distft.data.sources.base import EventBatch, FeatureTable, Oracle, ReadTask
from distft.data.sources.columns import check_columns
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.movielens.config import Config
from distft.data.sources.records import CsvDialect, csv_header, read_csv
from distft.data.sources.typed import Mapping, Typing
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
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovieLens:
    """The log that a config names, and the tables beside it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        suffix = PurePosixPath(config.path).suffix
        self._layout = {".dat": "dat", ".inter": "inter"}.get(suffix, "plain")
        self.has_clock = self._layout != "plain"

    def read_tasks(self) -> list[ReadTask]:
        source = self._log()
        self._check(source)
        return [ReadTask(source.name, source.num_bytes(), {"folder": source.folder.uri, "file": source.file})]

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        source = Input(task.file, Storage(task.position["folder"]), task.position["file"])
        self._check(source)
        typing = Typing(Mapping(_COLUMNS[self._layout], self._config.event_names(), event="rating"), task.file)
        for records in read_csv(source, _DIALECTS[self._layout]):
            yield typing.batch(records)

    def identity(self) -> dict[str, Any]:
        source = self._log()
        beside = (self._beside(name) for name in self._names_beside())
        return {"files": [source.identity(), *(other.identity() for other in beside if other is not None)]}

    def items(self) -> FeatureTable | None:
        if self._layout == "inter":
            return self._typed_items()
        movies = self._dat("movies.dat")
        if movies is None:
            return None
        numbers = self._numbers() if self._layout == "plain" else {movie: movie for movie, *_ in movies}
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
        users = self._dat("users.dat") if self._layout == "dat" else None
        return _users([(user, gender, age, job) for user, gender, age, job, _ in users]) if users else None

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
        return ["movies.dat", "users.dat"] if self._layout == "dat" else ["movies.dat", "sas_to_original_items.txt"]

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

    def _numbers(self) -> dict[str, str] | None:
        """The log's item number → MovieLens's own id."""
        source = self._beside("sas_to_original_items.txt")
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
