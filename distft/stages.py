"""What each stage is: the artefact that it leaves, what that depends on, and the function that makes it.

Enters: a ``Context``, which is one command. Leaves: ``STAGES``, which ``pipeline`` runs in order. Surprising choice:
the stages' own modules are imported when they run, so that a command loads what its stages need and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from distft import cluster
from distft.errors import ArtefactError, DistftError, StorageError
from distft.job import Job, StageName
from distft.storage import MANIFEST, Manifest, Storage


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

    ``against``: a bundle that the evaluation compares with. ``sign_key``: what an exported bundle is signed with.
    """

    job: Job
    root: Storage
    watcher: Watcher = field(default_factory=Watcher)
    force: bool = False
    from_: str | None = None
    command: str = ""
    against: str | None = None
    sign_key: str | None = None


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


def check_memory(context: Context, stages: Iterable[StageName], dataset: Storage | None) -> None:
    """Raises UsageError for a training that needs more memory than there is, as far as its catalogue is known yet."""
    for name in to_train(context, stages):
        from distft.plan.asking import check_fits
        from distft.train.room import fixed_nodes

        nodes = fixed_nodes() if cluster.is_remote() else None
        if nodes is not None or not cluster.is_remote():
            check_fits(context.job.trained_as(name), dataset, nodes, name)


def to_train(context: Context, stages: Iterable[StageName]) -> Iterator[StageName]:
    """The stages among these that train, and have not ended."""
    for name in stages:
        if name in ("train", "finetune"):
            manifest = None if context.force else (context.root / STAGES[name].artefact).manifest(STAGES[name].kind)
            if manifest is None or manifest.info.get("status") != "finished":
                yield name


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
    return {"dataset": dataset_of(context).sha256}


def dataset_of(context: Context) -> Manifest:
    """The manifest of the job's dataset. Raises ArtefactError where nothing was prepared yet."""
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

    check_memory(context, ["finetune" if stage == "finetune" else "train"], context.root / "dataset")
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


def _bundle(context: Context) -> dict[str, Any]:
    manifest = (context.root / "bundle").manifest("bundle")
    if manifest is None:
        raise ArtefactError(f"There is no bundle at {context.root}/bundle", "", "Run 'distft export' first.")
    return {"bundle": manifest.sha256}


def _deploy(context: Context, made_from: dict[str, Any]) -> dict[str, Any]:
    from distft.deploy.handing import hand_over

    verdict = hand_over(context.root / "bundle", context.job.deploy, context.watcher.progress)
    with context.root.replacing("deployment") as artefact:
        artefact.write_manifest("deployment", made_from, verdict)
    return verdict


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
    "deploy": Stage("deployment", "deployment", ("deploy",), _bundle, _deploy, derived=True, on_ray=False),
}
