"""Verbs of a job and its stages: from ``check`` to ``run``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distft.cli.root import app
from distft.cli.session import (
    Against,
    AsJson,
    Force,
    From,
    JobPath,
    Overrides,
    SignKey,
    StorageUri,
    checked_place,
    load,
    read_key,
    run_stages,
    session,
)
from distft.errors import UsageError

if TYPE_CHECKING:
    from distft.terminal.console import Terminal


@app.command()
def check(job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False) -> None:
    """Validate a job file and nothing else."""
    with session(json) as terminal:
        checked = load(job, set_, storage)
        terminal.say(f"{job}: a valid job, {checked.name}: {', '.join(checked.stages)}")
        terminal.result({"name": checked.name, "stages": checked.stages})


@app.command()
def schema() -> None:
    """Print the job file's JSON Schema."""
    from distft.jobfile import schema as job_schema
    from distft.storage import canonical_json

    sys.stdout.write(canonical_json(job_schema()).decode())


@app.command()
def prepare(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Turn event logs into dataset/ with Ray Data."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        summary = run_stages(terminal, loaded, ("prepare",), force)["prepare"]
        terminal.result({**summary, "stats": results.data_report(terminal, loaded.storage)})


@app.command()
def train(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Train with Ray Train and DeepSpeed; continues where it stopped."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        summary = run_stages(terminal, loaded, ("train",), force)["train"]
        results.training(terminal, summary)
        terminal.result(summary)


@app.command()
def finetune(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Adapt a trained model: freeze layers, train the rest; continues where it stopped."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        if loaded.finetune is None:
            raise UsageError(f"{job} has no section finetune", "one with its key 'from'", "Add it.")
        summary = run_stages(terminal, loaded, ("finetune",), force)["finetune"]
        results.training(terminal, summary)
        terminal.result(summary)


@app.command()
def tune(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Search learning rate, batch size or other keys with Ray Tune; continues where it stopped."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        summary = run_stages(terminal, loaded, ("tune",), force)["tune"]
        results.tuning(terminal, loaded.storage, summary)
        terminal.result(summary)


@app.command()
def evaluate(  # noqa: PLR0913  one parameter an option
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
    force: Force = False,
    from_: From = None,
    against: Against = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="replay the test users through a running service instead")
    ] = None,
    key_file: Annotated[
        str | None, typer.Option("--key-file", metavar="FILE", help="holds the API key for --endpoint")
    ] = None,
    ca_file: Annotated[
        str | None, typer.Option("--ca-file", metavar="FILE", help="certificate authority of --endpoint")
    ] = None,
) -> None:
    """Score the test split: report/metrics.json and report/index.html."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        if endpoint is not None:
            _replay(terminal, loaded, endpoint, from_, (key_file, ca_file))
            return
        other = None if against is None else checked_place("--against", against)
        metrics = run_stages(terminal, loaded, ("evaluate",), force, from_, other)["evaluate"]
        results.evaluation(terminal, loaded, metrics)
        terminal.result(metrics)


def _replay(terminal: Terminal, job: Any, url: str, from_: str | None, files: tuple[str | None, str | None]) -> None:
    from distft.errors import ServingError
    from distft.pipeline import replay
    from distft.stages import Context
    from distft.storage import Storage
    from distft.terminal import results
    from distft.terminal.progress import watching

    key_file, ca_file = files
    key = read_key(key_file) if key_file else None
    with watching(terminal) as watcher:
        result = replay(Context(job, Storage(job.storage), watcher, from_=from_), url, key, ca_file)
    results.replayed(terminal, result)
    if not result["passed"]:
        error = ServingError(f"{url} does not rank as the model was evaluated", "", "Serve the bundle of this job.")
        error.details = result
        raise error
    terminal.result(result)


@app.command()
def export(  # noqa: PLR0913  one parameter an option
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
    force: Force = False,
    from_: From = None,
    sign_key: SignKey = None,
) -> None:
    """Write bundle/: all that a server needs."""
    with session(json) as terminal:
        loaded = load(job, set_, storage)
        summary = run_stages(terminal, loaded, ("export",), force, from_, sign_key=sign_key)["export"]
        terminal.say(f"bundle  {loaded.storage}/bundle")
        terminal.result(summary)


@app.command()
def run(
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
    force: Force = False,
    sign_key: SignKey = None,
) -> None:
    """Run the stages in order; skips those that are finished."""
    with session(json) as terminal:
        from distft.terminal import results

        loaded = load(job, set_, storage)
        summaries = run_stages(terminal, loaded, loaded.stages, force, sign_key=sign_key)
        if "prepare" in summaries:
            results.dataset(terminal, loaded.storage)
        if "tune" in summaries:
            results.tuning(terminal, loaded.storage, summaries["tune"])
        for stage in ("train", "finetune"):
            if stage in summaries:
                results.training(terminal, summaries[stage])
        if "evaluate" in summaries:
            results.evaluation(terminal, loaded, summaries["evaluate"])
        if "export" in summaries:
            terminal.say(f"bundle  {loaded.storage}/bundle   (serve it: distft serve {loaded.storage}/bundle)")
        if "deploy" in summaries:
            results.deployment(terminal, summaries["deploy"])
        terminal.result(summaries)


@app.command()
def plan(  # noqa: PLR0913  one parameter an option
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|gpu", help="what it trains on; else as the job says")
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", metavar="SIZE", help="of one worker's device, such as 80GB")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=4096, help="in place of scaling.num_workers")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="size of the catalogue, in place of the dataset's")] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration/--no-calibration", help="take a few steps here, for the time of an epoch")
    ] = True,
    json: AsJson = False,
) -> None:
    """Tell what a training needs at every ZeRO stage: memory, disk, time; refuses what cannot fit."""
    with session(json) as terminal:
        loaded = load(job, set_, storage)
        from distft.plan import asking
        from distft.plan.planning import parsed_bytes, refuse
        from distft.storage import Storage

        if device not in (None, "cpu", "gpu"):
            raise UsageError(f"--device is {device!r}", "cpu or gpu")
        size = None if device_memory is None else parsed_bytes(device_memory)
        on_gpu = None if device is None else device == "gpu"
        stage = "finetune" if "finetune" in loaded.stages else "train"
        trained, dataset = loaded.trained_as(stage), Storage(loaded.storage) / "dataset"
        found = asking.plan(trained, dataset, num_items=items, num_workers=workers, device_bytes=size, on_gpu=on_gpu)
        timed = asking.timing(trained, dataset, found) if calibration else "not asked for"
        terminal.texts(f"{loaded.name}: {found.wanted.num_workers} workers", asking.rows(found, timed))
        terminal.show(asking.settings_text(found))
        refuse(found, f"{stage}.zero")
        terminal.result(asking.to_json(found, timed))
