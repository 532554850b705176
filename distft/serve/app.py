"""The two Ray Serve applications: a stable ingress, and one application a model.

Enters: bundles, and how the service is run. Leaves: what Ray Serve runs. The ingress speaks HTTP and sends each query
through a handle to the application that its ``user_config`` names; a promotion starts ``model-<hash>`` beside the old
one and then changes that field, so clients see no gap. Surprising choice: the event types that the model knows are told
to the ingress in ``user_config``, because an event is accepted or refused while no model may be up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from distft import __version__
from distft.sections.serve import Serve
from distft.serve.api import MAX_IN_FLIGHT
from distft.serve.arrangement import HISTORIES, INGRESS, MODEL_PREFIX, Arrangement, ServedBundle
from distft.serve.histories import Keeping
from distft.serve.ingress import Ingress
from distft.serve.replicas import QUEUED_BATCHES, HistoryReplica, ModelReplica
from distft.serve.trial import Trial

CPUS_PER_REPLICA = 1
REPORT_INTERVAL_S = 1.0
"""How often replicas tell the autoscaler how many requests they have."""

LEAN = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Environment of processes that do little with many requests: glibc gives back what these leave, where it would keep
heaps full of holes. Not of the model's, whose large tensors would be asked of the system each time."""

_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


def model_application(
    bundle_uri: str,
    settings: Serve,
    deny: str | None = None,
    version: str | None = None,
    trusted_key: str | None = None,
) -> serve.Application:
    """The application that serves the model of a bundle, but for the items of ``deny``; it has no HTTP route.

    ``version`` and ``trusted_key``: see ``ModelReplica``.
    """
    deployment = serve.deployment(ModelReplica, name="model").options(
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA},
        autoscaling_config=_autoscaling(settings),
        max_ongoing_requests=QUEUED_BATCHES * settings.max_batch_size,
        max_queued_requests=QUEUED_BATCHES * settings.max_batch_size,
        logging_config=_QUIET,
    )
    return deployment.bind(bundle_uri, deny, version, trusted_key)


def history_application(bundle_uri: str, version: str, keeping: Keeping) -> serve.Application:
    """The application that keeps users' histories: one replica, because there is one writer."""
    deployment = serve.deployment(HistoryReplica, name=HISTORIES).options(
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": LEAN}},
        user_config={"version": version},
        max_ongoing_requests=2 * MAX_IN_FLIGHT,
        max_queued_requests=MAX_IN_FLIGHT,
        logging_config=_QUIET,
    )
    return deployment.bind(keeping, bundle_uri)


def _autoscaling(settings: Serve) -> AutoscalingConfig:
    # Ray warns of the interval's key; the variables that are to replace it hold for a whole cluster, and it does not
    # look at them where it compares the interval with the period that is looked back.
    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        initial_replicas=max(1, settings.min_replicas),
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.ongoing_requests,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        metrics_interval_s=REPORT_INTERVAL_S,
        look_back_period_s=max(2 * REPORT_INTERVAL_S, min(settings.upscale_delay_s, settings.downscale_delay_s)),
    )


def least_in_flight(settings: Serve) -> int:
    """Requests that are let in however slow the model is.

    More than all replicas but one should have, or no crowd would ever make a slow model scale up to all; and a batch.
    """
    return max(settings.max_batch_size, math.ceil((settings.max_replicas - 0.5) * settings.ongoing_requests))


def ingress_config(
    model_application_name: str, settings: Serve, event_names: Sequence[str], trial: Trial | None = None
) -> dict[str, Any]:
    """What the ingress follows: the name of the model's application, what its job says of serving, its event types.

    ``trial``: a model that is asked beside it.
    """
    return {
        "trial": None if trial is None else asdict(trial),
        "model_application": model_application_name,
        "request_timeout_s": settings.request_timeout_s,
        "target_latency_s": settings.target_latency_s,
        "least_in_flight": least_in_flight(settings),
        "events": list(event_names),
    }


def ingress_application(
    model_application_name: str,
    settings: Serve,
    event_names: Sequence[str],
    arrangement: Arrangement,
    trial: Trial | None = None,
) -> serve.Application:
    """The application that clients talk to, routing to the named model application.

    Deployed again, it goes on in the same processes with its new ``user_config``: Ray Serve would start others for code
    of another version, and calls every code that has none a new one.
    """
    deployment = serve.deployment(serve.ingress()(Ingress), name=INGRESS).options(
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": LEAN}},
        num_replicas=settings.num_ingress_replicas,
        user_config=ingress_config(model_application_name, settings, event_names, trial),
        # Above the interface's own limit, so that it is the interface that turns requests away, as a problem.
        max_ongoing_requests=2 * MAX_IN_FLIGHT,
        max_queued_requests=MAX_IN_FLIGHT,
        logging_config=_QUIET,
    )
    deployment._version = __version__  # there was an option for it once
    return deployment.bind(arrangement)


def application(bundle: ServedBundle) -> str:
    """What the application of a bundle's model is called."""
    return f"{MODEL_PREFIX}{bundle.version}"


def application_of(bundle: ServedBundle, arrangement: Arrangement) -> serve.Application:
    """The application of the model of a bundle, in a service that is run so."""
    return model_application(bundle.uri, bundle.settings, arrangement.deny, bundle.version, arrangement.trusted_key)


def deploy(bundle: ServedBundle, arrangement: Arrangement, http: tuple[str, int], proxy: dict[str, str]) -> None:
    """Starts Ray Serve with all applications; returns before they run. Needs Ray up and no Ray Serve running.

    ``http``: host and port. ``proxy``: environment of the HTTP proxy, see ``server.proxy_environment``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    host, port = http
    options = {"runtime_env": {"env_vars": proxy}}
    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET, controller_options=options)
    name, settings = application(bundle), bundle.settings
    targets = [serve.RunTarget(application_of(bundle, arrangement), name=name, route_prefix=None)]
    if arrangement.keeping is not None:
        histories = history_application(bundle.uri, bundle.version, arrangement.keeping)
        targets.append(serve.RunTarget(histories, name=HISTORIES, route_prefix=None))
    ingress = ingress_application(name, settings, bundle.event_names, arrangement)
    serve.run_many(
        [*targets, serve.RunTarget(ingress, name=INGRESS, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def failures() -> dict[str, str]:
    """Why applications could not be deployed: name → the cause, in one line."""
    failed = {name: app for name, app in serve.status().applications.items() if app.status == "DEPLOY_FAILED"}
    return {
        name: cause([app.message, *(deployment.message for deployment in app.deployments.values())])
        for name, app in failed.items()
    }


def cause(messages: Sequence[str]) -> str:
    """The last error of a Python trace in Ray's messages, or the messages in one line."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("distft.errors.") or "Error: " in line]
    return errors[-1] if errors else " ".join(lines)[:500]


def is_running() -> bool:
    """True if the Ray cluster has a Ray Serve already."""
    return bool(serve.status().proxies)


def shutdown() -> None:
    """Ends Ray Serve with all its applications and proxies."""
    serve.shutdown()
