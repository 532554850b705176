"""What checkov says of every pod that the Kubernetes overlays make.

Run:  .venv/bin/python benchmarks/pod_audit.py CHECKOV

CHECKOV is the command of an installation of its own (`pip install checkov`; it wants other versions than distft does).
It skips objects of KubeRay, so the pod templates are taken out of them, one a component and overlay, as plain pods in a
namespace of the overlay, with the overlay's network policies. Needs kubectl. Writes
``benchmarks/results/pod-audit.json``: the version, how many pods, how many checks passed, and each that failed with its
pods; those that docs/kubernetes.md explains apart from the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the reading of objects that the tests use too

from tests.k8s.rules import pods_of, read  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "pod-audit.json"


EXPLAINED = {
    "CKV_K8S_38": "the autoscaler beside a head asks the API server for pods",
    "CKV_K8S_8": "the operator puts probes into Ray's containers; a submitter ends",
    "CKV_K8S_9": "the operator puts probes into Ray's containers; a submitter ends",
    "CKV_K8S_15": "the dev overlay's image is loaded by hand",
    "CKV_K8S_43": "the digest is known once the image is pushed",
}


def things() -> dict[str, dict[str, Any]]:
    """One pod of every component of every overlay, and the policies that choose it."""
    found: dict[str, dict[str, Any]] = {}
    for overlay in sorted((ROOT / "k8s/overlays").iterdir()):
        command = ["kubectl", "kustomize", str(overlay)]
        place = {"namespace": overlay.name}
        for thing in read(subprocess.run(command, capture_output=True, text=True, check=True).stdout):
            if thing["kind"] == "NetworkPolicy":
                name = f"{overlay.name}-{thing['metadata']['name']}"
                found[name] = {**thing, "metadata": {**thing["metadata"], **place}}
            for _, pod in pods_of(thing):
                component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
                metadata = {**pod["metadata"], **place, "name": component}
                found[f"{overlay.name}-{component}"] = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": metadata,
                    "spec": pod["spec"],
                }
    return found


def main(checkov: str) -> None:
    """Runs checkov over all pods and writes what it found."""
    with tempfile.TemporaryDirectory() as folder:
        for name, thing in things().items():
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump(thing))
        command = [checkov, "-d", folder, "--framework", "kubernetes", "-o", "json", "--compact", "--quiet"]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    failed: dict[str, dict[str, Any]] = {}
    for one in report["results"]["failed_checks"]:
        why = {"explanation": EXPLAINED[one["check_id"]]} if one["check_id"] in EXPLAINED else {}
        entry = failed.setdefault(one["check_id"], {"what": one["check_name"], **why, "pods": []})
        entry["pods"] = sorted({*entry["pods"], one["resource"].removeprefix("Pod.")})
    result = {
        "checkov": subprocess.run([checkov, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "pods": sum(thing["kind"] == "Pod" for thing in things().values()),
        "passed": report["summary"]["passed"],
        "failed": {name: one for name, one in sorted(failed.items()) if "explanation" not in one},
        "explained": {name: one for name, one in sorted(failed.items()) if "explanation" in one},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
