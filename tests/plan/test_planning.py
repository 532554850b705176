from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.component import ModelConfig, configs
from distft.errors import UsageError
from distft.job import Job
from distft.jobfile import load_job
from distft.losses import chunks
from distft.plan import passes
from distft.plan.asking import check_fits, plan, settings_text
from distft.plan.asking import rows as rows_of
from distft.plan.passes import measured
from distft.plan.planning import parsed_bytes, refuse
from distft.plan.states import memory
from distft.schema import Catalog
from distft.storage import Storage

ROOT = Path(__file__).parents[2]
NOWHERE = Storage("nowhere")


def job_of(*settings: str) -> Job:
    small = ("model.dim=32", "model.max_history=20", "train.max_tokens_per_micro_batch=100")
    return load_job(str(ROOT / "benchmarks/results/planning.yaml"), [*small, *settings])


def catalog_of(num_items: int = 500) -> Catalog:
    return Catalog(num_items=num_items, num_events=2, num_query_tokens=0, has_clock=True)


@pytest.mark.parametrize("config", configs("models"), ids=lambda config: str(config.model_fields["kind"].default))
def test_every_model_is_measured_without_memory_for_it(config: type[ModelConfig]) -> None:
    model = config.model_validate({"kind": config.model_fields["kind"].default, "max_history": 20})
    loss = "{kind: softmax}" if model.retrieval == "dot" else "{kind: bce}"
    job = job_of(f"loss={loss}").model_copy(update={"model": model})
    found = measured(job, catalog_of(), 1)
    with torch.device("meta"):
        names = dict(job.model.build(catalog_of()).named_parameters())
    assert {f"model.{name}" for name in names} <= {one.name for one in found.parameters}
    assert found.activation_bytes > 0
    assert found.pass_bytes >= found.activation_bytes


@pytest.mark.parametrize("loss", ["{kind: softmax}", "{kind: sampled_softmax, num_negatives: 64}"])
def test_a_few_chunks_of_the_loss_tell_what_all_of_them_take(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(f"loss={loss}")
    monkeypatch.setattr(chunks, "CPU_NUMBERS", 3 * 5_000)
    monkeypatch.setattr(chunks, "CPU_WIDTH", 3)  # 34 chunks of a hundred positions
    few = measured(job, catalog_of(5_000), 1)
    monkeypatch.setattr(passes, "only_different", nullcontext)
    assert few == measured(job, catalog_of(5_000), 1)


def test_what_blocks_add_is_taken_from_the_difference_of_two() -> None:
    sizes = [measured(job_of(f"model.num_blocks={count}"), catalog_of(), 1).activation_bytes for count in (1, 2, 5)]
    assert sizes[2] == sizes[0] + 4 * (sizes[1] - sizes[0])


def test_activation_checkpointing_takes_less_and_longer_micro_batches_more() -> None:
    plain, recomputed, longer = (
        measured(job_of("model.num_blocks=4", *more), catalog_of(), 1)
        for more in ((), ("train.activation_checkpointing=true",), ("train.max_tokens_per_micro_batch=200",))
    )
    assert recomputed.activation_bytes < plain.activation_bytes / 3
    assert longer.activation_bytes == pytest.approx(2 * plain.activation_bytes, rel=0.1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_divides_what_it_should(stage: int) -> None:
    found = measured(job_of("model.dim=512", "model.num_blocks=4"), catalog_of(20_000), 1)
    train = job_of(f"train.zero.stage={stage}").train
    alone, shared = (memory(found, train, workers, False) for workers in (1, 4))
    weights = 4 * found.num_trained
    divided = {"master", "moments", "gradients", "parameters"} if stage == 3 else {"master", "moments"}
    divided |= {"gradients"} if stage == 2 else set()
    for part in ("parameters", "master", "moments", "gradients"):
        share = 1 / 4 if part in divided and stage else 1
        assert shared.part(part) == pytest.approx(share * alone.part(part), rel=0.01), part
    assert alone.part("moments") == 2 * weights


def test_frozen_layers_have_no_moments_and_no_gradients() -> None:
    frozen = frozenset({"items.items.weight"})
    found = measured(job_of(), catalog_of(5000), 1, frozen)
    assert found.num_frozen == 5000 * 32
    assert memory(found, job_of("train.zero.stage=0").train, 1, False).part("gradients") == 4 * found.num_trained


def test_offload_moves_state_from_the_gpu_to_the_host() -> None:
    found = measured(job_of("model.dim=256"), catalog_of(5000), 1)
    here, there = (memory(found, job_of(f"train.zero.offload={where}").train, 2, True) for where in ("none", "cpu"))
    assert {"master", "moments"} <= there.host.keys()
    assert sum(there.device.values()) < sum(here.device.values())


def large(**more: Any) -> Any:
    settings = ["model.dim=1024", "model.num_blocks=8", "model.num_heads=8", "train.precision=bf16"]
    return plan(job_of(*settings), NOWHERE, num_items=1_000_000, on_gpu=True, **more)


def test_the_fastest_setting_that_fits_is_proposed_and_more_workers_where_none_does() -> None:
    free = large(device_bytes=200 * 10**9, num_workers=8)
    assert free.cheapest is not None and free.cheapest.stage == 0
    tight = large(device_bytes=14 * 10**9, num_workers=8)
    assert tight.cheapest is not None and tight.cheapest.stage > 0
    assert all(not one.fits(tight.available_bytes) for one in tight.settings[: tight.settings.index(tight.cheapest)])
    alone = large(device_bytes=8 * 10**9, num_workers=1)
    assert alone.cheapest is None or alone.cheapest.offload != "none"


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    found = plan(job_of("model.dim=256"), NOWHERE, num_items=1_000_000, device_bytes=5 * 10**9, num_workers=1)
    with pytest.raises(UsageError, match=r"A worker needs .* and the worker's share of the memory is 5 GB") as caught:
        refuse(found)
    assert "scaling.num_workers" in caught.value.remedy or "zero.stage" in caught.value.remedy


def test_a_training_that_no_machine_has_room_for_is_refused_before_it_starts() -> None:
    job = job_of("model.dim=4096", "data.events.0.num_items=10000000")
    with pytest.raises(UsageError, match="A worker needs"):
        check_fits(job, None, None)
    with pytest.raises(UsageError, match="A worker needs"):
        check_fits(job, None, [{"CPU": 4, "memory": 8e9, "object_store_memory": 2e9}])
    check_fits(job_of(), None, None)
    check_fits(job, None, [{"CPU": 4}])  # a node that does not tell


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("1.5GiB", 3 << 29), ("512 mb", 512 * 10**6)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parsed_bytes(text.replace(" ", "")) == size


@pytest.mark.parametrize("text", ["", "80", "-1GB", "80XB", "1e30GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    if text == "80":
        assert parsed_bytes(text) == 80
        return
    with pytest.raises(UsageError):
        parsed_bytes(text)


SHARDED = ("loss={kind: sampled_softmax, num_negatives: 64}", "model.item_table={placement: sharded}")


@pytest.mark.parametrize(("optimizer", "state"), [("rowwise_adagrad", 1), ("adamw", 2 * 32)])
def test_a_sharded_table_is_divided_by_the_workers_at_every_stage(optimizer: str, state: int) -> None:
    job = job_of(*SHARDED, f"model.item_table.optimizer={optimizer}")
    found = plan(job, NOWHERE, num_items=40_000, num_workers=4, on_gpu=False)
    rows = -(-40_002 // 4)
    for one in found.settings:
        assert one.memory.part("table") == 4 * 32 * rows
        assert one.memory.part("table_state") == 4 * state * rows
        assert one.memory.part("parameters") < 4 * 32 * 10_000, "the table is no part of what ZeRO divides"
    told = found.to_json()
    assert told["item_table"]["worker"]["table_bytes"] == 4 * 32 * rows
    assert told["item_table_bytes"] == 4 * 32 * 40_002
    assert told["checkpoint_bytes"] > 4 * (32 + state) * 40_002
    text = dict(rows_of(found, "not asked"))
    assert "rows looked up in a step" in text["sharded table"] and "its state" in settings_text(found)
    assert 100 < told["item_table"]["worker"]["looked_up_rows"] <= 64 + 2 * 100 * -(-job.train.batch_size // 4)


def test_a_replicated_table_is_told_as_before_and_needs_more() -> None:
    whole = plan(job_of(SHARDED[0]), NOWHERE, num_items=40_000, num_workers=4, on_gpu=False)
    parts = plan(job_of(*SHARDED), NOWHERE, num_items=40_000, num_workers=4, on_gpu=False)
    assert whole.to_json()["item_table"] == {"placement": "replicated"}
    assert "its state" not in settings_text(whole)
    assert parts.wanted.memory.device_bytes < whole.wanted.memory.device_bytes - 4 * 32 * 30_000


def test_a_table_that_fits_no_device_is_told_how_it_would() -> None:
    job = job_of("model.dim=256", SHARDED[0])
    found = plan(job, NOWHERE, num_items=200_000_000, device_bytes=10**9, num_workers=1)
    with pytest.raises(UsageError) as caught:
        refuse(found)
    assert "placement: sharded" in caught.value.remedy
    check_fits(job_of(*SHARDED), None, None)


def test_the_capacity_page_has_the_tables_of_its_script() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/capacity.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
