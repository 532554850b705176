"""Records of a file as they stand there: CSV, JSON Lines and Parquet, streamed in batches of bounded size.

Enters: an ``Input``. Leaves: batches of columns under the file's own names, with the number of every record, and
beside them the records that have no columns at all. Nothing is converted here: the columns of a CSV are bytes, so
that one bad value never fails a whole block.

Surprising choice: a line of a CSV whose quote was left open is a rejected record of its own, and the lines after it
are read as what they look like; ``quotes.py`` says when that is so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from distft.data.sources.base import rejected_schema
from distft.data.sources.inputs import Input
from distft.data.sources.quotes import Block, Blocks, LongLineError
from distft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES = 1 << 23
BATCH_ROWS = 1 << 17
MAX_HEADER_LINES = 20

OPEN_QUOTE = "open quote"
WRONG_COLUMNS = "wrong number of columns"
UNDECODABLE = "undecodable text"
NOT_JSON = "not a JSON object"
MEMBER_TWICE = "JSON member stands twice"
NESTED = "nested JSON value"
NO_ID = "id that is no text or exact number"

MAX_EXACT = 1 << 53
"""From here on JSON's numbers, where they are floats, stand for several whole numbers."""


@dataclass(frozen=True)
class Records:
    """Some records of a file: ``columns`` by the file's names, ``row`` their numbers from 1.

    ``raw`` gives the text of the records at some places; ``rejected`` holds (row, reason, text) of the records
    that could not be taken apart.
    """

    columns: pa.Table
    row: NDArray[np.int64]
    raw: Callable[[NDArray[np.int64]], list[str]]
    rejected: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CsvDialect:
    """How a CSV is written; ``header`` None: the names stand in its first line."""

    separator: str = ","
    header: tuple[str, ...] | None = None
    quote: bool = True
    encoding: str = "utf-8"


def rejected_table(file: str, rows: Sequence[tuple[int, str, str, str | None]]) -> pa.Table:
    """(row, reason, text, user) of a file's records as ``rejected_schema()``."""
    number, reason, raw, user = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table([[file] * len(rows), number, reason, raw, user], schema=rejected_schema())


def csv_header(source: Input, dialect: CsvDialect) -> tuple[str, ...]:
    """The column names. Raises DataError if the file is empty or binary, or starts with a blank line."""
    return _header(source, dialect)[0]


def _header(source: Input, dialect: CsvDialect) -> tuple[tuple[str, ...], int]:
    """The column names, and the lines that they stand on."""
    head = source.peek()
    try:
        text = head.decode(dialect.encoding, errors="replace").removeprefix("\ufeff")
    except LookupError as error:
        remedy = "Correct its encoding in the job."
        expected = "one that Python knows, such as utf-8, latin-1 or cp1252"
        raise DataError(
            f"There is no encoding '{dialect.encoding}' to read {source.name} in", expected, remedy
        ) from error
    if not text.strip():
        raise DataError(f"{source.name} is empty", "a header line and records", "Check the file, or its path.")
    if dialect.header is not None:
        return dialect.header, 0
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=dialect.separator)
    names = [name.strip() for name in next(reader)]
    if reader.line_num > MAX_HEADER_LINES:
        what = f"The header of {source.name} has an open quote: it runs over more than {MAX_HEADER_LINES} lines"
        raise DataError(what, "the names of its columns", "Close or remove that quote.")
    if not any(names):
        what = f"The first line of {source.name} is blank"
        raise DataError(what, "the names of its columns", "Delete that line, or name the columns with header: [...].")
    return tuple(names), reader.line_num


def read_csv(source: Input, dialect: CsvDialect) -> Iterator[Records]:
    """The records of a CSV, all columns as bytes; columns of the same name are told apart by a number."""
    header, header_lines = _header(source, dialect)
    names = [name if name not in header[:place] else f"{name}.{place}" for place, name in enumerate(header)]
    blocks = Blocks(dialect.separator, len(names), dialect.quote, BLOCK_BYTES)
    num_records = 0
    with source.opened() as stream:
        try:
            for block in blocks.of(_utf8(stream, dialect), header_lines):
                records = _csv_records(block, names, dialect, blocks.placeholder, num_records)
                num_records += len(records.row) + len(records.rejected)
                yield records
        except LongLineError as error:
            raise DataError(
                f"{source.name} has a line of more than {BLOCK_BYTES >> 20} MiB after record {num_records:,}",
                "a line end after every record",
                "Check that it is a CSV whose lines end with a line feed, and split what is longer.",
            ) from error
        except UnicodeDecodeError as error:
            what = f"{source.name} is not text in {dialect.encoding} after record {num_records:,}"
            raise DataError(what, "", "Set the encoding that it was written in.") from error
        except pa.ArrowInvalid as error:
            raise DataError(f"{source.name} is not CSV: {error}", "", "Check its separator and quotes.") from error


def _utf8(stream: IO[bytes], dialect: CsvDialect) -> IO[bytes]:
    return pa.transcoding_input_stream(stream, dialect.encoding, "utf-8")  # type: ignore[no-any-return]


def _csv_records(block: Block, names: list[str], dialect: CsvDialect, placeholder: bytes, num_before: int) -> Records:
    """The records of a block, after ``num_before`` others."""
    bad: list[tuple[int, str, str]] = []
    open_lines = iter(block.open)
    open_text = placeholder.decode()

    def set_aside(row: Any) -> str:
        reason, text = WRONG_COLUMNS, row.text
        if text == open_text and (line := next(open_lines, None)) is not None:
            reason, text = OPEN_QUOTE, line.decode("utf-8", errors="replace")
        bad.append((num_before + row.number, reason, text))
        return "skip"

    options = pa_csv.ReadOptions(use_threads=False, block_size=len(block.data) + 1, column_names=names)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(block.data),
            read_options=options,
            parse_options=pa_csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char='"' if dialect.quote else False,
                newlines_in_values=dialect.quote,
                invalid_row_handler=set_aside,
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise
        table = pa.schema([(name, pa.binary()) for name in names]).empty_table()  # lines without a character
    good = np.ones(len(table) + len(bad), np.bool_)
    good[[number - num_before - 1 for number, _, _ in bad]] = False
    row = num_before + 1 + np.flatnonzero(good)
    return Records(table, row, partial(_csv_texts, table, dialect), bad)


def _csv_texts(table: pa.Table, dialect: CsvDialect, places: NDArray[np.int64]) -> list[str]:
    """Records put together again from their fields, quoted where they must be."""
    columns = [column.to_pylist() for column in table.take(places).columns]
    rows = ([value.decode("utf-8", errors="replace") for value in row] for row in zip(*columns, strict=True))
    if dialect.quote:
        return [dialect.separator.join(map(partial(_quoted, dialect.separator), row)) for row in rows]
    return [dialect.separator.join(row) for row in rows]


def _quoted(separator: str, value: str) -> str:
    special = separator in value or '"' in value or "\n" in value or "\r" in value
    return '"' + value.replace('"', '""') + '"' if special else value


@dataclass(frozen=True)
class JsonMembers:
    """What the members that are read may be: ``flat`` ones no object or list, ``ids`` texts or exact numbers."""

    flat: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    def mistake(self, line: bytes, value: dict[str, Any]) -> str | None:
        """The reason to reject an object; ``line`` is its text."""
        if line.count(b'":') != len(value) and _stands_twice(line):
            return MEMBER_TWICE
        if any(isinstance(value.get(name), (dict, list)) for name in self.flat):
            return NESTED
        return NO_ID if any(_is_no_id(value.get(name)) for name in self.ids) else None


def _stands_twice(line: bytes) -> bool:
    """True if the object in a line has two members of one name; Python's reader would take the last of them."""
    names: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object comes last

    json.loads(line, object_pairs_hook=note)
    return len(set(names)) < len(names)


def _is_no_id(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, float) and not abs(value) < MAX_EXACT)


def read_jsonl(source: Input, names: Sequence[str], members: JsonMembers | None = None) -> Iterator[Records]:
    """The records of a JSON Lines file: the members ``names`` of every object, as text. Blank lines are skipped."""
    members = members or JsonMembers()
    source.peek()
    row = 0
    with source.opened() as stream, lines_of(stream) as lines:
        good: list[tuple[int, dict[str, Any], str]] = []
        bad: list[tuple[int, str, str]] = []
        for line in lines:
            if not line.strip():
                continue
            row += 1
            value = _json_object(line)
            mistake = value if isinstance(value, str) else members.mistake(line, value)
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if isinstance(value, str) or mistake is not None:
                bad.append((row, str(mistake), text))
            else:
                good.append((row, value, text))
            if len(good) + len(bad) >= BATCH_ROWS:
                yield _json_records(good, bad, names)
                good, bad = [], []
        if good or bad:
            yield _json_records(good, bad, names)


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object in a line, or the reason why there is none. Of bytes Python's reader would let surrogates pass."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return UNDECODABLE
    except (ValueError, RecursionError):
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_JSON


def _json_records(
    good: list[tuple[int, dict[str, Any], str]], bad: list[tuple[int, str, str]], names: Sequence[str]
) -> Records:
    columns = {name: pa.array([_json_text(value.get(name)) for _, value, _ in good], pa.string()) for name in names}
    row = np.array([number for number, _, _ in good], np.int64)
    return Records(pa.table(columns), row, lambda places: [good[place][2] for place in places], bad)


def _json_text(value: Any) -> str | None:
    """A JSON scalar as text: 17850.0 is 17850, because JSON knows one kind of number."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    if value is None:
        return None
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="replace").decode()


def lines_of(stream: IO[bytes]) -> io.BufferedReader:
    """A reader that gives the lines of an Arrow stream."""
    return io.BufferedReader(_Raw(stream), BLOCK_BYTES)


class _Raw(io.RawIOBase):
    """An Arrow stream as a raw stream of Python, whose buffered reader finds lines fast."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def parquet_groups(source: Input) -> list[tuple[int, int]]:
    """(rows, bytes) of each row group. Raises DataError if the file is not Parquet."""
    with _parquet(source) as file:
        groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
        return [(group.num_rows, group.total_byte_size) for group in groups]


def parquet_schema(source: Input) -> pa.Schema:
    """The columns of a Parquet file."""
    with _parquet(source) as file:
        return file.schema_arrow


def read_parquet(source: Input, names: Sequence[str], groups: range, first_row: int) -> Iterator[Records]:
    """The records of some row groups, in the file's own types; ``first_row``: records before these groups."""
    row = first_row
    wanted = list(dict.fromkeys(names))
    with _parquet(source) as file, _undamaged(source):
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=wanted, use_threads=False):
            table = pa.Table.from_batches([batch])
            number = np.arange(row + 1, row + 1 + len(table))
            row += len(table)
            yield Records(table, number, partial(_parquet_texts, table))


@contextmanager
def _undamaged(source: Input) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source.name} is damaged: {error}", "whole Parquet data", "Fetch it again.") from error


def _parquet(source: Input) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source.folder.open_input(source.file))
    except PermissionError as error:
        raise source.unreadable(error) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source.name} is not a Parquet file: {error}", "", "Check the path and format, or fetch the file again."
        ) from error


def _parquet_texts(table: pa.Table, places: NDArray[np.int64]) -> list[str]:
    return [json.dumps(row, default=str, ensure_ascii=False) for row in table.take(places).to_pylist()]
