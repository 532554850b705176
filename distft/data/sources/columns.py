"""What a mapping asks of a file, checked before its records are read: names that are there, once, of a usable type.

Enters: the file's column names, Arrow schema or first bytes, and the mapping of our names to its own. Leaves:
nothing, or a DataError that names the file and the column.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping

import pyarrow as pa

from distft.data.sources.inputs import Input
from distft.errors import DataError

_MAX_LISTED = 200
"""Characters of the names that an error lists: a file that is no table has one name of many."""

Kind = tuple[Callable[[pa.DataType], bool], str]


def check_columns(source: Input, there: tuple[str, ...], wanted: Mapping[str, str]) -> None:
    """Raises DataError for the first column that the file lacks or has twice, with the names that it has."""
    for ours, theirs in wanted.items():
        if there.count(theirs) > 1:
            what = f"{source.name} has {there.count(theirs)} columns '{theirs}' (for {ours})"
            raise DataError(what, "one column of a name that is mapped", "Rename the others, or map another column.")
        if theirs not in there:
            raise _lacks(source, there, ours, theirs)


def _lacks(source: Input, there: tuple[str, ...], ours: str, theirs: str) -> DataError:
    near = difflib.get_close_matches(theirs, there, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "Correct data.events.columns."
    if len(there) == 1 and (separator := next((mark for mark in "\t;|" if mark in there[0]), None)):
        hint = f"The header holds {separator!r}: set separator: {separator!r}."
    elif not near and any(name.strip("-.").replace(".", "").isdigit() for name in there):
        hint = "Its first line looks like data: name the columns with header: [...]."
    what = f"{source.name} has no column '{theirs}' (for {ours})"
    return DataError(what, f"one of its columns: {_listed(there)}", hint)


def _listed(names: Collection[str]) -> str:
    text = " ".join(", ".join(names).split())
    return text if len(text) <= _MAX_LISTED else text[:_MAX_LISTED] + "…"


def check_keys(source: Input, head: bytes, wanted: Mapping[str, str], needed: Collection[str]) -> None:
    """Raises DataError if a mapped key is in none of the first records of a JSON Lines file.

    A key that is not ``needed`` may be rare: for it this is an error only where another one is almost the same.
    """
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        what = f"{source.name} is a JSON array"
        raise DataError(what, "JSON Lines: one object a line", "Convert it, for instance with: jq -c '.[]'")
    found = [value for line in head.splitlines() if (value := _object(line))]
    keys = tuple(dict.fromkeys(key for value in found for key in value))
    for ours, theirs in wanted.items():
        near = difflib.get_close_matches(theirs, [key for key in keys if key not in wanted.values()], n=1)
        if not keys or theirs in keys or not (near or ours in needed):
            continue
        hint = f"Did you mean '{near[0]}'?" if near else "Correct the mapping of the columns."
        what = f"None of the first {len(found):,} records of {source.name} has a key '{theirs}' (for {ours})"
        raise DataError(what, f"one of their keys: {_listed(keys)}", hint)


def _object(line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def check_types(source: Input, schema: pa.Schema, wanted: Mapping[str, str], kinds: Mapping[str, Kind]) -> None:
    """Raises DataError for the first column whose type none of its values can be used in; ``kinds`` by our names."""
    for ours, theirs in wanted.items():
        usable, expected = kinds[ours]
        kind = schema.field(theirs).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if usable(plain):
            continue
        raise DataError(
            f"Column '{theirs}' of {source.name} (for {ours}) holds {kind}",
            expected,
            "Convert the column, or map another one.",
        )


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    bytes_too = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
    return any(is_one(kind) for is_one in (*texts, *bytes_too))


def _is_number(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return _is_text(kind) or any(is_one(kind) for is_one in numbers)


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_time(kind: pa.DataType) -> bool:
    return not pa.types.is_boolean(kind) and (_is_number(kind) or _is_moment(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return _is_number(kind) or _is_moment(kind)


def is_list(kind: pa.DataType) -> bool:
    """True for a list, of any length each."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_words(kind: pa.DataType) -> bool:
    if is_list(kind):
        return bool(pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))
    return _is_scalar(kind)


def _is_category(kind: pa.DataType) -> bool:
    return _is_scalar(kind) or (is_list(kind) and _is_scalar(kind.value_type))


ID: Kind = (_is_number, "a text or a number")
NUMBER: Kind = (_is_number, "a number, or a text that holds one")
TIME: Kind = (_is_time, "a timestamp, a date, a number or a text")
WORDS: Kind = (_is_words, "a text or a list of words")
TEXT: Kind = (_is_scalar, "a text")
CATEGORY: Kind = (_is_category, "a text, a number or a list of them")
