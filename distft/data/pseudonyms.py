"""Pseudonyms: users by the HMAC-SHA-256 of their ids, under a key that no artefact holds (``data.pseudonyms``).

Enters: what a source read. Leaves: the same with every user id replaced, before anything of it is written: work
files, shards, rejected rows, statistics and messages see pseudonyms alone. The pseudonym of a user is the hexadecimal
HMAC of the UTF-8 bytes of the id, so that whoever holds the key can compute it with any tool.

Surprising choice: the key itself never travels. A task gets its place and a digest that was made with it, reads the
key there, and refuses one that gives another digest: half of a log under another key would be other users.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from distft.data.sources.base import EventBatch, FeatureTable, rejected_schema
from distft.errors import DataError, UsageError
from distft.schema import USER_ID
from distft.storage import Storage

if TYPE_CHECKING:
    from distft.sections import data as keys

MIN_KEY_BYTES = 32
MAX_KEY_BYTES = 4096
MIN_DISTINCT_BYTES = 8
MAX_REMEMBERED = 1 << 18
"""Users whose pseudonym a process remembers: about 60 MB."""

WITHHELD = "(withheld: it may name a user)"
"""Stands for the text of a rejected row in which the user's id could not be told from the rest."""

_KEY = "data.pseudonyms.key_file"
_REMEDY = "Make one, for instance with: openssl rand -hex 32 > key"
_DIGEST_OF = b"\0distft: the key of pseudonyms"


class Pseudonyms:
    """Replaces user ids; ``digest`` tells keys apart and says nothing of them."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)
        self._ids = self._names = pa.array([], pa.string())
        self.digest = self._hmac(_DIGEST_OF)

    def of(self, user_id: str) -> str:
        """The pseudonym of one user."""
        return self._hmac(user_id.encode())

    def batch(self, batch: EventBatch) -> EventBatch:
        """The batch without a user's id."""
        place = batch.events.schema.get_field_index(USER_ID)
        users = self._column(batch.events[USER_ID])
        events = batch.events.set_column(place, batch.events.schema.field(place), users)
        return replace(batch, events=events, rejected=self.rejected(batch.rejected))

    def rejected(self, table: pa.Table) -> pa.Table:
        """Rejected rows without a user's id; their text is withheld where it is not sure what in it is the id."""
        if not len(table):
            return table
        users, texts = table[USER_ID].to_pylist(), table["raw"].to_pylist()
        columns = {name: table[name] for name in table.column_names}
        columns["raw"] = pa.array(map(self._redacted, texts, users), pa.string())
        columns[USER_ID] = self._column(table[USER_ID])
        return pa.table([columns[name] for name in rejected_schema().names], schema=rejected_schema())

    def features(self, table: FeatureTable) -> FeatureTable:
        """The features of users, by pseudonym."""
        place = table.table.schema.get_field_index(table.key)
        rejected = None if table.rejected is None else self.rejected(table.rejected)
        named = table.table.set_column(place, table.key, self._column(table.table[table.key]))
        return replace(table, table=named, rejected=rejected)

    def _column(self, ids: pa.ChunkedArray) -> pa.Array:
        encoded = pa.concat_arrays([*ids.chunks, pa.array([], pa.string())]).dictionary_encode()
        return self._of_distinct(encoded.dictionary).take(encoded.indices)

    def _of_distinct(self, ids: pa.Array) -> pa.Array:
        """Pseudonyms of ids that are all different; those seen before are looked up, not computed."""
        place = pc.index_in(ids, value_set=self._ids)
        new = ids.filter(pc.is_null(place))
        if len(new):
            if len(self._ids) + len(new) > MAX_REMEMBERED:
                self._ids, self._names, new = ids.slice(0, 0), self._names.slice(0, 0), ids
            self._ids = pa.concat_arrays([self._ids, new])
            self._names = pa.concat_arrays([self._names, pa.array(map(self.of, new.to_pylist()), pa.string())])
            place = pc.index_in(ids, value_set=self._ids)
        return self._names.take(place)

    def _redacted(self, text: str | None, user_id: str | None) -> str:
        if not text or not user_id:
            return WITHHELD
        redacted, count = replaced(text, user_id, self.of(user_id))
        return redacted if count else WITHHELD

    def _hmac(self, data: bytes) -> str:
        keyed = self._keyed.copy()
        keyed.update(data)
        return keyed.hexdigest()


def replaced(text: str, word: str, by: str) -> tuple[str, int]:
    """The text with ``by`` for every ``word`` that is not a part of a longer one, and how many there were.

    A word counts as well as it is written in JSON, or with the quotes of a CSV doubled.
    """
    count = 0
    in_json = (json.dumps(word, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
    for form in dict.fromkeys((word, word.replace('"', '""'), *in_json)):
        pieces = text.split(form)
        found = pieces[0]
        for before, after in pairwise(pieces):
            apart = not (before[-1:].isalnum() or after[:1].isalnum())
            count += apart
            found += (by if apart else form) + after
        text = found
    return text, count


def open_pseudonyms(config: keys.Pseudonyms | None) -> Pseudonyms | None:
    """What replaces the user ids of a job, if it wants that. Raises UsageError where its key cannot be used."""
    return None if config is None else Pseudonyms(_read_key(config.key_file))


@lru_cache(maxsize=1)
def same_pseudonyms(config: keys.Pseudonyms, digest: str) -> Pseudonyms:
    """The pseudonyms of a run that began with a key of this digest, once a process. Raises UsageError."""
    pseudonyms = Pseudonyms(_read_key(config.key_file))
    if pseudonyms.digest != digest:
        what = f"{_KEY}: {config.key_file} holds another key than it did where this run was started"
        raise UsageError(what, "one key on all machines of a cluster", "Mount the same secret on all of them.")
    return pseudonyms


def key_digest(config: keys.Pseudonyms, root: Storage) -> str:
    """What a fingerprint holds of the key. Raises UsageError for a key below ``root``, where artefacts go."""
    if f"{Storage(config.key_file).uri}/".startswith(f"{root.uri}/"):
        what = f"{_KEY} is {config.key_file}, which lies in the job's own storage {root}"
        raise UsageError(what, "a place apart: whoever gets the artefacts must not get the key", "Move the key.")
    return Pseudonyms(_read_key(config.key_file)).digest


def _read_key(place: str) -> bytes:
    folder, _, name = Storage(place).uri.rpartition("/")
    try:
        with Storage(folder).open_input(name) as stream:
            data = bytes(stream.read(MAX_KEY_BYTES + 1))
    except FileNotFoundError as error:
        raise UsageError(f"{_KEY}: there is no file {place}", "a file that holds a secret key", _REMEDY) from error
    except OSError as error:
        told = "permission denied" if isinstance(error, PermissionError) else str(error)
        what = f"{_KEY}: {place} cannot be read: {told}"
        raise UsageError(what, "a file that holds a secret key", "Check the path and its rights.") from error
    if all(chr(byte) in string.printable for byte in data):
        data = data.strip()  # an editor's line end is no part of a key that is text
    size = f"{len(data)} byte" + "s" * (len(data) != 1)
    if len(data) > MAX_KEY_BYTES:
        raise UsageError(f"{_KEY}: {place} holds more than {MAX_KEY_BYTES} bytes, so it is no key", "a secret key")
    if len(data) < MIN_KEY_BYTES:
        told = f"holds a key of {size}" if data else "is empty"
        raise UsageError(f"{_KEY}: {place} {told}", f"at least {MIN_KEY_BYTES} bytes of chance", _REMEDY)
    if len(set(data)) < MIN_DISTINCT_BYTES:
        what = f"{_KEY}: {place} holds {size}, but only {len(set(data))} different ones"
        raise UsageError(what, "a key made by chance, which nobody can guess", _REMEDY)
    return data


@contextmanager
def discreet(wanted: bool) -> Iterator[None]:
    """Takes out of a DataError of the block what may be quoted from a log: the part after a colon, and what was there.

    Only where ``wanted``: a raw line in a message is a help, unless it names a user.
    """
    try:
        yield
    except DataError as error:
        if not wanted:
            raise
        what, colon, _ = error.what.partition(": ")
        withheld = " (what it holds is not shown: data.pseudonyms is set)"
        raise DataError(what + (withheld if colon or error.expected else ""), "", error.remedy) from None
