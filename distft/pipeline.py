"""Runs a job's stages in order: what is finished is skipped, what was interrupted is continued.

Enters: a job and the stages wanted. Leaves: the artefacts below the job's storage, and a summary of each stage.
Surprising choice: nothing remembers what has run but the artefacts themselves. Each holds, in its manifest, the
job keys and the input manifests that it was made from; comparing these with today's decides everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from distft import cluster, promotions
from distft.errors import StageChangedError, UsageError
from distft.job import STAGE_ORDER, Job, StageName
from distft.lock import locked
from distft.signing import check_signing_key, sign
from distft.stages import STAGES, Context, Stage, check_memory, dataset_of, to_train, trained
from distft.storage import Storage

MISSING = "(absent)"
BASES = "bases.json"
"""Which bundles stood for services' folders when a run began."""


def run(context: Context, stages: tuple[StageName, ...]) -> dict[str, dict[str, Any]]:
    """Brings the artefacts of ``stages`` up to date; gives each stage's summary.

    Raises UsageError for a stage that this version does not have, StageChangedError, LockedError, and whatever
    the stages raise.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise UsageError(
            f"The stages {unknown} are not part of this version",
            f"some of {', '.join(STAGES)}",
            "Take them out of the job's stages.",
        )
    context = _inherit(based(context), stages)
    if "prepare" not in stages:
        dataset_of(context)
    if context.sign_key is not None:
        check_signing_key(context.sign_key)
    summaries: dict[str, dict[str, Any]] = {}
    with locked(context.root), ExitStack() as started:
        context.root.sweep()
        for name in stages:  # before the first one works for hours
            known = _with_found_values(context, name, searched="tune" not in stages)
            if known is not None:
                _refuse_changes(known, name, {"keys": _keys(known, name)})
        if cluster.is_remote() or any(to_train(context, stages)):
            started.enter_context(cluster.connect())
            _check_size(context, stages)
        if "prepare" in stages:  # before it works for hours; what is prepared already is asked before it is trained on
            check_memory(context, stages, None)
        for name in stages:
            known = _with_found_values(context, name, searched=True)
            assert known is not None
            summaries[name] = _bring_up_to_date(known, name, started)
            if name == "export" and context.sign_key is not None:
                sign(context.root / STAGES[name].artefact, context.sign_key)
    return summaries


def based(context: Context) -> Context:
    """The context with the bundle that a service runs in the place of the service's folder, as it was the first time.

    What a run was made from does not change while it goes on, whatever is promoted meanwhile, by itself for one.
    """
    data, finetune = context.job.data, context.job.finetune
    places = [part.from_ for part in (data.vocabulary, finetune) if part is not None]
    known = context.root.read_json(BASES) if context.root.exists(BASES) else {}
    bundles = {place: known.get(place) or promotions.bundle_at(place).uri for place in places}
    bundles = {place: bundle for place, bundle in bundles.items() if bundle != Storage(place).uri}
    if not bundles:
        return context
    if bundles.items() - known.items():
        context.root.make()
        context.root.write_json(BASES, {**known, **bundles})

    def found(part: Any) -> Any:
        return part and part.model_copy(update={"from_": bundles.get(part.from_, part.from_)})

    data = data.model_copy(update={"vocabulary": found(data.vocabulary)})
    return replace(context, job=context.job.model_copy(update={"data": data, "finetune": found(finetune)}))


def _inherit(context: Context, stages: tuple[StageName, ...]) -> Context:
    """The context with what its job has of the base that it fine-tunes; once that is done, as it was done."""
    tunes = "finetune" in (*stages, *context.job.stages) and context.job.finetune is not None
    if not tunes or set(stages) == {"prepare"}:  # which needs no model
        return context
    from distft.jobfile import parse_job
    from distft.train.base import inherited

    done = context.root / "finetune"
    if "finetune" in stages or not done.exists("job.yaml"):
        return replace(context, job=inherited(context.job))
    was = parse_job(done.read_bytes("job.yaml").decode(), f"{done}/job.yaml")
    return replace(context, job=context.job.model_copy(update={"model": was.model, "loss": was.loss}))


def _with_found_values(context: Context, name: str, *, searched: bool) -> Context | None:
    """The context of a stage: after a search among the job's stages, with the job that the search found.

    None where that is not known yet, which is a mistake once it should have been ``searched``: then it raises
    ArtefactError.
    """
    if "tune" not in context.job.stages or STAGE_ORDER.index(name) <= STAGE_ORDER.index("tune"):
        return context
    from distft.tune.tuning import tuned

    if not searched and (context.force or not _is_searched(context)):
        return None
    return replace(context, job=tuned(context.job, context.root))


def _check_size(context: Context, stages: tuple[StageName, ...]) -> None:
    """Raises UsageError for a training that the cluster could never run, before another stage works for hours."""
    from distft.train.driver import check_size

    for name in to_train(context, stages):
        check_size(context.job.trained_as(name))


def _is_searched(context: Context) -> bool:
    """True if the search of the job has ended, with as many trials as the job wants."""
    from distft.tune.search import num_trials

    manifest = (context.root / "tune").manifest("tune")
    info = manifest.info if manifest else {}
    return info.get("status") == "finished" and int(info["num_trials"]) >= num_trials(context.job)


def _bring_up_to_date(context: Context, name: str, started: ExitStack) -> dict[str, Any]:
    stage = STAGES[name]
    made_from = fingerprint(context, name)
    state = _state(context, stage, name, made_from)
    if state == "finished":
        context.watcher.stage(name, "skipped")
    else:
        context.watcher.stage(name, "starts")
        if stage.on_ray:
            started.enter_context(cluster.connect())  # by the first stage that needs it; all others share it
        stage.run(context, made_from)
        context.watcher.stage(name, "done")
    manifest = (context.root / stage.artefact).manifest(stage.kind)
    return dict(manifest.info) if manifest else {}


def forget(context: Context, user: str) -> dict[str, Any]:
    """Drops one user from the dataset; says what was dropped, and which artefacts were made while it held the user.

    ``user`` is the id of the logs, also where the job asks for pseudonyms. Raises DataError where the dataset holds
    nothing of the user, StageChangedError where it was prepared by another job.
    """
    from distft.data.forget import forget as drop
    from distft.data.pseudonyms import open_pseudonyms
    from distft.report.data import render

    context = based(context)
    with locked(context.root):
        context.root.sweep()
        dataset_of(context)
        _refuse_changes(context, "prepare", {"keys": _keys(context, "prepare")})
        pseudonyms = open_pseudonyms(context.job.data.pseudonyms)
        digest = dataset_of(context).info.get("pseudonyms")
        if pseudonyms is not None and pseudonyms.digest != digest:
            raise UsageError(
                "data.pseudonyms.key_file holds another key than the one that the dataset was prepared with",
                "the key of that prepare",
                "Bring it back: the pseudonym of the user cannot be computed without it.",
            )
        name = pseudonyms.of(user) if pseudonyms else user
        found = drop(context.root, name, partial(render, context.job.data))
    made = [folder for folder in ("train", "finetune", "tune", "report", "bundle") if _is_there(context.root / folder)]
    return {"rows": found.rows, "events": found.events, "rejected": found.rejected, "made_before": made}


def replay(context: Context, url: str, key: str | None = None, ca_file: str | None = None) -> dict[str, Any]:
    """Compares what a running service answers to the test users with the evaluation; leaves ``endpoint.json``.

    Raises what ``evaluate.endpoint.replay`` does.
    """
    from distft.evaluate.endpoint import Endpoint
    from distft.evaluate.endpoint import replay as compare

    context = based(context)
    dataset_of(context)
    weights, dataset = trained(context), context.root / "dataset"
    with Endpoint(url, key, ca_file) as endpoint:
        result = compare(context.job, dataset, weights, endpoint, context.watcher.progress)
    context.root.write_json("endpoint.json", result)
    return result


def _is_there(folder: Storage) -> bool:
    return bool(folder.list())


def fingerprint(context: Context, name: str) -> dict[str, Any]:
    """What the artefact of a stage is made from: the job keys it declares, and its inputs."""
    return {"stage": name, "keys": _keys(context, name), "inputs": STAGES[name].inputs(context)}


def _keys(context: Context, name: str) -> dict[str, Any]:
    values = context.job.model_dump(mode="json", by_alias=True)
    return {key: value for key, value in _flatten(values) if _declared(key, STAGES[name].keys)}


def _state(context: Context, stage: Stage, name: str, made_from: dict[str, Any]) -> str:
    """One of "finished" and "unfinished" (also: to be made again). Raises StageChangedError."""
    _refuse_changes(context, name, made_from)
    manifest = None if context.force else (context.root / stage.artefact).manifest(stage.kind)
    if manifest is None or manifest.made_from.get("inputs") != made_from["inputs"]:
        return "unfinished"
    if manifest.info.get("status", "finished") != "finished":
        return "unfinished"
    if name == "tune":
        return "finished" if _is_searched(context) else "unfinished"
    if name not in ("train", "finetune"):
        return "finished"
    return "unfinished" if _wants_more(context.job.trained_as(name), manifest.info) else "finished"


def _refuse_changes(context: Context, name: str, made_from: Mapping[str, Any]) -> None:
    """Raises StageChangedError where the artefact of a stage was made from other keys, or other inputs if given."""
    stage = STAGES[name]
    artefact = context.root / stage.artefact
    manifest = None if context.force else artefact.manifest(stage.kind)
    if manifest is None:
        return
    changes = _changes(manifest.made_from.get("keys", {}), made_from["keys"])
    if "inputs" in made_from and not stage.derived:
        inputs = _changes(manifest.made_from.get("inputs", {}), made_from["inputs"])
        changes += [f"input {change}" for change in inputs]
    if changes:
        raise StageChangedError(
            f"{artefact} was made by the stage {name} from something else: {'; '.join(changes)}",
            "the job that made it",
            f"Set it back, use another --storage, or make the stage again with --force (which replaces {artefact}).",
        )


def _wants_more(job: Job, info: Mapping[str, Any]) -> bool:
    """True if a finished training is asked for more epochs, or for another rule of stopping early."""
    stopping = job.train.early_stopping.model_dump(mode="json") if job.train.early_stopping else None
    return bool(job.train.epochs > info.get("epochs_wanted", 0) or stopping != info.get("early_stopping"))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(set(before) | set(now))
    return [
        f"{name} was {_short(before.get(name, MISSING))}, is now {_short(now.get(name, MISSING))}"
        for name in names
        if before.get(name, MISSING) != now.get(name, MISSING)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _declared(key: str, declared: tuple[str, ...]) -> bool:
    def under(names: list[str]) -> bool:
        return any(key == name or key.startswith(name + ".") for name in names)

    removed = [name[1:] for name in declared if name.startswith("-")]
    return under([name for name in declared if not name.startswith("-")]) and not under(removed)
