"""Reads YAML into plain values and keeps the place of every key: all that a message about a job file needs.

Enters: a text. Leaves: its values, and the line and column of each key and list entry; or NotYaml, in words.
Surprising choice: the values are made here from YAML's nodes. So a date stays the text that was written, ``1e6``
is a whole number, a key that stands twice is told with both lines, and a text of a hundred characters cannot
unfold into a billion values.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Path = tuple[str | int, ...]
Places = dict[Path, tuple[int, int]]

MAX_DEPTH = 100
MAX_VALUES = 100_000
MAX_DIGITS = 400
TAG = "tag:yaml.org,2002:"
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MAX_WHOLE = 1e100
"""Above it a number with an exponent stays a float, so that ten letters do not become a number of a gigabyte."""

PROBLEMS = (
    (r"found character '\\t'", "there is a tab; tabs are not allowed for indentation, use spaces"),
    (r"found another document", "a second document starts here; a job file holds one: remove the '---' or '...'"),
    (r"mapping values are not allowed", "a key cannot stand here; keys of one section start in one column, and a text "
     "with ': ' in it needs quotes"),
    (r"expected the node content, but found '<stream end>'", "it ends where a value is expected"),
    (r"expected the node content, but found (.*)", r"a value is expected where \1 stands"),
    (r"expected (',' or '[\]}]'), but got '<stream end>'", r"it ends where \1 is expected"),
    (r"expected (',' or '[\]}]'), but got (.*)", r"\1 is expected where \2 stands"),
    (r"expected <block end>", "this line does not belong to the list or section above it: check its indentation"),
    (r"unexpected end of stream", "a quote is opened and never closed"),
    (r"could not find expected ':'", "a key needs ': ' and a value after it"),
    (r"found character ('.+') that cannot start", r"a text that starts with \1 needs quotes"),
    (r"found undefined alias (.*)", r"there is no anchor &name for the alias \1"),
)  # fmt: skip
"""What the parser says, and what it means to who wrote the file."""


class NotYaml(ValueError):
    """The text cannot be read; ``line`` and ``column`` count from 1, and are 0 where they are not known."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def read_yaml(text: str) -> tuple[Any, Places]:
    """The values of a YAML text and the places of its keys and entries. Raises NotYaml."""
    builder = _Builder()
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        return (None if node is None else builder.build(node, ())), builder.places
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(_in_words(str(error.problem)), *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except ReaderError as error:
        at = error.position
        message = f"the character U+{ord(text[at]):04X} cannot stand in YAML: remove it"
        raise NotYaml(message, text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)) from error
    except YAMLError as error:
        raise NotYaml(str(error).splitlines()[0]) from error
    except RecursionError as error:  # the parser's own, which comes before the builder's count
        raise NotYaml(f"it is nested more than {MAX_DEPTH} levels deep") from error


def _in_words(problem: str) -> str:
    for pattern, words in PROBLEMS:
        found = re.search(pattern, problem)
        if found:
            return found.expand(words)
    return problem.splitlines()[0]


class _Builder:
    """Makes values of nodes; counts them, because an alias can repeat its anchor's without end."""

    def __init__(self) -> None:
        self.places: Places = {}
        self.num_values = 0

    def build(self, node: Node, path: Path) -> Any:
        """The node's value; notes the places below it."""
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise _refusal(node, f"it holds more than {MAX_VALUES:,} values once its aliases are written out")
        if len(path) > MAX_DEPTH:
            raise _refusal(node, f"it is nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, MappingNode) and node.tag == TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == TAG + "seq":
            return [self._child(child, child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return _scalar(node)
        raise _unknown_tag(node)

    def _child(self, at: Node, node: Node, path: Path) -> Any:
        self.places[path] = _mark(at)
        return self.build(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == TAG + "merge":
                merged = {**self._merge(value, path), **merged}
        lines: dict[str, int] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == TAG + "merge":
                continue
            if not isinstance(key, ScalarNode):
                raise _refusal(key, "a key is a text, this one is a list or a section")
            name = _text(key)
            if name in own:
                raise _refusal(key, f"the key {name!r} stands twice, first on line {lines[name]}")
            lines[name] = _mark(key)[0]
            own[name] = self._child(key, value, (*path, name))
        return {**merged, **own}

    def _merge(self, node: Node, path: Path) -> dict[str, Any]:
        """What ``<<: *base`` or ``<<: [*one, *two]`` brings in; the first that has a key wins."""
        found: dict[str, Any] = {}
        for base in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(base, MappingNode):
                raise _refusal(node, "'<<' takes a section, such as the alias *base, or a list of them")
            found = {**self.build(base, path), **found}
        return found


def _scalar(node: ScalarNode) -> Any:
    kind = str(node.tag).removeprefix(TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return BOOLEANS.get(node.value.lower(), node.value)
    if kind in ("int", "float"):
        return _number(node.value)
    if kind in ("str", "timestamp", "value", "merge"):
        return _text(node)
    raise _unknown_tag(node)


def _text(node: ScalarNode) -> str:
    """The text, with characters that JSON writes as two halves made whole."""
    try:
        return str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise _refusal(node, "there is half of a character (\\ud800 to \\udfff)") from error


def _number(text: str) -> Any:
    """The number, or the text where it is none after all; ``1e6`` is a whole number, as people mean it."""
    plain = text.replace("_", "").lower()
    if len(plain) > MAX_DIGITS:
        return text
    try:
        if plain.lstrip("+-")[:2] in ("0x", "0o", "0b"):
            return int(plain, 0)
        if re.fullmatch(r"[-+]?[0-9]+", plain):
            return int(plain)
        value = float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    if "e" in plain and 0 < abs(value) < MAX_WHOLE and value.is_integer() and Decimal(plain) == int(Decimal(plain)):
        return int(Decimal(plain))
    return value


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _unknown_tag(node: Node) -> NotYaml:
    tag = str(node.tag).replace(TAG, "!!")
    return _refusal(node, f"the tag {tag} is not known here; a job holds texts, numbers, lists and sections")


def _refusal(node: Node, message: str) -> NotYaml:
    return NotYaml(message, *_mark(node))
