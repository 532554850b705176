"""Pod templates of Ray's nodes and of the submitter, as strict as the "restricted" pod security standard.

Enters: what a container runs and needs. Leaves: plain dictionaries, as Kubernetes' API takes them. Surprising choice:
the working directory is the storage volume, not the image's ``/app``: so the relative paths of a job file, of its data
and of its storage, mean the same here as in a checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distft import __version__
from distft.cluster import QUIET, SERVE

Json = dict[str, Any]

IMAGE = f"distft:{__version__}"
"""An overlay's ``images`` gives it a registry."""

UID = 10001
"""Of the image's user, see cluster/Dockerfile."""

HEAD_CONTAINER = "ray-head"
STORAGE_CLAIM, STORAGE_SECRET = "distft-storage", "distft-object-store"
CREDENTIALS = "/etc/distft/object-store"
"""Of an object store, in AWS's own file format; as files, because every child of a process inherits its environment."""
SERVICE_TOKEN_SECRET, TOKEN_KEY = "distft-service-token", "auth_token"
"""Ray's token of the services' clusters: a secret of the user's own, so that a job can be handed it too; and the key in
it where KubeRay looks. Clusters of jobs have tokens that the operator makes."""

DATA = "/data"
"""Where the storage volume is, in every container."""

MAX_NAME = {"RayJob": 47, "RayService": 47, "RayCronJob": 36}
"""KubeRay's limits: names of pods and services are made of these."""

PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}
WORKER_PORTS = ("metrics", "serve")
PART_OF = {"app.kubernetes.io/name": "distft", "app.kubernetes.io/part-of": "distft"}


@dataclass(frozen=True)
class Size:
    """What a container asks for, and at most gets; memory and shared memory in GiB."""

    cpus: float
    memory_gib: int
    cpu_limit: float
    shm_gib: int = 1

    def resources(self) -> Json:
        """Memory is never promised twice: the limit is what is asked for, so that no node is overcommitted."""
        memory = f"{self.memory_gib}Gi"
        return {
            "requests": {"cpu": f"{self.cpus:g}", "memory": memory},
            "limits": {"cpu": f"{self.cpu_limit:g}", "memory": memory},
        }


def labels(component: str) -> dict[str, str]:
    """By which policies, budgets and monitors find a pod."""
    return {**PART_OF, "app.kubernetes.io/component": component}


def ray_pod(component: str, container: str, size: Size, image: str, files: Mapping[str, tuple[str, Json]]) -> Json:
    """Template of a pod that is one node of a Ray cluster.

    ``files``: volumes that are only read, name → (where they are mounted, their source).
    """
    volumes: dict[str, tuple[str, Json]] = {
        "tmp": ("/tmp", {"emptyDir": {"sizeLimit": "20Gi"}}),
        "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}}),
        "data": (DATA, {"persistentVolumeClaim": {"claimName": STORAGE_CLAIM}}),
        "object-store": (CREDENTIALS, {"secret": {"secretName": STORAGE_SECRET, "optional": True}}),
        **files,
    }
    mounts: list[Json] = [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()]
    for mount in mounts:
        if mount["name"] in files or mount["name"] == "object-store":
            mount["readOnly"] = True
    ports = PORTS if container == HEAD_CONTAINER else {name: PORTS[name] for name in WORKER_PORTS}
    main = {
        "name": container,
        "image": image,
        "imagePullPolicy": "Always",
        "workingDir": DATA,
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "env": environment(),
        "resources": size.resources(),
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    spec = {
        **_pod_spec("distft-ray"),
        "containers": [main],
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
    }
    return {"metadata": {"labels": labels(component)}, "spec": spec}


def submitter_pod(image: str) -> Json:
    """Template of the pod that hands a job's command to its cluster, and waits for the end."""
    main = {
        "name": "ray-job-submitter",
        "image": image,
        "imagePullPolicy": "Always",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": Size(0.1, 1, 1).resources(),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        **_pod_spec("distft-submitter"),
        "restartPolicy": "Never",
        "containers": [main],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    return {"metadata": {"labels": labels("submitter")}, "spec": spec}


def environment() -> list[Json]:
    """What an embedded Ray finds in its environment, in every container; and a home that can be written to."""
    values = {"HOME": "/tmp", "AWS_SHARED_CREDENTIALS_FILE": f"{CREDENTIALS}/credentials", **QUIET, **SERVE}
    return [{"name": name, "value": value} for name, value in values.items()]


def container_security() -> Json:
    """What the "restricted" standard asks of a container, and a file system that nothing can be hidden in."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod_spec(service_account: str) -> Json:
    return {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
