"""What the API server does with an object of a custom resource: defaults, pruning, the schema, and CEL rules.

Enters: a CustomResourceDefinition and an object. Leaves: what the server would refuse. Surprising choice: unknown
fields are refused, where a server with its default settings would drop them in silence: a misspelt limit is no limit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import celpy

Schema = dict[str, Any]

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def refusals(definition: Schema, value: Any) -> list[str]:
    """Why a server would refuse the object; empty where it would not."""
    (version,) = [one for one in definition["spec"]["versions"] if one["storage"]]
    schema = version["schema"]["openAPIV3Schema"]
    value = copy.deepcopy(value)
    _prune_nulls(value, schema)
    _default(value, schema)
    return [*_errors(value, schema, ""), *_broken_rules(value, schema, "")]


def _children(value: Any, schema: Schema) -> Iterator[tuple[str, Any, Schema]]:
    """(place, child, its schema) of every child that has a schema."""
    if isinstance(value, dict):
        for key, child in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield f".{key}", child, inner
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value):
            yield f"[{index}]", child, schema["items"]


def _prune_nulls(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key in value and value[key] is None and not inner.get("nullable"):
                del value[key]
    for _, child, inner in _children(value, schema):
        _prune_nulls(child, inner)


def _default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
    for _, child, inner in _children(value, schema):
        _default(child, inner)


def _errors(value: Any, schema: Schema, place: str) -> Iterator[str]:
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            yield f"{place}: expected a number or a string, not {value!r}"
        elif isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{place}: {value!r} does not match {schema['pattern']}"
        return
    wanted = TYPES.get(schema.get("type", ""))
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        yield f"{place}: expected {schema['type']}, not {value!r}"
        return
    yield from _bounds(value, schema, place)
    if isinstance(value, dict):
        yield from (f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value)
        open_ = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        # Only what the schema describes: `metadata: {type: object}` is checked as a core type, not here.
        if not open_ and "properties" in schema and place:
            yield from (f"{place}: unknown field {key}" for key in value if key not in schema["properties"])
    for where, child, inner in _children(value, schema):
        yield from _errors(child, inner, place + where)


def _bounds(value: Any, schema: Schema, place: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{place}: {value} is below {schema['minimum']}"
    if len(value) > schema.get("maxLength", len(value)) if isinstance(value, str) else False:
        yield f"{place}: longer than {schema['maxLength']} characters"
    if isinstance(value, (str, list)) and len(value) < max(schema.get("minLength", 0), schema.get("minItems", 0)):
        yield f"{place}: too short"
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys and isinstance(value, list):
        found = [tuple(one.get(key) for key in keys) for one in value if isinstance(one, dict)]
        yield from (f"{place}: {one} occurs more than once" for one in set(found) if found.count(one) > 1)


def _broken_rules(value: Any, schema: Schema, place: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"]:  # of a change: there is none
            continue
        if not _program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
            yield f"{place}: {rule['message']}"
    for where, child, inner in _children(value, schema):
        yield from _broken_rules(child, inner, place + where)


@lru_cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
