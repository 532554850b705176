"""Blocks of whole CSV records, with the lines taken out whose quote was never closed.

Enters: the bytes of a CSV, in UTF-8. Leaves: ``Block``s that end where a record ends. A quoted field may run over
several lines; the lines after a quote that was left open would look like such a field. That is told apart here,
once for the whole file, and does not depend on where a block ends.

Surprising choice: a quote counts as open when its closing quote is followed by neither separator nor line end (then
it is the opening quote of another record), when its line would be a record without it and so would most of the lines
that it takes in or the last of them, or when these are more than ``MAX_FIELD_LINES``. The line that holds
it is set aside, and what follows is read as if the quote were not there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FIELD_LINES = 1000
"""Lines of one quoted field: more of them are a quote that was left open."""

_MIN_SEPARATORS = 6
"""Separators in swallowed lines that make them records where no column of numbers can be compared."""

_QUOTE, _LF, _CR = b'"\n\r'
_LINE_END = re.compile(b"[\r\n]")
_NUMBER = re.compile(r"[-+]?\d[-+\d.:/TZ ]*")  # or a time


class LongLineError(Exception):
    """A line does not end within the size of a block."""


@dataclass(frozen=True)
class Block:
    """``data`` ends where a record ends; in the place of each of the lines ``open`` stands the placeholder."""

    data: bytes
    open: list[bytes] = field(default_factory=list)


class Blocks:
    """The records of a CSV with ``num_columns`` columns, in blocks of about ``block_bytes``.

    ``placeholder`` is a record with a column too many.
    """

    def __init__(self, separator: str, num_columns: int, quote: bool, block_bytes: int) -> None:
        self._separator, self._num_columns = separator, num_columns
        self._quote, self._block_bytes = quote, block_bytes
        self._field_end = re.compile(b"[%s\r\n]" % re.escape(separator.encode()))
        self._numbers: list[int] | None = None  # columns that hold a number in the first record of the file
        self.placeholder = separator.encode() * num_columns + b"\0open quote"

    def of(self, stream: IO[bytes], skip_lines: int) -> Iterator[Block]:
        """The blocks of a stream without its byte order mark and its first lines. Raises LongLineError."""
        rest, whole = _fill(stream, 3).removeprefix(b"\xef\xbb\xbf"), False
        while not whole:
            more = _fill(stream, self._block_bytes)
            whole = len(more) < self._block_bytes
            data = rest + more
            ends = _line_ends(data, whole)
            if not len(ends) and len(data) > self._block_bytes:
                raise LongLineError
            skip = min(skip_lines, len(ends))
            start, skip_lines = int(ends[skip - 1]) + 1 if skip else 0, skip_lines - skip
            if whole and skip_lines:  # a header line without an end
                return
            cut = len(data) if whole else int(ends[-1]) + 1 if len(ends) else 0
            block, used = self._block(data[start:cut], ends[skip:] - start, whole)
            rest = data[start + used :]
            if block.data:
                yield block

    def _block(self, data: bytes, ends: NDArray[np.int64], whole: bool) -> tuple[Block, int]:
        """The records that end within ``data``, and how many of its bytes they are."""
        if not self._quote or not data:
            return Block(data), len(data)
        starts = np.concatenate([[0], ends + 1])
        starts = starts[starts < len(data)]
        if self._numbers is None:
            self._numbers = self._learned(data, starts)
        pieces: list[bytes] = []
        found: list[bytes] = []
        copied = passed = 0
        for line in _suspects(data, ends, ord(self._separator)).tolist():
            start = int(starts[line])
            if start < passed:  # within a record of several lines
                continue
            end, state = self._record(data, line, starts, ends)
            if state == "unclosed" and not whole:  # the rest of it comes with the next block
                return Block(b"".join([*pieces, data[copied:start]]), found), start
            if state != "whole":
                end = int(ends[line]) if line < len(ends) else len(data)
                pieces += [data[copied:start], self.placeholder]
                found.append(data[start:end].rstrip(b"\r"))
                copied = end
            passed = end + 1
        return Block(b"".join([*pieces, data[copied:]]), found), len(data)

    def _record(
        self, data: bytes, line: int, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[int, Literal["whole", "unclosed", "open"]]:
        """The end of the record that starts with a line, and whether it has an open quote; unclosed: it seems so."""
        start = int(starts[line])
        end, state, quote = self._record_end(data, start)
        last = int(np.searchsorted(ends, end))
        if end - start > self._block_bytes or last - line > MAX_FIELD_LINES:
            return end, "open"
        if last == line or state == "unclosed":
            return end, "unclosed" if state == "unclosed" else "whole"
        if state == "odd":
            return end, "open"
        bounds = [start, *starts[line + 1 : last + 1].tolist(), end]
        first, *swallowed = [data[one:next_one] for one, next_one in pairwise(bounds)]
        without = first[: quote - start] + first[quote - start + 1 :]
        return end, "open" if self._is_record(without) and self._are_records(swallowed) else "whole"

    def _record_end(self, data: bytes, start: int) -> tuple[int, Literal["whole", "unclosed", "odd"], int]:
        """Where a record ends, and the quote of its first field that runs over several lines (-1: none).

        Odd: the closing quote of such a field stands within it.
        """
        place, odd, quote = start, False, -1
        while True:
            if data[place : place + 1] == b'"':
                close = _closing_quote(data, place + 1)
                if close < 0:
                    return len(data), "unclosed", place
                if _LINE_END.search(data, place, close):
                    quote = place if quote < 0 else quote
                    after = data[close + 1 : close + 2]
                    odd |= bool(after) and not self._field_end.match(after)
                place = close + 1
            found = self._field_end.search(data, place)
            if found is None or found[0] in b"\r\n":
                return len(data) if found is None else found.start(), "odd" if odd else "whole", quote
            place = found.end()

    def _are_records(self, lines: list[bytes]) -> bool:
        """True if most of some lines, or the one with the closing quote, look like records of this file."""
        hits = [self._is_record(line) for line in lines]
        enough = self._numbers or sum(hits) * (self._num_columns - 1) >= _MIN_SEPARATORS
        return bool(enough) and self._num_columns > 1 and (hits[-1] or 2 * sum(hits) >= len(lines))

    def _is_record(self, line: bytes) -> bool:
        fields = self._fields(line)
        if len(fields) != self._num_columns:
            return False
        agree = sum(_NUMBER.fullmatch(fields[place].strip()) is not None for place in self._numbers or ())
        return 2 * agree >= len(self._numbers or ())

    def _learned(self, data: bytes, starts: NDArray[np.int64]) -> list[int]:
        """The columns of numbers of the first record that has all columns; a line within a field is no record."""
        for start in starts[:MAX_FIELD_LINES].tolist():
            end, state, _ = self._record_end(data, start)
            fields = self._fields(data[start:end]) if state == "whole" else []
            if len(fields) == self._num_columns:
                return [place for place, text in enumerate(fields) if _NUMBER.fullmatch(text.strip())]
        return []

    def _fields(self, record: bytes) -> list[str]:
        """The fields of a record that is read by itself; none where it cannot be."""
        text = record.decode("utf-8", errors="replace").strip("\r\n")
        if '"' not in text:
            return text.split(self._separator)
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=self._separator), [])
        except csv.Error:
            return []


def _fill(stream: IO[bytes], size: int) -> bytes:
    """The next ``size`` bytes; fewer at the end of the stream alone."""
    parts = []
    while size and (part := bytes(stream.read(size))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _line_ends(data: bytes, whole: bool) -> NDArray[np.int64]:
    """Places of the bytes that end a line: LF, or CR without LF. Not ``whole``: an LF may follow the last byte."""
    array = np.frombuffer(data, np.uint8)
    ends = array == _LF
    if b"\r" in data:
        ends |= (array == _CR) & ~np.append(ends[1:], not whole)
    return np.flatnonzero(ends)


def _suspects(data: bytes, ends: NDArray[np.int64], separator: int) -> NDArray[np.int64]:
    """Lines that may end within a quoted field, if they start outside of one.

    All others have an even number of quotes, of which every other one opens: it stands first in its field, or makes
    a pair with the one before it.
    """
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == _QUOTE)
    if not len(quotes):
        return quotes
    before_end = np.searchsorted(quotes, np.append(ends, len(data)))
    counts = np.diff(before_end, prepend=0)
    starts = before_end - counts
    every_other = np.flatnonzero(((np.arange(len(quotes)) ^ np.repeat(starts, counts)) & 1) == 0)
    may_open = np.zeros(256, np.bool_)
    may_open[[separator, _LF, _CR]] = True
    before = array[quotes[every_other] - 1]
    doubtful = np.flatnonzero(~may_open[before])
    place, before = every_other[doubtful], before[doubtful]
    line = np.searchsorted(ends, quotes[place])
    opens = (quotes[place] == 0) | ((before == _QUOTE) & (place > starts[line]))
    suspect = counts % 2 == 1
    suspect[line[~opens]] = True
    return np.flatnonzero(suspect)


def _closing_quote(data: bytes, place: int) -> int:
    """The first quote from ``place`` on that is not one of a pair; -1 if there is none."""
    while (place := data.find(b'"', place)) >= 0 and data[place + 1 : place + 2] == b'"':
        place += 2
    return place
