"""Reads and writes job files: YAML with line numbers, overrides, and every mistake at once.

Enters: a path or text, and ``key.path=value`` overrides. Leaves: a ``Job``, or one JobError that lists each
mistake as ``file:line:column: key: what was found, what was expected``, with the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from distft.errors import JobError
from distft.job import Job

Place = tuple[str, int, int]
Path = tuple[str | int, ...]
MAX_JOB_BYTES = 1 << 20


@dataclass
class _Document:
    """The values of a job file, and the place of every key."""

    name: str
    values: dict[str, Any]
    places: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path) -> tuple[str, tuple[bool, int, int]]:
        """``file:line:column`` of the key, or of the nearest section around it; and its rank for sorting."""
        while path not in self.places and path:
            path = path[:-1]
        file, line, column = self.places.get(path, (self.name, 1, 1))
        return (f"{file}:{line}:{column}" if line else file), (not line, line, column)


def load_job(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
    """The job in a file, with ``key.path=value`` overrides applied. Raises JobError."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_JOB_BYTES + 1)
    except FileNotFoundError as error:
        near = _nearest(os.path.basename(name), _listing(os.path.dirname(name) or "."))
        hint = f" Did you mean {os.path.join(os.path.dirname(name), near)}?" if near else ""
        raise JobError(f"{name}: there is no such job file.{hint}") from error
    except OSError as error:
        raise JobError(f"{name}: the job file cannot be read: {error.strerror}.") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: this is not a text file (byte {error.start} is not UTF-8); a job is YAML.") from error
    if len(data) > MAX_JOB_BYTES or "\0" in text:
        raise JobError(f"{name}: this is not a job file; a job is YAML text of at most 1 MiB.")
    return parse_job(text, name, overrides)


def parse_job(text: str, name: str = "job", overrides: Sequence[str] = ()) -> Job:
    """The job in a YAML text; ``name`` stands for the file in messages. Raises JobError."""
    document = _read(text, name)
    mistakes = [problem for override in overrides if (problem := _override(document, override))]
    if mistakes:
        raise JobError("\n".join(mistakes))
    try:
        return Job.model_validate(document.values)
    except ValidationError as error:
        raise JobError(_report(document, error.errors(include_url=False))) from None


def dump_job(job: Job) -> str:
    """The whole job as YAML, defaults included: what goes into every artefact."""
    stream = StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(json.loads(job.model_dump_json(by_alias=True)), stream)
    return stream.getvalue()


def schema() -> dict[str, Any]:
    """JSON Schema of the job file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema(by_alias=True)}


# -- reading -----------------------------------------------------------------------------------------------


def _read(text: str, name: str) -> _Document:
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise JobError(f"{where}: this is not YAML: {str(error.problem).splitlines()[0]}.") from error
    except YAMLError as error:
        raise JobError(f"{name}: this is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, CommentedMap):
        raise JobError(f"{name}:1:1: a job is a mapping of keys (name, storage, data, ...), this file holds none.")
    document = _Document(name, {})
    document.values = _plain(tree, document, ())
    return document


def _plain(node: Any, document: _Document, path: Path) -> Any:
    """The node as plain Python values; notes the place of every key on the way."""
    if isinstance(node, CommentedMap):
        for key in node:
            line, column = node.lc.key(key) if key in (node.lc.data or {}) else (0, 0)
            document.places[(*path, str(key))] = (document.name, line + 1, column + 1)
        return {str(key): _plain(value, document, (*path, str(key))) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            line, column = node.lc.item(index) if index in (node.lc.data or {}) else (0, 0)
            document.places[(*path, index)] = (document.name, line + 1, column + 1)
        return [_plain(value, document, (*path, index)) for index, value in enumerate(node)]
    if isinstance(node, str):
        return str(node)
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, int):
        return int(node)
    return float(node) if isinstance(node, float) else node


def _override(document: _Document, text: str) -> str | None:
    """Sets one ``key.path=value``; returns the mistake, if it is one."""
    path_text, equals, value_text = text.partition("=")
    place = f"--set {text}"
    if not equals or not path_text:
        return f"{place}: expected key.path=value, for example train.epochs=3."
    try:
        value = _plain(YAML(typ="rt").load(value_text), _Document(place, {}), ())
    except YAMLError as error:
        return f"{place}: the value is not YAML: {str(error).splitlines()[0]}."
    path: list[str | int] = []
    node: Any = document.values
    *parents, last = (int(part) if part.isdigit() else part for part in path_text.split("."))
    for part in parents:
        path.append(part)
        if isinstance(node, dict):
            node = node.setdefault(str(part), {})
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return f"{place}: {'.'.join(map(str, path))} is not in the job."
    if isinstance(node, list) and isinstance(last, int) and last < len(node):
        node[last] = value
    elif isinstance(node, dict):
        node[str(last)] = value
    else:
        return f"{place}: {'.'.join(map(str, path)) or 'the job'} is not a section, so it has no key {last!r}."
    _mark(document, (*path, last), place)
    return None


def _mark(document: _Document, path: Path, place: str) -> None:
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = (place, 0, 0)


# -- explaining --------------------------------------------------------------------------------------------


def _report(document: _Document, details: Sequence[ErrorDetails]) -> str:
    """All mistakes, in the order of the file, those of the command line last."""
    # A list whose items are all wrong is also "too short" to pydantic: only the items are the user's mistake.
    inner = {detail["loc"][:-1] for detail in details} | {
        detail["loc"][:2] for detail in details if len(detail["loc"]) > 2
    }
    real = [detail for detail in details if not (detail["type"] == "too_short" and detail["loc"] in inner)]
    lines = dict.fromkeys(line for _, line in sorted(_explain(document, detail) for detail in real))
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"{count} in {document.name}:", *lines])


def _explain(document: _Document, detail: ErrorDetails) -> tuple[tuple[bool, int, int], str]:
    path, valid = _walk(document.values, detail["loc"])
    key = ".".join(map(str, path)) or "job"
    place, order = document.place(path)
    return order, f"{place}: {key}: {_problem(detail, str(path[-1]) if path else '', valid)}"


def _problem(detail: ErrorDetails, name: str, valid: list[str]) -> str:
    if detail["type"] == "extra_forbidden":
        near = _nearest(name, valid)
        hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(sorted(valid))}."
        return f"there is no such key; {hint}"
    if detail["type"] == "missing":
        return "this key is needed and missing."
    value, context = detail["input"], detail.get("ctx", {})
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    options = str(context.get("expected") or context.get("expected_tags") or "")
    if "expected_tags" in context:
        value, message = context["tag"], f"expected {options}"
    near = _nearest(str(value), [part.strip(" '") for part in options.replace(" or ", ",").split(",")])
    shown = "" if isinstance(value, Mapping | list | tuple) else f"{value!r}: "
    return f"{shown}{message[0].lower()}{message[1:]}." + (f" Did you mean {near!r}?" if near else "")


def _walk(values: Any, loc: tuple[str | int, ...]) -> tuple[Path, list[str]]:
    """The error's path in the file, without pydantic's union tags, and the keys that are valid beside its last."""
    path: list[str | int] = []
    document = schema()
    node: Any = document
    node_values = values
    for position, part in enumerate(loc):
        node = _resolve(document, node, node_values)
        properties = node.get("properties", {})
        last = position == len(loc) - 1
        if part in properties or last or isinstance(part, int) or "additionalProperties" in node:
            if isinstance(part, str) and part not in properties and not last and _is_tag(node_values, part):
                continue
            if last and _is_tag(node_values, part):
                return tuple(path), list(properties)
            path.append(part)
            valid = list(properties)
            node = properties.get(part, node.get("items", node.get("additionalProperties", {})))
            node_values = _child(node_values, part)
    return tuple(path), valid if loc else []


def _is_tag(values: Any, part: str | int) -> bool:
    """True for the part of a location that pydantic adds for the chosen member of a union."""
    if isinstance(values, Mapping):
        return part not in values and part in (values.get("kind"), values.get("source"), values.get("by"))
    return not isinstance(values, list) and isinstance(part, str)


def _child(values: Any, part: str | int) -> Any:
    if isinstance(values, Mapping):
        return values.get(part)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return None


def _resolve(document: dict[str, Any], node: Any, values: Any) -> dict[str, Any]:
    """The schema of the section that the values choose, without references and unions."""
    while isinstance(node, dict):
        if "$ref" in node:
            node = document["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "discriminator" in node and isinstance(values, Mapping):
            mapping, tag = node["discriminator"]["mapping"], node["discriminator"]["propertyName"]
            chosen = mapping.get(values.get(tag)) or next(iter(mapping.values()))
            node = {"$ref": chosen}
        elif "anyOf" in node or "allOf" in node:
            options = node.get("anyOf") or node["allOf"]
            node = next((option for option in options if "$ref" in option or option.get("type") == "array"), options[0])
        else:
            return node
    return {}


def _nearest(name: str, names: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _listing(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
