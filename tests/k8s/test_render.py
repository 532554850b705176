"""What the command prints, for every shipped job and for a user's own; the committed objects are just that."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from distft.cli.main import app
from distft.errors import UsageError
from distft.jobfile import load_job
from distft.k8s.pods import environment
from distft.k8s.promotion import TOKEN_FILE
from distft.k8s.render import Wish, rendered
from distft.serve.declaration import serve_config
from distft.submit import relative_paths
from tests.k8s import rules
from tests.k8s.reach import TOKEN_SECRET
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
    nightly = Wish(kind="cron", schedule="0 2 * * *", in_image="/app/jobs/nightly.yaml")
    text = rendered(load_job(ROOT / "jobs/nightly.yaml"), "", nightly)[1]
    assert (ROOT / "k8s/overlays/alpha/nightly.yaml").read_text() == text


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


def test_the_nightly_job_finds_the_service_and_all_that_it_reads_in_the_volume() -> None:
    path = ROOT / "jobs/nightly.yaml"
    config, cron = rendered(load_job(path), str(path), Wish(kind="cron", schedule="0 2 * * *"))[0]
    assert config["data"] == {"job.yaml": path.read_text()}
    words = shlex.split(cron["spec"]["jobTemplate"]["entrypoint"])
    assert words[-4:] == ["--storage", "/data/runs/nightly/$(date", "-u", "+%Y-%m-%d)"], "which a shell fills in"
    told = load_job(path, [words[at + 1] for at, word in enumerate(words) if word == "--set"])
    assert told.deploy.address == "http://distft-quickstart-head-svc:8265"
    assert told.deploy.token_file == "/etc/distft/service-token/auth_token"
    assert told.deploy.state == "/data/runs/quickstart/service"
    assert told.data.events[0].model_dump()["path"] == "/data/runs/quickstart/service/log/*.jsonl"
    assert told.data.items and told.data.items.path == "/data/data/shop/items/items.parquet"
    assert told.data.vocabulary and told.data.vocabulary.from_ == "/data/runs/quickstart/service"
    assert told.finetune and told.finetune.from_ == "/data/runs/quickstart/service"
    assert relative_paths(told) == []


def test_the_token_of_the_service_is_where_it_is_needed_and_the_job_is_not_tried_again() -> None:
    path = ROOT / "jobs/nightly.yaml"

    def spec(name: str, *changes: str) -> dict[str, Any]:
        path = ROOT / "jobs" / name
        found: dict[str, Any] = rendered(load_job(path, changes), str(path), Wish(in_image="/app/x.yaml"))[0][0]["spec"]
        return found

    nightly, quickstart = spec("nightly.yaml"), spec("quickstart.yaml")
    assert (nightly["backoffLimit"], quickstart["backoffLimit"]) == (0, 3)
    assert TOKEN_SECRET in json.dumps(nightly["rayClusterSpec"]["headGroupSpec"])
    assert TOKEN_SECRET not in json.dumps(nightly["rayClusterSpec"]["workerGroupSpecs"])
    assert TOKEN_SECRET not in json.dumps(nightly["submitterPodTemplate"])
    assert nightly["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert TOKEN_SECRET not in json.dumps(quickstart)
    (head,) = nightly["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["env"] == environment(), "what every other pod has"
    elsewhere = spec("nightly.yaml", "deploy.address=https://ray.example.com", "deploy.token_file=/data/token")
    assert TOKEN_SECRET not in json.dumps(elsewhere) and "head-svc" not in json.dumps(elsewhere)
    assert elsewhere["backoffLimit"] == 0
    own = spec("nightly.yaml", "deploy.address=http://other-head-svc:8265", f"deploy.token_file={TOKEN_FILE}")
    assert TOKEN_SECRET in json.dumps(own["rayClusterSpec"]["headGroupSpec"])
    (service,) = rendered(load_job(path), "", Wish(kind="service"))[0]
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token", "secretName": TOKEN_SECRET}
    assert TOKEN_SECRET not in json.dumps(service["spec"]["rayClusterConfig"]["workerGroupSpecs"])


def test_the_service_of_a_nightly_job_can_be_named() -> None:
    path = ROOT / "jobs/nightly.yaml"

    def entrypoint(service: str | None, *changes: str) -> str:
        (job,) = rendered(load_job(path, changes), "", Wish(in_image="/app/x.yaml", service=service))[0]
        return str(job["spec"]["entrypoint"])

    assert "--set deploy.address=http://our-shop-head-svc:8265 " in entrypoint("our-shop")
    assert "http://distft-shop-head-svc:8265 " in entrypoint(None, "deploy.state=s3://logs/shop/service/")
    for state in ("deploy.state=null", "deploy.state=service", "deploy.state=s3://Logs/service"):
        with pytest.raises(UsageError, match="--service NAME"):
            entrypoint(None, state)
    with pytest.raises(UsageError, match="--service is 'Shop'"):
        entrypoint("Shop")
    with pytest.raises(UsageError, match=r"names http://x:8265 itself"):
        entrypoint("shop", "deploy.address=http://x:8265")
    quickstart = load_job(ROOT / "jobs/quickstart.yaml")
    with pytest.raises(UsageError, match="no stage deploy"):
        rendered(quickstart, "", Wish(in_image="/app/x.yaml", service="shop"))
    with pytest.raises(UsageError, match="--kind job or cron"):
        rendered(quickstart, "", Wish(kind="service", service="shop"))


def test_a_service_is_of_what_was_promoted_last_unless_a_bundle_is_named() -> None:
    job = load_job(ROOT / "jobs/quickstart.yaml")
    for bundle, expected in ((None, "/data/runs/quickstart/service"), ("s3://b/2/bundle", "s3://b/2/bundle")):
        (service,) = rendered(job, "", Wish(kind="service", bundle=bundle))[0]
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert {one["args"]["bundle"] for one in config["applications"]} == {expected}
        (states,) = {one["args"]["state"] for one in config["applications"] if "state" in one["args"]}
        assert states == expected.rpartition("/")[0] + "/service"


def test_a_path_that_yaml_would_read_otherwise_stays_a_path() -> None:
    path = ROOT / "jobs/ml100k.yaml"
    odd = "/logs/a: b #c.csv"
    job = load_job(path, [f"data.events.0.path={json.dumps(odd[1:])}"])
    (found,) = rendered(job, "", Wish(in_image="/app/x.yaml"))[0]
    words = shlex.split(found["spec"]["entrypoint"])
    assert load_job(path, [words[words.index("--set") + 1]]).data.events[0].model_dump()["path"] == f"/data{odd}"


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
