"""Every overlay as strict as an API server and KubeRay's operator would be; and that the strictness sees mistakes."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from distft.k8s.pods import UID
from tests.k8s import reach, rules
from tests.k8s.rules import ROOT, Object, name_of
from tests.k8s.structural import refusals

OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir())
KUBERNETES = "1.32.0"
OTHERS = ("monitoring.coreos.com/", "kueue.x-k8s.io/")
"""Groups whose schemas are not at hand."""


@lru_cache
def objects(overlay: str) -> list[Object]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: https://kubernetes.io/docs/tasks/tools")
    command = [kubectl, "kustomize", str(ROOT / "k8s/overlays" / overlay)]
    return rules.read(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@lru_cache
def definitions() -> dict[str, Any]:
    """KubeRay's CustomResourceDefinitions by kind."""
    folder = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared/crds"))
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("ray.io_*.json"))]
    if not found:
        pytest.skip(
            f"{folder} has no CRDs: 'kubectl get crd NAME -o json' of KubeRay 1.7 there, or name it KUBERAY_CRDS"
        )
    return {one["spec"]["names"]["kind"]: one for one in found}


def faults(things: list[Object], known: Sequence[Object] = ()) -> list[str]:
    """Everything that somebody would refuse; the schemas of ``known`` objects are not looked at again."""
    found = rules.breaches(things)
    for thing in (one for one in things if one not in known):
        group = thing["apiVersion"]
        if group.startswith("ray.io/"):
            found += [f"{name_of(thing)}{text}" for text in refusals(definitions()[thing["kind"]], thing)]
        elif not group.startswith(OTHERS):
            try:
                kubernetes_validate.validate(thing, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"{name_of(thing)}: {error.message}")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_refuses_an_overlay(overlay: str) -> None:
    found = objects(overlay)
    assert {"RayJob", "RayService", "NetworkPolicy", "PodDisruptionBudget"} <= {one["kind"] for one in found}
    assert len({(one["apiVersion"], name_of(one)) for one in found}) == len(found)
    assert faults(found) == []


def the(things: list[Object], name: str) -> Object:
    (found,) = [one for one in things if name_of(one) == name]
    return found


def job(things: list[Object]) -> Object:
    return the(things, "RayJob/distft-quickstart")


def service(things: list[Object]) -> Object:
    return the(things, "RayService/distft-quickstart")


def worker(things: list[Object]) -> Object:
    container: Object = job(things)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][
        0
    ]
    return container


def nightly(things: list[Object]) -> Object:
    spec: Object = the(things, "RayJob/distft-nightly")["spec"]["rayClusterSpec"]
    return spec


def give_token(pod: Object) -> None:
    pod["spec"]["volumes"].append({"name": "token", "secret": {"secretName": "distft-service-token"}})


def token_of(things: list[Object]) -> Object:
    """Where the head of the nightly job has the services' token."""
    (container,) = nightly(things)["headGroupSpec"]["template"]["spec"]["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "service-token"]
    found: Object = mount
    return found


def let_in(things: list[Object], component: str) -> None:
    """Opens the services' dashboard to a component, in both directions."""
    chosen = {"matchLabels": {"app.kubernetes.io/component": component}}
    for name, side, peers in (("promotion", "egress", "to"), ("promoted", "ingress", "from")):
        spec = the(things, f"NetworkPolicy/distft-{name}")["spec"]
        if side == "egress":
            spec["podSelector"] = chosen
        else:
            spec[side][0][peers].append({"podSelector": chosen})


def drop(name: str) -> Callable[[list[Object]], Any]:
    return lambda things: things.remove(the(things, name))


RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 60}}
MUTANTS: dict[str, tuple[Callable[[list[Object]], Any], str]] = {
    "a misspelt field": (lambda o: job(o)["spec"].update(entryPoint="distft"), "unknown field entryPoint"),
    "a field misspelt deep inside": (lambda o: worker(o).update(enviroment=[]), "unknown field enviroment"),
    "no token": (lambda o: job(o)["spec"]["rayClusterSpec"].pop("authOptions"), "no token authentication"),
    "a Ray that knows no tokens": (
        lambda o: job(o)["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"),
        "knows no tokens",
    ),
    "a removed limit": (lambda o: worker(o)["resources"]["limits"].pop("memory"), "no limits.memory"),
    "an exposed head": (
        lambda o: service(o)["spec"]["rayClusterConfig"]["headGroupSpec"].update(serviceType="LoadBalancer"),
        "ports of the head are exposed",
    ),
    "a door to the dashboard": (
        lambda o: the(o, "Ingress/distft")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
            name="distft-quickstart-head-svc", port={"number": 8265}
        ),
        "a door to a port of the head",
    ),
    "a door without TLS": (lambda o: the(o, "Ingress/distft")["spec"].pop("tls"), "without TLS"),
    "an image that changes": (lambda o: worker(o).update(image="distft:latest"), "not pinned"),
    "root": (lambda o: worker(o)["securityContext"].update(runAsNonRoot=False), "may run as root"),
    "more privileges": (
        lambda o: worker(o)["securityContext"].pop("allowPrivilegeEscalation"),
        "allowPrivilegeEscalation",
    ),
    "the host's network": (
        lambda o: the(o, "StatefulSet/distft-redis")["spec"]["template"]["spec"].update(hostNetwork=True),
        "hostNetwork",
    ),
    "a folder of the host": (
        lambda o: job(o)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"].append(
            {"name": "host", "hostPath": {"path": "/"}}
        ),
        "volume of kind hostPath",
    ),
    "a lost template": (lambda o: job(o)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"), "template"),
    "a head that works": (
        lambda o: service(o)["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "the head runs work",
    ),
    "a name that is too long": (lambda o: job(o)["metadata"].update(name="distft-" + "x" * 41), "too long"),
    "a submission mode that there is not": (
        lambda o: job(o)["spec"].update(submissionMode="K8SJobMode"),
        "submissionMode",
    ),
    "two ways of deletion": (
        lambda o: job(o)["spec"]["deletionStrategy"].update(deletionRules=[RULE]),
        "cannot be used together",
    ),
    "a rule of deletion for no status": (
        lambda o: job(o)["spec"].update(deletionStrategy={"deletionRules": [{**RULE, "condition": {}}]}),
        "requires either the JobStatus",
    ),
    "rules of deletion for a suspended job": (
        lambda o: (
            job(o)["spec"].update(deletionStrategy={"deletionRules": [RULE]}),
            job(o)["spec"].pop("shutdownAfterJobFinishes"),
        ),
        "suspend with",
    ),
    "workers that are deleted under the autoscaler": (
        lambda o: job(o)["spec"]["deletionStrategy"]["onFailure"].update(policy="DeleteWorkers"),
        "DeleteWorkers with autoscaling",
    ),
    "a variable of the operator": (
        lambda o: worker(o)["env"].append({"name": "RAY_USE_TLS", "value": "1"}),
        "is the operator's",
    ),
    "an upgrade that there is not": (
        lambda o: service(o)["spec"]["upgradeStrategy"].update(type="Rolling"),
        "upgradeStrategy.type",
    ),
    "an upgrade inside the cluster": (
        lambda o: service(o)["spec"]["rayClusterConfig"].update(upgradeStrategy={"type": "None"}),
        "upgradeStrategy inside",
    ),
    "a job that is not in the image": (
        lambda o: job(o)["spec"].update(entrypoint="distft run /app/jobs/quickstrat.yaml"),
        "is not in the image",
    ),
    "a command that there is not": (
        lambda o: job(o)["spec"].update(entrypoint="distft train --epochs 3 /app/jobs/quickstart.yaml"),
        "does not parse",
    ),
    "open traffic": (drop("NetworkPolicy/distft-deny-all"), "not denied by default"),
    "an account that is not there": (drop("ServiceAccount/distft-ray"), "ServiceAccount/distft-ray"),
    "a claim that is not there": (drop("PersistentVolumeClaim/distft-storage"), "distft-storage, which is not there"),
    "a password in plain text": (
        lambda o: worker(o)["env"].append({"name": "REDIS_PASSWORD", "value": "1234"}),
        "secret in plain text",
    ),
    "a number that is a word": (
        lambda o: the(o, "StatefulSet/distft-redis")["spec"].update(replicas="one"),
        "is not of type",
    ),
    "a quantity that is none": (lambda o: worker(o)["resources"]["limits"].update(cpu="two"), "does not match"),
    "the services' token in a worker": (
        lambda o: give_token(nightly(o)["workerGroupSpecs"][0]["template"]),
        "workerGroupSpecs workers: it is handed the token of the services",
    ),
    "the services' token in a job that does not deploy": (
        lambda o: give_token(job(o)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]),
        "headGroupSpec: it is handed the token of the services",
    ),
    "the services' token in a submitter": (
        lambda o: give_token(the(o, "RayJob/distft-nightly")["spec"]["submitterPodTemplate"]),
        "submitterPodTemplate: it is handed the token of the services",
    ),
    "a worker that calls itself one that deploys": (
        lambda o: nightly(o)["workerGroupSpecs"][0]["template"]["metadata"]["labels"].update(
            {"distft/promotes": "true"}
        ),
        "it is handed the token of the services",
    ),
    "the services' token in the environment": (
        lambda o: nightly(o)["headGroupSpec"]["template"]["spec"]["containers"][0]["env"].append(
            {
                "name": "RAY_AUTH_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "distft-service-token", "key": "auth_token"}},
            }
        ),
        "which every process inherits",
    ),
    "a token that can be written to": (lambda o: token_of(o).pop("readOnly"), "can be written to"),
    "a nightly job without the token": (
        lambda o: nightly(o)["headGroupSpec"]["template"]["spec"]["volumes"].pop(),
        "has no token of the services",
    ),
    "a job with the services' token as its own": (
        lambda o: job(o)["spec"]["rayClusterSpec"]["authOptions"].update(secretName="distft-service-token"),
        "its token is not its own",
    ),
    "a service with a token that nobody knows": (
        lambda o: service(o)["spec"]["rayClusterConfig"]["authOptions"].pop("secretName"),
        "nobody can be handed it",
    ),
    "workers that reach a service": (lambda o: let_in(o, "job-worker"), "workers reaches the dashboard of a service"),
    "every job's head that reaches a service": (
        lambda o: let_in(o, "job-head"),
        "RayJob/distft-quickstart headGroupSpec reaches the dashboard of a service",
    ),
    "a way to the service that ends half-way": (
        drop("NetworkPolicy/distft-promoted"),
        "RayJob/distft-nightly headGroupSpec does not reach",
    ),
    "a way to the service that does not begin": (
        drop("NetworkPolicy/distft-promotion"),
        "RayJob/distft-nightly headGroupSpec does not reach",
    ),
    "a path that lies nowhere": (
        lambda o: job(o)["spec"].update(
            entrypoint="distft run /app/jobs/nightly.yaml --set deploy.state=runs/x/service"
        ),
        "deploy.state is runs/x/service, which lies nowhere",
    ),
    "a pod that no policy knows": (
        lambda o: job(o)["spec"]["submitterPodTemplate"]["metadata"]["labels"].update(
            {"app.kubernetes.io/component": "other"}
        ),
        "no policy lets it talk",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_caught(mutant: str) -> None:
    change, wanted = MUTANTS[mutant]
    things = copy.deepcopy(objects("prod"))
    change(things)
    found = faults(things, objects("prod"))
    assert any(wanted in one for one in found), found


def test_the_head_of_the_nightly_job_reaches_one_port_of_the_service_and_nobody_else_does() -> None:
    things = objects("prod")
    policies = [one["spec"] for one in things if one["kind"] == "NetworkPolicy"]
    reached = {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], name_of(thing), port)
        for thing in things
        for _, pod in rules.pods_of(thing)
        for port in (6379, 8000, 8080, 8265, 10001, 20000)
        for target in ("service-head", "service-worker")
        if reach.flows(policies, pod["metadata"]["labels"], {"app.kubernetes.io/component": target}, port)
    }
    others = {one for one in reached if not one[0].startswith("service-")}
    assert others == {("job-head", "RayJob/distft-nightly", 8265)}
    nodes = {"app.kubernetes.io/component": "job-worker"}
    assert reach.flows(policies, nodes, {"app.kubernetes.io/component": "job-head"}, 20000), "what it does see"


def test_monitors_and_alerts_ask_for_ports_and_metrics_that_there_are() -> None:
    things = objects("prod")
    (monitor,) = [one for one in things if one["kind"] == "PodMonitor"]
    ports = {
        port["name"]
        for one in things
        for _, pod in rules.pods_of(one)
        for c in pod["spec"]["containers"]
        for port in c.get("ports", ())
    }
    assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports
    (alerts,) = [one for one in things if one["kind"] == "PrometheusRule"]
    asked = {
        re.sub("_(total|bucket)$", "", name)
        for group in alerts["spec"]["groups"]
        for rule in group["rules"]
        for name in re.findall(r"ray_(distft_\w+)", rule["expr"])
    }
    from distft.serve import metrics
    from distft.train import gauges

    told = {value for module in (metrics, gauges) for value in vars(module).values() if isinstance(value, str)}
    told |= {gauges.gauge_name(key) for key in gauges.TRAIN}
    assert asked and asked <= told


def test_the_image_is_what_the_pods_expect() -> None:
    image = (ROOT / "cluster/Dockerfile").read_text()
    assert f"USER {UID}:{UID}\n" in image
    assert "COPY jobs/ /app/jobs/\n" in image, "the jobs of the entrypoints"
    assert re.search(r"apt-get install .*\bwget\b", image), "the operator's probes call it"
