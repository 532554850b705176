"""Jobs on a cluster: hands one over, follows it, lists and stops.

Enters: a job file below the working directory, the address of a cluster's dashboard, its token in the environment or in
a file.
Leaves: ``distft run`` as a Ray job on the head, its log and its exit code here. Surprising choice: whether the job fits
the cluster is not asked here but is the first thing that the run itself does there, so that a plain ``ray job submit``
is told as well.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distft.errors import EXIT_FAILED, EXIT_INTERRUPTED, RunError, UsageError
from distft.job import Job

ADDRESS, TOKEN, TOKEN_PATH = "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
EXCLUDES = ("/data/", "/runs/", ".git", ".venv", "venv", "__pycache__")
"""What is not sent with a working directory, beside all that its .gitignore names."""
STOP_WAIT_S = 30
"""How long a job that is stopped has to end its workers and its service; Ray's own default is 3 s."""
REACH_TIMEOUT_S, AWAY_S, POLL_S = 10.0, 120.0, 1.0
"""``AWAY_S``: how long a head that does not answer is waited for while a job is followed."""
LIVE = ("PENDING", "RUNNING")
PATH_KEYS = ("path", "from", "key_file", "state", "token_file")
"""Of a job, whatever section they are in."""


@dataclass(frozen=True)
class Submitted:
    """A job of distft on a cluster. ``exit_code`` is None while it runs; times are those of the cluster."""

    id: str
    name: str
    storage: str
    status: str
    exit_code: int | None
    started_ms: int
    message: str

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)


class _Log:
    """A job's log, which may have to be read again from its beginning: every part is written once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, 0
        self.seen, self.heard_s = 0, time.monotonic()

    def hear(self, text: str) -> None:
        """Takes the next part, and writes what of it is new."""
        new = text[max(0, self._written - self.seen) :]
        self.seen += len(text)
        self.heard_s = time.monotonic()
        if new:
            self._written = self.seen
            self._write(new)


class Jobs:
    """The jobs of the cluster at ``address``, which is else taken from RAY_API_SERVER_ADDRESS.

    ``token_file``: holds that cluster's token, where the environment's is that of another one. Raises UsageError where
    no cluster answers there, or it does not let this token in.
    """

    def __init__(self, address: str | None = None, token_file: str | None = None) -> None:
        found = address or os.environ.get(ADDRESS, "")
        if not found:
            raise UsageError(
                "It is not said which cluster",
                "the address of its dashboard, such as http://10.0.0.5:8265",
                f"Give it with --address, or set {ADDRESS}.",
            )
        self.address = (found if "://" in found else f"http://{found}").rstrip("/")
        token = _token() if token_file is None else _token_in(Path(token_file))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        _check_entrance(self.address, headers, token_file)
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)
        with _addressed_by_argument():
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, job: Job, words: Sequence[str], folder: Path) -> str:
        """The id of a new job that runs ``distft run`` with these words in a copy of the folder.

        Raises UsageError for what would not be found there, and where a job of this name and storage runs already.
        """
        check_portable(job)
        for other in self.all():
            if (other.name, other.storage) == (job.name, job.storage) and other.status in LIVE:
                raise UsageError(
                    f"{job.name} runs already, as {other.id}, into {job.storage}",
                    "one run per storage at a time",
                    f"Follow it with 'distft jobs logs {other.id} --follow', or stop it first.",
                )
        return self.start(["run", *words], job.name, job.storage, folder)

    def start(self, words: Sequence[str], name: str, storage: str, folder: Path) -> str:
        """The id of a new job that runs ``distft`` with these words in a copy of the folder."""
        with _told(self.address):
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "distft", *words]),
                    submission_id=f"{name}-{uuid.uuid4().hex[:6]}",
                    metadata={"distft": name, "storage": storage},
                    runtime_env={
                        "working_dir": str(folder),
                        "excludes": list(EXCLUDES),
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                    },
                )
            )

    def all(self) -> list[Submitted]:
        """The jobs of distft, oldest first."""
        with _told(self.address):
            jobs = [_submitted(one) for one in self._client.list_jobs() if "distft" in (one.metadata or {})]
        return sorted(jobs, key=lambda one: one.started_ms)

    def find(self, text: str) -> Submitted:
        """The job of this id, or the newest of this name. Raises UsageError."""
        jobs = self.all()
        found = [one for one in jobs if one.id == text] or [one for one in jobs if one.name == text]
        if not found:
            some = ", ".join(one.id for one in jobs[-5:]) or "there are none"
            raise UsageError(
                f"No job is called {text}", f"the id or the name of one: {some}", "See 'distft jobs list'."
            )
        return found[-1]

    def logs(self, id_: str) -> str:
        """All that the job has said."""
        with _told(self.address):
            return str(self._client.get_job_logs(id_))

    def follow(self, id_: str, write: Callable[[str], None], limit_s: float = math.inf) -> Submitted:
        """The job when it has ended, or after ``limit_s``; what it says is written as it comes.

        A head that restarts is waited for.
        """
        log, began_s = _Log(write), time.monotonic()
        away_s = began_s
        while True:
            try:
                asyncio.run(self._tail(id_, log, limit_s - (time.monotonic() - began_s)))
                job = self.find(id_)
                if job.status not in LIVE or time.monotonic() - began_s > limit_s:
                    return job
                away_s = time.monotonic()
            except (UsageError, RunError, RuntimeError, OSError) as error:
                away_s = max(away_s, log.heard_s)
                if time.monotonic() - away_s > AWAY_S:
                    raise RunError(
                        f"{self.address} has not answered for {AWAY_S:.0f} s: {error}",
                        "",
                        f"When it is back: distft jobs logs {id_} --follow.",
                    ) from error
            time.sleep(POLL_S)

    async def _tail(self, id_: str, log: _Log, limit_s: float) -> None:
        """Hands on what the job says, from its beginning to its end or for so long."""
        import aiohttp

        async def listen() -> None:
            async for text in self._client.tail_job_logs(id_):
                log.hear(text)

        log.seen = 0
        with suppress(asyncio.TimeoutError):
            try:
                await asyncio.wait_for(listen(), None if limit_s == math.inf else max(0.0, limit_s))
            except aiohttp.ClientError as error:
                raise OSError(str(error)) from error

    def stop(self, id_: str) -> bool:
        """Asks the job to end; False if it had ended."""
        with _told(self.address):
            return bool(self._client.stop_job(id_))


def check_portable(job: Job) -> None:
    """Raises UsageError for paths of this machine that a cluster would look for in vain."""
    if _is_relative(job.storage):
        raise UsageError(
            f"storage is {job.storage}, which would lie in the cluster's copy of this folder and go with the job",
            "a URI, or the whole path of a folder that all nodes share",
            "Give one with --storage.",
        )
    missing = [f"{key}: {value}" for key, value in relative_paths(job)]
    if missing:
        raise UsageError(
            f"These are relative, and data is not sent along: {'; '.join(missing)}",
            "URIs, or whole paths that all nodes see",
            "Change them in the job, or with --set.",
        )


def relative_paths(job: Job) -> list[tuple[str, str]]:
    """Keys of the job, as ``--set`` takes them, with values that depend on where it is run; without its storage."""
    named = _paths(job.model_dump(mode="json", by_alias=True))
    return [(key, value) for key, value in named if _is_relative(value)]


def exit_code(job: Submitted) -> int:
    """What a command ends with that waited for the job."""
    if job.status == "STOPPED":
        return EXIT_INTERRUPTED
    # A process that a signal ended has a negative one; one that could not be started has none.
    return EXIT_FAILED if job.exit_code is None or job.exit_code < 0 else job.exit_code


def _paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys of a job that name files or artefacts, with their values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{key}.{name}" if key else name
            if name in PATH_KEYS and isinstance(inner, str):
                yield here, inner
            elif name not in ("columns", "event_types"):  # whose keys are the shop's own words
                yield from _paths(inner, here)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{key}.{index}")


def _is_relative(text: str) -> bool:
    return "://" not in text and not text.startswith("/")


def _token() -> str:
    """The cluster's token, from where Ray looks for it too."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN]
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip()
    except OSError as error:
        if TOKEN_PATH in os.environ:
            raise UsageError(f"{TOKEN_PATH} names {path}: {error.strerror}", "a file with the token") from error
        return ""


def _token_in(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        what = f"The token of the cluster, {file}, cannot be read: {getattr(error, 'strerror', None) or error}"
        remedy = "Correct deploy.token_file, or mount the secret there."
        raise UsageError(what, "a file that holds it", remedy) from error
    if not token or len(token.split()) > 1:
        what = f"{file} holds {'no token' if not token else 'more than a token'}"
        raise UsageError(what, "the token of the cluster at deploy.address alone", "Write it there.")
    return token


@contextmanager
def _addressed_by_argument() -> Iterator[None]:
    """The block without the variables by which Ray's client overrides the address that it is given.

    In a job that Ray itself started they name the job's own cluster, and would send the token of another one there.
    """
    hidden = {name: os.environ.pop(name) for name in (ADDRESS, "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


def _check_entrance(address: str, headers: dict[str, str], token_file: str | None) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"{address} is not the address of a dashboard", "one like http://10.0.0.5:8265")
    try:
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            given = "this token" if headers else "anybody without a token"
            remedy = f"Set {TOKEN}, or {TOKEN_PATH} to a file that holds it."
            raise UsageError(
                f"{address} does not let in {given} ({error.code})",
                "the token that the cluster's nodes were started with",
                remedy if token_file is None else f"Write it into {token_file}.",
            ) from None
        raise UsageError(f"{address} answers {error.code}", "the dashboard of a Ray cluster") from None
    except OSError as error:
        raise UsageError(
            f"{address} does not answer: {getattr(error, 'reason', error)}",
            "the dashboard of a Ray cluster",
            "Correct --address, or open a way there (ray dashboard, ssh -L, kubectl port-forward).",
        ) from None


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into an error of ours: it tells by RuntimeError what the server answered."""
    import ray.exceptions

    try:
        yield
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        raise RunError(f"{address}: {str(error).strip().splitlines()[-1]}") from error


def _submitted(one: Any) -> Submitted:
    return Submitted(
        id=one.submission_id,
        name=one.metadata["distft"],
        storage=one.metadata.get("storage", ""),
        status=str(one.status.value if hasattr(one.status, "value") else one.status),
        exit_code=one.driver_exit_code,
        started_ms=int(one.start_time or 0),
        message=(one.message or "").split(", last available logs")[0].strip(),
    )


def words_of(job_file: str, folder: Path, overrides: Sequence[str], storage: str | None) -> list[str]:
    """What follows ``distft run`` in a copy of the folder. Raises UsageError for a job file outside of it."""
    try:
        inside = Path(job_file).resolve().relative_to(folder.resolve())
    except ValueError:
        raise UsageError(
            f"{job_file} is not below {folder}, of which the cluster gets a copy",
            "a job file in the working directory",
            "Run this command where the job lies, or give --working-dir.",
        ) from None
    words = [str(inside), *(part for override in overrides for part in ("--set", override))]
    return words if storage is None else [*words, "--storage", storage]
