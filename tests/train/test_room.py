from __future__ import annotations

from typing import Any

import pytest

from distft.errors import UsageError
from distft.sections.train import Scaling
from distft.train import room

Nodes = list[dict[str, float]]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """The resources of a cluster's nodes, to be changed by the test."""
    there: Nodes = [{"CPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}]
    monkeypatch.setattr(room, "_nodes", lambda: there)
    return there


@pytest.mark.parametrize(
    ("scaling", "use_gpu", "remedy"),
    [
        ({"num_workers": 6}, False, "Set scaling.num_workers to 5."),
        ({"num_workers": (3, 9), "cpus_per_worker": 2}, False, "Set scaling.num_workers to 2."),
        ({"num_workers": 2}, True, "Set scaling.num_workers to 1."),
        ({"cpus_per_worker": 4}, False, "Lower scaling.cpus_per_worker."),
    ],
)
def test_what_could_never_run_is_refused(nodes: Nodes, scaling: dict[str, Any], use_gpu: bool, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        room.check_room(Scaling(**scaling), use_gpu)
    assert caught.value.remedy == remedy


def test_what_fits_is_not_refused(nodes: Nodes) -> None:
    room.check_room(Scaling(num_workers=5), False)
    room.check_room(Scaling(num_workers=(1, 50)), True)


def test_a_person_is_told_once_each_time_that_nodes_stay_away(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, told = [0.0], []
    monkeypatch.setattr(room.time, "monotonic", lambda: now_s[0])
    watch = room.Room(Scaling(num_workers=4), False, told.append)

    def minute(step: int) -> None:
        for _ in range(60):
            now_s[0] += 1
            watch.see([{"step": step}] if step else [])

    minute(7)
    assert told == []
    lost = nodes.pop()
    minute(0)
    minute(0)
    assert [(line["kind"], line["step"]) for line in told] == [("warning", 7)]
    assert "2 of 4 workers fit" in told[0]["message"]
    nodes.append(lost)
    minute(8)
    nodes.pop()
    minute(0)
    assert [line["step"] for line in told] == [7, 8]
