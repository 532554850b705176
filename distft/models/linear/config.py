"""Keys of ``model: {kind: linear}``: a regression on what is known of user and item, without any product of the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from distft.component import ModelConfig

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(ModelConfig):
    """Logistic regression with the loss bce, linear regression with mse: what more complicated models must beat."""

    kind: Literal["linear"] = "linear"
    retrieval: ClassVar[Literal["dot", "pair"]] = "pair"
    uses_users: ClassVar[bool] = True

    def build(self, catalog: Catalog) -> Model:
        from distft.models.linear.model import Linear

        return Linear(self, catalog)
