from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft.errors import ServingError
from distft.serve.items import ItemsRequest
from distft.serve.predictor import Predictor
from tests.serve.test_api import Client, InProcess


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Client:
    return Client(InProcess(predictor))


def test_a_page_of_the_catalogue(client: Client, predictor: Predictor) -> None:
    response = client("GET", "/v1/items?limit=3&offset=10&values=2")
    body = response.json()
    assert response.status_code == 200 and body["model_version"] == predictor.version
    assert [item["item_id"] for item in body["items"]] == ["i10", "i11", "i12"] and body["num_found"] == 60
    assert set(body["items"][0]) == {"item_id", "features"}, "no title is left out, not null"
    assert set(body["items"][0]["features"]) == {"category", "price"}
    assert [set(value) for value in body["values"]["category"]] == [{"value", "num_items"}] * 2


def test_what_is_found_is_what_can_be_recommended(client: Client) -> None:
    listed = client("GET", "/v1/items?filter=category:toys&filter=category:garden&limit=100").json()
    wanted = {"category": ["toys", "garden"]}
    recommended = client.recommend(k=50, filter=wanted).json()["items"]
    assert {item["item_id"] for item in recommended} == {item["item_id"] for item in listed["items"]}


def test_items_are_told_by_their_ids(client: Client) -> None:
    found = client("GET", "/v1/items", params={"item_id": ["i7", "i3", "no such"], "limit": 100}).json()
    assert [item["item_id"] for item in found["items"]] == ["i7", "i3"]
    assert [item["item_id"] for item in client("GET", "/v1/items?q=I59").json()["items"]] == ["i59"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=1_0", "limit"),
        ("limit=+5", "limit"),
        ("limit=", "limit"),
        ("limit=٣", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=5&limit=6", "limit"),
        ("offset=-1", "offset"),
        ("offset=1000000001", "offset"),
        ("values=101", "values"),
        ("q=", "q"),
        ("q=" + "x" * 1001, "q"),
        ("filter=category:toys&filter=colour:red", "filter.1"),
        ("filter=", "filter.0"),
        ("&".join(["item_id=i1"] * 101), "item_id"),
        ("page=2", "page"),
        ("%00=1", "\0"),
    ],
)
def test_what_is_wrong_is_named(client: Client, query: str, field: str) -> None:
    response = client("GET", f"/v1/items?{query}")
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["field"] == field


def test_a_model_that_does_not_answer_is_told(client: Client, predictor: Predictor) -> None:
    backend = InProcess(predictor)
    backend.failure = ServingError("The model is not available")
    assert Client(backend)("GET", "/v1/items").status_code == 503


def test_the_description_is_that_of_the_type(client: Client) -> None:
    described = client("GET", "/openapi.json").json()["paths"]["/v1/items"]["get"]["parameters"]
    assert {one["name"] for one in described} == set(ItemsRequest.model_fields)
    by_name = {one["name"]: one for one in described}
    assert by_name["limit"]["schema"] == {
        "default": 20, "maximum": 100, "minimum": 1, "title": "Limit", "type": "integer",
    }  # fmt: skip
    assert by_name["filter"]["schema"]["type"] == "array" and all(one["description"] for one in described)


_names = st.sampled_from([*ItemsRequest.model_fields, "page", ""]) | st.text(max_size=4)
_values = st.one_of(
    st.text(max_size=20),
    st.integers(-5, 10**13).map(str),
    st.sampled_from(["category:toys", "category:", "price:1", "i1", "toys"]),
    st.binary(max_size=8),
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pairs=st.lists(st.tuples(_names, _values), max_size=6))
def test_no_query_string_breaks_it(client: Client, pairs: list[tuple[str, Any]]) -> None:
    response = client("GET", f"/v1/items?{urlencode(pairs, errors='surrogatepass')}")
    assert response.status_code in (200, 422), response.text
    assert response.status_code == 200 or response.json()["errors"][0]["field"] is not None


def test_a_parameter_without_a_name_is_named_all_the_same(client: Client) -> None:
    answer = client("GET", "/v1/items?=1&=2")
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "(no name)"
