"""Files of a data set that are made from its other files, so that a job can read them: a knowledge graph as a table.

Enters: the folder of a data set. Leaves: a file in a staging folder, which is verified like one that was brought:
the same files always give the same bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from distft.data.catalogue import DataFile

_ITEM = "item"
_PREFIX = f"{_ITEM}-"


@dataclass(frozen=True)
class Derived:
    """The origin of what is made from the files in ``folder``."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def bring(self, file: DataFile, path: Path) -> bool:
        """Makes the file; False if one that it is made from is not there."""
        entities, relations, triples = sources = [self.folder / name for name in file.made_from]
        if not all(source.is_file() for source in sources):
            return False
        write_items_of_graph(entities, relations, triples, path)
        return True


def write_items_of_graph(entities: Path, relations: Path, triples: Path, path: Path) -> None:
    """Writes a knowledge graph's items as CSV: item_id, and one column for each relation "item-<column>".

    ``entities``: (entity, id, type), where an entity is the shop's own number; ``relations``: (relation, id);
    ``triples``: (head, tail, relation) of ids. All are tab-separated with a header line. An item that has several
    tails of a relation gets the first. Items stand in the order of their ids.
    """
    columns = {id_: name.removeprefix(_PREFIX) for name, id_ in _rows(relations) if name.startswith(_PREFIX)}
    own: dict[str, str] = {}
    tails: dict[str, dict[str, str]] = {}
    for entity, id_, kind in _rows(entities):
        own[id_] = entity
        if kind == _ITEM:
            tails[id_] = {}
    for head, tail, relation in _rows(triples):
        if head in tails and relation in columns:
            tails[head].setdefault(columns[relation], own[tail])
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["item_id", *columns.values()], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_records(own, tails))


def _records(own: Mapping[str, str], tails: Mapping[str, dict[str, str]]) -> Iterator[dict[str, str]]:
    for id_ in sorted(tails, key=int):
        yield {"item_id": own[id_], **tails[id_]}


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a tab-separated file after its header."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t")
        next(rows)
        yield from rows
