"""The last stage of a job: its bundle is handed to the service that it is for.

Enters: a bundle and the section ``deploy``. Leaves: what the guard found, or RefusedError. Surprising choice: ``distft
deploy`` runs in a process of its own, here or as a job on the service's cluster, because a process can be connected to
one Ray alone, and this one is to its job's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distft.cluster import WAY
from distft.errors import RefusedError, RunError, ServingError, UsageError
from distft.sections.deploy import Deploy
from distft.storage import Storage

LIMIT_S = 1200.0
"""Of a promotion, whose parts have limits of their own: longer than all of these."""


def hand_over(bundle: Storage, section: Deploy, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """What ``distft deploy`` found. Raises RefusedError where the guard refused the bundle, and what it raised else."""
    progress("deploying", 0, 1)
    words = [*_words(bundle, section), "--json"]
    result = _here(words, section) if section.address is None else _there(words, section.address, section.token_file)
    progress("deploying", 1, 1)
    kind = result.get("error")
    if kind is None:
        return result
    known = {"RefusedError": RefusedError, "UsageError": UsageError, "ServingError": ServingError}
    error = known.get(kind, RunError)(str(result.get("message", "")))
    error.details = result.get("failure")
    raise error


def _words(bundle: Storage, section: Deploy) -> list[str]:
    words = ["deploy", bundle.uri]
    for key, value in section.model_dump(exclude={"state", "address", "token_file"}).items():
        if value is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    # Whole, because a job on another cluster runs in another folder.
    return words + (["--state", Storage(section.state).uri] if section.state is not None else [])


def _here(words: list[str], section: Deploy) -> dict[str, Any]:
    """On the service of this machine, or of the cluster that this process runs on."""
    environment = dict(os.environ)
    if section.state is not None and (Path(Storage(section.state).uri) / WAY).is_file():
        environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "distft", *words]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _too_late("distft deploy") from None
    return _result(done.stdout, done.stderr)


def _there(words: list[str], address: str, token_file: str | None) -> dict[str, Any]:
    """As a job on the cluster of the service, which reads the same storage."""
    from distft.submit import LIVE, Jobs

    with tempfile.TemporaryDirectory(prefix="distft-deploy-") as folder:
        jobs = Jobs(address, token_file)
        id_ = jobs.start(words, "deploy", words[1], Path(folder))
        lines: list[str] = []
        if jobs.follow(id_, lines.append, LIMIT_S).status in LIVE:
            jobs.stop(id_)
            raise _too_late(f"{id_} at {address}")
    return _result("".join(lines), "")


def _too_late(what: str) -> ServingError:
    remedy = "Look whether the service answers, then run the job again: what it has made is kept."
    return ServingError(f"{what} had not ended after {LIMIT_S:g} s, and was ended", "", remedy)


def _result(stdout: str, stderr: str) -> dict[str, Any]:
    """The last JSON object that was printed. Raises ServingError where there is none."""
    for line in reversed(stdout.strip().splitlines()):
        if line.startswith("{"):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    said = (stderr or stdout).strip().splitlines()
    raise ServingError(f"distft deploy said nothing that can be read: {said[-1] if said else 'nothing at all'}")
