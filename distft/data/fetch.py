"""``distft data fetch``: brings a public data set into a folder, from its own home, a mirror or another folder.

Enters: a name in the catalogue and where to look. Leaves: its files, each with the content that the catalogue
lists. A file is brought into a folder beside, verified there and renamed, so that whatever stands under a file's
name was whole when it was put there; files that are already there and verify are not brought again.

Surprising choice: a file that stands there with other content is not overwritten but moved to ``<name>.old``.
"""

from __future__ import annotations

import difflib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.data.catalogue import CATALOGUE, CatalogueEntry, DataFile
from distft.data.derived import Derived
from distft.data.origins import Origin, Progress, content_sha256, open_origin
from distft.errors import DataError, StorageError

__all__ = ["CATALOGUE", "Fetched", "fetch"]

_STAGING = ".fetch"


@dataclass(frozen=True)
class Fetched:
    """What a fetch did, as names of files.

    It brought some, some were ``present`` already, some are optional and ``absent``; ``moved`` are those that
    stood in the way of one that it brought.
    """

    entry: CatalogueEntry
    folder: Path
    brought: tuple[str, ...]
    present: tuple[str, ...]
    absent: tuple[str, ...]
    moved: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        lists = {name: list(getattr(self, name)) for name in ("brought", "present", "absent", "moved")}
        return {"name": self.entry.name, "folder": str(self.folder), **lists, "terms": self.entry.licence}

    def text(self) -> str:
        """A few lines for people, with the terms of use."""
        lines = [f"{self.folder}: {len(self.brought)} fetched, {len(self.present)} there already"]
        if self.absent:
            lines += [f"optional, and not there: {', '.join(self.absent)}"]
        lines += [f"{name} had other content: it is now {name}.old" for name in self.moved]
        lines += [f"{self.entry.title} ({self.entry.home})", f"Terms: {self.entry.licence}"]
        return "\n".join(lines)


def fetch(
    name: str, to: str | Path | None = None, source: str | None = None, progress: Progress = lambda *_: None
) -> Fetched:
    """Brings data set ``name`` into folder ``to`` (``data/<name>``) and says what it did.

    ``source`` is a folder or the http(s) address of a mirror that holds the files under their own names; without
    it they come from the data set's home. Raises DataError, StorageError and UsageError.
    """
    entry = _find(name)
    folder = Path(to) if to is not None else Path("data", name)
    try:
        present = [file.name for file in entry.files if _is_whole(folder / file.name, file)]
        wanted = [file for file in entry.files if file.name not in present]
        if source is None and all(file.optional for file in wanted):
            wanted = []  # all that is needed is there: no network is asked for the rest
        states = _bring(entry, wanted, folder, source, progress) if wanted else {}
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error}", "", "Check its permissions and the free space, then fetch again."
        ) from error
    brought = [name for name, state in states.items() if state != "absent"]
    absent = [file.name for file in entry.files if file.name not in (*present, *brought)]
    moved = [name for name, state in states.items() if state == "moved"]
    return Fetched(entry, folder, tuple(brought), tuple(present), tuple(absent), tuple(moved))


def _bring(
    entry: CatalogueEntry, wanted: list[DataFile], folder: Path, source: str | None, progress: Progress
) -> dict[str, str]:
    """Brings files through a staging folder; what became of each, see ``_place``."""
    staging = folder / _STAGING
    fresh = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        made: Origin = Derived(folder)
        elsewhere = [file for file in wanted if not file.made_from]
        origin = open_origin(entry, elsewhere, source, staging, progress) if elsewhere else made
        shutil.rmtree(staging, ignore_errors=True)  # of a fetch that was killed
        staging.mkdir(parents=True)
        return {file.name: _place(file, made if file.made_from else origin, staging, folder) for file in wanted}
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # the first that is not empty
            for one in fresh:
                one.rmdir()


def _find(name: str) -> CatalogueEntry:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), CATALOGUE, n=1, cutoff=0.5)
        raise DataError(
            f"There is no data set '{name}' in the catalogue" + (f"; did you mean '{near[0]}'?" if near else ""),
            "one of " + ", ".join(CATALOGUE),
            "See `distft data list`.",
        )
    return CATALOGUE[name]


def _place(file: DataFile, origin: Origin, staging: Path, folder: Path) -> str:
    """Brings a file, verifies it and gives it its name: "new", "moved" (another was in its place) or "absent"."""
    beside, target = staging / file.name, folder / file.name
    if not origin.bring(file, beside):
        if file.optional:
            return "absent"
        raise DataError(f"{origin} has no file {file.name}", "all files of the data set", "Correct the address.")
    found = content_sha256(beside)
    if found != file.sha256:
        raise DataError(
            f"{file.name} from {origin} is not the file of the catalogue: its content has SHA-256 {found}",
            file.sha256,
            "Fetch again, in case it was damaged on the way; if that gives the same, the copy there is another one: "
            "give a folder or mirror with the right one as --from.",
        )
    with open(beside, "rb") as stream:
        os.fsync(stream.fileno())
    state = "new"
    if target.exists():
        state = "moved"
        os.replace(target, target.with_name(target.name + ".old"))
    os.replace(beside, target)
    return state


def _is_whole(path: Path, file: DataFile) -> bool:
    return path.is_file() and content_sha256(path) == file.sha256
