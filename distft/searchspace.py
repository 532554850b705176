"""A search over job keys: which values it may try, and the job that has them.

Enters: a job with its ``tune`` section. Leaves: what is wrong with the search, combinations of a grid, and jobs with
other values. Surprising choice: the bounds of a key stand nowhere here. Every value that a search lists, and both ends
of a range, is put into the job, and the job itself says whether it takes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from distft.errors import JobError
from distft.job import Job
from distft.jobwords import Explanation, explain, nearest, shown
from distft.sections.tune import Candidates

Values = dict[str, Any]
"""Job key → value."""
Path = tuple[str | int, ...]

SEARCHED = ("model", "loss", "train", "seed")
"""Sections whose keys may be searched: they change what is trained, and nothing that trials share."""
REASONS = {
    "data": "all trials read the one dataset",
    "train.epochs": "trials are compared after as many epochs: set tune.epochs",
    "train.validate": "trials are judged at the same epochs",
    "train.early_stopping": "trials are judged by the same rule",
    "train.checkpoint": "it does not change what is learnt",
    "model.kind": "each kind has keys of its own: search the section, model: {choice: [{kind: hstu}, ...]}",
    "loss.kind": "each kind has keys of its own: search the section, loss: {choice: [{kind: softmax}, ...]}",
}
"""Keys that cannot be searched, with those below them, and why."""
BATCH_SIZE, LEARNING_RATE = "train.batch_size", "train.learning_rate"


# -- values and jobs ---------------------------------------------------------------------------------------


def with_values(job: Job, values: Mapping[str, Any]) -> Job:
    """The job with other values of some keys. Raises JobError where it does not take them."""
    try:
        return _replaced(job, values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one.path))}: {one.text}" for one in _explained(job, values, error)]
        raise JobError(" ".join(lines)) from None


def own_values(job: Job) -> Values:
    """The values that the job itself has for the keys of its search."""
    values = _as_written(job)
    return {key: _get(values, key) for key in job.tune.search}


def effective(job: Job, values: Mapping[str, Any]) -> Values:
    """The values as the trainer takes them: the learning rate follows the batch size where the search says so.

    With b the batch size over the job's own, the rate is multiplied by the root of b (Malladi et al., 2022: what
    keeps the noise of adaptive optimisers the same) or by b (Goyal et al., 2017: for sgd).
    """
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[job.tune.scale_learning_rate]
    if power == 0.0:
        return dict(values)
    rate = values.get(LEARNING_RATE, job.train.learning_rate)
    return {**values, LEARNING_RATE: rate * (values[BATCH_SIZE] / job.train.batch_size) ** power}


def trial_job(job: Job, values: Mapping[str, Any]) -> Job:
    """The job that a trial trains: with the values, for as long as a trial may take, on the workers of a trial."""
    tune = job.tune
    rule = job.train.early_stopping
    stopping: Values = {}
    if tune.metric is not None and rule is not None:
        stopping = {"train.early_stopping.metric": tune.metric}
    elif tune.metric is not None:  # a rule that never stops anything still says which checkpoint is the best
        patience = tune.epochs or job.train.epochs
        stopping = {"train.early_stopping": {"metric": tune.metric, "patience": patience}}
    fixed = {
        "train.epochs": tune.epochs or job.train.epochs,
        "train.checkpoint.keep": 1,
        "scaling.num_workers": tune.num_workers,
    }
    return with_values(job, {**effective(job, values), **fixed, **stopping})


def best_job(job: Job, values: Mapping[str, Any]) -> Job:
    """The whole job with the values that were found, ready to be trained: without the search among its stages."""
    stages = [stage for stage in job.stages if stage != "tune"] or ["train"]
    return with_values(job, {**effective(job, values), "stages": stages})


def combinations(search: Mapping[str, Candidates]) -> list[Values]:
    """Every combination of the choices of a grid, the last key's running fastest."""
    return [
        dict(zip(search, values, strict=True)) for values in product(*(one.choice or () for one in search.values()))
    ]


# -- what is wrong with a search ---------------------------------------------------------------------------


def search_mistakes(job: Job, schema: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """The path of every key of the search that is wrong, and a sentence. ``schema``: of the job file."""
    known = list(_keys(_as_written(job)))
    for key, candidates in job.tune.search.items():
        path: Path = ("tune", "search", key)
        reason = _refused(key, known)
        if reason:
            yield path, reason
            continue
        for place, value in _listed(candidates):
            for text in _objections(job, {key: value}, schema):
                hint = " A range is of numbers: list the values, {choice: [...]}." if "whole number" in text else ""
                yield (*path, *place), text + ("" if candidates.choice else hint)


def _refused(key: str, known: Sequence[str]) -> str:
    """Why a key cannot be searched; "" if it can."""
    for name, reason in REASONS.items():
        if key == name or key.startswith(f"{name}."):
            return f"this cannot be searched: {reason}."
    searchable = [name for name in known if name.split(".", 1)[0] in SEARCHED and not _refused_name(name)]
    if key in searchable or key.startswith("train.deepspeed."):
        return ""
    if key in known:
        return f"this cannot be searched: only keys of {', '.join(SEARCHED[:-1])}, and seed, change what is trained."
    same = [name for name in searchable if name.rpartition(".")[2] == key.rpartition(".")[2]]  # in another section
    near = nearest(key, searchable) if not same else nearest(key, same) or same[0]
    return "there is no such key; " + (
        f"did you mean {near!r}?" if near else "expected one such as train.learning_rate."
    )


def _refused_name(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in REASONS)


def _listed(candidates: Candidates) -> Iterator[tuple[Path, Any]]:
    """(place below the key, value) of every choice, or of both ends of a range."""
    kind = next(name for name in type(candidates).model_fields if getattr(candidates, name) is not None)
    for index, value in enumerate(getattr(candidates, kind)):
        yield (kind, index), value


def _objections(job: Job, values: Values, schema: dict[str, Any]) -> list[str]:
    """What the job says against values of one key."""
    try:
        _replaced(job, values)
    except ValidationError as error:
        key = next(iter(values))
        return [_about(key, one.path, one.text, values[key]) for one in _explained(job, values, error, schema)]
    return []


def _about(key: str, path: Path, text: str, value: Any) -> str:
    """The job's sentence, with the key that it is about if that is another one."""
    name = ".".join(map(str, path))
    return text if name == key else f"{shown(value)} does not go with {name}: {text}"


# -- a job as nested mappings ------------------------------------------------------------------------------


def _explained(
    job: Job, values: Mapping[str, Any], error: ValidationError, schema: dict[str, Any] | None = None
) -> Iterator[Explanation]:
    return explain(schema or Job.model_json_schema(by_alias=True), _set(job, values), error.errors(include_url=False))


def _replaced(job: Job, values: Mapping[str, Any]) -> Job:
    return Job.model_validate(_set(job, values))


def _set(job: Job, values: Mapping[str, Any]) -> dict[str, Any]:
    """The job as it would be written, with other values."""
    written = _as_written(job)
    for key, value in values.items():
        *sections, name = key.split(".")
        node = written
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return written


def _get(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _keys(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """All keys and sections, with dots."""
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        yield name
        if isinstance(value, dict):
            yield from _keys(value, name)


def _as_written(job: Job) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(job.model_dump_json(by_alias=True))
    return written
