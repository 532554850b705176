"""The route of the catalogue: which items there are, for whoever shows them.

Enters: ``GET /v1/items`` with a query string. Leaves: a page of the items that the served model knows. Surprising
choice: a query string is read as strictly as a body, by a type that makes its description too: a parameter that does
not exist, or stands twice where one is meant, is a mistake of the client's and is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, get_origin

from fastapi import FastAPI, Request
from pydantic import BaseModel, BeforeValidator, Field

from distft.serve.itemsearch import FeatureValue, ItemPage, ItemQuery
from distft.serve.problems import FieldError, Problem, responses
from distft.serve.requests import Body, Text, checked

MAX_OFFSET = 1_000_000_000
MAX_LIMIT = 100
MAX_ITEM_IDS = 100
MAX_FILTERS = 100
MAX_VALUES = 100

_DIGITS = re.compile(r"[0-9]{1,12}", re.ASCII)


def _number(text: Any) -> Any:
    if not (isinstance(text, str) and _DIGITS.fullmatch(text)):
        raise ValueError("Expected a whole number")
    return int(text)


Count = Annotated[int, BeforeValidator(_number)]


class ItemsRequest(Body):
    """Which of the items are wanted: the parameters of the query string."""

    q: Text = Field(
        "", description="words; each of the first eight begins a word of the item's id, texts or categories"
    )
    filter: list[Text] = Field(
        default_factory=list,
        max_length=MAX_FILTERS,
        description="NAME:VALUE with a feature that GET /v1/model lists under 'filters'; an item has one of the values "
        "of each feature",
        examples=[["category:kitchen", "category:garden"]],
    )
    item_id: list[Text] = Field(
        default_factory=list, max_length=MAX_ITEM_IDS, description="only these items, in this order"
    )
    offset: Count = Field(0, ge=0, le=MAX_OFFSET, description="leave out so many of the items that were found")
    limit: Count = Field(20, ge=1, le=MAX_LIMIT, description="items wanted")
    values: Count = Field(
        0, ge=0, le=MAX_VALUES, description="tell so many values of each feature that filters, and of how many items"
    )

    def query(self) -> ItemQuery:
        """What the model's catalogue is asked."""
        return ItemQuery(
            self.q or None, tuple(self.filter), tuple(self.item_id), self.offset, self.limit, num_values=self.values
        )


class ListedItem(BaseModel):
    """One item, as the model was told of it."""

    item_id: str
    title: str | None = None
    features: dict[str, FeatureValue] = Field(description="categories, numbers in the shop's unit, texts")


class ListedValue(BaseModel):
    """One value of a feature."""

    value: str
    num_items: int


class ItemsResponse(BaseModel):
    """A page of the items that were found, the most popular first."""

    items: list[ListedItem]
    num_found: int = Field(description="items that were found, on all pages")
    values: dict[str, list[ListedValue]] = Field(
        description="of each feature, the most frequent values among what would be found without its own filter"
    )
    model_version: str

    @classmethod
    def of(cls, page: ItemPage) -> ItemsResponse:
        """The page in the words of the API."""
        return cls(
            items=[ListedItem(item_id=one.item_id, title=one.title, features=one.features) for one in page.items],
            num_found=page.num_found,
            values={
                name: [ListedValue(value=value, num_items=count) for value, count in counted]
                for name, counted in page.values.items()
            },
            model_version=page.model_version,
        )


class Catalogue(Protocol):
    """What knows the items."""

    async def items(self, query: ItemQuery) -> ItemPage:
        """The items that the query finds. Raises Problem 422 for a filter that is none."""


def add_items(api: FastAPI, catalogue: Catalogue) -> None:
    """Adds the route."""

    @api.get(
        "/v1/items",
        tags=["model"],
        summary="The items that the model knows",
        responses=responses(401, 422, 429, 503),
        response_model_exclude_none=True,
        openapi_extra={"parameters": _parameters()},
    )
    async def items(request: Request) -> ItemsResponse:
        """A page of the catalogue, the most popular items first; what the deny-list names is left out."""
        wanted = read_parameters(request.query_params.multi_items())
        return ItemsResponse.of(await catalogue.items(wanted.query()))


def read_parameters(pairs: Sequence[tuple[str, str]]) -> ItemsRequest:
    """The request in a query string. Raises Problem 422 naming each parameter that is wrong."""
    value: dict[str, Any] = {}
    for name, text in pairs:
        field = ItemsRequest.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is list:
            value.setdefault(name, []).append(text)
        elif name in value:
            raise Problem(422, "The request is not valid.", [FieldError(name or "(no name)", "stands twice")])
        else:
            value[name] = text
    return checked(value, ItemsRequest)


def _parameters() -> list[dict[str, Any]]:
    """The parameters as OpenAPI describes them; a list is one that stands once for each of its values."""
    described = ItemsRequest.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in described.items()
    ]
