"""What KubeRay's operator, the restricted pod security standard, and this project ask beyond the schemas.

Enters: the objects of an overlay. Leaves: one line for every breach, with the object's name. The operator's rules are
those of KubeRay 1.7's own validation; those of pod security are Kubernetes' ("Pod Security Standards", restricted).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.k8s import reach

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "image",
    )
}
HEAD_PORTS = {6379, 8265, 10001, "gcs-server", "dashboard", "client"}


def name_of(thing: Object) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def cluster_of(thing: Object) -> Object | None:
    """The Ray cluster in an object of ray.io."""
    spec: Object = thing.get("spec", {})
    if thing["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    cluster: Object | None = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
    return spec if thing["kind"] == "RayCluster" else cluster


def pods_of(thing: Object) -> Iterator[tuple[str, Object]]:
    """(place, pod template) of every pod that the object makes."""
    spec = thing.get("spec", {})
    if thing["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield "template", spec["template"]
    job = spec["jobTemplate"] if thing["kind"] == "RayCronJob" else spec
    if "submitterPodTemplate" in job:
        yield "submitterPodTemplate", job["submitterPodTemplate"]
    cluster = cluster_of(thing) if thing["apiVersion"].startswith("ray.io/") else None
    if cluster:
        yield "headGroupSpec", cluster["headGroupSpec"].get("template", {})
        for group in cluster.get("workerGroupSpecs", ()):
            yield f"workerGroupSpecs {group['groupName']}", group.get("template", {})


def breaches(objects: list[Object]) -> list[str]:
    """Every breach of every rule."""
    found = [f"{name_of(one)}: {text}" for one in objects for text in _of_one(one)]
    return found + [f"namespace: {text}" for text in _of_all(objects)]


def _of_one(thing: Object) -> Iterator[str]:
    if thing["apiVersion"].startswith("ray.io/"):
        yield from _operator(thing)
        yield from _cluster(thing)
    for place, pod in pods_of(thing):
        yield from (f"{place}: {text}" for text in _restricted(pod.get("spec", {})))
        yield from (f"{place}: {text}" for text in _house(pod.get("spec", {})))
        yield from (f"{place}: {text}" for text in reach.token_faults(pod))
    if thing["kind"] == "Service" and thing["spec"].get("type", "ClusterIP") != "ClusterIP":
        yield "a service that other machines reach directly"
    if thing["kind"] == "Ingress":
        yield from _ingress(thing)


def _operator(thing: Object) -> Iterator[str]:
    kind, name, spec = thing["kind"], thing["metadata"]["name"], thing["spec"]
    if thing["apiVersion"] != "ray.io/v1":
        yield f"{thing['apiVersion']} is not ray.io/v1"
    if len(name) > MAX_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name!r} is too long, or no DNS label"
    if kind in ("RayJob", "RayCronJob"):
        yield from _job(spec["jobTemplate"] if kind == "RayCronJob" else spec)
    if kind == "RayCronJob" and (len(spec["schedule"].split()) != 5 or "TZ" in spec["schedule"]):
        yield f"schedule {spec['schedule']!r} has no five fields"
    if kind == "RayService":
        upgrade = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
        if upgrade not in UPGRADES:
            yield f"upgradeStrategy.type {upgrade!r}"
        if "upgradeStrategy" in spec["rayClusterConfig"]:
            yield "upgradeStrategy inside rayClusterConfig"


def _job(spec: Object) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode!r}"
    if mode in ("HTTPMode", "SidecarMode") and "submitterPodTemplate" in spec:
        yield f"submitterPodTemplate with {mode}"
    if spec.get("backoffLimit") and ("clusterSelector" in spec or mode == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if spec.get("suspend") and ("clusterSelector" in spec or not spec.get("shutdownAfterJobFinishes")):
        yield "suspend with clusterSelector or without shutdownAfterJobFinishes"
    if mode == "SidecarMode" and "submitterConfig" in spec:
        yield "submitterConfig with SidecarMode"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} is not above 0"
    yield from _deletion(spec)
    yield from _entrypoint(spec.get("entrypoint", ""))


def _deletion(spec: Object) -> Iterator[str]:
    shutdown, strategy = spec.get("shutdownAfterJobFinishes"), spec.get("deletionStrategy", {})
    if spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    found = strategy.get("deletionRules", [])
    if found and shutdown:
        yield "deletionRules with shutdownAfterJobFinishes"
    if not found and not shutdown:
        yield "nothing takes the cluster down when the job has ended"
    policies = [strategy.get(key, {}).get("policy") for key in ("onSuccess", "onFailure")]
    if strategy and not found and None in policies:
        yield "a deletionStrategy without a policy on success or on failure"
    if shutdown and "DeleteNone" in policies:
        yield "shutdownAfterJobFinishes with DeleteNone"
    everything = [*policies, *(rule["policy"] for rule in found)]
    if "DeleteWorkers" in everything and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers with autoscaling"
    yield from _order(found)


def _order(found: list[Object]) -> Iterator[str]:
    """Of one status workers go first, then the cluster, then the object; and no rule comes twice."""
    by_status: dict[Any, list[tuple[str, int]]] = {}
    for rule in found:
        status = rule["condition"].get("jobStatus") or rule["condition"].get("jobDeploymentStatus")
        by_status.setdefault(status, []).append((rule["policy"], rule["condition"].get("ttlSeconds", 0)))
    for status, those in by_status.items():
        ttls = dict(those)
        if len(ttls) < len(those):
            yield f"two deletionRules of one policy for {status}"
        ordered = [ttls[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in ttls]
        if ordered != sorted(ordered):
            yield f"deletionRules for {status} are not in the order of time"


@lru_cache
def _entrypoint(text: str) -> tuple[str, ...]:
    return tuple(_faults_of_command(text))


def _faults_of_command(text: str) -> Iterator[str]:
    from typer.main import get_command

    from distft.cli.main import app
    from distft.jobfile import load_job
    from distft.submit import relative_paths

    words = shlex.split(text.replace("$(date -u +%Y-%m-%d)", "2026-01-01"))
    verb = get_command(app).commands.get(words[1]) if words[:1] == ["distft"] and len(words) > 1 else None  # type: ignore[attr-defined]
    if verb is None:
        yield f"the entrypoint is no command of distft: {text!r}"
        return
    try:
        found = verb.make_context(words[1], words[2:], resilient_parsing=False).params
    except Exception as error:  # whatever the command line says of it
        yield f"the entrypoint does not parse: {error}"
        return
    path = str(found["job"])
    if path.startswith("/app/"):
        if not (ROOT / path.removeprefix("/app/")).is_file():
            yield f"{path} is not in the image"
        else:
            job = load_job(ROOT / path.removeprefix("/app/"), found["set_"] or ())
            yield from (f"{key} is {value}, which lies nowhere" for key, value in relative_paths(job))
    elif not path.startswith("/etc/distft/job/"):
        yield f"{path} is neither in the image nor in a ConfigMap"


def _cluster(thing: Object) -> Iterator[str]:
    cluster = cluster_of(thing)
    assert cluster is not None
    version = [int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2]]
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no token authentication"
    if version < [2, 52]:
        yield f"rayVersion {cluster.get('rayVersion')} knows no tokens"
    head = cluster["headGroupSpec"]
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "ports of the head are exposed"
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "the head runs work"
    if cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") == "v2":
        for place, pod in pods_of(thing):
            if place != "submitterPodTemplate" and pod.get("spec", {}).get("restartPolicy", "Never") != "Never":
                yield f"{place}: the second autoscaler wants restartPolicy Never"
    yield from reach.owner_of_token_faults(thing, cluster)
    yield from _groups(cluster)
    yield from _managed(cluster)


MANAGED = {
    *("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"),
    *("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"),
}
"""Variables that the operator sets itself, by fields of the cluster."""


def _managed(cluster: Object) -> Iterator[str]:
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
        containers = group.get("template", {}).get("spec", {}).get("containers", [{}])
        yield from (
            f"{one['name']} is the operator's" for one in containers[0].get("env", ()) if one["name"] in MANAGED
        )
        if "labels" in group.get("rayStartParams", {}):
            yield "rayStartParams.labels"
    options = cluster.get("gcsFaultToleranceOptions", {})
    if options.get("backend", "redis") == "redis" and "storage" in options:
        yield "gcsFaultToleranceOptions.storage without RocksDB"
    if not cluster.get("enableInTreeAutoscaling"):
        for group in cluster.get("workerGroupSpecs", ()):
            if not {"minReplicas", "maxReplicas"} <= group.keys():
                yield f"worker group {group['groupName']}: no bounds, and no autoscaling"


def _groups(cluster: Object) -> Iterator[str]:
    for group in cluster.get("workerGroupSpecs", ()):
        if not group.get("template"):
            yield f"worker group {group['groupName']} has no template"
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            yield f"worker group {group['groupName']}: replicas are not between their bounds"


def _restricted(spec: Object) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", ()):
        yield from (f"volume of kind {kind}" for kind in volume if kind != "name" and kind not in VOLUMES)
    for one in [*spec.get("containers", ()), *spec.get("initContainers", ()), *spec.get("ephemeralContainers", ())]:
        own = one.get("securityContext", {})
        asked = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
            "capabilities are not dropped": own.get("capabilities", {}).get("drop") == ["ALL"]
            and set(own["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"},
            "may run as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True
            and own.get("runAsUser", pod.get("runAsUser")) != 0,
            "no seccomp profile": own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            in ("RuntimeDefault", "Localhost"),
            "a port of the host": not any(port.get("hostPort") for port in one.get("ports", ())),
        }
        yield from (f"{one['name']}: {text}" for text, kept in asked.items() if not kept)


def _house(spec: Object) -> Iterator[str]:
    if not spec.get("priorityClassName") and spec.get("serviceAccountName") != "distft-submitter":
        yield "no priority class"
    if spec.get("automountServiceAccountToken", True) and spec.get("serviceAccountName") != "distft-head":
        yield "a token of the API server that it does not need"
    for one in spec.get("containers", ()):
        resources = one.get("resources", {})
        for bound in ("requests", "limits"):
            yield from (
                f"{one['name']}: no {bound}.{key}" for key in ("cpu", "memory") if key not in resources.get(bound, {})
            )
        if resources.get("requests", {}).get("memory") != resources.get("limits", {}).get("memory"):
            yield f"{one['name']}: memory that is promised twice"
        if not re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", one["image"]):
            yield f"{one['name']}: image {one['image']} is not pinned"
        if not one.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"{one['name']}: its file system can be written to"
        for variable in one.get("env", ()):
            if re.search("PASSWORD|SECRET|TOKEN$|KEY$", variable["name"]) and "value" in variable:
                yield f"{one['name']}: {variable['name']} is a secret in plain text"


def _ingress(thing: Object) -> Iterator[str]:
    spec = thing["spec"]
    if not spec.get("tls"):
        yield "a door without TLS"
    for rule in spec.get("rules", ()):
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            if {service["port"].get("number"), service["port"].get("name")} & HEAD_PORTS or "head-svc" in service[
                "name"
            ]:
                yield f"a door to a port of the head: {service}"


def _of_all(objects: list[Object]) -> Iterator[str]:
    """Rules over a namespace: policies, and that everything that is named is there."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    if not any(_denies_all(one) for one in policies):
        yield "traffic is not denied by default"
    spaces = [one["metadata"].get("labels", {}) for one in objects if one["kind"] == "Namespace"]
    if not all(one.get("pod-security.kubernetes.io/enforce") == "restricted" for one in spaces) or not spaces:
        yield "the restricted standard is not enforced"
    yield from _missing(objects)
    yield from _reached(objects, policies)
    pods = [(f"{name_of(one)} {place}", pod) for one in objects for place, pod in pods_of(one)]
    yield from reach.unwanted_flows(pods, policies)


def _denies_all(policy: Object) -> bool:
    return policy["podSelector"] == {} and policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _missing(objects: list[Object]) -> Iterator[str]:
    """What pods name must be there."""
    there = {name_of(one) for one in objects}
    for one in objects:
        for place, pod in pods_of(one):
            spec = pod.get("spec", {})
            wanted = {f"ServiceAccount/{spec.get('serviceAccountName')}"}
            wanted |= {f"PriorityClass/{spec['priorityClassName']}"} if "priorityClassName" in spec else set()
            for volume in spec.get("volumes", ()):
                if "persistentVolumeClaim" in volume:
                    wanted.add(f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}")
                if "configMap" in volume:
                    wanted.add(f"ConfigMap/{volume['configMap']['name']}")
            yield from (f"{name_of(one)} {place} names {name}, which is not there" for name in sorted(wanted - there))


def _reached(objects: list[Object], policies: list[Object]) -> Iterator[str]:
    """Every pod is chosen by a policy of its own, or it could talk to nobody."""
    for one in objects:
        for place, pod in pods_of(one):
            component = pod.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/component", "")
            if not any(policy["podSelector"] and _matches(policy["podSelector"], component) for policy in policies):
                yield f"{name_of(one)} {place}: no policy lets it talk to anything"


def _matches(selector: Object, component: str) -> bool:
    key = "app.kubernetes.io/component"
    values = [value for one in selector.get("matchExpressions", ()) if one["key"] == key for value in one["values"]]
    values += [value for name, value in selector.get("matchLabels", {}).items() if name == key]
    return any(component in value for value in values)


def read(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]
