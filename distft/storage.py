"""The only reader and writer of storage: local folders, and any URI that pyarrow.fs or fsspec knows.

Enters: paths relative to a root. Leaves: bytes, whole or not at all. A file is written beside its place and
renamed; a folder is an artefact only through its ``manifest.json``, which is written last and lists every file
with its SHA-256: what no manifest lists does not exist.

Surprising choice: a local artefact that replaces another is exchanged with it in one system call, so that a
reader finds the old one or the new one at every moment.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from distft import __version__, atomic
from distft.errors import ArtefactError, StorageError

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 22


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, two spaces, a final newline; so equal values are equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What an artefact consists of and what it was made from.

    ``files``: relative name → {"sha256", "bytes"} (and "rows" for tables). ``made_from``: the fingerprint: the
    job keys and input manifests that the stage declares. ``info``: the artefact's own summary.
    """

    kind: str
    files: dict[str, dict[str, Any]]
    made_from: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {"distft": __version__, "format": "1"})

    @property
    def sha256(self) -> str:
        """Identity of the artefact: equal manifests hold equal bytes."""
        return digest(vars(self))


class Storage:
    """A folder or URI, and the operations that distft needs of it. Cheap to make and to pickle."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri).rstrip("/") or "/"
        self.is_local = not re.match(r"^[a-z][a-z0-9+.-]+://", self.uri) or self.uri.startswith("file://")
        if self.is_local:
            self.uri = os.path.abspath(self.uri.removeprefix("file://"))

    def __repr__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))

    def __truediv__(self, name: str) -> Storage:
        return Storage(f"{self.uri}/{name}")

    @property
    def path(self) -> Path:
        """The local folder; raises StorageError for any other storage."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not a local folder", "a local path", "Copy it to this machine first.")
        return Path(self.uri)

    def filesystem(self) -> tuple[arrow_fs.FileSystem, str]:
        """Pyarrow's file system, and the root's path in it."""
        from pyarrow import fs

        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        try:
            return fs.FileSystem.from_uri(self.uri)  # type: ignore[no-any-return]
        except (ValueError, OSError):
            return self._fsspec()

    def _fsspec(self) -> tuple[arrow_fs.FileSystem, str]:
        import fsspec
        from pyarrow import fs

        try:
            system, path = fsspec.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"{self.uri} cannot be opened: {error}",
                "a folder, or a URI that pyarrow.fs or fsspec knows",
                "Install the fsspec package of this protocol, or correct the URI.",
            ) from error
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path

    # -- files ---------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """True if there is a file of this name."""
        from pyarrow import fs

        system, root = self.filesystem()
        return bool(system.get_file_info(f"{root}/{name}").type == fs.FileType.File)

    def list(self, below: str = "") -> list[str]:
        """Names, relative to the root, of all files below ``below``, sorted; empty if it does not exist."""
        from pyarrow import fs

        system, root = self.filesystem()
        base = f"{root}/{below}".rstrip("/")
        infos = system.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        return sorted(info.path[len(root) :].lstrip("/") for info in infos if info.type == fs.FileType.File)

    def read_bytes(self, name: str) -> bytes:
        """The file's bytes; raises StorageError when it cannot be read."""
        try:
            with self.open_input(name) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise StorageError(
                f"{self.uri}/{name} cannot be read: {error}", "", "Check the path and its permissions."
            ) from error

    def open_input(self, name: str) -> IO[bytes]:
        """The file, opened for reading at any position. Raises OSError."""
        system, root = self.filesystem()
        return system.open_input_file(f"{root}/{name}")  # type: ignore[no-any-return]

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file whole or not at all. Raises StorageError."""
        with self.writing(name) as stream:
            stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream into a file that is there, whole, once the block has ended well. Raises StorageError."""
        with explained(self.uri):
            if self.is_local:
                with atomic.writing(Path(self.uri) / name) as stream:
                    yield stream
            else:
                system, root = self.filesystem()
                with system.open_output_stream(f"{root}/{name}") as stream:
                    yield stream

    def read_json(self, name: str) -> Any:
        """The JSON value in a file. Raises StorageError, or ArtefactError if it is not JSON."""
        data = self.read_bytes(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise ArtefactError(
                f"{self.uri}/{name} is not JSON: {error}", "", "It was damaged after it was written; make it again."
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as canonical JSON, whole or not at all."""
        self.write_bytes(name, canonical_json(value))

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""
        system, root = self.filesystem()
        if self.exists(name):
            system.delete_file(f"{root}/{name}")

    def delete_tree(self, below: str = "") -> None:
        """Removes a folder with all that it holds, if it is there."""
        if self.is_local:
            shutil.rmtree(Path(self.uri) / below, ignore_errors=True)
            return
        for name in self.list(below):
            self.delete(name)

    def make(self) -> None:
        """Makes the local folder; raises StorageError where that is not allowed. Nothing to do on other storage."""
        if self.is_local:
            with explained(self.uri):
                Path(self.uri).mkdir(parents=True, exist_ok=True)
                if not os.access(self.uri, os.W_OK):
                    raise PermissionError(errno.EACCES, "no permission to write", self.uri)

    # -- artefacts -----------------------------------------------------------------------------------------

    def describe(self, name: str) -> dict[str, Any]:
        """{"sha256", "bytes"} of a file, read in chunks."""
        sha, size = hashlib.sha256(), 0
        with self.open_input(name) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                sha.update(chunk)
                size += len(chunk)
        return {"sha256": sha.hexdigest(), "bytes": size}

    def write_manifest(
        self,
        kind: str,
        made_from: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        rows: Mapping[str, int] | None = None,
    ) -> Manifest:
        """Lists all files below the root in ``manifest.json``, which makes them an artefact.

        ``rows``: number of rows of the files that are tables.
        """
        files = {name: self.describe(name) for name in self.list() if name != MANIFEST}
        for name, count in (rows or {}).items():
            files[name]["rows"] = count
        manifest = Manifest(kind, files, dict(made_from or {}), dict(info or {}))
        self.write_json(MANIFEST, vars(manifest))
        return manifest

    def manifest(self, kind: str) -> Manifest | None:
        """The artefact's manifest, or None if there is no artefact. Raises ArtefactError if it is another kind."""
        if not self.exists(MANIFEST):
            return None
        value = self.read_json(MANIFEST)
        if not _is_manifest(value):
            what = f"{self.uri}/{MANIFEST} is not a manifest of distft"
            raise ArtefactError(
                what, "the text that distft wrote", "Restore it from a copy, or make the artefact again."
            )
        manifest = Manifest(**value)
        if manifest.kind != kind:
            raise ArtefactError(f"{self.uri} holds a {manifest.kind}", f"a {kind}", "Give the path of the right one.")
        return manifest

    def verified(self, kind: str, below: str = "") -> Manifest:
        """The manifest, after every file that it lists ``below`` a name was found whole.

        Raises ArtefactError naming the first one that is not.
        """
        manifest = self.manifest(kind)
        if manifest is None:
            inside = (self / kind).exists(MANIFEST)
            remedy = f"Did you mean {self.uri}/{kind}?" if inside else f"Make the {kind} first."
            raise ArtefactError(f"There is no {kind} at {self.uri}", f"a folder with a {MANIFEST}", remedy)
        for name, expected in sorted(manifest.files.items()):
            if name.startswith(below):
                self.verify_file(name, expected)
        return manifest

    def verify_file(self, name: str, expected: Mapping[str, Any]) -> None:
        """Raises ArtefactError unless the file is there with the size and SHA-256 that the manifest lists."""
        if not self.exists(name):
            raise ArtefactError(f"{self.uri}/{name} is missing", "", "Restore it from a copy, or make it again.")
        found = self.describe(name)
        if found["bytes"] != expected["bytes"]:
            problem = f"is {found['bytes']} bytes long, its manifest says {expected['bytes']}"
        elif found["sha256"] != expected["sha256"]:
            problem = f"has SHA-256 {found['sha256'][:12]}…, its manifest says {expected['sha256'][:12]}…"
        else:
            return
        raise ArtefactError(
            f"{self.uri}/{name} {problem}",
            "",
            "It changed after it was written: restore it from a copy, or make it again.",
        )

    @contextmanager
    def replacing(self, name: str) -> Iterator[Storage]:
        """A fresh folder to fill and give a manifest; takes the place of folder ``name`` when the block ends well.

        If the block raises, or the process is killed in it, the old folder is untouched. Object stores cannot
        rename: there the new files are copied over and the manifest is written last.
        """
        self.make()
        staging = self / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        staging.make()
        try:
            yield staging
            if not staging.exists(MANIFEST):
                raise AssertionError(f"{name}: an artefact is committed with its manifest")
            if self.is_local:
                atomic.fsync_tree(staging.path)
                atomic.exchange(staging.path, self.path / name)
            else:
                _publish(staging, self / name)
        finally:
            self._discard(os.path.basename(staging.uri))

    def _discard(self, name: str) -> None:
        """Removes a folder that tasks may still write to: it moves first, so that they find it no more."""
        if self.is_local:
            if not (self.path / name).exists():
                return
            gone = f".{uuid.uuid4().hex}.tmp"
            os.rename(self.path / name, self.path / gone)
            name = gone
        self.delete_tree(name)

    def sweep(self) -> None:
        """Removes what killed runs left of ``replacing`` and ``writing``; only the holder of the lock may do this."""
        if self.is_local and os.path.isdir(self.uri):
            for path in Path(self.uri).glob(".*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
            for path in Path(self.uri).glob(f"*/.*{atomic.PART}"):
                path.unlink(missing_ok=True)


def _is_manifest(value: Any) -> bool:
    known = {item.name: None for item in fields(Manifest)}
    if not isinstance(value, dict) or not {"kind", "files"} <= value.keys() <= known.keys():
        return False
    sections = (value.get(name, {}) for name in known if name != "kind")
    return isinstance(value["kind"], str) and all(isinstance(section, dict) for section in sections)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turns an OSError of the block, which writes to ``place``, into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        raise not_written(place, error) from error


def not_written(place: str, error: OSError) -> StorageError:
    """The error for a file or folder that could not be written."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Give this user the right to write there, or choose another folder with --storage."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, then run the same command again: what was committed is intact."
    else:
        remedy = "Check the path, or choose another folder with --storage."
    return StorageError(f"{place} cannot be written: {error.strerror or error}", "", remedy)


def _publish(staging: Storage, target: Storage) -> None:
    target.delete(MANIFEST)
    names = staging.list()
    for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
        target.write_bytes(name, staging.read_bytes(name))
    for name in set(target.list()) - set(names):
        target.delete(name)
