"""Verbs of clusters: submit and follow jobs, look after nodes, kill some on purpose; objects for Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distft.cli.root import app, group
from distft.cli.session import (
    Address,
    AsJson,
    JobId,
    JobPath,
    Overrides,
    StorageUri,
    checked_place,
    load,
    read_key,
    session,
)
from distft.errors import EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from distft.terminal.console import Terminal

jobs_app = group("jobs", "Jobs on a cluster: list them, read their logs, stop one.")
k8s_app = group("k8s", "Kubernetes: the objects of a job, for KubeRay.")


@app.command()
def submit(  # noqa: PLR0913  one parameter an option
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="show its log, and end with its exit code")] = False,
    working_dir: Annotated[
        str, typer.Option("--working-dir", metavar="DIR", help="what the cluster gets a copy of, without its data")
    ] = ".",
    json: AsJson = False,
) -> None:
    """Run a job on a cluster: what 'run' does here, there. The same command again continues it."""
    with session(json) as terminal:
        from distft.submit import Jobs, words_of

        loaded, folder = load(job, set_, storage), Path(working_dir)
        jobs = Jobs(address)
        id_ = jobs.submit(loaded, words_of(job, folder, set_ or (), storage), folder)
        terminal.say(f"submitted {id_} to {jobs.address}   (distft jobs logs {id_} --follow)")
        if follow:
            _follow(terminal, jobs, id_)
        else:
            terminal.result({"id": id_})


def _follow(terminal: Terminal, jobs: Any, id_: str) -> None:
    """Shows what a job says until it ends; then this command ends as the job did."""
    from distft.submit import exit_code

    try:
        ended = jobs.follow(id_, terminal.pass_on)
    except KeyboardInterrupt:
        terminal.say(f"The job goes on. Follow it with 'distft jobs logs {id_} --follow', end it with 'jobs stop'.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    code = exit_code(ended)
    terminal.say(f"{id_}: {ended.status.lower()}, exit code {code}" + (f": {ended.message}" if code else ""))
    terminal.result(ended.to_json())
    if code:
        raise typer.Exit(code)


@jobs_app.command("list")
def jobs_list(address: Address = None, json: AsJson = False) -> None:
    """List the jobs that were submitted to a cluster."""
    with session(json) as terminal:
        from distft.submit import Jobs
        from distft.terminal import results

        found = Jobs(address).all()
        if found:
            results.jobs(terminal, found)
        terminal.result({"jobs": [one.to_json() for one in found]})


@jobs_app.command("logs")
def jobs_logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="until it ends; this ends with its exit code")] = False,
    json: AsJson = False,
) -> None:
    """Show what a job has said."""
    with session(json) as terminal:
        from distft.submit import Jobs

        jobs = Jobs(address)
        found = jobs.find(job)
        if follow:
            _follow(terminal, jobs, found.id)
        else:
            terminal.pass_on(jobs.logs(found.id))
            terminal.result(found.to_json())


@jobs_app.command("stop")
def jobs_stop(job: JobId, address: Address = None, json: AsJson = False) -> None:
    """Stop a job; what it finished is kept, and submitting it again continues."""
    with session(json) as terminal:
        from distft.submit import Jobs

        jobs = Jobs(address)
        found = jobs.find(job)
        stopped = jobs.stop(found.id)
        terminal.say(f"{found.id} is asked to end" if stopped else f"{found.id} has ended already")
        terminal.result({**found.to_json(), "stopped": stopped})


@app.command()
def doctor(
    storage: StorageUri = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port that will serve")] = 8000,
    json: AsJson = False,
) -> None:
    """Check this machine, or every node of the cluster that RAY_ADDRESS names, and say what to mend."""
    with session(json, "Interrupted.") as terminal:
        from distft.doctor import examine, to_json
        from distft.terminal import results

        found = to_json(examine(None if storage is None else checked_place("--storage", storage), port))
        results.findings(terminal, found["findings"])
        terminal.result(found)
        if found["state"] == "error":
            raise typer.Exit(EXIT_FAILED)


@app.command()
def chaos(  # noqa: PLR0913  one parameter an option
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="the folder train/ of a training that runs")],
    kill: Annotated[str, typer.Option(metavar="KINDS", help="some of worker,node,gcs,replica, in turn")] = "worker",
    every: Annotated[float, typer.Option(min=1, metavar="S", help="seconds from kill to kill")] = 120,
    for_: Annotated[float, typer.Option("--for", min=1, metavar="S", help="seconds in all")] = 1800,
    seed: Annotated[int, typer.Option(help="of the choice among processes")] = 0,
    url: Annotated[str | None, typer.Option(help="a service that is asked meanwhile")] = None,
    key_file: Annotated[str | None, typer.Option("--key-file", metavar="FILE", help="holds its API key")] = None,
    json: AsJson = False,
) -> None:
    """For development: kill parts of a cluster on a schedule, and tell what got done all the same."""
    with session(json) as terminal:
        from distft.chaos import Schedule, disturb
        from distft.storage import Storage
        from distft.terminal import results

        where = Storage(checked_place("FOLDER", folder))
        key = read_key(key_file) if key_file else ""
        service = None if url is None else (url, key, {"history": [], "k": 3})
        report = disturb(where, Schedule(kill.split(","), every, for_, seed), terminal.say, service)
        results.chaos(terminal, report)
        terminal.result(report)


@k8s_app.command("render")
def k8s_render(  # noqa: PLR0913  one parameter an option
    job: JobPath,
    kind: Annotated[
        str, typer.Option("--kind", metavar="job|service|cron", help="RayJob, RayService or RayCronJob")
    ] = "job",
    image: Annotated[str | None, typer.Option(metavar="NAME:TAG", help="container image with distft")] = None,
    in_image: Annotated[
        str | None, typer.Option("--in-image", metavar="PATH", help="where the image holds the job file")
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="namespace of the objects")] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle", metavar="URI", show_default="STORAGE/service", help="bundle to serve, or a folder of a service"
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="'M H D M W'", help="when a cron job runs, UTC")
    ] = None,
    suspended: Annotated[
        bool, typer.Option("--suspended", help="made, and started by a patch: spec.suspend to false")
    ] = False,
    items: Annotated[
        int | None,
        typer.Option("--items", metavar="N", min=1, help="catalogue to plan the pods' memory for; else the dataset's"),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            "--service", metavar="NAME", show_default="deploy.state's", help="RayService for the stage deploy"
        ),
    ] = None,
    storage: StorageUri = None,
    json: AsJson = False,
) -> None:
    """Print the Kubernetes objects of a job as YAML: its RayJob, the RayService of its bundle, or a RayCronJob."""
    with session(json) as terminal:
        from distft.k8s.render import Wish, rendered

        loaded = load(job, None, storage)
        wish = Wish(kind, image, in_image, namespace, bundle, schedule, suspended, items, service)
        objects, text = rendered(loaded, job, wish)
        terminal.show(text.rstrip())
        terminal.result({"objects": objects})
