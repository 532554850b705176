"""Fine-tuning in this process: what is taken over, what stays as it was, what a checkpoint holds, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distft.data.encode import Encoder
from distft.errors import ArtefactError, UsageError
from distft.export import export
from distft.job import Job
from distft.models.weights import read_weights
from distft.sections.train import Finetune
from distft.storage import Storage
from distft.train import driver
from distft.train import loop as loop_module
from distft.train.base import find_base, inherited, keep
from distft.train.checkpoint import committed
from distft.train.loop import Loop, TrainResult
from distft.train.start import opened
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks

CPU = torch.device("cpu")
BLOCKS: dict[str, Any] = {"num_blocks": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A bundle of a model of two blocks that has not learnt anything, and its dataset beside it."""
    root = write_circle(tmp_path_factory.mktemp("base"))
    job = circle_job(root.path, BLOCKS)
    (root / "test").make()
    torch.manual_seed(5)
    model = job.model.build(Encoder.of_dataset(root / "dataset").catalog())
    export(job, root, model.state_dict(), None, {})
    return root


def finetune_job(base: Storage, root: Path, model: dict[str, Any] | None = None, **section: Any) -> Job:
    """A job that fine-tunes ``base`` on the circle."""
    job = circle_job(root, BLOCKS | (model or {}))
    section = {"from": str(base / "bundle"), "batch_size": 20, "num_streams": 4, "learning_rate": 0.02, **section}
    values = job.model_dump(mode="json", by_alias=True) | {"finetune": {"epochs": 2, **section}}
    return Job.model_validate(values | {"stages": ["finetune"]})


def tune(job: Job, root: Storage) -> TrainResult:
    """Fine-tunes with one rank of this process."""
    keep_base(job, root)
    return rank(job, root)


def rank(job: Job, root: Storage) -> TrainResult:
    return Loop(job.trained_as("finetune"), root, "finetune", CPU, lambda line: None).run()


def newest(root: Storage) -> Storage:
    folder = root / "finetune/checkpoints"
    return folder / committed(folder)[0]


def frozen_and_trained(base: Storage, root: Storage) -> tuple[set[str], set[str]]:
    before, after = read_weights(base / "bundle"), read_weights(newest(root))
    assert before.keys() == after.keys()
    equal = {name for name in before if torch.equal(before[name], after[name])}
    return equal, before.keys() - equal


def test_only_what_is_not_frozen_changes_and_is_saved(base: Storage, tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    tune(finetune_job(base, tmp_path, freeze=["embeddings", "blocks.0"]), root)
    equal, changed = frozen_and_trained(base, root)
    assert {name.split(".")[0] for name in equal} == {"items", "events", "positions", "blocks"}
    assert all(name.startswith(("blocks.1.", "norm.")) for name in changed) and len(changed) == 14
    weights = next(name for name in newest(root).list() if name.startswith("weights"))
    full = sum(tensor.numel() for tensor in read_weights(base / "bundle").values())
    assert len(newest(root).read_bytes(weights)) < 0.6 * 4 * full


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_equals_undisturbed_bit_for_bit(
    stop: int, base: Storage, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"freeze": ["first 2"], "checkpoint": {"every_steps": 2}, "lora": {"rank": 2}}
    calm, disturbed = write_circle(tmp_path / "calm"), write_circle(tmp_path / "disturbed")
    tune(finetune_job(base, tmp_path / "calm", **settings), calm)
    job = finetune_job(base, tmp_path / "disturbed", **settings)
    interrupted(job, disturbed, stop, monkeypatch)
    tune(job, disturbed)
    expected, found = read_weights(newest(calm)), read_weights(newest(disturbed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_frozen_layers_draw_no_dropout(base: Storage, tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    job = finetune_job(base, tmp_path, {"dropout": 0.5}, freeze=["embeddings", "blocks.0"]).trained_as("finetune")
    started = opened(job, root / "dataset")
    assert started is not None
    keep(root / "finetune", started.used)
    loop = Loop(job, root, "finetune", CPU, lambda line: None)
    model = loop.engine.module.model
    assert [module.training for module in (model.items, model.blocks[0], model.blocks[1])] == [False, False, True]
    assert {name.split(".")[2] for name in loop.engine.parameters if "blocks" in name} == {"1"}


def test_adapters_change_the_blocks_that_they_stand_beside_and_are_merged(
    base: Storage, tmp_path: Path, one_rank: None
) -> None:
    root = write_circle(tmp_path)
    tune(finetune_job(base, tmp_path, freeze=["embeddings", "blocks"], lora={"rank": 2}), root)
    _, changed = frozen_and_trained(base, root)
    layers = {f"blocks.{n}.{layer}.weight" for n in (0, 1) for layer in ("qkv", "out", "up", "down")}
    assert changed == layers | {"norm.weight", "norm.bias"}
    before, after = read_weights(base / "bundle"), read_weights(newest(root))
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 2 for name in layers)


def test_groups_learn_at_their_own_rates(base: Storage, tmp_path: Path, one_rank: None) -> None:
    moved = {}
    for name, rates in (("slow", {"blocks.1": 1e-6}), ("even", {})):
        root = write_circle(tmp_path / name)
        job = finetune_job(base, tmp_path / name, learning_rates=rates, optimizer="sgd", momentum=0.0, epochs=1)
        tune(job, root)
        before, after = read_weights(base / "bundle"), read_weights(newest(root))
        moved[name] = {
            key: float((after[key] - before[key]).abs().max()) for key in ("norm.bias", "blocks.1.up.weight")
        }
    assert moved["slow"]["blocks.1.up.weight"] < 1e-3 * moved["even"]["blocks.1.up.weight"]
    assert moved["slow"]["norm.bias"] > 0.1 * moved["even"]["norm.bias"]


def test_cached_outputs_train_as_computed_ones(base: Storage, tmp_path: Path, one_rank: None) -> None:
    trained = {}
    for cache in (False, True):
        root = write_circle(tmp_path / str(cache))
        settings: dict[str, Any] = {"freeze": ["embeddings", "blocks.0"], "optimizer": "sgd", "epochs": 3}
        job = finetune_job(base, tmp_path / str(cache), cache=cache, **settings)
        keep_base(job, root)
        loop = Loop(job.trained_as("finetune"), root, "finetune", CPU, lambda line: None)
        model, computed = loop.engine.module.model, []
        model.blocks[0].register_forward_hook(partial(_note_training, model, computed))
        trained[cache] = loop.run().steps, len(computed), read_weights(newest(root))
    (steps, plain, expected), (_, cached, found) = trained[False], trained[True]
    assert plain == steps
    assert cached == steps / 3, "in the first epoch alone"
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def _note_training(model: Any, computed: list[bool], *_: Any) -> None:
    if model.training:
        computed.append(True)


def keep_base(job: Job, root: Storage) -> None:
    started = opened(job.trained_as("finetune"), root / "dataset")
    assert started is not None
    keep(root / "finetune", started.used)


LATER: dict[str, Any] = {
    "freeze": ["embeddings", "blocks"],
    "unfreeze": [{"after_epochs": 1, "layers": ["blocks.1"]}, {"after_epochs": 2, "layers": ["blocks.0"]}],
    "epochs": 3,
    "checkpoint": {"every_steps": 3, "keep": 20},
    "early_stopping": None,
}


def test_more_trains_from_epoch_to_epoch(base: Storage, tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    tune(finetune_job(base, tmp_path, lora={"rank": 2}, cache=True, **LATER), root)
    before, changed = read_weights(base / "bundle"), {}
    for name in committed(root / "finetune/checkpoints"):
        after = read_weights(root / "finetune/checkpoints" / name)
        biases = ("positions.weight", "blocks.0.qkv.bias", "blocks.1.qkv.bias", "norm.bias")
        changed[int(name.removeprefix("step-"))] = [key for key in biases if not torch.equal(before[key], after[key])]
    steps = max(changed) // 3
    assert changed[steps] == ["norm.bias"]
    assert changed[2 * steps] == ["blocks.1.qkv.bias", "norm.bias"]
    assert changed[3 * steps] == ["blocks.0.qkv.bias", "blocks.1.qkv.bias", "norm.bias"]


@pytest.mark.parametrize("stop", [4, 5])
def test_a_schedule_resumes_bit_for_bit(
    stop: int, base: Storage, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, disturbed = write_circle(tmp_path / "calm"), write_circle(tmp_path / "disturbed")
    tune(finetune_job(base, tmp_path / "calm", **LATER), calm)
    job = finetune_job(base, tmp_path / "disturbed", **LATER)
    interrupted(job, disturbed, stop, monkeypatch)
    tune(job, disturbed)
    expected, found = read_weights(newest(calm)), read_weights(newest(disturbed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def interrupted(job: Job, root: Storage, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tunes until the step ``stop``."""
    real = loop_module.train_step

    def failing(engine: Any, batches: Any, empty: Any, number: int, rate: float) -> Any:
        if number == stop:
            raise InterruptedError
        return real(engine, batches, empty, number, rate)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(loop_module, "train_step", failing)
        tune(job, root)


# -- new rows ----------------------------------------------------------------------------------------------


def grown_circle(path: Path, base: Storage, new_items: int = 3) -> Storage:
    """The circle with a vocabulary that continues the base's by items that nobody has walked to yet."""
    root = write_circle(path)
    old = Encoder.of_dataset(base / "dataset")
    ids = np.array([*old.item_ids, *(f"new-{n}" for n in range(new_items))], object)
    counts = np.concatenate([old.counts, np.zeros(new_items, np.int64)])
    replace(old, item_ids=ids, counts=counts, ancestors=(old.as_ancestor(),)).save(root / "dataset/encoder")
    (root / "dataset").write_manifest("dataset", rows=_rows(root), info={"has_clock": True})
    return root


def _rows(root: Storage) -> dict[str, int]:
    return {name: 16 for name in (root / "dataset").list() if name.startswith(("train/", "valid/"))}


def test_new_items_get_rows_behind_the_old_ones_which_stay(base: Storage, tmp_path: Path, one_rank: None) -> None:
    root = grown_circle(tmp_path, base)
    tune(finetune_job(base, tmp_path, freeze=["embeddings"]), root)
    before, after = (read_weights(place)["items.items.weight"] for place in (base / "bundle", newest(root)))
    assert len(after) == len(before) + 3 and torch.equal(after[: len(before)], before)
    assert not torch.equal(after[-1], before[1]), "the softmax pushes an item away that nobody wants"
    model = circle_job(tmp_path, BLOCKS).model.build(Encoder.of_dataset(root / "dataset").catalog())
    model.load_state_dict(read_weights(newest(root)))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_models_of_bags_grow_in_each_of_them(kind: str, tmp_path: Path, one_rank: None) -> None:
    old_root = write_circle(tmp_path / "old")
    values = circle_job(tmp_path / "old").model_dump(mode="json", by_alias=True)
    values |= {"model": {"kind": kind, "max_history": 8}, "loss": {"kind": "bce"}}
    old_job = Job.model_validate(values)
    (old_root / "test").make()
    model = old_job.model.build(Encoder.of_dataset(old_root / "dataset").catalog())
    torch.nn.init.normal_(model.get_parameter("bags.items.weight"))
    export(old_job, old_root, model.state_dict(), None, {})
    root = grown_circle(tmp_path / "new", old_root)
    section = {"from": str(old_root / "bundle"), "freeze": ["embeddings"], "epochs": 1, "batch_size": 20}
    job = Job.model_validate(values | {"finetune": section, "stages": ["finetune"]})
    started = opened(job.trained_as("finetune"), root / "dataset")
    assert started is not None and started.summary["grown"] == {"items": 3}
    tune(job, root)
    before, after = (read_weights(place)["bags.items.weight"] for place in (old_root / "bundle", newest(root)))
    num_kinds = model.bags.num_kinds
    before, after = before.view(num_kinds, -1, before.shape[1]), after.view(num_kinds, -1, before.shape[1])
    assert after.shape[1] == before.shape[1] + 3
    assert torch.equal(after[:, :-3], before)
    assert torch.equal(after[:, -3:], before[:, [1, 1, 1]]), "nobody has met a new item: it is as the unknown one"


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"freeze": ["embedings"]}, "Did you mean embeddings?"),
        ({"freeze": ["blocks.0-7"]}, "Did you mean blocks.1?"),
        ({"freeze": ["first 9"]}, "1 to 4 layer groups"),
        ({"freeze": ["/blocks.0.qvk/"]}, "blocks.0.qkv.weight"),
        ({"freeze": ["/(/"]}, "no regular expression"),
        ({"freeze": ["embeddings", "blocks", "head"]}, "freezes all"),
        ({"freeze": ["head"], "reset": ["head"]}, "what starts anew must train"),
        ({"freeze": ["head"], "lora": {"rank": 2}}, "no block with linear layers is frozen"),
        ({"learning_rates": {"haed": 1.0}}, "Did you mean head?"),
        ({"unfreeze": [{"after_epochs": 1, "layers": ["head"]}]}, "'head' is not frozen after 1 epochs"),
        ({"freeze": ["blocks"], "cache": True}, "of the embeddings items.items.weight"),
    ],
)
def test_what_a_section_cannot_say(section: dict[str, Any], words: str, base: Storage, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    with pytest.raises(UsageError) as error:
        opened(finetune_job(base, tmp_path, **section).trained_as("finetune"), root / "dataset")
    assert words in str(error.value)


def test_another_shape_is_named(base: Storage, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    with pytest.raises(ArtefactError, match=r"norm.bias is \[16\] in the base and \[8\] in this job"):
        opened(finetune_job(base, tmp_path, {"dim": 8}).trained_as("finetune"), root / "dataset")


def test_a_vocabulary_of_its_own_is_refused(base: Storage, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    encoder = Encoder.of_dataset(root / "dataset")
    replace(encoder, item_ids=np.roll(encoder.item_ids, 0)[::1].copy(), event_names=("view",)).save(
        root / "dataset/encoder"
    )
    (root / "dataset").write_manifest("dataset", rows=_rows(root), info={"has_clock": True})
    with pytest.raises(ArtefactError, match=r"not built from the base's.*data.vocabulary"):
        opened(finetune_job(base, tmp_path).trained_as("finetune"), root / "dataset")


def test_a_changed_byte_of_the_base_is_found(base: Storage, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    copy = Storage(tmp_path / "copy")
    for name in (base / "bundle").list():
        copy.write_bytes(name, (base / "bundle").read_bytes(name))
    data = bytearray(copy.read_bytes("model.safetensors"))
    data[-1] ^= 1
    copy.write_bytes("model.safetensors", bytes(data))
    job = finetune_job(base, tmp_path, **{"from": str(copy)}).trained_as("finetune")
    with pytest.raises(ArtefactError, match=r"model.safetensors has SHA-256"):
        opened(job, root / "dataset")


def test_a_base_of_another_kind_is_refused_and_a_missing_model_is_inherited(base: Storage, tmp_path: Path) -> None:
    values = finetune_job(base, tmp_path).model_dump(mode="json", by_alias=True)
    bare = {key: value for key, value in values.items() if key not in ("model", "loss")}
    assert inherited(Job.model_validate(bare)).model == finetune_job(base, tmp_path).model
    with pytest.raises(UsageError, match="Leave the model section out"):
        inherited(Job.model_validate(bare | {"model": {"kind": "hstu", "num_heads": 2}}))
    with pytest.raises(ArtefactError, match=r"Did you mean .*/bundle\?"):
        find_base(str(base))


def test_a_checkpoint_knows_its_base(base: Storage, tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    tune(finetune_job(base, tmp_path), root)
    other = {name: tensor + 1 for name, tensor in read_weights(base / "bundle").items()}
    keep(root / "finetune", other)
    with pytest.raises(ArtefactError, match="is another one"):
        read_weights(newest(root))
    (root / "finetune").delete_tree("base")
    with pytest.raises(ArtefactError, match="is missing"):
        read_weights(newest(root))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings when it pickles them
def test_two_workers_of_ray_and_a_bundle(base: Storage, tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    lines: list[dict[str, Any]] = []
    job = finetune_job(base, tmp_path, freeze=["embeddings", "/blocks.0.*weight/"], epochs=1, cache=True)
    job = job.model_copy(update={"scaling": job.scaling.model_copy(update={"num_workers": 2})})
    assert driver.train(job, root, {}, stage="finetune", progress=lines.append).steps == 4
    assert lines[0]["kind"] == "start" and lines[0]["missing"] == [] == lines[0]["unexpected"]
    assert lines[0]["cached"] == ["embeddings"]
    total = lines[0]["groups"][-1]
    assert total["optimizer_bytes"] == 8 * total["trainable"] and 0 < total["trainable"] < total["parameters"]
    manifest = (root / "finetune").verified("train")
    assert manifest.info["start"]["groups"][-1] == total and "base/model.safetensors" in manifest.files
    export(job, root, read_weights(newest(root)), None, {})
    served = read_weights(root / "bundle")
    assert torch.equal(served["items.items.weight"], read_weights(base / "bundle")["items.items.weight"])
    assert not torch.equal(served["norm.weight"], read_weights(base / "bundle")["norm.weight"])


@pytest.mark.proof
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_frozen_bits_at_every_stage(stage: int, num_ranks: int, base: Storage, tmp_path: Path) -> None:
    root = grown_circle(tmp_path, base)
    rates = {"head": 1e-3}
    settings: dict[str, Any] = {"freeze": ["embeddings", "blocks.0"], "zero": {"stage": stage}, "learning_rates": rates}
    job = finetune_job(base, tmp_path, lora={"rank": 2}, **settings)
    started = opened(job.trained_as("finetune"), root / "dataset")
    assert started is not None
    keep(root / "finetune", started.used)
    first = run_ranks(num_ranks, rank, job, root)
    assert first[0].steps == 8
    before, after = read_weights(base / "bundle"), read_weights(newest(root))
    size = len(before["items.items.weight"])
    assert torch.equal(after["items.items.weight"][:size], before["items.items.weight"])
    for name in ("positions.weight", "blocks.0.qkv.bias", "blocks.0.attention_norm.weight"):
        assert torch.equal(after[name], before[name])
    later = [{"after_epochs": 2, "layers": ["blocks.0"]}, {"after_epochs": 3, "layers": ["embeddings"]}]
    more = job.model_copy(update={"finetune": Finetune.model_validate(_longer(job, epochs=4, unfreeze=later))})
    assert run_ranks(3 - num_ranks, rank, more, root)[0].steps == 16, "goes on with another number of ranks"
    end = read_weights(newest(root))
    moved = [name for name in ("positions.weight", "blocks.0.qkv.bias") if not torch.equal(end[name], before[name])]
    assert moved == ["positions.weight", "blocks.0.qkv.bias"], "first at a restart, then within one"


def _longer(job: Job, **keys: Any) -> dict[str, Any]:
    assert job.finetune is not None
    values: dict[str, Any] = job.finetune.model_dump(mode="json", by_alias=True)
    return values | keys
