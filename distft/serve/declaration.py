"""Ray Serve's configuration file of a service: what Kubernetes is given in the place of ``distft serve``.

Enters: a job and where its bundle lies. Leaves: a ``ServeDeploySchema`` as a plain dictionary. Surprising choice: what
the bundle says of serving (autoscaling, batch sizes, event types) is not written into the file a second time; the
builders in ``declared`` read it from the bundle, on the cluster.
"""

from __future__ import annotations

from typing import Any

from distft.job import Job
from distft.promotions import FOLDER
from distft.serve.arrangement import HISTORIES, INGRESS, MODEL_PREFIX

BUILDERS = "distft.serve.declared"
KEYS_FILE = "/etc/distft/keys/keys.json"
HISTORY_FILE = "/etc/distft/history/url"
DENY_FILE = "/etc/distft/deny/items"
PORT = 8000


def serve_config(
    job: Job,
    bundle: str,
    *,
    label: str | None = None,
    keys: str = KEYS_FILE,
    history_file: str = HISTORY_FILE,
    deny: str = DENY_FILE,
) -> dict[str, Any]:
    """The configuration of a service of ``bundle``: a bundle, or a service's folder for the model that it ran last.

    ``label``: what names its model's application, by default the job's name. ``keys``: file of the API keys' hashes;
    ``history_file``: file with the URL of Redis; ``deny``: file of items that are never recommended; all as the
    cluster's nodes see them.
    """
    name = f"{MODEL_PREFIX}{label or job.name}"
    service = {
        "bundle": bundle,
        "model_application": name,
        "state": f"{bundle.rstrip('/').rpartition('/')[0] or '.'}/{FOLDER}",
        "keys": keys,
        "history_file": history_file,
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PORT},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            _application(name, "model", None, {"bundle": bundle, "deny": deny}),
            _application(HISTORIES, "histories", None, service),
            _application(INGRESS, "ingress", "/", service),
        ],
    }


def _application(name: str, builder: str, route: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "route_prefix": route, "import_path": f"{BUILDERS}:{builder}", "args": arguments}
