"""Reads and writes job files: YAML with line numbers, overrides, and every mistake at once.

Enters: a path or text, and ``key.path=value`` overrides. Leaves: a ``Job``, or one JobError that lists each
mistake as ``file:line:column: key: what was found, what was expected``, with the nearest valid name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from distft.component import Section
from distft.errors import JobError
from distft.job import Job
from distft.jobwords import Explanation, explain, masked, nearest, shown
from distft.jobyaml import NotYaml, Path, read_yaml
from distft.searchspace import search_mistakes

MAX_JOB_BYTES = 1 << 20
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
Line = tuple[tuple[bool, int, int], str]
"""A mistake as it is told, after what it is sorted by: the file's in their order, then those of the command line."""


@dataclass
class _Document:
    """The values of a job file, and the place of every key: its line and column, or the override that set it."""

    name: str
    values: dict[str, Any]
    places: dict[Path, tuple[int, int] | str] = field(default_factory=dict)

    def line(self, mistake: Explanation) -> Line:
        """The mistake at the place of its key, or of the nearest section around it."""
        path = mistake.path
        while path not in self.places and path:
            path = path[:-1]
        place = self.places.get(path, (1, 1))
        text = f"{'.'.join(map(str, mistake.path)) or 'job'}: {mistake.text}"
        if isinstance(place, str):
            return (True, 0, 0), f"{place}: {text}"
        return (False, *place), f"{self.name}:{place[0]}:{place[1]}: {text}"

    def mark(self, path: Path, override: str) -> None:
        """Notes that a key, with all below it, comes from an override."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = masked(override)


def load_job(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
    """The job in a file, with ``key.path=value`` overrides applied. Raises JobError."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_JOB_BYTES + 1)
    except FileNotFoundError as error:
        near = _nearest_file(name)
        raise JobError(f"{name}: there is no such job file." + (f" Did you mean {near}?" if near else "")) from error
    except OSError as error:
        raise JobError(f"{name}: the job file cannot be read: {error.strerror}.") from error
    return parse_job(_decode(data, name), name, overrides)


def parse_job(text: str, name: str = "job", overrides: Sequence[str] = ()) -> Job:
    """The job in a YAML text; ``name`` stands for the file in messages. Raises JobError."""
    document = _read(text, name)
    lines: list[Line] = [((True, 0, 0), problem) for override in overrides if (problem := _set(document, override))]
    try:
        job = Job.model_validate(document.values)
    except ValidationError as error:
        lines += map(document.line, explain(schema(), document.values, error.errors(include_url=False)))
    else:
        lines += [document.line(Explanation(*mistake)) for mistake in search_mistakes(job, schema())]
    if not lines:
        return job
    told = dict.fromkeys(line for _, line in sorted(lines))
    count = "1 mistake" if len(told) == 1 else f"{len(told)} mistakes"
    raise JobError("\n".join([f"{count} in {name}:", *told]))


def dump_job(job: Section) -> str:
    """The whole job, or a section of it, as YAML, defaults included: what goes into every artefact."""
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


def _decode(data: bytes, name: str) -> str:
    if data[:2] in UTF16_MARKS or b"\0" in (data[:1], data[1:2]):
        raise JobError(f"{name}: this is text in UTF-16, and a job is UTF-8: convert it (iconv -f UTF-16 -t UTF-8).")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: this is not a text file (byte {error.start} is not UTF-8); a job is YAML.") from error
    if len(data) > MAX_JOB_BYTES or "\0" in text:
        raise JobError(f"{name}: this is not a job file; a job is YAML text of at most 1 MiB.")
    return text


def _read(text: str, name: str) -> _Document:
    try:
        values, places = read_yaml(text)
    except NotYaml as error:
        where = f"{name}:{error.line}:{error.column}" if error.line else name
        raise JobError(f"{where}: this is not YAML that a job can hold: {error}.") from error
    if not isinstance(values, dict):
        raise JobError(f"{name}:1:1: a job is a mapping of keys (name, storage, data, ...), this file holds none.")
    return _Document(name, values, {**places})


def _nearest_file(name: str) -> str | None:
    """A job file beside the one that is not there; suffixes are left out, because they make all names alike."""
    folder = os.path.dirname(name)
    files = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    stems = {os.path.splitext(file)[0]: file for file in files if file.endswith((".yaml", ".yml"))}
    near = nearest(os.path.splitext(os.path.basename(name))[0], stems)
    return os.path.join(folder, stems[near]) if near else None


# -- overrides ---------------------------------------------------------------------------------------------


def _set(document: _Document, text: str) -> str | None:
    """Sets one ``key.path=value``; returns the mistake, if it is one."""
    shell_text, text = text, text.encode("utf-8", "replace").decode()
    place = f"--set {text}"
    if text != shell_text:
        return f"{place}: expected text in UTF-8."
    path_text, equals, value_text = text.partition("=")
    parts = path_text.split(".")
    if not equals or not all(parts):
        return f"{place}: expected key.path=value, for example train.epochs=3."
    try:
        value, _ = read_yaml(value_text)
    except NotYaml as error:
        return f"{place}: the value is not YAML: {error}."
    node: Any = document.values
    path: Path = ()
    for position, part in enumerate(parts):
        key = _key(node, part)
        if key is None:
            return f"{place}: {_unreachable(path, node, parts[position:], value_text)}"
        path = (*path, key)
        if position == len(parts) - 1 or (isinstance(node, dict) and key not in node):
            node[key] = value if position == len(parts) - 1 else {}
            document.mark(path, place)
        node = node[key]
    return None


def _key(node: Any, part: str) -> str | int | None:
    """The key or index that a part of a path is in this node; None where it leads nowhere."""
    if isinstance(node, dict):
        return part
    is_index = isinstance(node, list) and part.isascii() and part.isdigit() and len(part) < 10
    return int(part) if is_index and int(part) < len(node) else None


def _unreachable(path: Path, node: Any, rest: Sequence[str], value_text: str) -> str:
    key = ".".join(map(str, path))
    if isinstance(node, list):
        count = f"{len(node)} {'entry' if len(node) == 1 else 'entries'}"
        numbers = {0: "", 1: ", numbered 0"}.get(len(node), f", numbered 0 to {len(node) - 1}")
        return f"{key} is a list of {count}{numbers}, so it has no {rest[0]!r}."
    if node is None:
        section = value_text
        for part in reversed(rest):
            section = f"{{{part}: {section}}}"
        return f"{key} is null in the file, so it has no key {rest[0]!r}; write --set {key}={section}."
    return f"{key} is {shown(node)}, which is not a section, so it has no key {rest[0]!r}."
