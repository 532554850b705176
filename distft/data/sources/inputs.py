"""Finding and opening the files that a source reads: globs, URIs, compression, and the mistakes made with them.

Enters: a path as the job file has it. Leaves: the files it means, in name order, opened as a stream of plain bytes.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from distft.data.catalogue import CATALOGUE
from distft.errors import DataError
from distft.storage import Storage

Format = Literal["csv", "jsonl", "parquet"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
PEEK_BYTES = 1 << 16
MAX_ZERO_SHARE = 0.01
"""Of the first bytes of a text; where there are fewer, some of its records are damaged, and are rejected one by one."""

_WILD = frozenset("*?[")
_KNOWN_BINARY = {
    b"\x1f\x8b": "gzip data: name it ….gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name it ….zst",
    b"PAR1": "a Parquet file: set format: parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or export it as CSV",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}


@dataclass(frozen=True)
class Input:
    """One file: ``name`` as people know it, in the words of the job file."""

    name: str
    folder: Storage
    file: str

    @property
    def suffixes(self) -> list[str]:
        """Endings of the name, in lower case: [".csv", ".gz"]."""
        return [suffix.lower() for suffix in Path(self.file).suffixes]

    @property
    def compression(self) -> str | None:
        """How the file is compressed, told by its name."""
        return COMPRESSIONS.get(self.suffixes[-1]) if self.suffixes else None

    def format(self) -> Format:
        """The format that the name tells; raises DataError if it tells none."""
        for suffix in reversed(self.suffixes):
            if suffix in FORMATS:
                return FORMATS[suffix]
        raise DataError(
            f"The name of {self.name} does not tell its format", f"a name that ends in {', '.join(FORMATS)}",
            "Set format: csv, jsonl or parquet.",
        )  # fmt: skip

    def num_bytes(self) -> int:
        """Size of the file as it is stored."""
        system, root = self.folder.filesystem()
        return int(system.get_file_info(f"{root}/{self.file}").size)

    def identity(self) -> dict[str, Any]:
        """Name, size and SHA-256: equal for equal content, wherever it lies. Raises DataError."""
        try:
            return {"name": self.file, **self.folder.describe(self.file)}
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: OSError) -> DataError:
        """The error for a file that this user cannot read, or that is damaged."""
        if isinstance(error, PermissionError):
            remedy = "Give this user the right to read it (chmod +r), or run as its owner."
            return DataError(f"{self.name} cannot be read: permission denied", "a readable file", remedy)
        expected = "a readable file" if self.compression is None else f"whole {self.compression} data"
        return DataError(f"{self.name} cannot be read: {error}", expected, "Check the file, or fetch it again.")

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked. Raises DataError where it cannot be read to the end."""
        try:
            with self.folder.open_input(self.file) as stream:
                if self.compression is None:
                    yield stream
                else:
                    with pa.CompressedInputStream(stream, self.compression) as unpacked:
                        yield unpacked
        except OSError as error:
            raise self.unreadable(error) from error

    def peek(self) -> bytes:
        """The first bytes, unpacked. Raises DataError if they are not those of a text."""
        with self.opened() as stream:
            head = bytes(stream.read(PEEK_BYTES))
        for magic, what in _KNOWN_BINARY.items():
            if head.startswith(magic):
                raise DataError(f"{self.name} is not text but {what}")
        if b"\0" in head.split(b"\n", 1)[0] or head.count(0) > MAX_ZERO_SHARE * len(head):
            what = f"{self.name} is not text: byte {head.index(0)} is zero"
            raise DataError(what, "a text in UTF-8", "Check the path and format.")
        return head


def find_inputs(path: str) -> list[Input]:
    """The files that a path, glob or URI means, in name order. Raises DataError where there are none."""
    if "://" in path and not path.startswith("file://"):
        found = _find_remote(path)
    else:
        local = path.removeprefix("file://")
        names = sorted(glob.glob(local, recursive=True)) if _WILD & set(local) else [local]
        found = [_local(name) for name in names if os.path.isfile(name)]
    if not found:
        raise _missing(path)
    return found


def _local(name: str) -> Input:
    return Input(name, Storage(os.path.dirname(os.path.abspath(name))), os.path.basename(name))


def _find_remote(path: str) -> list[Input]:
    scheme, rest = path.split("://", 1)
    parts = rest.split("/")
    wild = next((place for place, part in enumerate(parts) if _WILD & set(part)), len(parts) - 1)
    folder = Storage(f"{scheme}://{'/'.join(parts[:wild])}")
    pattern = parts[wild:]
    try:
        names = folder.list()
    except OSError as error:
        raise DataError(f"{path} cannot be listed: {error}", "", "Check the URI and the rights to read it.") from error
    return [Input(f"{folder.uri}/{name}", folder, name) for name in names if _matches(name.split("/"), pattern)]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern) if len(pattern) > 1 else True
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _missing(path: str) -> DataError:
    """The error for a path that means no file: it says what is there instead."""
    what = f"No file matches {path}" if _WILD & set(path) else f"There is no file {path}"
    if os.path.isdir(path):
        return DataError(f"{path} is a folder", "a file or a glob", f"Write {path.rstrip('/')}/*.csv, for instance.")
    parts = Path(path.removeprefix("file://")).parts
    if parts[:1] == ("data",) and parts[1:2] and parts[1] in CATALOGUE and not os.path.isdir(os.path.join(*parts[:2])):
        return DataError(what, "", f"Run: distft data fetch {parts[1]}")
    folder = next((parent for parent in Path(path).parents if os.path.isdir(parent)), None)
    if folder is None or "://" in path:
        return DataError(what, "at least one file", "Check the path.")
    try:
        there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        remedy = "Give this user the right to list it (chmod +rx), or correct the path."
        return DataError(f"{what}: its folder {folder} cannot be listed: {error.strerror}", "", remedy)
    wanted = Path(path).relative_to(folder).parts[0]
    if folder / wanted == Path(path) and wanted in there:
        what, remedy = (
            f"{path} is there, but is no file that can be opened",
            "Check its rights, or where its link goes.",
        )
        return DataError(what, "a readable file", remedy)
    near = difflib.get_close_matches(wanted, there, n=3, cutoff=0.4) or there[:5]
    remedy = f"{folder}/ holds: {', '.join(near)}." if near else f"{folder}/ is empty."
    return DataError(what, "", f"{remedy} Relative paths start at {os.getcwd()}.")
