"""The planted parameters of the made-up shop, and its catalogue.

Enters: the config. Leaves: a ``Shop``: the probability tables that sessions are drawn from and the oracle
computes with, and the items with category, brand, style, price and title.
Surprising choice: an item's chance factors into the chance of its cell (category and price level) and its share
of that cell. Tables then stay small in a shop of a million items, and the oracle needs no table of items at all.

Shape legend: K user types, C categories, L price levels, Z intents (category x level), G cells (the same pairs, of
an item), N items in order of their cells, W words of a title.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distft.data.sources.base import FeatureTable
from distft.data.sources.synthetic.config import Config
from distft.data.sources.synthetic.words import brand_words, category_words, style_words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHOP_STREAM = 0
USER_STREAM = 1


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream of a seed. Only ``random()`` is used of it: its values never change."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *stream))))


def permutation(rng: np.random.Generator, size: int) -> Ints:
    """A random order of 0 … size - 1."""
    return np.argsort(rng.random(size), kind="stable")


class Choice:
    """Draws from rows of probabilities, all rows laid end to end in one array that is searched once."""

    def __init__(self, probabilities: Floats, row_starts: Ints | None = None) -> None:
        """From ``probabilities`` [rows, values]; or flat, with the start of every row and the end of the last."""
        if row_starts is None:
            row_starts = np.arange(len(probabilities) + 1) * probabilities.shape[1]
        self.first = row_starts[:-1]
        self.last = row_starts[1:] - 1
        flat = probabilities.ravel()
        cumulated = np.empty(len(flat))
        for row, (start, end) in enumerate(pairwise(row_starts.tolist())):
            sums = np.cumsum(flat[start:end])
            cumulated[start:end] = row + sums / sums[-1]
        self.cumulated = cumulated

    def draw(self, row: Ints, uniform: Floats) -> Ints:
        """Places in the flat array, one for each ``row`` and number in [0, 1)."""
        place = np.searchsorted(self.cumulated, row + uniform, side="right")
        return np.clip(place, self.first[row], self.last[row])

    def draw_value(self, row: Ints, uniform: Floats) -> Ints:
        """The same as a value within the row."""
        return self.draw(row, uniform) - self.first[row]


@dataclass(frozen=True)
class Taste:
    """What users want: hidden from everyone but the oracle.

    ``category_KC``: first wishes of a type. ``follow_CC``: the category that follows one. ``level_KL``: price
    levels of a type. ``buy_ZG``, ``browse_ZG``: cells of the wanted item and of other viewed items by intent.
    """

    category_KC: Floats
    follow_CC: Floats
    level_KL: Floats
    buy_ZG: Floats
    browse_ZG: Floats


@dataclass(frozen=True)
class Shop:
    """The whole shop. ``share_N``: an item's share of its cell; ``cell_starts`` [G + 1]; ``sessions_S``: chance of
    a user to have S sessions, from 0; ``views_V`` likewise. ``title_NW`` holds rows of ``words``.
    """

    config: Config
    taste: Taste
    share_N: Floats
    cell_N: Ints
    cell_starts: Ints
    title_NW: Ints
    price_N: Floats
    number_N: Ints
    words: tuple[str, ...]
    sessions_S: Floats
    views_V: Floats

    def item_ids(self) -> list[str]:
        """The shop's own ids, in the order of N."""
        return [f"i{number:06d}" for number in self.number_N.tolist()]

    def features(self) -> FeatureTable:
        """Category, brand, style, price and title of every item, by item id."""
        order = np.argsort(self.number_N)
        words = pa.array(self.words)
        texts = [words.take(pa.array(column)) for column in self.title_NW[order].T]
        columns = {
            "item_id": pa.array([f"i{number:06d}" for number in self.number_N[order].tolist()]),
            "category": texts[2],
            "brand": texts[0],
            "style": texts[1],
            "price": pa.array(self.price_N[order]),
            "title": pa.compute.binary_join_element_wise(*texts, " "),
        }
        return FeatureTable(pa.table(columns), "item_id", numeric=("price",), text=("title",))


def build_shop(config: Config) -> Shop:
    """The shop of a config: always the same one."""
    rng = generator(config.seed, SHOP_STREAM)
    num_cells = config.num_categories * config.num_price_levels
    taste = _taste(config, rng)
    if config.users_seed != config.seed:  # drawn from a stream of their own, so that the items stay those of the seed
        taste = _taste(config, generator(config.users_seed, SHOP_STREAM))
    cell_N = np.sort(np.arange(config.num_items) % num_cells)
    cell_starts = np.searchsorted(cell_N, np.arange(num_cells + 1))
    rank_N = np.arange(config.num_items) - cell_starts[cell_N]
    weight_N = (rank_N + 1.0) ** -config.popularity_skew
    brand_N = _brands(config, cell_N % config.num_price_levels, rng)
    style_N = permutation(rng, config.num_items) % config.num_styles
    first_noun = config.num_brands + config.num_styles
    return Shop(
        config=config,
        taste=taste,
        share_N=weight_N / np.bincount(cell_N, weight_N)[cell_N],
        cell_N=cell_N,
        cell_starts=cell_starts,
        title_NW=np.stack(
            [brand_N, config.num_brands + style_N, first_noun + cell_N // config.num_price_levels], axis=1
        ),
        price_N=_prices(config, cell_N, rng),
        number_N=permutation(rng, config.num_items),
        words=(
            *brand_words(config.num_brands),
            *style_words(config.num_styles),
            *category_words(config.num_categories),
        ),
        sessions_S=cut_geometric(config.min_sessions, config.mean_sessions, config.max_sessions),
        views_V=cut_geometric(1, config.mean_views, config.max_views),
    )


def cut_geometric(low: int, mean: float, high: int) -> Floats:
    """Chances of 0 … high: falling by a constant ratio from ``low`` on, with this mean if there were no ``high``."""
    ratio = 1 - 1 / (mean - low + 1)
    chance = np.zeros(high + 1)
    chance[low:] = ratio ** np.arange(high + 1 - low)
    return np.asarray(chance / chance.sum())


def _taste(config: Config, rng: np.random.Generator) -> Taste:
    num_categories, num_levels = config.num_categories, config.num_price_levels
    num_cells = num_categories * num_levels
    favour_KC = np.stack([permutation(rng, num_categories) for _ in range(config.num_user_types)])
    category_KC = np.power(config.category_decay, favour_KC.astype(np.float64))
    own_KL = np.arange(config.num_user_types)[:, None] % num_levels == np.arange(num_levels)
    spread = (1 - config.level_loyalty) / max(1, num_levels - 1)
    level_KL = np.where(own_KL, config.level_loyalty if num_levels > 1 else 1.0, spread)

    same_ZG = np.eye(num_cells)
    category_Z = np.arange(num_cells) // num_levels
    level_free_ZG = (category_Z[:, None] == category_Z) / num_levels
    near_ZG = (1 - config.level_drift) * same_ZG + config.level_drift * level_free_ZG
    return Taste(
        category_KC=category_KC / category_KC.sum(axis=1, keepdims=True),
        follow_CC=_complements(num_categories, rng),
        level_KL=level_KL,
        buy_ZG=(1 - config.purchase_noise) * same_ZG + config.purchase_noise / num_cells,
        browse_ZG=(1 - config.view_noise) * near_ZG + config.view_noise / num_cells,
    )


def _complements(num_categories: int, rng: np.random.Generator) -> Floats:
    """Two categories follow each one, with chances 2/3 and 1/3: along two circles through all categories."""
    follow_CC = np.zeros((num_categories, num_categories))
    for chance in (2 / 3, 1 / 3):
        circle = permutation(rng, num_categories)
        follow_CC[circle, np.roll(circle, -1)] += chance
    return follow_CC


def _brands(config: Config, level_N: Ints, rng: np.random.Generator) -> Ints:
    """A brand of the item's price level each, all brands of a level equally often."""
    brand_N = np.empty(config.num_items, np.int64)
    for level in range(config.num_price_levels):
        brands = np.arange(level, config.num_brands, config.num_price_levels)
        items = np.flatnonzero(level_N == level)
        brand_N[items] = brands[permutation(rng, len(items)) % len(brands)]
    return brand_N


def _prices(config: Config, cell_N: Ints, rng: np.random.Generator) -> Floats:
    """A category's own price, doubled for every level, up to a quarter more or less for the item."""
    base_C = 5 * 20 ** rng.random(config.num_categories)
    level_N = cell_N % config.num_price_levels
    jitter_N = 0.75 + 0.5 * rng.random(config.num_items)
    return np.round(base_C[cell_N // config.num_price_levels] * 2.0**level_N * jitter_N, 2)
