"""Who may talk to whom by the network policies, and who is handed the token of the services.

Enters: pod templates and policies. Leaves: one line for every breach. Surprising choice: policies are evaluated as
Kubernetes does it, in both directions, and not compared with a list of their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Object = dict[str, Any]
Labels = Mapping[str, str]

COMPONENT, PROMOTES = "app.kubernetes.io/component", "distft/promotes"
TOKEN_SECRET = "distft-service-token"
DASHBOARD = 8265
OF_SERVICE = ("service-head", "service-worker")


def flows(policies: list[Object], source: Labels, target: Labels, port: int) -> bool:
    """True if a pod with the one labels reaches the port of a pod with the others, both of this namespace."""
    return _lets(policies, "egress", source, (target, port)) and _lets(policies, "ingress", target, (source, port))


def _lets(policies: list[Object], direction: str, own: Labels, other: tuple[Labels, int]) -> bool:
    those = [one for one in policies if direction.capitalize() in one["policyTypes"] and _is(one["podSelector"], own)]
    peers = "to" if direction == "egress" else "from"
    found = (rule for one in those for rule in one.get(direction, ()))
    return not those or any(_fits(rule.get(peers), rule.get("ports"), *other) for rule in found)


def _fits(peers: list[Object] | None, ports: list[Object] | None, other: Labels, port: int) -> bool:
    if ports is not None and port not in [one.get("port") for one in ports]:
        return False
    # Addresses may be those of pods; a namespace that is chosen by labels is another one.
    return peers is None or any(
        "ipBlock" in one or (not one.get("namespaceSelector") and _is(one.get("podSelector", {}), other))
        for one in peers
    )


def _is(selector: Object, labels: Labels) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions), "nothing else is used"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def unwanted_flows(pods: list[tuple[str, Object]], policies: list[Object]) -> Iterator[str]:
    """Of the dashboard of the services' clusters: whoever reaches it and has the token runs code there."""
    for name, pod in pods:
        labels = pod.get("metadata", {}).get("labels", {})
        promotes = _promotes(labels)
        wanted = promotes or labels.get(COMPONENT) in OF_SERVICE
        found = flows(policies, labels, {COMPONENT: "service-head"}, DASHBOARD)
        if found and not wanted:
            yield f"{name} reaches the dashboard of a service"
        if promotes and not found:
            yield f"{name} does not reach the dashboard of the service that it promotes on"


def token_faults(pod: Object) -> Iterator[str]:
    """Of one pod: only the head of a job that deploys has the services' token, as a file that it cannot change."""
    spec = pod.get("spec", {})
    labels = pod.get("metadata", {}).get("labels", {})
    if not _promotes(labels):
        if TOKEN_SECRET in json.dumps(spec) or PROMOTES in labels:
            yield "it is handed the token of the services"
        return
    volumes = [
        one["name"] for one in spec.get("volumes", ()) if one.get("secret", {}).get("secretName") == TOKEN_SECRET
    ]
    containers = [*spec.get("containers", ()), *spec.get("initContainers", ())]
    mounts = [mount for one in containers for mount in one.get("volumeMounts", ()) if mount["name"] in volumes]
    if len(volumes) != 1 or not mounts:
        yield "it promotes, and has no token of the services"
    if not all(mount.get("readOnly") for mount in mounts):
        yield "the token of the services can be written to"
    if any(TOKEN_SECRET in json.dumps([one.get("env", []), one.get("envFrom", [])]) for one in containers):
        yield "the token of the services is in its environment, which every process inherits"


def owner_of_token_faults(thing: Object, cluster: Object) -> Iterator[str]:
    """Clusters of services share the user's token; each cluster of a job has one that the operator makes for it."""
    name = cluster.get("authOptions", {}).get("secretName")
    if thing["kind"] == "RayService" and name != TOKEN_SECRET:
        yield f"its token is {name or 'made by the operator'}, and nobody can be handed it"
    if thing["kind"] != "RayService" and name is not None:
        yield f"its token is not its own, but {name}"


def _promotes(labels: Labels) -> bool:
    return labels.get(COMPONENT) == "job-head" and labels.get(PROMOTES) == "true"
