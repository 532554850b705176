"""Says what is wrong with a job, in the words of YAML: whole numbers, texts, lists and sections.

Enters: the errors of pydantic, the values and the job's JSON Schema. Leaves: for each mistake the path of the key
in the file and a sentence: the value that was found, what was expected, the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import ErrorDetails

from distft.component import KeyMistakes

Path = tuple[str | int, ...]
MAX_SHOWN = 80
NUMBER = r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?"

SECTION = "expected a section of keys (key: value)"
EXPECTED = {
    "int": "expected a whole number",
    "float": "expected a number",
    "finite_number": "expected a finite number",
    "bool": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected a text that is not empty",
    "tuple_type": "expected a list, such as [a, b]",
    "dict_type": SECTION,
    "model_type": SECTION,
    "model_attributes_type": SECTION,
    "greater_than_equal": "expected at least {ge}",
    "greater_than": "expected more than {gt}",
    "less_than_equal": "expected at most {le}",
    "less_than": "expected less than {lt}",
    "string_too_long": "expected a text of at most {max_length} characters",
    "too_short": "expected a list of at least {min_length} entries",
    "too_long": "expected a list of at most {max_length} entries",
    "literal_error": "expected {expected}",
}
"""What was expected, by the type of pydantic's error, or by its first word."""


class Explanation(NamedTuple):
    """One mistake: the key's path in the file, and the sentence."""

    path: Path
    text: str


class _Spot(NamedTuple):
    """Where an error is: the path in the file, the schema of the section around it, and its own."""

    path: Path
    section: dict[str, Any]
    schema: dict[str, Any]


def explain(root: dict[str, Any], values: Any, details: Sequence[ErrorDetails]) -> Iterator[Explanation]:
    """Every mistake once, with its path and its sentence."""
    for detail in details:
        # A list whose items are all wrong is also "too short" to pydantic: only the items are the user's mistake.
        loc = detail["loc"]
        if detail["type"] != "too_short" or not any(
            other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in details
        ):
            yield from _explain(_walk(root, loc), values, detail)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def shown(value: Any) -> str:
    """A value as it stands in YAML; "" for a section and for what would not fit into a message."""
    if isinstance(value, str):
        value = masked(value)
        return repr(value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 3] + "...")
    if isinstance(value, list | tuple):
        flow = f"[{', '.join(shown(item) for item in value)}]"
        return flow if len(flow) <= MAX_SHOWN and not any(isinstance(item, Mapping) for item in value) else ""
    if isinstance(value, float):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return "" if isinstance(value, Mapping) else json.dumps(value, default=str)


def masked(text: str) -> str:
    """The text without the passwords that a URI in it may hold: a message ends up in logs."""
    return re.sub(
        r"(?i)((?:password|passwd|token|secret|key)[a-z_]*=)[^&\s]+", r"\1…", re.sub(r"://\S*@", "://…@", text)
    )


def _explain(spot: _Spot, values: Any, detail: ErrorDetails) -> Iterator[Explanation]:
    kind = detail["type"]
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, KeyMistakes):
        for below, text in error.mistakes:
            yield _with_value((*spot.path, *below), values, text)
    elif kind.startswith("union_tag"):
        yield _tag(spot, values, detail)
    elif kind == "extra_forbidden" or detail["loc"][-1:] == ("[key]",):
        known = list(spot.section.get("properties", {})) or _options(detail)
        yield Explanation(spot.path, _no_such_key(str(spot.path[-1]), known))
    elif kind == "missing" and isinstance(spot.path[-1], int):
        yield _length(spot.path[:-1], spot.section, values)
    elif kind == "too_long" and "prefixItems" in spot.schema:
        yield _length(spot.path, spot.schema, values)
    elif kind == "missing":
        yield Explanation(spot.path, "this key is needed and missing.")
    else:
        yield _with_value(spot.path, values, _expected(detail))


def _with_value(path: Path, values: Any, text: str) -> Explanation:
    found = values
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            return Explanation(path, _sentence(text))
    value = shown(found)
    return Explanation(path, _sentence(f"{value}: {text}" if value else text))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def _no_such_key(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(sorted(known))}."
    return f"there is no such key; {hint}"


def _length(path: Path, schema: dict[str, Any], values: Any) -> Explanation:
    return _with_value(path, values, f"expected a list of {schema.get('maxItems')} entries")


def _tag(spot: _Spot, values: Any, detail: ErrorDetails) -> Explanation:
    """A section that does not say, or says wrongly, which of several it is: the mistake is at the key that says it."""
    name = detail["ctx"]["discriminator"].strip("'")
    tags = sorted(spot.schema.get("discriminator", {}).get("mapping", {}))
    expected = f"expected {', '.join(map(repr, tags[:-1]))} or {tags[-1]!r}"
    if detail["type"] == "union_tag_invalid":
        near = nearest(str(detail["ctx"]["tag"]), tags)
        hint = f". Did you mean {near!r}?" if near else ""
        return _with_value((*spot.path, name), values, expected + hint)
    near = nearest(name, [key for key in detail["input"] if isinstance(key, str)])
    if near:
        return Explanation(
            (*spot.path, near), f"there is no such key; did you mean {name!r}? It is missing: {expected}."
        )
    return Explanation((*spot.path, name), f"this key is needed and missing: {expected}.")


def _expected(detail: ErrorDetails) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    words = EXPECTED.get(kind) or EXPECTED.get(kind.split("_")[0])
    if words is None:
        message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        return message[0].lower() + message[1:]
    words = words.format_map({name: _plain(bound) for name, bound in context.items()})
    words = re.sub(r"\b1 (entrie|character)s", lambda found: "1 " + found[1].replace("entrie", "entry"), words)
    if kind.startswith(("int", "float")) and isinstance(value, str) and re.fullmatch(NUMBER, value):
        return f"{words}; remove the quotes"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{words}; put it in quotes"
    near = nearest(str(value), _options(detail)) if kind == "literal_error" else None
    return f"{words}. Did you mean {near!r}?" if near else words


def _plain(bound: Any) -> Any:
    """A bound as people write it: 0, not 0.0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _options(detail: ErrorDetails) -> list[str]:
    """The names that pydantic lists as ``'a', 'b' or 'c'``."""
    listed = str(detail.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in listed.replace(" or ", ",").split(",")]


def _walk(root: dict[str, Any], loc: Path) -> _Spot:
    """Where the error is, by the job's schema; a union's tag, which pydantic puts into the location, is left out."""
    path: list[str | int] = []
    section: dict[str, Any] = {}
    node = _resolve(root, root)
    for part in loc[:-1] if loc[-1:] == ("[key]",) else loc:
        if "discriminator" in node:
            node = _resolve(root, {"$ref": node["discriminator"]["mapping"][part]})
            continue
        path.append(part)
        section = node
        inside = node.get("items", node.get("additionalProperties", {}))
        node = _resolve(root, node.get("properties", {}).get(part, inside))
    return _Spot(tuple(path), section, node)


def _resolve(root: dict[str, Any], node: Any) -> dict[str, Any]:
    """The schema without references and without the null of an optional key."""
    while isinstance(node, dict):
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((option for option in node["anyOf"] if "$ref" in option), node["anyOf"][0])
        else:
            return node
    return {}
