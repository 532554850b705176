"""Keys of ``model: {kind: mlp}``: hidden layers over a user's bags and one candidate item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from distft.component import ModelConfig

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(ModelConfig):
    """The textbook recommender: purchase history, browsing record, search keywords and user features → score."""

    kind: Literal["mlp"] = "mlp"
    retrieval: ClassVar[Literal["dot", "pair"]] = "pair"
    uses_users: ClassVar[bool] = True
    dim: int = Field(32, ge=1, le=16_384, description="width of the embeddings")
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (128, 64), min_length=1, max_length=32, description="widths of the hidden layers, with ReLU between them"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="after every hidden layer")
    item_features: bool = Field(True, description="add embeddings of the items' categories and numbers")

    def build(self, catalog: Catalog) -> Model:
        from distft.models.mlp.model import MLP

        return MLP(self, catalog)
