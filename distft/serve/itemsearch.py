"""The items that a model knows, found by words, categories or ids: a page of them at a time, never all.

Enters: an ``ItemQuery`` in the shop's own words. Leaves: an ``ItemPage`` from the encoder of the bundle, the most
popular items first. Surprising choice: words are looked for in one column of texts, from its start to its end, and
there is no index of them. Arrow reads a million titles in a fraction of a second, outside of Python's lock, and a
replica whose catalogue nobody searches pays nothing: the column is made by the first search.

Shape legend: N item rows, M rows that were found, V categories of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distft.data.encode import Encoder
from distft.data.features import FeatureColumn
from distft.data.numbers import unscaled
from distft.errors import QueryError
from distft.schema import NUM_RESERVED

FeatureValue: TypeAlias = list[str] | float | str
"""Of an item: all its categories, a number in the shop's own unit, or a text."""

BETWEEN = ":"
"""Stands between the feature and the value of a filter."""

MAX_WORDS = 8
"""Words of a text that count: each costs a pass over the catalogue."""

_TEXT = pa.large_string()  # a string column holds 2 GiB, which a million descriptions may exceed
_ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
"""Characters that are words by themselves, as in ``data.text``."""
_NO_WORD = r"[^\p{L}\p{M}\p{N}_]+"


@dataclass(frozen=True)
class ItemQuery:
    """Which items are wanted: those for which all of this holds.

    ``text``: each of its first eight words begins a word of the item's id, texts or categories. ``filter``: texts such
    as ``category:mugs``; an item has one of the values of each feature. ``item_ids``: only these, in this order. The
    ``offset``-th of them and those after it are told, at most ``limit``. ``num_values``: how many values are told of
    each feature that filters.
    """

    text: str | None = None
    filter: tuple[str, ...] = ()
    item_ids: tuple[str, ...] = ()
    offset: int = 0
    limit: int = 20
    num_values: int = 0


@dataclass(frozen=True)
class Item:
    """One item as the encoder knows it; what is not known of it is left out."""

    item_id: str
    title: str | None
    features: dict[str, FeatureValue]


@dataclass(frozen=True)
class ItemPage:
    """Some of the ``num_found`` items.

    ``values``: feature → (value, number of items), the most frequent first. They are counted among the items that the
    query would find without its filter on this feature, so that they are what the filter may be changed to.
    """

    items: list[Item]
    num_found: int
    model_version: str
    values: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


class ItemSearch:
    """The catalogue of one model. Not for several threads at once."""

    def __init__(self, encoder: Encoder, model_version: str) -> None:
        self.encoder = encoder
        self.model_version = model_version
        self._categories = {column.spec.name: column for column in encoder.features if column.spec.kind == "category"}

    def page(self, query: ItemQuery, allowed_N: NDArray[np.bool_] | None = None) -> ItemPage:
        """The items that the query finds among those ``allowed``. Raises QueryError for a filter that is none."""
        wanted = self._filters(query.filter)
        found_N = self._found(query, allowed_N)
        matching = {name: self._categories[name].matching(values) for name, values in wanted.items()}
        rows_M = self._ordered(query, _all([found_N, *matching.values()]))
        shown = rows_M[query.offset : query.offset + query.limit].tolist()
        values = {}
        for name in self._categories if query.num_values else ():
            others = [match_N for other, match_N in matching.items() if other != name]
            values[name] = self._counted(name, _all([found_N, *others]), query.num_values)
        return ItemPage([self._item(row) for row in shown], len(rows_M), self.model_version, values)

    def _filters(self, wanted: Sequence[str]) -> dict[str, set[str]]:
        """Feature → values. A feature's name may hold the sign that stands between both, so the longest that fits."""
        filters: dict[str, set[str]] = {}
        for number, text in enumerate(wanted):
            names = [name for name in self._categories if text.startswith(name + BETWEEN)]
            if not names:
                known = ", ".join(sorted(self._categories)) or "none: the items of this model have no categories"
                expected = f"NAME{BETWEEN}VALUE with a NAME of: {known}"
                raise QueryError(f"{text[:100]!r} is no filter", expected, "", f"filter.{number}")
            name = max(names, key=len)
            filters.setdefault(name, set()).add(text[len(name) + len(BETWEEN) :])
        return filters

    def _found(self, query: ItemQuery, allowed_N: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """The rows for which all but the filters holds."""
        found_N = np.ones(self.encoder.num_items, np.bool_) if query.text is None else self._with_words(query.text)
        if query.item_ids:
            listed_N = np.zeros(self.encoder.num_items, np.bool_)
            listed_N[self.encoder.item_rows(query.item_ids)] = True
            found_N &= listed_N
        if allowed_N is not None:
            found_N &= allowed_N
        found_N[:NUM_RESERVED] = False
        return found_N

    def _ordered(self, query: ItemQuery, found_N: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The rows: in the order of ``item_ids``, or the item whose id is the text, then by popularity."""
        if query.item_ids:
            first = self.encoder.item_rows(dict.fromkeys(query.item_ids))
            return first[found_N[first]]
        by_popularity = self.encoder.popularity
        rows_M = by_popularity[found_N[by_popularity]]
        exact = self.encoder.item_rows([query.text.strip()] if query.text else [])
        exact = exact[found_N[exact]]
        return np.concatenate([exact, rows_M[~np.isin(rows_M, exact)]]) if len(exact) else rows_M

    def _with_words(self, text: str) -> NDArray[np.bool_]:
        """The rows that hold each of the words; an id counts as a whole too, whatever it is made of."""
        words = dict.fromkeys(str(_plain(pa.array([text], _TEXT))[0]).split()[:MAX_WORDS])
        found_N = np.full(self.encoder.num_items, bool(words))
        for word in words:
            if found_N.any():
                found_N &= self._with_word(" " + word)
        found_N[self.encoder.item_rows([text.strip()])] = True
        return found_N

    def _with_word(self, start: str) -> NDArray[np.bool_]:
        hits_N = _matches(self._texts, start)
        for name, column in self._categories.items():
            hits_V = _matches(self._words[name], start)
            if hits_V.any():
                hits_N |= column.having(hits_V)
        return hits_N

    @cached_property
    def _texts(self) -> pa.Array:
        """Of each row, the words of its id and texts, each behind a space."""
        texts = [column.texts for column in self.encoder.features if column.spec.kind == "text"]
        return _plain(*(pa.array(column, _TEXT) for column in (self.encoder.item_ids, *texts)))

    @cached_property
    def _words(self) -> dict[str, pa.Array]:
        """Of each category of each feature, its words."""
        vocabularies = {name: column.spec.vocabulary for name, column in self._categories.items()}
        return {name: _plain(pa.array(vocabulary, _TEXT)) for name, vocabulary in vocabularies.items()}

    @cached_property
    def _codes(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """(offsets, codes) of each feature of categories."""
        return {name: _distinct(column) for name, column in self._categories.items()}

    def _counted(self, name: str, found_N: NDArray[np.bool_], most: int) -> list[tuple[str, int]]:
        offsets, codes = self._codes[name]
        vocabulary = self._categories[name].spec.vocabulary
        count_V = np.bincount(codes[np.repeat(found_N, np.diff(offsets))], minlength=len(vocabulary))
        count_V[:NUM_RESERVED] = 0
        best = np.argsort(-count_V, kind="stable")[:most]
        return [(vocabulary[code], int(count_V[code])) for code in best if count_V[code]]

    def _item(self, row: int) -> Item:
        features = {column.spec.name: _value(column, row) for column in self.encoder.features}
        title = features.pop("title") if self.encoder.title is not None else None
        known = {name: value for name, value in features.items() if value is not None}
        return Item(str(self.encoder.item_ids[row]), str(title) if title else None, known)


def _value(column: FeatureColumn, row: int) -> FeatureValue | None:
    """What is known of a row; None where nothing is."""
    if column.spec.kind == "number":
        return unscaled(column.spec, float(column.values[row]))
    if column.spec.kind == "text":
        return str(column.texts[row]) or None
    codes = column.codes[column.offsets[row] : column.offsets[row + 1]]
    return [column.spec.vocabulary[code] for code in dict.fromkeys(codes.tolist()) if code >= NUM_RESERVED] or None


def _distinct(column: FeatureColumn) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(offsets, codes) with each category of a row once, so that items are counted and not mentions."""
    lengths = np.diff(column.offsets)
    if lengths.max(initial=1) == 1:
        return column.offsets, column.codes
    size = len(column.spec.vocabulary)
    pairs = np.unique(np.repeat(np.arange(len(lengths)), lengths) * size + column.codes)
    counts = np.bincount(pairs // size, minlength=len(lengths))
    return np.concatenate([[0], np.cumsum(counts)]), (pairs % size).astype(np.int32)


def _all(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)


def _plain(*columns: pa.Array) -> pa.Array:
    """Texts of each row as words in lower case, each behind a space."""
    space = pa.scalar(" ", _TEXT)
    # The empty text first puts the space before the first word, too.
    joined = pc.binary_join_element_wise(pa.scalar("", _TEXT), *columns, space)
    lower = pc.utf8_lower(pc.utf8_normalize(joined, "NFKC"))
    apart = pc.replace_substring_regex(lower, pattern=_ALONE, replacement=r" \1 ")
    return pc.replace_substring_regex(apart, pattern=_NO_WORD, replacement=" ")


def _matches(texts: pa.Array, start: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.match_substring(texts, start).to_numpy(zero_copy_only=False)  # bits → bytes: a copy
    return found
