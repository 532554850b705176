"""How the last stage of a job reaches the service that it promotes a model on: another Ray cluster of the namespace.

Enters: the section ``deploy`` of a job, or the name of a RayService. Leaves: keys that the job is given on its command
line, and the volume with the service's token, for the job's head alone. Surprising choice: where nobody names the
RayService, it is that of the job whose storage holds ``deploy.state``, because a service keeps its state there.
"""

from __future__ import annotations

import re

from distft.errors import UsageError
from distft.job import Job
from distft.k8s.pods import MAX_NAME, PORTS, SERVICE_TOKEN_SECRET, TOKEN_KEY, Json

TOKEN_FOLDER = "/etc/distft/service-token"
TOKEN_FILE = f"{TOKEN_FOLDER}/{TOKEN_KEY}"
PROMOTES = {"distft/promotes": "true"}
"""Label of a head that may talk to the service's head: see k8s/base/network.yaml."""


def access(job: Job, service: str | None) -> dict[str, str]:
    """Keys of the job and their values, by which it finds the service; none where it needs none or names a cluster.

    ``service``: the RayService, where it is not the one that keeps its state in ``deploy.state``. Raises UsageError
    where it cannot be told which one it is.
    """
    if "deploy" not in job.stages or job.deploy.address is not None:
        if service is not None:
            what = f"--service is {service!r}, and the job " + (
                "has no stage deploy" if "deploy" not in job.stages else f"names {job.deploy.address} itself"
            )
            raise UsageError(what, "a job that deploys, without deploy.address", "Leave --service out.")
        return {}
    # KubeRay gives every RayService this name for the head of its active cluster, whichever that is.
    address = f"http://{service or _service_of(job.deploy.state)}-head-svc:{PORTS['dashboard']}"
    return {"deploy.address": address, "deploy.token_file": TOKEN_FILE}


def is_given_token(job: Job, service: str | None) -> bool:
    """True if the job's head needs the token of the namespace's services."""
    return access(job, service).get("deploy.token_file", job.deploy.token_file) == TOKEN_FILE


def token_volume() -> dict[str, tuple[str, Json]]:
    """Volume with the token, as ``ray_pod`` takes it."""
    return {"service-token": (TOKEN_FOLDER, {"secret": {"secretName": SERVICE_TOKEN_SECRET}})}


def check_service(name: str) -> None:
    """Raises UsageError for what no RayService is called."""
    if not _is_name(name):
        raise UsageError(f"--service is {name!r}", "the name of a RayService, such as distft-quickstart", "Correct it.")


def _service_of(state: str | None) -> str:
    folder = (state or "").rstrip("/").rpartition("/")[0].rpartition("/")[2]
    name = f"distft-{folder}"
    if not folder or not _is_name(name):
        what = f"The job deploys, and deploy.state ({state or 'not given'}) does not tell on which RayService"
        raise UsageError(what, "the name of a RayService", "Give it with --service NAME.")
    return name


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME["RayService"] and bool(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", text))
