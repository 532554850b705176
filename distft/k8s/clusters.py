"""The Ray cluster of a job or a service: a head that runs no work, and one group of workers.

Enters: how many workers of what size. Leaves: the ``rayClusterSpec`` of KubeRay's ``ray.io/v1``. Surprising choice:
the head's pod alone gets a token of the API server, because Ray's autoscaler runs beside it and asks for pods; nothing
else in the namespace may.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

from distft.k8s.pods import HEAD_CONTAINER, SERVICE_TOKEN_SECRET, Json, Size, container_security, ray_pod

Role = Literal["job", "service"]

HEAD = Size(cpus=1, memory_gib=8, cpu_limit=4)
"""Generous memory: the head holds the state of the cluster, the dashboard, and the process of the job itself."""

AUTOSCALER = Size(cpus=0.2, memory_gib=1, cpu_limit=1)
GROUP = "workers"
REDIS_ADDRESS = "distft-redis:6379"
REDIS_SECRET = "distft-redis"


def cluster_spec(
    role: Role,
    image: str,
    size: Size,
    replicas: tuple[int, int],
    files: Mapping[str, tuple[str, Json]],
    head_files: Mapping[str, tuple[str, Json]] | None = None,
) -> Json:
    """One cluster, for a "job" or a "service". ``replicas``: fewest and most worker pods; ``files``: see ``ray_pod``;
    ``head_files``: those of the head alone.

    The state of a service's cluster is kept in Redis, so that it outlives its head; a job that loses its head is begun
    anew on another cluster, and goes on from its storage.
    """
    head = ray_pod(f"{role}-head", HEAD_CONTAINER, HEAD, image, {**files, **(head_files or {})})
    head["spec"] |= {"serviceAccountName": "distft-head", "automountServiceAccountToken": True}
    worker = ray_pod(f"{role}-worker", "ray-worker", size, image, files)
    for pod in (head, worker):
        pod["spec"]["priorityClassName"] = f"distft-{role}"
        pod["spec"]["restartPolicy"] = "Never"  # the second autoscaler replaces pods itself
    fewest, most = replicas
    spec: Json = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 120,
            "resources": AUTOSCALER.resources(),
            "securityContext": container_security(),
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": GROUP,
                "replicas": fewest,
                "minReplicas": fewest,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }
    if role == "service":
        spec["authOptions"]["secretName"] = SERVICE_TOKEN_SECRET
        spec["gcsFaultToleranceOptions"] = {
            "redisAddress": REDIS_ADDRESS,
            "redisPassword": {"valueFrom": {"secretKeyRef": {"name": REDIS_SECRET, "key": "password"}}},
        }
    return spec
