"""Which parameters of a model train: layer groups, a number of layers, or a regular expression → names, and a table.

Enters: a model with its named layer groups (``Model.layer_groups``) and the words of a job. Leaves: the names of the
parameters that the words mean, and the table that a person is shown. Surprising choice: what fine-tuning adds to a
layer (new rows, adapters) belongs to its group and is never frozen: it was made to train.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from distft.errors import UsageError
from distft.models.adapters import ADDED
from distft.models.base import Model
from distft.sections.train import Train

_FIRST = re.compile(r"first +([0-9]+)$")
_RANGE = re.compile(r"(.+)\.([0-9]+)-([0-9]+)$")
MOMENT_BYTES = 4


def names_by_group(model: Model) -> dict[str, list[str]]:
    """Layer group → names of its parameters, from input to output."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group: [names[id(one)] for one in members] for group, members in model.layer_groups().items()}


def selected(words: Iterable[str], key: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """Names of the parameters that the ``words`` of the job's key mean. Raises UsageError for one that means none."""
    return {name for word in words for name in _meant(word, key, groups)}


def _meant(word: str, key: str, groups: Mapping[str, Sequence[str]]) -> Iterable[str]:
    if len(word) > 1 and word.startswith("/") and word.endswith("/"):
        return _matching(word, key, groups)
    if first := _FIRST.match(word):
        if not 1 <= int(first[1]) <= len(groups):
            raise _nothing(word, key, f"1 to {len(groups)} layer groups: {', '.join(groups)}", "Correct the number.")
        chosen = list(groups)[: int(first[1])]
    elif span := _RANGE.match(word):
        wanted = [f"{span[1]}.{number}" for number in range(int(span[2]), int(span[3]) + 1)]
        unknown = [group for group in wanted if group not in groups]
        if unknown or not wanted:
            raise _unknown(unknown[0] if unknown else word, word, key, groups)
        chosen = wanted
    else:
        chosen = [group for group in groups if group == word or group.startswith(f"{word}.")]
    if not chosen:
        raise _unknown(word, word, key, groups)
    return [name for group in chosen for name in groups[group]]


def _matching(word: str, key: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    names = [name for members in groups.values() for name in members]
    try:
        pattern = re.compile(word[1:-1])
    except re.error as error:
        raise UsageError(f"{key}: {word} is no regular expression: {error}", "", "Correct it.") from error
    found = [name for name in names if pattern.search(name)]
    if not found:
        near = difflib.get_close_matches(word[1:-1].replace("\\", ""), names, 3, 0.3)
        raise _nothing(word, key, "names of parameters", f"The nearest names are {', '.join(near or names[:3])}.")
    return found


def _unknown(name: str, word: str, key: str, groups: Mapping[str, Sequence[str]]) -> UsageError:
    known = [*groups, *{group.split(".")[0]: None for group in groups if "." in group}]
    near = difflib.get_close_matches(name, known, 1)
    return _nothing(word, key, f"a layer group: {', '.join(groups)}", f"Did you mean {near[0]}?" if near else "")


def _nothing(word: str, key: str, expected: str, remedy: str) -> UsageError:
    return UsageError(f"{key}: '{word}' matches nothing of this model", expected, remedy)


def is_added(name: str) -> bool:
    """True for a parameter that fine-tuning has put beside a layer's own."""
    return name.rpartition(".")[2] in ADDED


def frozen_modules(module: nn.Module) -> tuple[str, ...]:
    """The outermost modules that have parameters and none that trains."""
    found: list[str] = []
    for name, inner in module.named_modules():
        parameters = list(inner.parameters())
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if parameters and not inside and not any(one.requires_grad for one in parameters):
            found.append(name)
    return tuple(found)


@dataclass(frozen=True)
class GroupCount:
    """What of a layer group trains, and what its optimiser state takes over all workers."""

    group: str
    parameters: int
    trainable: int
    optimizer_bytes: int


def counted(groups: Mapping[str, Sequence[str]], module: nn.Module, train: Train) -> list[dict[str, Any]]:
    """The table of groups, with their total, as values."""
    parameters = dict(module.named_parameters())
    each = MOMENT_BYTES * (1 if train.optimizer == "sgd" else 2) + (0 if train.precision == "fp32" else MOMENT_BYTES)
    rows = []
    for group, names in groups.items():
        size = _size(parameters, names, lambda _: True)
        trainable = _size(parameters, names, lambda one: one.requires_grad)
        rows.append(GroupCount(group, size, trainable, each * trainable))
    sums = [sum(getattr(row, name) for row in rows) for name in ("parameters", "trainable", "optimizer_bytes")]
    return [asdict(row) for row in [*rows, GroupCount("total", *sums)]]


def _size(
    parameters: Mapping[str, nn.Parameter], names: Collection[str], counts: Callable[[nn.Parameter], bool]
) -> int:
    return sum(parameters[name].numel() for name in names if counts(parameters[name]))
