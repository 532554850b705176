"""The command line: one verb per stage, no logic.

Surprising choice: every verb imports what it needs when it runs, so that ``distft --help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distft import __version__
from distft.errors import EXIT_FAILED, EXIT_INTERRUPTED, DistftError, UsageError

if TYPE_CHECKING:
    from distft.job import StageName
    from distft.terminal import Terminal

app = typer.Typer(
    name="distft",
    help="From a shop's event logs to an autoscaled recommender on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Data sets: list them, fetch one, or make one up.")

JobPath = Annotated[str, typer.Argument(metavar="JOB", help="job file (YAML)")]
BundlePath = Annotated[str, typer.Argument(metavar="BUNDLE", help="bundle folder or URI")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="override a job key")]
StorageUri = Annotated[str | None, typer.Option("--storage", help="folder or URI in place of the job's storage")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, all else on stderr")]
Force = Annotated[bool, typer.Option("--force", help="make the stage again, replacing what it left")]
Against = Annotated[
    str | None, typer.Option("--against", metavar="BUNDLE", help="compare with the model of a bundle, target by target")
]
From = Annotated[str | None, typer.Option("--from", metavar="train|finetune|PATH", help="which model")]


INTERRUPTED = "Interrupted. What was finished is kept: the same command continues from there."


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


@contextmanager
def _session(as_json: bool, interrupted: str = INTERRUPTED) -> Iterator[Terminal]:
    """Turns errors into a paragraph and an exit code; an interruption (also SIGTERM) into 130."""
    from distft.terminal import Terminal

    terminal = Terminal(as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results; whatever else a library prints is not one
            yield terminal
    except DistftError as error:
        terminal.fail(error)
        failure = {"failure": error.details} if error.details else {}
        terminal.result({"error": type(error).__name__, "message": str(error), **failure})
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        terminal.say(interrupted)
        terminal.result({"error": "Interrupted"})
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:  # a defect: its trace is shown, and a script is told as well
        terminal.result({"error": type(error).__name__, "message": str(error)})
        raise


def main() -> None:
    """Runs the command line. An error that is not ours is a defect: it keeps its trace, with exit code 3."""
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_FAILED)


def _load(path: str, overrides: list[str] | None, storage: str | None) -> Any:
    from distft.jobfile import load_job

    job = load_job(path, overrides or ())
    return job if storage is None else job.model_copy(update={"storage": _place("--storage", storage)})


def _place(option: str, text: str) -> str:
    """A folder or URI as given with an option: an empty one, from a variable that is not set, would be the root."""
    from distft.job import checked_storage

    try:
        return checked_storage(text)
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: {error}") from None


def _run(
    terminal: Terminal,
    job: Any,
    stages: tuple[StageName, ...],
    force: bool = False,
    from_: str | None = None,
    against: str | None = None,
) -> dict[str, dict[str, Any]]:
    from distft import cluster
    from distft.pipeline import Context, run
    from distft.storage import Storage

    storage = Storage(job.storage)
    if cluster.is_remote() and storage.is_local and not job.storage.startswith(("/", "file://")):
        terminal.say(
            f"note: {job.storage} is relative, so it lies in Ray's copy of the working directory, which goes when "
            "the job has ended. Give --storage an absolute path or a URI to keep what this run makes."
        )
    with terminal.watching() as watcher:
        return run(Context(job, storage, watcher, force, from_, _command(), against), stages)


def _command() -> str:
    """The command that goes on where this one may end, for a shell in any folder."""
    program = "distft" if os.path.basename(sys.argv[0]) == "distft" else f"{shlex.quote(sys.executable)} -m distft"
    words = [word for word in sys.argv[1:] if word != "--force"]
    return f"cd {shlex.quote(os.getcwd())} && {program} {shlex.join(words)}"


@app.command()
def check(job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False) -> None:
    """Validate a job file and nothing else."""
    with _session(json) as terminal:
        checked = _load(job, set_, storage)
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
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        summary = _run(terminal, loaded, ("prepare",), force)["prepare"]
        terminal.result({**summary, "stats": terminal.data_report(loaded.storage)})


@app.command()
def train(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Train with Ray Train and DeepSpeed; continues where it stopped."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        summary = _run(terminal, loaded, ("train",), force)["train"]
        terminal.training(summary)
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
) -> None:
    """Score the test split: report/metrics.json and report/index.html."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        other = None if against is None else _place("--against", against)
        metrics = _run(terminal, loaded, ("evaluate",), force, from_, other)["evaluate"]
        terminal.evaluation(loaded, metrics)
        terminal.result(metrics)


@app.command()
def export(
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
    force: Force = False,
    from_: From = None,
) -> None:
    """Write bundle/: all that a server needs."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        summary = _run(terminal, loaded, ("export",), force, from_)["export"]
        terminal.say(f"bundle  {loaded.storage}/bundle")
        terminal.result(summary)


@app.command()
def run(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Run the stages in order; skips those that are finished."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        summaries = _run(terminal, loaded, loaded.stages, force)
        if "prepare" in summaries:
            terminal.dataset(loaded.storage)
        if "train" in summaries:
            terminal.training(summaries["train"])
        if "evaluate" in summaries:
            terminal.evaluation(loaded, summaries["evaluate"])
        if "export" in summaries:
            terminal.say(f"bundle  {loaded.storage}/bundle   (serve it: distft serve {loaded.storage}/bundle)")
        terminal.result(summaries)


@app.command()
def serve(
    bundle: BundlePath,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, show_default="8000; with --probe any free one", help="HTTP port")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    probe: Annotated[
        bool, typer.Option("--probe", help="answer one request of the bundle over HTTP, then stop")
    ] = False,
    json: AsJson = False,
) -> None:
    """Serve a bundle over HTTP with Ray Serve until interrupted."""
    with _session(json, "Stopped.") as terminal, ExitStack() as running:
        _place("BUNDLE", bundle)
        from distft.serve.server import DEFAULT_PORT, free_port, serving

        listen = port or (free_port(host) if probe else DEFAULT_PORT)
        with terminal.watching("starting the service") as watcher:
            service = running.enter_context(serving(bundle, host, listen, watcher.progress))
        terminal.say(f"serving {service.model_version} at {service.url}   (API: {service.url}/docs)")
        if probe:
            terminal.exchange(*service.probe())
        else:
            terminal.result({"url": service.url, "model_version": service.model_version})
            with suppress(KeyboardInterrupt):  # the usual end of a service, not of a command that had more to do
                service.wait()
            running.close()
            terminal.say("Stopped.")
            raise typer.Exit(EXIT_INTERRUPTED)


@data_app.command("list")
def data_list(json: AsJson = False) -> None:
    """List the data sets that fetch knows."""
    with _session(json) as terminal:
        from distft.data.fetch import CATALOGUE

        entries = [(entry.name, entry.title, entry.home) for entry in CATALOGUE.values()]
        terminal.text_table("data sets", entries)
        terminal.result({"data_sets": [dict(zip(("name", "title", "home"), one, strict=True)) for one in entries]})


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    from_: Annotated[str | None, typer.Option("--from", metavar="DIR_OR_URL", help="a folder or mirror")] = None,
    json: AsJson = False,
) -> None:
    """Download a data set into data/NAME, where the shipped jobs read it."""
    with _session(json) as terminal:
        from distft.data.fetch import fetch

        with terminal.watching() as watcher:
            fetched = fetch(name, source=from_, progress=watcher.progress)
        terminal.show(fetched.text())
        terminal.result(fetched.to_json())


@data_app.command("synth")
def data_synth(
    job: JobPath,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="folder for the files")],
    format_: Annotated[str, typer.Option("--format", help="csv or parquet")] = "parquet",
    set_: Overrides = None,
    json: AsJson = False,
) -> None:
    """Write the events of a job's synthetic shop as files, and print the part of a job that reads them."""
    with _session(json) as terminal:
        loaded, folder = _load(job, set_, None), _place("--out", out)
        from distft.data.synthesize import as_yaml, synthesize

        with terminal.watching() as watcher:
            section = synthesize(loaded, folder, format_, watcher.progress)
        terminal.show(as_yaml(section).rstrip())
        terminal.result(section)


@data_app.command("forget")
def data_forget(
    user: Annotated[str, typer.Argument(metavar="USER", help="the user's id, as the logs have it")],
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
) -> None:
    """Drop one user from a job's dataset, and say what must be made again."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        from distft.pipeline import Context, forget
        from distft.storage import Storage

        forgotten = forget(Context(loaded, Storage(loaded.storage)), user)
        terminal.forgotten(loaded.storage, forgotten)
        terminal.result(forgotten)
