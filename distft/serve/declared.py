"""Builders of the service's applications, named by Ray Serve's configuration file: see ``declaration``.

Enters: arguments of the configuration. Leaves: the applications that ``distft serve`` starts, built on the cluster.
Surprising choice: a builder takes a dictionary and validates it itself. Ray would do so by the parameter's annotation,
which it does not find where annotations are text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from distft.errors import UsageError
from distft.promotions import bundle_at
from distft.serve import app
from distft.serve.arrangement import Arrangement, Options, ServedBundle, arranged, served_bundle

NUM_NODES = 2
"""At least: pods come and go, so histories must lie outside of them."""


class BundleArguments(BaseModel):
    """What every application is of. ``bundle``: a bundle, or a service's folder for the model that it runs."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    bundle: str


class ModelArguments(BundleArguments):
    """Of the application of one model. ``deny``: file of items that are never recommended."""

    deny: str | None = None


class ServiceArguments(BundleArguments):
    """Of the ingress and of the histories, which must agree.

    ``model_application``: where the ingress sends requests. ``state``: folder or URI of the event log. ``keys``: file
    of the API keys' hashes. ``history_file``: file with the URL of Redis, which may hold a password, or "none".
    """

    model_application: str
    state: str
    keys: str
    history_file: str
    pseudonym_key: str | None = None


def model(arguments: dict[str, Any]) -> serve.Application:
    """The application that serves the model of a bundle. Raises ArtefactError for a damaged bundle."""
    told = ModelArguments.model_validate(arguments)
    served, _ = served_bundle(bundle_at(told.bundle))
    return app.model_application(served.uri, served.settings, told.deny)


def histories(arguments: dict[str, Any]) -> serve.Application:
    """The application that keeps users' histories in Redis. Raises UsageError where no store is named."""
    told = ServiceArguments.model_validate(arguments)
    served, arrangement = _arranged(told)
    if arrangement.keeping is None:
        what = f"{told.history_file} says that no histories are kept, and an application is to keep them"
        raise UsageError(what, "redis://HOST:PORT/DB in it", "Or take 'histories' out of the configuration.")
    return app.history_application(served.uri, served.version, arrangement.keeping)


def ingress(arguments: dict[str, Any]) -> serve.Application:
    """The application that clients talk to. Raises UsageError without readable API keys."""
    told = ServiceArguments.model_validate(arguments)
    served, arrangement = _arranged(told)
    return app.ingress_application(told.model_application, served.settings, served.event_names, arrangement)


def _arranged(arguments: ServiceArguments) -> tuple[ServedBundle, Arrangement]:
    bundle = bundle_at(arguments.bundle)
    served, job = served_bundle(bundle)
    try:
        url = Path(arguments.history_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        what = f"history_file ({arguments.history_file}) cannot be read: {error.strerror}"
        raise UsageError(what, "a file with the URL of Redis", "Mount the secret distft-history there.") from error
    return served, arranged(
        job, bundle, Options(url, arguments.state, arguments.pseudonym_key, arguments.keys), NUM_NODES
    )
