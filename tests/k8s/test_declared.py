"""Ray Serve's own controller builds the service from the configuration file that a RayService holds."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from distft import cluster
from distft.jobfile import load_job
from distft.promotions import Attempt, note
from distft.serve import app, server
from distft.serve.arrangement import HISTORIES, INGRESS, Arrangement, served_bundle
from distft.serve.declaration import serve_config
from distft.serve.declared import ServiceArguments, histories, ingress, model
from distft.serve.keys import add_key
from distft.storage import Storage
from tests.k8s.rules import ROOT
from tests.serve.bundles import as_json, events
from tests.serve.stores import redis_server

KEEPING = "redis://127.0.0.1:6379/0"


def arguments(tmp_path: Path, bundle: Storage, url: str = KEEPING) -> ServiceArguments:
    (tmp_path / "url").write_text(f"{url}\n")
    add_key(str(tmp_path / "keys.json"), "shop")
    return ServiceArguments(
        bundle=bundle.uri,
        model_application="model-a",
        state=str(tmp_path / "service"),
        keys=str(tmp_path / "keys.json"),
        history_file=str(tmp_path / "url"),
    )


def test_the_builders_make_what_distft_serve_makes(tmp_path: Path, bundle: Storage) -> None:
    told = arguments(tmp_path, bundle)
    served, _ = served_bundle(bundle)
    declared = model({"bundle": bundle.uri})
    assert options(declared) == options(app.model_application(bundle.uri, served.settings))
    kept = app.history_application(bundle.uri, served.version, app_keeping(told))
    assert options(histories(told.model_dump())) == options(kept)
    own = app.ingress_application("model-a", served.settings, served.event_names, Arrangement())
    assert options(ingress(told.model_dump())) == options(own)


def test_the_folder_of_a_service_is_the_model_that_was_promoted_there(tmp_path: Path, bundle: Storage) -> None:
    folder = Storage(tmp_path / "service")
    note(folder, Attempt(bundle.uri, served_bundle(bundle)[0].version, "promoted"))
    served, _ = served_bundle(bundle)
    assert options(model({"bundle": folder.uri})) == options(app.model_application(bundle.uri, served.settings))
    told = arguments(tmp_path, folder)
    kept = app.history_application(bundle.uri, served.version, app_keeping(told))
    assert options(histories(told.model_dump())) == options(kept)
    own = app.ingress_application("model-a", served.settings, served.event_names, Arrangement())
    assert options(ingress(told.model_dump())) == options(own)


def options(application: serve.Application) -> tuple[str, object, object]:
    deployment = application._bound_deployment
    return deployment.name, deployment._deployment_config, deployment._replica_config.ray_actor_options


def app_keeping(told: ServiceArguments) -> app.Keeping:
    return app.Keeping(KEEPING, told.state, "shop", 1000)


@pytest.mark.proof
def test_the_controller_builds_the_service_from_the_file(ray_session: object, tmp_path: Path, bundle: Storage) -> None:
    with redis_server(tmp_path) as url, server.reserved_ports() as ports, cluster.scratch_folder("distft-") as short:
        secret = add_key(str(tmp_path / "keys.json"), "tests")
        told = arguments(tmp_path, bundle, url)
        job = load_job(ROOT / "jobs/quickstart.yaml")
        (tmp_path / "deny").write_text("i0\n")
        files = {"keys": told.keys, "history_file": told.history_file, "deny": str(tmp_path / "deny")}
        config = serve_config(job, bundle.uri, **files)
        for one in config["applications"]:
            one["args"].update({"state": told.state} if "state" in one["args"] else {})
        config["http_options"] = {"host": "127.0.0.1", "port": server.free_port("127.0.0.1")}
        proxy = server.proxy_environment(Path(short), ports)
        serve.start(http_options=config["http_options"], controller_options={"runtime_env": {"env_vars": proxy}})
        try:
            _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
            assert app.failures() == {}
            assert set(serve.status().applications) == {"model-quickstart", HISTORIES, INGRESS}
            with httpx.Client(base_url=f"http://127.0.0.1:{config['http_options']['port']}", timeout=30) as client:
                wait_until_ready(client)
                history = as_json(events(3, 4))
                assert client.post("/v1/recommend", json={"history": history}).status_code == 401
                client.headers["authorization"] = f"Bearer {secret}"
                asked = client.post("/v1/recommend", json={"history": history, "k": 3})
                assert asked.status_code == 200 and len(asked.json()["items"]) == 3
                assert client.get("/v1/model").json()["denied_items"] == 1
                sent = client.post("/v1/events", json={"user_id": "u", "events": history})
                assert sent.status_code == 200, sent.text
                assert (
                    client.post("/v1/recommend", json={"user_id": "u", "k": 3}).json()["items"] == asked.json()["items"]
                )
        finally:
            with cluster.ending():
                app.shutdown()


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
