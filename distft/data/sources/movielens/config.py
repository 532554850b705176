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

    ids: Literal["number", "title"] = Field(
        "number", description="what an item is known by: MovieLens's own number, or the movie's title with its year, "
        "which other editions of MovieLens share",
    )  # fmt: skip
    clock: bool = Field(True, description="false: times only order the ratings, as in an edition that tells none")

    def event_names(self) -> tuple[str, ...]:
        return ("rating",)

    def open(self) -> Source:
        from distft.data.sources.movielens.source import MovieLens

        return MovieLens(self)
