"""KubeRay's objects of a job: the RayJob of its stages, the same as a RayCronJob, and the RayService of its model.

Enters: a job and where its file lies. Leaves: plain dictionaries of ``ray.io/v1``. Surprising choice: the command line
says again, as whole paths, what the job file says relative to the shared volume; and only where a service's bundle lies
is written into its object.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from ruamel.yaml.scalarstring import LiteralScalarString

from distft.errors import UsageError
from distft.job import Job
from distft.jobyaml import read_yaml
from distft.k8s import promotion
from distft.k8s.clusters import cluster_spec
from distft.k8s.pods import DATA, IMAGE, MAX_NAME, PART_OF, Json, Size, submitter_pod
from distft.serve.declaration import serve_config
from distft.submit import relative_paths

NAMESPACE = "distft"
JOB_FOLDER = "/etc/distft/job"
JOB_FILE = "job.yaml"
"""Where a job file is that the image does not hold, and what it is called there."""

WORKER = Size(cpus=2, memory_gib=8, cpu_limit=2, shm_gib=2)
REPLICA = Size(cpus=1, memory_gib=4, cpu_limit=2)
TRIALS_AT_ONCE = 4
RETRIES = 3
KEPT_S = 3600
"""How long the head of a job that ended stays, for its logs; the autoscaler takes idle workers away before."""


@dataclass(frozen=True)
class Target:
    """Where the objects of a job go: image, namespace, the job's file as containers see it, GiB of a training pod.

    ``service``: the RayService that the job promotes its model on, where ``deploy.state`` does not tell.
    """

    job_path: str
    image: str = IMAGE
    namespace: str = NAMESPACE
    config_map: str | None = None
    service: str | None = None
    worker_gib: int = WORKER.memory_gib


def ray_job(job: Job, target: Target) -> Json:
    """The job's stages as a RayJob. Raises UsageError for a name that Kubernetes refuses."""
    return {**_head("RayJob", job, target), "spec": _job_spec(job, target)}


def ray_cron_job(job: Job, target: Target, schedule: str) -> Json:
    """The job's stages at every time of ``schedule`` (five fields, UTC), each run in a storage of its own day.

    Finished stages are skipped where they were made: in one storage for all nights the second would do nothing.
    """
    spec = _job_spec(job, target)
    spec["entrypoint"] += "/$(date -u +%Y-%m-%d)"  # of --storage; Ray gives it to a shell
    body = {"schedule": schedule, "timeZone": "Etc/UTC", "jobTemplate": spec}
    return {**_head("RayCronJob", job, target), "spec": body}


def ray_service(job: Job, target: Target, bundle: str) -> Json:
    """The service of a bundle as a RayService: with another bundle the old cluster answers until the new one can."""
    bundle = _in_volume(bundle)
    files: dict[str, tuple[str, Json]] = {
        "keys": ("/etc/distft/keys", {"secret": {"secretName": "distft-api-keys"}}),
        "history": ("/etc/distft/history", {"secret": {"secretName": "distft-history"}}),
        "deny": ("/etc/distft/deny", {"configMap": {"name": "distft-deny"}}),
    }
    replicas = (max(1, job.serve.min_replicas), job.serve.max_replicas)
    cluster = cluster_spec("service", target.image, REPLICA, replicas, files)
    for pod in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        # Another bundle is another cluster, beside the old one: see docs/kubernetes.md, "A new model".
        pod["metadata"]["annotations"] = {"distft/bundle": bundle}
    spec = {
        "serveConfigV2": LiteralScalarString(dump(serve_config(job, bundle))),
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "rayClusterDeletionDelaySeconds": 60,
        "rayClusterConfig": cluster,
    }
    return {**_head("RayService", job, target), "spec": spec}


def config_map(target: Target, text: str) -> Json:
    """The job's file, for a job that is not in the image."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": target.config_map, "namespace": target.namespace, "labels": dict(PART_OF)},
        "data": {JOB_FILE: text},
    }


def object_name(job: Job, kind: str) -> str:
    """``distft-<job>``. Raises UsageError where that is longer than a name may be."""
    name = f"distft-{job.name}"
    if len(name) > MAX_NAME[kind]:
        what = f"The name of the job makes {name!r}, of {len(name)} characters"
        raise UsageError(what, f"at most {MAX_NAME[kind]}, for a {kind}", "Give the job a shorter name.")
    return name


def dump(*documents: Any) -> str:
    """YAML in block style, as people write it, without references from one place to another."""
    yaml, out = YAML(), StringIO()
    yaml.default_flow_style = False
    yaml.width = 4096  # a command that is broken keeps its spaces at the ends of lines
    yaml.representer.ignore_aliases = lambda _: True
    yaml.explicit_start = len(documents) > 1
    for document in documents:
        yaml.dump(document, out)
    return out.getvalue()


def _head(kind: str, job: Job, target: Target) -> Json:
    metadata = {"name": object_name(job, kind), "namespace": target.namespace, "labels": dict(PART_OF)}
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata}


def _job_spec(job: Job, target: Target) -> Json:
    files: dict[str, tuple[str, Json]] = {}
    if target.config_map is not None:
        files["job"] = (JOB_FOLDER, {"configMap": {"name": target.config_map}})
    size, replicas = _workers(job, target.worker_gib)
    promotes = promotion.is_given_token(job, target.service)
    head_files = promotion.token_volume() if promotes else None
    cluster = cluster_spec("job", target.image, size, replicas, files, head_files)
    if promotes:
        cluster["headGroupSpec"]["template"]["metadata"]["labels"] |= promotion.PROMOTES
    return {
        "entrypoint": _command(job, target),
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": submitter_pod(target.image),
        "submitterConfig": {"backoffLimit": 2},
        # Each retry is a new cluster, and the same command: finished stages are skipped, training goes on. But a model
        # that was refused would be asked the same again.
        "backoffLimit": 0 if "deploy" in job.stages else RETRIES,
        "preRunningDeadlineSeconds": 3600,
        # Of the rules of deletion these are the ones that go together with `suspend` and with autoscaling.
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_S,
        "deletionStrategy": {"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteCluster"}},
        "rayClusterSpec": cluster,
    }


def _command(job: Job, target: Target) -> str:
    """What the submitter runs: the job with its paths as every pod sees them, and its storage last."""
    changes = {key: _in_volume(value) for key, value in relative_paths(job)} | promotion.access(job, target.service)
    words = ["distft", "run", target.job_path]
    for key, value in changes.items():
        words += ["--set", f"{key}={value if read_yaml(value)[0] == value else json.dumps(value)}"]
    return shlex.join([*words, "--storage", _in_volume(job.storage)])


def _workers(job: Job, memory_gib: int) -> tuple[Size, tuple[int, int]]:
    """A pod for each training worker, with room for what Ray Data does beside it; more of them for trials at once."""
    fewest, most = job.scaling.worker_range
    cpus = max(WORKER.cpus, math.ceil(job.scaling.cpus_per_worker) + 1)
    if "tune" in job.stages:
        most *= TRIALS_AT_ONCE
    return Size(cpus, memory_gib, cpus, WORKER.shm_gib), (fewest, most)


def _in_volume(place: str) -> str:
    """The path or URI as every pod sees it: relative ones lie in the volume."""
    return place if place.startswith("/") or "://" in place else f"{DATA}/{place.rstrip('/')}"
