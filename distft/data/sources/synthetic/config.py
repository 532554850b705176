"""Keys of ``source: synthetic``: a made-up shop whose best reachable metric is known.

The defaults are the shop of ``jobs/quickstart.yaml``, where they are written out; they are frozen, so that
figures stay comparable. What each key does to the log: ``docs/decisions/0005-synthetic-shop.md``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import MAX_COUNT, SourceConfig

if TYPE_CHECKING:
    from distft.data.sources.base import Source

MAX_GAP_S = 120
"""Longest time between two events of a session."""
SESSION_PAUSE_S = 1800
"""Shortest time between two sessions: tells where one ends."""
DAY_S = 86_400


class Config(SourceConfig):
    """Size and randomness of the shop. Shares are probabilities; users of one seed are the same in any number."""

    source: Literal["synthetic"] = "synthetic"
    seed: int = Field(1, ge=0, lt=2**31, description="of the shop and its users; not the job's seed")
    store_seed: int | None = Field(
        None, ge=0, lt=2**31, description="of the users and what they want; another one than 'seed' is a second store, "
        "with the same items and other customers",
    )  # fmt: skip
    num_users: int = Field(5000, ge=1, le=2**31 - 1)
    num_items: int = Field(1000, ge=4, le=10_000_000)
    num_categories: int = Field(8, ge=2, le=500)
    num_price_levels: int = Field(3, ge=1, le=20)
    num_brands: int = Field(24, ge=1, le=MAX_COUNT, description="each brand sells at one price level")
    num_styles: int = Field(16, ge=1, le=MAX_COUNT, description="colours, materials and the like; one an item")
    num_user_types: int = Field(6, ge=1, le=100, description="users of a type share their taste")
    days: int = Field(90, ge=1, le=3650, description="length of the log, from 2024-01-01")
    min_sessions: int = Field(4, ge=1, le=MAX_COUNT, description="of a user")
    mean_sessions: float = Field(14, ge=1, description="of a user, before the cut at max_sessions")
    max_sessions: int = Field(60, ge=1, le=500)
    mean_views: float = Field(2, ge=1, description="of a session, before the cut at max_views")
    max_views: int = Field(8, ge=1, le=15)
    popularity_skew: float = Field(0.4, ge=0, le=2, description="Zipf exponent of the items of a category and level")
    category_decay: float = Field(0.5, gt=0, le=1, description="a type's next favourite category is so much rarer")
    level_loyalty: float = Field(0.9, ge=0, le=1, description="share of sessions at the type's own price level")
    complement_share: float = Field(0.6, ge=0, lt=1, description="share of sessions that follow from the one before")
    purchase_share: float = Field(0.75, gt=0, le=1, description="share of sessions that end with a purchase")
    purchase_noise: float = Field(0.05, gt=0, le=1, description="share of wanted items that ignore the intent")
    view_fit: float = Field(0.05, ge=0, lt=1, description="share of views that show the wanted item")
    view_noise: float = Field(0.25, gt=0, le=1, description="share of the other views that ignore the intent")
    level_drift: float = Field(0.6, ge=0, le=1, description="share of the other views at any price level")
    cart_share: float = Field(0.2, ge=0, le=1, description="share of sessions with something put into the cart")
    cart_fit: float = Field(0.5, ge=0, lt=1, description="share of carts that hold the wanted item")
    search_share: float = Field(0.3, ge=0, le=1, description="share of sessions, and so of purchases, with a search")
    two_word_share: float = Field(0.5, ge=0, le=1, description="share of searches with two keywords, not one")
    wrong_keyword_share: float = Field(0.1, gt=0, lt=1, description="share of keywords that do not fit the item")
    min_items_per_keyword: int = Field(20, ge=1, le=MAX_COUNT, description="every keyword fits at least so many items")

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Config:
        if self.num_items < self.num_categories * self.num_price_levels:
            raise ValueError(
                f"num_items ({self.num_items}) must give an item to each of num_categories x num_price_levels = "
                f"{self.num_categories * self.num_price_levels}"
            )
        if self.num_brands < self.num_price_levels:
            raise ValueError(f"num_brands ({self.num_brands}) is below num_price_levels ({self.num_price_levels})")
        if self.num_items < 4 * self.max_sessions:
            raise ValueError(
                f"num_items ({self.num_items}) must be at least 4 x max_sessions = {4 * self.max_sessions}: "
                "nobody buys an item twice"
            )
        fewest = self._fewest_items_of_a_keyword()
        if fewest < self.min_items_per_keyword:
            raise ValueError(
                f"a keyword would fit only {fewest} items, fewer than min_items_per_keyword "
                f"({self.min_items_per_keyword}): lower num_brands, num_styles or num_categories, or raise num_items"
            )
        return self

    @model_validator(mode="after")
    def _sessions_go_together(self) -> Config:
        if not self.min_sessions <= self.mean_sessions <= self.max_sessions:
            raise ValueError(
                f"min_sessions ({self.min_sessions}), mean_sessions ({self.mean_sessions}) and max_sessions "
                f"({self.max_sessions}) must stand in this order"
            )
        if self.mean_views > self.max_views:
            raise ValueError(f"mean_views ({self.mean_views}) is above max_views ({self.max_views})")
        needed_s = self.max_sessions * 2 * self.session_slot_s()
        if self.days * DAY_S < needed_s:
            raise ValueError(
                f"{self.max_sessions} sessions do not fit into {self.days} days: raise days to "
                f"{math.ceil(needed_s / DAY_S)} or lower max_sessions"
            )
        return self

    def _fewest_items_of_a_keyword(self) -> int:
        cell = self.num_items // (self.num_categories * self.num_price_levels)
        brands_of_level = math.ceil(self.num_brands / self.num_price_levels)
        return min(
            cell * self.num_price_levels,
            cell * self.num_categories // brands_of_level,
            self.num_items // self.num_styles,
        )

    def session_slot_s(self) -> int:
        """Seconds that the longest session and the pause after it may take."""
        return (self.max_views + 3) * MAX_GAP_S + SESSION_PAUSE_S

    @property
    def users_seed(self) -> int:
        """The seed of what users want and do."""
        return self.seed if self.store_seed is None else self.store_seed

    def event_names(self) -> tuple[str, ...]:
        return ("view", "cart", "purchase", "search")

    def open(self) -> Source:
        from distft.data.sources.synthetic.source import Synthetic

        return Synthetic(self)
