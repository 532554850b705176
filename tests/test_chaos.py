"""What chaos adds up, and whom it would kill. The kills themselves are proved in tests/cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft import chaos, cluster
from distft.errors import ArtefactError, UsageError
from distft.storage import Storage


def line(step: int, step_s: float, time_s: float, kind: str = "train") -> dict[str, Any]:
    return {"kind": kind, "step": step, "step_s": step_s, "time_s": time_s}


def test_goodput_counts_the_time_of_steps_that_were_kept_within_the_window() -> None:
    lines = [
        line(10, 1.0, 100.0),  # began at 90, five seconds before the window
        line(10, 0.0, 103.0, "valid"),
        line(20, 0.5, 120.0),  # after a restart: 115 to 120
        line(40, 0.5, 140.0),  # 130 to 140, of which the window sees the first 5 s
    ]
    found = chaos.goodput(lines, 95.0, 135.0)
    assert found == {"began_s": 95.0, "seconds": 40.0, "goodput": (5 + 5 + 5) / 40, "steps_kept": 5 + 10 + 10}
    assert chaos.goodput([], 0.0, 10.0)["goodput"] == 0


@pytest.mark.usefixtures("ray_session")
def test_a_node_names_its_own_raylet_only_where_something_trains() -> None:
    import ray

    nodes = cluster.nodes()
    session = ray._private.worker.global_worker.node.session_name
    [found] = cluster.on_each(nodes, chaos.targets, {name: (session,) for name in nodes}).values()
    assert len(found["gcs"]) == 1
    assert "gcs_server" in Path(f"/proc/{found['gcs'][0]}/cmdline").read_text()
    assert found["worker"] == found["node"] == found["replica"] == []


def test_what_cannot_be_disturbed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="some of worker, node, gcs, replica"):
        chaos.disturb(Storage(tmp_path), chaos.Schedule(["driver"], 1, 1))
    with pytest.raises(UsageError, match="no cluster to disturb"):
        chaos.disturb(Storage(tmp_path), chaos.Schedule(["worker"], 1, 1))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ArtefactError, match="No training has taken a step"):
        chaos.disturb(Storage(tmp_path), chaos.Schedule(["worker"], 1, 1))
