"""Where the files of a data set come from: its home, a mirror, or a folder.

Enters: an entry of the catalogue, the files wanted, and the user's ``--from``. Leaves: files, not yet verified, in
a staging folder. Surprising choice: no address is asked twice and no other one is tried: a failure is told.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import importlib.util
import io
import os
import ssl
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote, urlsplit

from distft import __version__
from distft.data.catalogue import CatalogueEntry, DataFile
from distft.errors import DataError, StorageError, UsageError

Progress = Callable[[str, int, int], None]
"""Called with what is brought, the bytes done and all bytes (0 where the server does not say)."""

TIMEOUT_S = 30.0
"""Longest silence of a server."""
_CHUNK_BYTES = 1 << 18


class Origin(Protocol):
    """Where files come from."""

    def bring(self, file: DataFile, path: Path) -> bool:
        """Writes the file to ``path``; False if it is not there. Raises DataError or StorageError."""


def open_origin(
    entry: CatalogueEntry, missing: list[DataFile], source: str | None, staging: Path, progress: Progress
) -> Origin:
    """The folder or mirror that ``source`` names, or the home of the data set; archives rest in ``staging``.

    Raises DataError where the home is not open to everybody, StorageError and UsageError for a bad ``source``.
    """
    if source is None:
        return _home(entry, missing, staging, progress)
    scheme = urlsplit(source).scheme if "://" in source else ""
    if scheme in ("http", "https"):
        return _Mirror(source.rstrip("/"), progress)
    if scheme not in ("", "file"):
        raise UsageError(
            f"--from {source} is a {scheme} address", "a folder, or an http(s) address", "Copy it here first."
        )
    folder = Path(source.removeprefix("file://"))
    if not folder.is_dir():
        raise StorageError(f"--from {source} is not a folder", "the folder that holds the files", "Correct the path.")
    return _Folder(folder, progress)


def _home(entry: CatalogueEntry, missing: list[DataFile], staging: Path, progress: Progress) -> Origin:
    if any(not file.url and not file.optional for file in missing):
        names = ", ".join(file.name for file in entry.files if not file.optional and not file.made_from)
        raise DataError(
            f"{entry.name} has no address that is open to everybody. {entry.how} Its home is {entry.home}",
            f"a folder or mirror that holds {names}",
            f"Get them there, then run: distft data fetch {entry.name} --from FOLDER",
        )
    if any(file.from_workbook for file in missing):
        for package in ("openpyxl", "pandas"):
            if importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"{entry.name} is published as an Excel workbook, and {package}, which reads it, is not installed",
                    "",
                    "Run: pip install 'distft[excel]'. Or give a folder with the converted file as --from.",
                )
    return _Home(staging, progress)


@dataclass(frozen=True)
class _Folder:
    folder: Path
    progress: Progress

    def __str__(self) -> str:
        return str(self.folder)

    def bring(self, file: DataFile, path: Path) -> bool:
        try:
            source = open(self.folder / file.name, "rb")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(
                f"{self.folder / file.name} cannot be read: {error}", "", "Check its permissions."
            ) from error
        with source, open(path, "wb") as target:
            _copy(source, target, file.name, os.fstat(source.fileno()).st_size, self.progress)
        return True


@dataclass(frozen=True)
class _Mirror:
    url: str
    progress: Progress

    def __str__(self) -> str:
        return self.url

    def bring(self, file: DataFile, path: Path) -> bool:
        return _download(f"{self.url}/{quote(file.name)}", path, self.progress)


@dataclass(frozen=True)
class _Home:
    """Each file's own address; an archive that holds several of them is downloaded once."""

    staging: Path
    progress: Progress

    def __str__(self) -> str:
        return "its home"

    def bring(self, file: DataFile, path: Path) -> bool:
        if not file.url:
            return False
        archive = self.staging / ("archive-" + file.url.rsplit("/", 1)[1]) if file.member else path
        if not archive.exists() and not _download(file.url, archive, self.progress):
            raise DataError(
                f"{file.url} answered 404: there is no such file",
                "the data set at its home",
                "It may have moved: give a folder or mirror that holds the files as --from.",
            )
        if file.from_workbook:
            workbook = path.with_suffix(".xlsx")
            self._extract(file, archive, workbook)
            self.progress(f"workbooks turned into {file.name}", 0, 1)
            _convert_workbook(workbook, path)
            self.progress(f"workbooks turned into {file.name}", 1, 1)
        elif file.member:
            self._extract(file, archive, path)
        return True

    def _extract(self, file: DataFile, archive: Path, path: Path) -> None:
        try:
            with zipfile.ZipFile(archive) as members:
                info = next(info for info in members.infolist() if info.filename.rsplit("/", 1)[-1] == file.member)
                with members.open(info) as source, open(path, "wb") as target:
                    _copy(source, target, file.name, info.file_size, self.progress)
        except StopIteration:
            problem = f"holds no {file.member}"
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            problem = f"is not a whole zip archive: {error}"
        else:
            return
        raise DataError(
            f"What {file.url} sent {problem}",
            f"an archive with {file.member}",
            "Fetch again; if it repeats, give a folder or mirror that holds the files as --from.",
        )


def _download(url: str, path: Path, progress: Progress) -> bool:
    """Writes what an address holds to ``path``; False if the server says that there is no such thing."""
    remedy = "Check the network and its proxy, then fetch again; or give a folder that holds the files as --from."
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"distft/{__version__}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            num_bytes = int(response.headers.get("Content-Length") or 0)
            with open(path, "wb") as target:
                done = _copy(response, target, url.rsplit("/", 1)[1], num_bytes, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.NOT_FOUND:
            return False
        raise StorageError(f"{url} answered {error.code} {error.reason}", "the file", remedy) from error
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise StorageError(f"{url} cannot be downloaded: {reason}", "", remedy) from error
    except ValueError as error:
        raise UsageError(f"{url} is not an address: {error}", "an http(s) address", "Correct it.") from error
    if done < num_bytes:
        raise StorageError(f"{url} ended after {done:,} of {num_bytes:,} bytes", "", remedy)
    return True


def _copy(source: IO[bytes], target: IO[bytes], what: str, num_bytes: int, progress: Progress) -> int:
    done = 0
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        done += len(chunk)
        progress(f"bytes of {what}", done, num_bytes)
    return done


def _convert_workbook(workbook: Path, path: Path) -> None:
    """Writes a workbook's first sheet as a compressed CSV whose content is always the same."""
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.read_excel(workbook, engine="openpyxl")
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with io.TextIOWrapper(packed, "utf-8", newline="") as text:
            frame.to_csv(text, index=False, lineterminator="\n")


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, of a ``.gz`` that of what it holds; or why it has none."""
    sha = hashlib.sha256()
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"(none, as it cannot be decompressed: {error})"
    return sha.hexdigest()
