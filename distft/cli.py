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
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
k8s_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys", help="API keys of a service: make, list, revoke.")
jobs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(jobs_app, name="jobs", help="Jobs on a cluster: list them, read their logs, stop one.")
app.add_typer(data_app, name="data", help="Data sets: list them, fetch one, or make one up.")
app.add_typer(k8s_app, name="k8s", help="Kubernetes: the objects of a job, for KubeRay.")

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
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", show_default="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="id of a submitted job, or the name of the job: its newest")]

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
    from distft.sections.values import checked_storage

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
def finetune(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Adapt a trained model: freeze layers, train the rest; continues where it stopped."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        if loaded.finetune is None:
            raise UsageError(f"{job} has no section finetune", "one with its key 'from'", "Add it.")
        summary = _run(terminal, loaded, ("finetune",), force)["finetune"]
        terminal.training(summary)
        terminal.result(summary)


@app.command()
def tune(
    job: JobPath, set_: Overrides = None, storage: StorageUri = None, json: AsJson = False, force: Force = False
) -> None:
    """Search learning rate, batch size or other keys with Ray Tune; continues where it stopped."""
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        summary = _run(terminal, loaded, ("tune",), force)["tune"]
        terminal.tuning(loaded.storage, summary)
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
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
        if endpoint is not None:
            _replay(terminal, loaded, endpoint, from_, (key_file, ca_file))
            return
        other = None if against is None else _place("--against", against)
        metrics = _run(terminal, loaded, ("evaluate",), force, from_, other)["evaluate"]
        terminal.evaluation(loaded, metrics)
        terminal.result(metrics)


def _replay(terminal: Terminal, job: Any, url: str, from_: str | None, files: tuple[str | None, str | None]) -> None:
    from distft.errors import ServingError
    from distft.pipeline import Context, replay
    from distft.storage import Storage

    key_file, ca_file = files
    key = _read_key(key_file) if key_file else None
    with terminal.watching() as watcher:
        result = replay(Context(job, Storage(job.storage), watcher, from_=from_), url, key, ca_file)
    terminal.replayed(result)
    if not result["passed"]:
        error = ServingError(f"{url} does not rank as the model was evaluated", "", "Serve the bundle of this job.")
        error.details = result
        raise error
    terminal.result(result)


def _read_key(file: str) -> str:
    from distft.storage import Storage

    folder, name = os.path.split(os.path.abspath(file))
    return Storage(folder).read_bytes(name).decode(errors="replace").strip()


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
        if "tune" in summaries:
            terminal.tuning(loaded.storage, summaries["tune"])
        for stage in ("train", "finetune"):
            if stage in summaries:
                terminal.training(summaries[stage])
        if "evaluate" in summaries:
            terminal.evaluation(loaded, summaries["evaluate"])
        if "export" in summaries:
            terminal.say(f"bundle  {loaded.storage}/bundle   (serve it: distft serve {loaded.storage}/bundle)")
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
    with _session(json) as terminal:
        loaded = _load(job, set_, storage)
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
        terminal.text_table(f"{loaded.name}: {found.wanted.num_workers} workers", asking.rows(found, timed))
        terminal.show(asking.settings_text(found))
        refuse(found, f"{stage}.zero")
        terminal.result(asking.to_json(found, timed))


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
    with _session(json) as terminal:
        from pathlib import Path

        from distft.submit import Jobs, words_of

        loaded, folder = _load(job, set_, storage), Path(working_dir)
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
    with _session(json) as terminal:
        from distft.submit import Jobs

        found = Jobs(address).all()
        if found:
            terminal.jobs(found)
        terminal.result({"jobs": [one.to_json() for one in found]})


@jobs_app.command("logs")
def jobs_logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="until it ends; this ends with its exit code")] = False,
    json: AsJson = False,
) -> None:
    """Show what a job has said."""
    with _session(json) as terminal:
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
    with _session(json) as terminal:
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
    with _session(json, "Interrupted.") as terminal:
        from distft.doctor import examine, to_json

        found = to_json(examine(None if storage is None else _place("--storage", storage), port))
        terminal.findings(found["findings"])
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
    with _session(json) as terminal:
        from distft.chaos import Schedule, disturb
        from distft.storage import Storage

        where = Storage(_place("FOLDER", folder))
        key = _read_key(key_file) if key_file else ""
        service = None if url is None else (url, key, {"history": [], "k": 3})
        report = disturb(where, Schedule(kill.split(","), every, for_, seed), terminal.say, service)
        terminal.chaos(report)
        terminal.result(report)


@app.command()
def serve(  # noqa: PLR0913  one parameter an option
    bundle: BundlePath,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, show_default="8000; with --probe any free one", help="HTTP port")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    probe: Annotated[
        bool, typer.Option("--probe", help="answer one request of the bundle over HTTP, then stop")
    ] = False,
    history: Annotated[
        str | None, typer.Option(metavar="embedded|none|redis://…", help="in the place of the job's serve.history")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default="service/ beside the bundle", help="for histories and the event log"),
    ] = None,
    pseudonym_key: Annotated[
        str | None, typer.Option("--pseudonym-key", metavar="FILE", help="key of data.pseudonyms, where it lies here")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default="one key, made and shown at the start", help="file of API keys"),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="answer without API keys; on loopback alone")] = False,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help="HTTPS with this certificate (PEM)")
    ] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="its private key (PEM)")] = None,
    request_log: Annotated[
        str | None, typer.Option("--request-log", metavar="FILE", help="write a line for every request")
    ] = None,
    log_users: Annotated[bool, typer.Option("--log-users", help="the request log may name users")] = False,
    deny: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="items never to be recommended, an id a line; followed"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Serve a bundle over HTTP with Ray Serve until interrupted."""
    with _session(json, "Stopped.") as terminal, ExitStack() as running:
        _place("BUNDLE", bundle)
        from distft.serve.arrangement import Options
        from distft.serve.server import DEFAULT_PORT, default_state, free_port, serving

        folder = None if state is None else _place("--state", state)
        if folder is None and not probe:
            folder = default_state(bundle)
        secret, keys = running.enter_context(_access(keys, no_auth))
        tls = _certificate(tls_cert, tls_key)
        options = Options(history, folder, pseudonym_key, keys, request_log, log_users, tls, deny)

        listen = port or (free_port(host) if probe else DEFAULT_PORT)
        with terminal.watching("starting the service") as watcher:
            service = running.enter_context(serving(bundle, host, listen, watcher.progress, options))
        terminal.say(f"serving {service.model_version} at {service.url}   (API: {service.url}/docs)")
        if probe:
            terminal.exchange(*service.probe(secret))
        else:
            if secret:
                terminal.say(f"API key until it ends (--keys FILE for lasting ones): {secret}")
            terminal.result(
                {"url": service.url, "model_version": service.model_version} | ({"api_key": secret} if secret else {})
            )
            with suppress(KeyboardInterrupt):  # the usual end of a service, not of a command that had more to do
                service.wait()
            running.close()
            terminal.say("Stopped.")
            raise typer.Exit(EXIT_INTERRUPTED)


def _certificate(certificate: str | None, key: str | None) -> Any:
    from distft.serve.tls import Certificate

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("Of --tls-cert and --tls-key one is missing", "both", "Give the other one too.")
    return Certificate(certificate, key)


@contextmanager
def _access(keys: str | None, no_auth: bool) -> Iterator[tuple[str | None, str | None]]:
    """(an API key, if one is made for this run alone; the file of keys, or None where none are asked for)."""
    if no_auth and keys is not None:
        raise UsageError("--no-auth and --keys are both given", "one of them", "Leave one out.")
    if no_auth or keys is not None:
        yield None, keys
        return
    import tempfile
    from pathlib import Path

    from distft.serve.keys import new_key, write_keys

    with tempfile.TemporaryDirectory(prefix="distft-keys-") as folder:
        secret, key = new_key("this-run")
        write_keys(Path(folder) / "keys.json", [key])
        yield secret, f"{folder}/keys.json"


KeysFile = Annotated[str, typer.Option("--file", metavar="FILE", help="file of API keys")]


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is, for the log and for revoking it")],
    file: KeysFile,
    rate: Annotated[float | None, typer.Option(metavar="REQUESTS_PER_S", help="how often it may ask")] = None,
    json: AsJson = False,
) -> None:
    """Make a key, show it once, and add its hash to the file."""
    with _session(json) as terminal:
        from distft.serve.keys import add_key

        secret = add_key(file, name, rate)
        terminal.say(f"key {name} (shown this once; a running service knows it in 2 s):")
        terminal.show(secret)
        terminal.result({"name": name, "key": secret})


@keys_app.command("list")
def keys_list(file: KeysFile, json: AsJson = False) -> None:
    """List the keys of a file: names and rates."""
    with _session(json) as terminal:
        from pathlib import Path

        from distft.serve.keys import read_keys

        found = read_keys(Path(file))
        if found:
            terminal.text_table("keys", [(key.name, f"{key.requests_per_s or 'any'} requests/s") for key in found])
        terminal.result({"keys": [key.model_dump(exclude={"sha256"}) for key in found]})


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(metavar="NAME")], file: KeysFile, json: AsJson = False) -> None:
    """Take a key out of the file."""
    with _session(json) as terminal:
        from distft.serve.keys import remove_key

        remove_key(file, name)
        terminal.say(f"key {name} is revoked; a running service refuses it in 2 s")
        terminal.result({"name": name})


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
        typer.Option("--bundle", metavar="URI", show_default="STORAGE/bundle", help="what the service serves"),
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
    storage: StorageUri = None,
    json: AsJson = False,
) -> None:
    """Print the Kubernetes objects of a job as YAML: its RayJob, the RayService of its bundle, or a RayCronJob."""
    with _session(json) as terminal:
        from distft.k8s.render import Wish, rendered

        loaded = _load(job, None, storage)
        wish = Wish(kind, image, in_image, namespace, bundle, schedule, suspended, items)
        objects, text = rendered(loaded, job, wish)
        terminal.show(text.rstrip())
        terminal.result({"objects": objects})


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
