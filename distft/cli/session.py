"""What every verb shares: its usual options, and how errors and interruptions become a paragraph and an exit code.

Surprising choice: a verb's body stands in ``session``, so that no verb handles an error by itself.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distft.errors import EXIT_INTERRUPTED, DistftError, UsageError

if TYPE_CHECKING:
    from distft.job import StageName
    from distft.terminal.console import Terminal

JobPath = Annotated[str, typer.Argument(metavar="JOB", help="job file (YAML)")]
BundlePath = Annotated[str, typer.Argument(metavar="BUNDLE", help="bundle folder or URI")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="override a job key")]
StorageUri = Annotated[str | None, typer.Option("--storage", help="folder or URI in place of the job's storage")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, all else on stderr")]
Force = Annotated[bool, typer.Option("--force", help="make the stage again, replacing what it left")]
Against = Annotated[
    str | None, typer.Option("--against", metavar="BUNDLE", help="compare with the model of a bundle, target by target")
]
SignKey = Annotated[
    str | None, typer.Option("--sign-key", metavar="FILE", help="sign the bundle with this key of Ed25519 (PEM)")
]
From = Annotated[str | None, typer.Option("--from", metavar="train|finetune|PATH", help="which model")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", show_default="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="id of a submitted job, or the name of the job: its newest")]


INTERRUPTED = "Interrupted. What was finished is kept: the same command continues from there."


@contextmanager
def session(as_json: bool, interrupted: str = INTERRUPTED) -> Iterator[Terminal]:
    """Turns errors into a paragraph and an exit code; an interruption (also SIGTERM) into 130."""
    from distft.terminal.console import Terminal

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


def load(path: str, overrides: list[str] | None, storage: str | None) -> Any:
    """The job of a file, as ``--set`` and ``--storage`` change it."""
    from distft.jobfile import load_job

    job = load_job(path, overrides or ())
    return job if storage is None else job.model_copy(update={"storage": checked_place("--storage", storage)})


def checked_place(option: str, text: str) -> str:
    """A folder or URI as given with an option: an empty one, from a variable that is not set, would be the root."""
    from distft.sections.values import checked_storage

    try:
        return checked_storage(text)
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: {error}") from None


def run_stages(  # noqa: PLR0913  what a verb may be asked for
    terminal: Terminal,
    job: Any,
    stages: tuple[StageName, ...],
    force: bool = False,
    from_: str | None = None,
    against: str | None = None,
    sign_key: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs stages of a job, and gives what each found."""
    from distft import cluster
    from distft.pipeline import run
    from distft.stages import Context
    from distft.storage import Storage
    from distft.terminal.progress import watching

    storage = Storage(job.storage)
    if cluster.is_remote() and storage.is_local and not job.storage.startswith(("/", "file://")):
        terminal.say(
            f"note: {job.storage} is relative, so it lies in Ray's copy of the working directory, which goes when "
            "the job has ended. Give --storage an absolute path or a URI to keep what this run makes."
        )
    with watching(terminal) as watcher:
        return run(Context(job, storage, watcher, force, from_, command_again(), against, sign_key), stages)


def command_again() -> str:
    """The command that goes on where this one may end, for a shell in any folder."""
    program = "distft" if os.path.basename(sys.argv[0]) == "distft" else f"{shlex.quote(sys.executable)} -m distft"
    words = [word for word in sys.argv[1:] if word != "--force"]
    return f"cd {shlex.quote(os.getcwd())} && {program} {shlex.join(words)}"


def read_key(file: str) -> str:
    """The API key in a file. Raises UsageError where there is none."""
    from distft.storage import Storage

    folder, name = os.path.split(os.path.abspath(file))
    return Storage(folder).read_bytes(name).decode(errors="replace").strip()
