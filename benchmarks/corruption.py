"""One corrupted row in a hundred, of eight kinds, in CSV and in JSON Lines: is each rejected, and no good one?

Run:  .venv/bin/python benchmarks/corruption.py [ROWS]

Writes a log of a million rows (or ``ROWS``) in either format with every hundredth row spoilt, reads it as ``prepare``
does, and compares the rejected row numbers with those that were spoilt. Fails where they differ. Writes
``benchmarks/results/corruption.json``: rows by format, kind and reason.

Only what nobody could take for a good row counts as spoilt. So a line of a CSV is cut before its last field (within
it, it would be another valid number), what a JSON object lacks is never its optional value, and its extra column is a
member that it has twice: a new member makes no JSON object wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from path import RESULTS

from distft.data.sources.files.config import Config

NAMES = ("user_id", "item_id", "event", "timestamp", "value")
Row = dict[str, Any]


def row_of(rng: np.random.Generator, number: int) -> Row:
    day, second = rng.integers(1, 29), rng.integers(0, 86_400)
    return {
        "user_id": f"u{rng.integers(0, 10_000)}",
        "item_id": f'商品 {rng.integers(0, 5_000)}, "new"' if number % 50 == 7 else f"i{rng.integers(0, 5_000)}",
        "event": ("view", "cart", "purchase")[number % 3],
        "timestamp": f"2024-05-{day:02d} {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}",
        "value": round(float(rng.integers(1, 100_000)) / 100, 2),
    }


def as_csv(row: Row) -> bytes:
    texts = [str(value) for value in row.values()]
    quoted = ['"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text for text in texts]
    return ",".join(quoted).encode()


def as_json(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


FORMATS: dict[str, Callable[[Row], bytes]] = {"csv": as_csv, "jsonl": as_json}


def truncated_line(rng: np.random.Generator, row: Row, form: str) -> bytes:
    line = FORMATS[form](row)
    end = line.rindex(b",") if form == "csv" else len(line)
    return line[: rng.integers(1, end)]


def wrong_type(rng: np.random.Generator, row: Row, form: str) -> bytes:
    wrong: list[tuple[str, Any]] = [
        ("value", "cheap"),
        ("timestamp", "yesterday"),
        ("event", "3.7"),
        ("value", "1,5 €"),
    ]
    if form == "jsonl":
        wrong += [
            ("user_id", {"id": 5}),
            ("item_id", ["i1", "i2"]),
            ("item_id", True),
            ("value", [1]),
            ("timestamp", {}),
        ]
    name, value = wrong[rng.integers(len(wrong))]
    return FORMATS[form](row | {name: value})


def bad_utf8(rng: np.random.Generator, row: Row, form: str) -> bytes:
    bad = (b"\xff\xfe", b"\xc3(", b"\xe4\xb8", b"\xed\xa0\x80")[rng.integers(4)]
    return _into(rng, row, form, bad)


def nul_byte(rng: np.random.Generator, row: Row, form: str) -> bytes:
    return _into(rng, row, form, b"\0" if form == "csv" or rng.random() < 0.5 else b"\\u0000")


def _into(rng: np.random.Generator, row: Row, form: str, what: bytes) -> bytes:
    """The row with some bytes in the midst of one of its ids."""
    name = ("user_id", "item_id")[rng.integers(2)]
    return FORMATS[form](row | {name: "x@y"}).replace(b"@", what)


def extra_column(rng: np.random.Generator, row: Row, form: str) -> bytes:
    line = FORMATS[form](row)
    if form == "csv":
        return line + (b",more", b",", b",1,2")[rng.integers(3)]
    name = NAMES[rng.integers(len(NAMES))]
    return line[:-1] + f', "{name}": "more"}}'.encode()


def missing_column(rng: np.random.Generator, row: Row, form: str) -> bytes:
    name = NAMES[rng.integers(len(NAMES) - (form == "jsonl"))]
    return FORMATS[form]({key: value for key, value in row.items() if key != name})


def impossible_date(rng: np.random.Generator, row: Row, form: str) -> bytes:
    times = (
        "2024-02-30 10:00:00",
        "2024-13-01 10:00:00",
        "2023-02-29 00:00:00",
        "2024-05-05 25:00:00",
        "2024-05-00",
        "0000-00-00 00:00:00",
    )
    return FORMATS[form](row | {"timestamp": times[rng.integers(len(times))]})


def absurd_number(rng: np.random.Generator, row: Row, form: str) -> bytes:
    numbers = (
        ("value", "1e400"), ("value", "-1e400"), ("value", "1" + "0" * 30), ("value", "9" * 400), ("value", "NaN"),
        ("timestamp", "-1714567890"), ("timestamp", "1" + "0" * 30), ("timestamp", "1e400"),
        ("timestamp", '"99999-01-01 00:00:00"'), ("timestamp", '"1066-10-14 09:00:00"'),
        *([("user_id", "1e400"), ("item_id", "NaN"), ("user_id", "1e30")] if form == "jsonl" else []),
    )  # fmt: skip
    name, number = numbers[rng.integers(len(numbers))]
    line = FORMATS[form](row | {name: "@"})
    return line.replace(b'"@"', number.encode()) if form == "jsonl" else line.replace(b"@", number.strip('"').encode())


KINDS = (
    truncated_line, wrong_type, bad_utf8, nul_byte, extra_column, missing_column, impossible_date, absurd_number,
)  # fmt: skip


def write(path: Path, form: str, num_rows: int) -> dict[int, str]:
    """Writes the log; gives the kind of every spoilt row by its number."""
    rng = np.random.default_rng(8)
    spoilt: dict[int, str] = {}
    with path.open("wb") as stream:
        if form == "csv":
            stream.write(",".join(NAMES).encode() + b"\n")
        for number in range(1, num_rows + 1):
            row = row_of(rng, number)
            if number % 100 == 37:
                kind = KINDS[number // 100 % len(KINDS)]
                spoilt[number] = kind.__name__
                stream.write(kind(rng, row, form) + b"\n")
            else:
                stream.write(FORMATS[form](row) + b"\n")
    return spoilt


def read(path: Path, form: str) -> tuple[set[int], dict[int, str]]:
    """(numbers of the rows that are kept, reason of every rejected row by its number)."""
    columns = {name: name for name in NAMES}
    source = Config(path=str(path), format=form, columns=columns).open()
    kept: set[int] = set()
    rejected: dict[int, str] = {}
    for task in source.read_tasks():
        for batch in source.read(task):
            kept.update(batch.events["row"].to_pylist())
            rejected |= zip(batch.rejected["row"].to_pylist(), batch.rejected["reason"].to_pylist(), strict=True)
    return kept, rejected


def examine(form: str, num_rows: int, folder: Path) -> dict[str, Any]:
    path = folder / f"log.{form}"
    spoilt = write(path, form, num_rows)
    kept, rejected = read(path, form)
    lines = path.read_bytes().split(b"\n")[1 if form == "csv" else 0 :]
    for number in sorted(kept & spoilt.keys())[:8]:
        print(f"{form}: {spoilt[number]} was kept: {lines[number - 1]!r}", file=sys.stderr)
    for number in sorted(rejected.keys() - spoilt.keys())[:8]:
        print(f"{form}: good row rejected as {rejected[number]}: {lines[number - 1]!r}", file=sys.stderr)
    kinds: dict[str, Any] = {kind.__name__: {"rows": 0, "rejected": 0, "reasons": Counter[str]()} for kind in KINDS}
    for number, kind in spoilt.items():
        kinds[kind]["rows"] += 1
        if number in rejected:
            kinds[kind]["rejected"] += 1
            kinds[kind]["reasons"][rejected[number]] += 1
    return {
        "rows": num_rows,
        "spoilt": len(spoilt),
        "rejected": len(rejected),
        "spoilt_but_kept": len(kept & spoilt.keys()),
        "good_but_rejected": len(rejected.keys() - spoilt.keys()),
        "lost": num_rows - len(kept) - len(rejected),
        "kinds": kinds,
    }


def main() -> None:
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="distft-corruption-") as folder:
        result = {form: examine(form, num_rows, Path(folder)) for form in FORMATS}
    print(json.dumps(result, indent=2))
    if any(one["spoilt_but_kept"] or one["good_but_rejected"] or one["lost"] for one in result.values()):
        sys.exit("Some rows ended in the wrong place.")
    (RESULTS / "corruption.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
