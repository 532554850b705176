"""The launcher files and the image: by Ray's own schema, by Ray's own scheduler, and against what the code expects."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ruamel.yaml import YAML

from distft.cluster import QUIET, SERVE
from distft.k8s.pods import UID
from distft.train.room import planned_nodes

FOLDER = Path(__file__).parent.parent.parent / "cluster"
CLOUDS = ("aws", "gcp")


def launcher(name: str) -> dict[str, Any]:
    read: dict[str, Any] = YAML(typ="safe").load((FOLDER / f"{name}.yaml").read_text())
    return read


@pytest.mark.parametrize("name", [*CLOUDS, "on-premise"])
def test_ray_accepts_the_file_and_starts_nodes_with_a_token(name: str) -> None:
    config = prepare_config(launcher(name))
    validate_config(config)
    [head], [worker] = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in shlex.split(command)
        assert "stop" not in shlex.split(command)
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    assert {"--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(shlex.split(head)), "no work, and no open door"


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(("need", "kind"), [({"CPU": 1}, "data"), ({"CPU": 1, "GPU": 1}, "train")])
def test_spot_nodes_come_first_and_others_where_there_are_none(name: str, need: dict[str, float], kind: str) -> None:
    types = AutoscalingConfig(launcher(name), skip_content_hash=True).get_node_type_configs()

    def asked_for(availability: dict[str, float]) -> list[str]:
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=launcher(name)["max_workers"],
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(need)]),
            recoverable_resource_availabilities=availability,
        )
        return [one.instance_type for one in ResourceDemandScheduler(None).schedule(request).to_launch]

    assert asked_for({}) == [f"{kind}-spot"]
    assert asked_for({f"{kind}-spot": 0.0}) == [f"{kind}-on-demand"]


def test_a_job_may_be_as_large_as_the_cluster_may_grow() -> None:
    nodes = planned_nodes(launcher("aws"))
    assert nodes is not None
    assert sum(node.get("GPU", 0) for node in nodes) == 16
    assert sum(node["CPU"] for node in nodes) == 16 * 16 + 16 * 8
    assert planned_nodes({"available_node_types": {"worker": {"resources": {}}}}) is None


def test_the_image_has_the_settings_of_an_embedded_ray_and_runs_as_nobody_special() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    told = [word for line in lines if line.startswith("ENV ") for word in shlex.split(line)[1:]]
    environment = dict(word.split("=", 1) for word in told)
    found = {name: value for name, value in environment.items() if name.startswith("RAY_")}
    assert found == {**QUIET, **SERVE, "RAY_AUTH_MODE": "token"}
    [user] = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user == f"{UID}:{UID}"
    assert any("wget" in line for line in lines)


def test_the_image_installs_what_the_constraints_say_and_nothing_without_a_hash() -> None:
    pins = set(re.findall(r"^[a-z0-9-]+==\S+", (FOLDER.parent / "constraints.txt").read_text(), re.MULTILINE))
    for file in sorted((FOLDER / "requirements").glob("*.txt")):
        blocks = re.findall(r"^\S.*\n(?:    .*\n)*", file.read_text(), re.MULTILINE)
        assert blocks
        for block in blocks:
            assert "--hash=sha256:" in block, block
        if file.name != "build.txt":
            installed = {block.split()[0] for block in blocks}
            assert not {one for one in installed if "[" not in one and one not in pins}, file.name
