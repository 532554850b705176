"""Keys of ``source: movielens``: the three layouts in which MovieLens is passed around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distft.component import SourceConfig

if TYPE_CHECKING:
    from distft.data.sources.base import Source


class Config(SourceConfig):
    """Ratings as events; the movies and users beside them as features."""

    source: Literal["movielens"] = "movielens"
    path: str = Field(
        min_length=1,
        description="ratings.dat (raw), ml-100k.inter (typed header), or a 'user item' file in time order",
    )

    def event_names(self) -> tuple[str, ...]:
        return ("rating",)

    def open(self) -> Source:
        from distft.data.sources.movielens.source import MovieLens

        return MovieLens(self)
