"""Runs a job's stages in order: what is finished is skipped, what was interrupted is continued.

Enters: a job and the stages wanted. Leaves: the artefacts below the job's storage, and a summary of each stage.
Surprising choice: nothing remembers what has run but the artefacts themselves. Each holds, in its manifest, the
job keys and the input manifests that it was made from; comparing these with today's decides everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from distft import cluster
from distft.errors import ArtefactError, DistftError, StageChangedError, StorageError, UsageError
from distft.job import STAGE_ORDER, Job, StageName
from distft.lock import locked
from distft.storage import MANIFEST, Storage

MISSING = "(absent)"


@dataclass(frozen=True)
class Watcher:
    """What a run tells a person while it works; every function may be called from any stage."""

    stage: Callable[[str, str], None] = lambda stage, state: None
    """(stage, "starts" | "skipped" | "done")."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    metrics: Callable[[Mapping[str, Any]], None] = lambda line: None
    """One line of metrics.jsonl."""
    trials: Callable[[Sequence[Mapping[str, Any]], int], None] = lambda trials, total: None
    """All trials of a search so far, and how many there will be."""


@dataclass(frozen=True)
class Context:
    """One command: the job, where its artefacts are, and how it was asked for; ``command`` continues it.

    ``against``: a bundle that the evaluation compares with.
    """

    job: Job
    root: Storage
    watcher: Watcher = field(default_factory=Watcher)
    force: bool = False
    from_: str | None = None
    command: str = ""
    against: str | None = None


@dataclass(frozen=True)
class Stage:
    """A stage: the artefact it leaves, what that depends on, and the function that makes it.

    ``keys``: job keys (a leading "-" takes a key out again). ``derived``: made again without asking when only its
    inputs changed, because it is cheap and holds no learning of its own. ``on_ray``: it needs a cluster.
    """

    artefact: str
    kind: str
    keys: tuple[str, ...]
    inputs: Callable[[Context], dict[str, Any]]
    run: Callable[[Context, dict[str, Any]], dict[str, Any]]
    derived: bool = False
    on_ray: bool = True


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
    context = _inherit(context, stages)
    if "prepare" not in stages:
        _dataset(context)
    summaries: dict[str, dict[str, Any]] = {}
    with locked(context.root), ExitStack() as started:
        context.root.sweep()
        for name in stages:  # before the first one works for hours
            known = _with_found_values(context, name, searched="tune" not in stages)
            if known is not None:
                _refuse_changes(known, name, {"keys": _keys(known, name)})
        if cluster.is_remote():
            started.enter_context(cluster.connect())
            _check_size(context, stages)
        if "prepare" in stages:  # before it works for hours; what is prepared already is asked before it is trained on
            _check_memory(context, stages, None)
        for name in stages:
            known = _with_found_values(context, name, searched=True)
            assert known is not None
            summaries[name] = _bring_up_to_date(known, name, started)
    return summaries


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

    for name in _to_train(context, stages):
        check_size(context.job.trained_as(name))


def _check_memory(context: Context, stages: Iterable[StageName], dataset: Storage | None) -> None:
    """Raises UsageError for a training that needs more memory than there is, as far as its catalogue is known yet."""
    for name in _to_train(context, stages):
        from distft.plan.asking import check_fits
        from distft.train.room import fixed_nodes

        nodes = fixed_nodes() if cluster.is_remote() else None
        if nodes is not None or not cluster.is_remote():
            check_fits(context.job.trained_as(name), dataset, nodes, name)


def _to_train(context: Context, stages: Iterable[StageName]) -> Iterator[StageName]:
    """The stages among these that train, and have not ended."""
    for name in stages:
        if name in ("train", "finetune"):
            manifest = None if context.force else (context.root / STAGES[name].artefact).manifest(STAGES[name].kind)
            if manifest is None or manifest.info.get("status") != "finished":
                yield name


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

    with locked(context.root):
        context.root.sweep()
        _dataset(context)
        _refuse_changes(context, "prepare", {"keys": _keys(context, "prepare")})
        pseudonyms = open_pseudonyms(context.job.data.pseudonyms)
        digest = _dataset(context).info.get("pseudonyms")
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

    _dataset(context)
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


# -- the stages --------------------------------------------------------------------------------------------


def _identity(context: Context) -> dict[str, Any]:
    from distft.data.inherit import base_identity
    from distft.data.pseudonyms import key_digest
    from distft.data.sources.inputs import find_inputs

    data = context.job.data
    base = {"data.vocabulary": base_identity(data.vocabulary.from_, context.root)} if data.vocabulary else {}
    logs = {f"data.events.{index}": source.open().identity() for index, source in enumerate(data.events)}
    tables = {"data.items": data.items, "data.users": data.users}
    files = {key: [one.identity() for one in find_inputs(table.path)] for key, table in tables.items() if table}
    key = {"data.pseudonyms": key_digest(data.pseudonyms, context.root)} if data.pseudonyms else {}
    return {**base, **key, **logs, **files}


def _dataset_sha(context: Context) -> dict[str, Any]:
    return {"dataset": _dataset(context).sha256}


def _dataset(context: Context) -> Any:
    manifest = (context.root / "dataset").manifest("dataset")
    if manifest is None:
        raise ArtefactError(f"There is no dataset at {context.root}/dataset", "", "Run 'distft prepare' first.")
    return manifest


def _finetune_inputs(context: Context) -> dict[str, Any]:
    from distft.train.base import find_base

    assert context.job.finetune is not None, "the job is refused without"
    return {**_dataset_sha(context), "base": find_base(context.job.finetune.from_).identity()}


def _model_inputs(context: Context) -> dict[str, Any]:
    return {**_dataset_sha(context), "weights": _weights(trained(context))}


def _report_inputs(context: Context) -> dict[str, Any]:
    if context.against is None:
        return _model_inputs(context)
    manifest = Storage(context.against).verified("bundle")
    return {**_model_inputs(context), "against": manifest.sha256}


def _weights(source: Storage) -> list[str]:
    """SHA-256 of the files that hold the weights; not their names, which tell of the attempt that wrote them."""
    files = source.read_json(MANIFEST)["files"]
    held = [name for name in files if name.endswith(".safetensors") and not name.startswith("optimizer-")]
    return sorted(files[name]["sha256"] for name in held)


def _export_inputs(context: Context) -> dict[str, Any]:
    return {**_model_inputs(context), "metrics": _metrics(context)}


def _metrics(context: Context) -> dict[str, Any] | None:
    report = context.root / "report"
    if not report.exists(MANIFEST):
        return None
    report.verified("report", below="metrics.json")
    value: dict[str, Any] = report.read_json("metrics.json")
    return value


def trained(context: Context) -> Storage:
    """The checkpoint or bundle that evaluate and export work on: ``--from``, else the job's last training stage.

    Raises ArtefactError where nothing was trained yet.
    """
    source = context.from_ or ("finetune" if "finetune" in context.job.stages else "train")
    if source not in ("train", "finetune"):
        found = Storage(source)
        if not found.exists(MANIFEST):
            raise ArtefactError(
                f"There is no checkpoint or bundle at {found}",
                "train, finetune, or the folder of one",
                "Correct --from.",
            )
        return found
    run_folder = context.root / source
    if not run_folder.exists("best.json"):
        wanted = "a run of the stage that ended a first epoch"
        raise ArtefactError(f"There is no trained model at {run_folder}", wanted, f"Run the stage {source} first.")
    manifest = run_folder.manifest("train")
    if manifest and "best.json" in manifest.files:
        run_folder.verify_file("best.json", manifest.files["best.json"])
    return run_folder / str(run_folder.read_json("best.json")["checkpoint"])


def _prepare(context: Context, made_from: dict[str, Any]) -> dict[str, Any]:
    from distft.data.prepare import prepare
    from distft.report.data import render

    page = partial(render, context.job.data)
    return prepare(context.job, context.root, made_from, context.watcher.progress, page)


def _train(context: Context, made_from: dict[str, Any], stage: str = "train") -> dict[str, Any]:
    from distft.train.driver import train

    _check_memory(context, ["finetune" if stage == "finetune" else "train"], context.root / "dataset")
    watcher, anew = context.watcher.metrics, context.force
    with _failure_page(context, stage):
        result = train(context.job, context.root, made_from, stage=stage, anew=anew, progress=watcher)
    return vars(result)


def _tune_inputs(context: Context) -> dict[str, Any]:
    """The dataset, and how long a trial may take, whichever key says so."""
    return {**_dataset_sha(context), "epochs": context.job.tune.epochs or context.job.train.epochs}


def _tune(context: Context, made_from: dict[str, Any]) -> dict[str, Any]:
    from distft.report.tuning import render
    from distft.tune.tuning import tune

    def warn(text: str) -> None:
        context.watcher.metrics({"kind": "warning", "message": text})

    page, show = partial(render, context.job.name), context.watcher.trials
    return tune(context.job, context.root, made_from, anew=context.force, show=show, warn=warn, page=page)


@contextmanager
def _failure_page(context: Context, stage: str) -> Iterator[None]:
    """Leaves a page in the stage's folder if workers of the block fail, and completes what the error tells of it."""
    from distft.report.failure import render
    from distft.train.checkpoint import latest
    from distft.train.failure import PAGE

    try:
        yield
    except DistftError as error:
        if error.details:
            folder = context.root / stage
            error.details |= {"checkpoint": latest(folder), "resume": context.command, "page": f"{folder}/{PAGE}"}
            with suppress(StorageError):  # a full disk, perhaps: the terminal tells it all
                folder.write_bytes(PAGE, render(context.job.name, stage, error.details).encode())
        raise


def _evaluate(context: Context, made_from: dict[str, Any]) -> dict[str, Any]:
    from distft.evaluate.evaluate import evaluate
    from distft.report.evaluation import render

    weights = trained(context)
    rival = Storage(context.against) if context.against else None
    dataset = context.root / "dataset"
    metrics, visitors = evaluate(context.job, dataset, weights, progress=context.watcher.progress, rival=rival)
    with context.root.replacing("report") as report:
        report.write_json("metrics.json", metrics)
        report.write_bytes("index.html", render(context.job, context.root, metrics, str(weights), visitors).encode())
        report.write_manifest("report", made_from, metrics)
    return metrics


def _export(context: Context, made_from: dict[str, Any]) -> dict[str, Any]:
    from distft.export import export
    from distft.models.weights import read_weights

    return export(context.job, context.root, read_weights(trained(context)), _metrics(context), made_from).info


def _training_keys(section: str) -> tuple[str, ...]:
    # Not how it runs, but what it learns; and not how long, which may be raised.
    free = ("epochs", "early_stopping", "checkpoint", "validate", "zero", "max_tokens_per_micro_batch")
    return ("seed", "model", "loss", section, "evaluate.exclude_seen", *(f"-{section}.{key}" for key in free))


STAGES: dict[str, Stage] = {
    # Which key, not where it lies: that is an input.
    "prepare": Stage("dataset", "dataset", ("seed", "data", "-data.pseudonyms"), _identity, _prepare),
    "train": Stage("train", "train", _training_keys("train"), _dataset_sha, _train),
    "finetune": Stage(
        "finetune",
        "train",
        (*_training_keys("finetune"), "-finetune.from"),  # which weights, not where they lie: that is an input
        _finetune_inputs,
        partial(_train, stage="finetune"),
    ),
    "tune": Stage(
        "tune",
        "tune",
        (
            "seed",
            "model",
            "loss",
            "train",
            "tune",
            "evaluate.exclude_seen",
            # How it runs, not what it finds; and how many trials, which may be raised.
            *("-train.epochs", "-train.checkpoint", "-train.zero", "-train.max_tokens_per_micro_batch"),
            *("-tune.epochs", "-tune.num_trials", "-tune.num_workers", "-tune.max_concurrent"),
        ),
        _tune_inputs,
        _tune,
    ),
    "evaluate": Stage(
        "report", "report", ("evaluate", "seed", "serve.item_vectors"), _report_inputs, _evaluate, derived=True
    ),
    "export": Stage(
        "bundle", "bundle", ("name", "evaluate", "serve"), _export_inputs, _export, derived=True, on_ray=False
    ),
}
