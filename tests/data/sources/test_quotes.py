from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distft.data.sources import quotes, records
from distft.data.sources.inputs import find_inputs
from distft.data.sources.records import OPEN_QUOTE, CsvDialect, read_csv
from distft.errors import DataError

HEADER = "user,item,when,words"
ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

Row = tuple[int, list[str]]


def read(path: Path, text: str, header: str = HEADER) -> tuple[list[Row], list[tuple[int, str, str]]]:
    """(number, fields) of the good records, and the rejected ones."""
    path.write_bytes(f"{header}\n{text}".encode())
    good, rejected = [], []
    for part in read_csv(find_inputs(str(path))[0], CsvDialect()):
        columns = [[value.decode() for value in column.to_pylist()] for column in part.columns.columns]
        good += list(zip(part.row.tolist(), map(list, zip(*columns, strict=True)), strict=True))
        rejected += part.rejected
    return good, rejected


WORDS = st.text(st.sampled_from('ab ,"\n'), max_size=12)
PLAIN = st.tuples(st.sampled_from(["u1", "u2"]), WORDS, st.just("1600000000"), WORDS)
OPEN = st.sampled_from(
    ['u3,,1600000001,"5 inch phone', 'u3,"i,1600000001,x', '"u3,i,1600000001,x', 'u3,"i ""a"",1600000001,x', 'u3,i,1,"']
)
LINE = st.sampled_from(
    ["u4,i,1600000002,x", 'u4,i,1600000002,"red shoes"', 'u4,i,1600000002,15" screen', 'u4,i,1600000002,screen 15"',
     '"u4","i","1600000002","x"', 'u4,"",1600000002,""', 'u4,"a, b",1600000002,"say ""hi"""', "u4,i"]
)  # fmt: skip


@ANY_FOLDER
@given(st.lists(PLAIN, max_size=30), st.integers(60, 200), st.sampled_from(["\n", "\r\n"]))
@example([("u1", ",,\n,,,\n", "1600000000", ",,,")], 60, "\n")  # a line of a field that has as many separators
def test_whole_records_are_read_as_they_were_written(
    tmp_path: Path, rows: list[tuple[str, ...]], block_bytes: int, line_end: str
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block_bytes)
        good, rejected = read(tmp_path / "log.csv", text.getvalue())
    assert rejected == []
    assert good == [(number, list(row)) for number, row in enumerate(rows, 1)]


@ANY_FOLDER
@given(st.lists(st.one_of(LINE, LINE, OPEN), max_size=40), st.integers(60, 400), st.booleans())
def test_every_line_with_an_open_quote_is_one_reject(
    tmp_path: Path, lines: list[str], block_bytes: int, ends: bool
) -> None:
    lines = ["u0,i,1600000000,x", *lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block_bytes)
        good, rejected = read(tmp_path / "log.csv", "\n".join(lines) + "\n" * ends)
    is_open = [line.startswith(("u3", '"u3')) for line in lines]
    assert [(row, text) for row, reason, text in rejected if reason == OPEN_QUOTE] == [
        (number, line) for number, line in enumerate(lines, 1) if is_open[number - 1]
    ]
    assert sorted([row for row, _ in good] + [row for row, _, _ in rejected]) == list(range(1, len(lines) + 1))
    whole = [line for number, line in enumerate(lines) if not is_open[number] and line != "u4,i"]
    assert [fields for _, fields in good] == list(csv.reader(whole))


def test_fields_of_several_lines_that_resemble_records_a_little(tmp_path: Path) -> None:
    address = '"Flat 3, 12 Main St, Springfield, IL\nof a, b, c and, d\nring twice, then, wait, please"'
    good, rejected = read(tmp_path / "log.csv", f"u1,i,1600000000,{address}\nu2,i,1600000001,x\n")
    assert [row for row, _ in good] == [1, 2]
    assert rejected == []
    good, rejected = read(tmp_path / "log.csv", 'a,"b\nc, d"\ne,"f\ng, h\ni, j"\n', "item,title")
    assert [fields for _, fields in good] == [["a", "b\nc, d"], ["e", "f\ng, h\ni, j"]]
    good, _ = read(tmp_path / "log.csv", 'a\n"b\nc\nd"\n', "item")
    assert [fields for _, fields in good] == [["a"], ["b\nc\nd"]]


def test_a_field_of_very_many_lines_is_an_open_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "MAX_FIELD_LINES", 20)
    for count, expected in ((20, [1, 2]), (21, [23])):
        good, _ = read(tmp_path / "log.csv", 'u,i,1600000000,"a' + "\nb" * count + '"\nu,i,1600000000,x\n')
        assert [row for row, _ in good] == expected


def test_a_record_of_several_lines_with_a_wrong_number_of_columns_is_one_reject(tmp_path: Path) -> None:
    good, rejected = read(tmp_path / "log.csv", 'u,"a\nb",1600000000\nu,i,1600000000,x\n')
    assert [row for row, _ in good] == [2]
    assert [(row, text) for row, _, text in rejected] == [(1, 'u,"a\nb",1600000000')]


def test_lines_that_end_with_a_carriage_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 64)
    path = tmp_path / "log.csv"
    rows = [f'u{number},"a, b",1600000000,x' for number in range(30)]
    for line_end in ("\r", "\r\n"):
        path.write_bytes(line_end.join([HEADER, *rows, 'u,"a,1600000000,x', "u,i,1600000000,x"]).encode())
        parts = list(read_csv(find_inputs(str(path))[0], CsvDialect()))
        assert [row for part in parts for row in part.row.tolist()] == [*range(1, 31), 32]
        assert [row for part in parts for row in part.rejected] == [(31, OPEN_QUOTE, 'u,"a,1600000000,x')]


def test_a_line_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 1 << 20)
    with pytest.raises(DataError, match="has a line of more than 1 MiB after record 65,536"):
        read(tmp_path / "log.csv", "u,i,1600000000,x\n" * (1 << 16) + "x" * (3 << 20))


def test_a_header_of_several_lines(tmp_path: Path) -> None:
    good, rejected = read(tmp_path / "log.csv", "u,i,1600000000,x\n", 'user,item,"when\n(seconds)",words')
    assert good == [(1, ["u", "i", "1600000000", "x"])]
    assert rejected == []
    with pytest.raises(DataError, match=r"The header of .* has an open quote"):
        read(tmp_path / "log.csv", "u,i,1600000000,x\n" * 30, 'user,item,when,"words')
