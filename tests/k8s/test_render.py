"""What the command prints, for every shipped job and for a user's own; the committed objects are just that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from distft.cli.main import app
from distft.errors import UsageError
from distft.jobfile import load_job
from distft.k8s.render import Wish, rendered
from distft.serve.declaration import serve_config
from tests.k8s import rules
from tests.k8s.rules import ROOT
from tests.k8s.structural import refusals
from tests.k8s.test_manifests import definitions

JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.yaml"))


def test_the_committed_jobs_and_service_are_what_the_command_prints() -> None:
    """``make k8s`` writes them."""
    base = ROOT / "k8s/base"
    for name in JOBS:
        text = rendered(
            load_job(ROOT / "jobs" / name), f"jobs/{name}", Wish(in_image=f"/app/jobs/{name}", suspended=True)
        )[1]
        assert (base / "jobs" / name).read_text() == text, name
    listed = yaml.safe_load((base / "jobs/kustomization.yaml").read_text())["resources"]
    assert listed == JOBS
    quickstart = load_job(ROOT / "jobs/quickstart.yaml")
    assert (base / "service.yaml").read_text() == rendered(quickstart, "", Wish(kind="service", suspended=True))[1]
    nightly = Wish(kind="cron", schedule="0 2 * * *", in_image="/app/jobs/quickstart.yaml")
    assert (ROOT / "k8s/overlays/alpha/nightly.yaml").read_text() == rendered(quickstart, "", nightly)[1]


@pytest.mark.parametrize("kind", ["job", "service", "cron"])
@pytest.mark.parametrize("name", JOBS)
def test_nobody_refuses_the_objects_of_any_shipped_job(name: str, kind: str) -> None:
    path = ROOT / "jobs" / name
    schedule = "30 1 * * 1-5" if kind == "cron" else None
    objects, text = rendered(
        load_job(path), str(path), Wish(kind, image="registry:5000/a/distft:1.2", schedule=schedule)
    )
    assert rules.read(text) == json.loads(json.dumps(objects))
    for thing in objects:
        assert thing["metadata"]["namespace"] == "distft"
        if thing["kind"] == "ConfigMap":
            assert thing["data"] == {"job.yaml": path.read_text()}
        else:
            assert list(rules._of_one(thing)) == []
            assert refusals(definitions()[thing["kind"]], thing) == []


def test_the_pods_of_a_training_have_the_memory_that_is_planned_for_it(tmp_path: Path) -> None:
    path = ROOT / "jobs/ml1m.yaml"
    job = load_job(path, [f"storage={tmp_path}", "loss={kind: sampled_softmax}"])  # whose scores do not grow with items

    def memory_gib(num_items: int | None) -> int:
        spec = rendered(job, str(path), Wish(num_items=num_items))[0][-1]["spec"]
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        return int(container["resources"]["limits"]["memory"].removesuffix("Gi"))

    assert memory_gib(None) == 8  # nothing is known of its catalogue
    assert memory_gib(3_416) == 8
    # 20 million rows of job.model.dim numbers, with gradients and two moments, in fp32
    state_gib = 20_000_000 * job.model.dim * 16 / 2**30
    assert state_gib < memory_gib(20_000_000) < 3 * state_gib


def test_items_of_a_service_are_refused() -> None:
    with pytest.raises(UsageError, match="--items"):
        rendered(load_job(ROOT / "jobs/quickstart.yaml"), "", Wish(kind="service", num_items=10))


def test_a_user_s_own_job_takes_its_file_along(tmp_path: Path) -> None:
    own = tmp_path / "our shop.yaml"
    own.write_text((ROOT / "jobs/quickstart.yaml").read_text().replace("name: quickstart", "name: our-shop"))
    config, job = rendered(load_job(own), str(own), Wish())[0]
    assert job["metadata"]["name"] == "distft-our-shop"
    assert "suspend" not in job["spec"]
    assert config["data"] == {"job.yaml": own.read_text()}
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in group["template"]["spec"][
            "volumes"
        ]
    assert list(rules._of_one(job)) == []


def test_a_tuning_job_gets_room_for_trials_and_an_elastic_one_for_its_range() -> None:
    path = ROOT / "jobs/quickstart.yaml"

    def group(*overrides: str) -> dict[str, int]:
        (job,) = rendered(load_job(path, overrides), str(path), Wish(in_image="/app/x.yaml"))[0]
        found: dict[str, int] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        return found

    elastic = group("scaling.num_workers=[1, 3]")
    assert (elastic["minReplicas"], elastic["maxReplicas"]) == (1, 3)
    assert group("stages=[prepare, tune, train]")["maxReplicas"] > group()["maxReplicas"]


def test_the_serve_config_is_one_that_ray_serve_takes() -> None:
    job = load_job(ROOT / "jobs/quickstart.yaml")
    config = ServeDeploySchema.model_validate(serve_config(job, "/data/runs/quickstart/bundle", label="abc"))
    assert [one.name for one in config.applications] == ["model-abc", "histories", "ingress"]
    assert [one.route_prefix for one in config.applications] == [None, None, "/"]


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (Wish(kind="deployment"), "--kind"),
        (Wish(kind="cron"), "--schedule"),
        (Wish(schedule="0 2 * * *"), "--schedule"),
        (Wish(kind="cron", schedule="every night"), "--schedule"),
        (Wish(kind="cron", schedule="61 2 * * *"), "--schedule"),
        (Wish(kind="cron", schedule="0 2 * * 1,9"), "--schedule"),
        (Wish(kind="cron", schedule="0 2 * *"), "--schedule"),
        (Wish(image="distft"), "--image"),
        (Wish(image="distft:latest"), "--image"),
        (Wish(bundle="s3://b"), "--bundle"),
        (Wish(kind="cron", schedule="0 2 * * *", suspended=True), "--suspended"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(wish: Wish, word: str) -> None:
    path = ROOT / "jobs/quickstart.yaml"
    with pytest.raises(UsageError, match=word):
        rendered(load_job(path), str(path), wish)


def test_a_name_that_kubernetes_refuses_is_told() -> None:
    path = ROOT / "jobs/quickstart.yaml"
    job = load_job(path).model_copy(update={"name": "x" * 60})
    with pytest.raises(UsageError, match="67 characters"):
        rendered(job, str(path), Wish())


def test_the_command_prints_yaml_alone_on_stdout() -> None:
    done = CliRunner().invoke(app, ["k8s", "render", str(ROOT / "jobs/ml100k.yaml"), "--image", "shop/distft:1"])
    assert done.exit_code == 0
    assert [one["kind"] for one in rules.read(done.stdout)] == ["ConfigMap", "RayJob"]
