"""``distft export`` of checkpoints of every ZeRO stage, number of ranks and precision, and of one named by its path."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from distft.cli.main import app
from distft.data.encode import Encoder
from distft.data.shards import TargetReader
from distft.errors import ArtefactError
from distft.export import golden_requests
from distft.item_vectors import ItemVectors
from distft.job import Job
from distft.jobfile import dump_job
from distft.models.mlp.config import Config as MLPConfig
from distft.models.weights import MODEL_PREFIX, read_weights
from distft.pipeline import run
from distft.ranking import Ranker
from distft.sections.serve import Serve
from distft.serve.golden import FILE, first_difference, read_golden
from distft.serve.predictor import Predictor
from distft.stages import Context
from distft.storage import Storage
from distft.train.loop import Loop
from tests.data import logs
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks

Held = dict[str, tuple[int, torch.Tensor]]


def trained(job: Job) -> Held:
    """Trains, and gives the fp32 slices that this rank holds at the end, taken from the engine itself."""
    loop = Loop(job, Storage(job.storage), "train", torch.device("cpu"), lambda metrics: None)
    held: Held = {}
    close = loop.engine.close

    def note_and_close() -> None:
        held.update({part.name: (part.offset, part.view(part.master).clone()) for part in loop.engine.slices()})
        close()

    loop.engine.close = note_and_close  # type: ignore[method-assign]
    loop.run()
    return held


def trained_all(jobs: list[Job]) -> list[Held]:
    return [trained(job) for job in jobs]


def assert_bundle_holds(root: Path, ranks: list[Held]) -> None:
    (Storage(root) / "bundle").verified("bundle")
    weights = read_weights(Storage(root) / "bundle")
    for name, values in weights.items():
        parts = dict(rank[MODEL_PREFIX + name] for rank in ranks if MODEL_PREFIX + name in rank)
        expected = torch.cat([parts[offset] for offset in sorted(parts)])
        assert values.dtype == torch.float32 and torch.equal(values.flatten(), expected), name


def make_jobs(root: Path, pairs: list[tuple[int, str]]) -> list[Job]:
    jobs = []
    for stage, precision in pairs:
        write_circle(root / f"{stage}-{precision}")
        settings: dict[str, Any] = {"epochs": 1, "zero": {"stage": stage}, "precision": precision}
        jobs.append(circle_job(root / f"{stage}-{precision}", **settings))
    return jobs


@pytest.mark.proof
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_precision_and_number_of_ranks_becomes_a_model(world_size: int, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, list(itertools.product(range(4), ("fp32", "bf16"))))
    ranks = run_ranks(world_size, trained_all, jobs)
    for index, job in enumerate(jobs):
        run(Context(job, Storage(job.storage)), ("export",))
        assert_bundle_holds(Path(job.storage), [rank[index] for rank in ranks])


def test_from_names_one_checkpoint_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = make_jobs(tmp_path, [(2, "fp32")])
    root = Path(job.storage)
    more = job.model_copy(update={"train": job.train.model_copy(update={"epochs": 2})})
    ((first, _),) = run_ranks(1, trained_all, [job, more])
    (tmp_path / "job.yaml").write_text(dump_job(more))
    monkeypatch.chdir(root)
    for path in (str(root / "train/checkpoints/step-4"), "train/checkpoints/step-4"):
        done = CliRunner().invoke(app, ["export", str(tmp_path / "job.yaml"), "--from", path, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout.splitlines()[-1])["num_golden"] > 0
        assert_bundle_holds(root, [first])
    damaged = next((root / "train/checkpoints/step-8").glob("weights*"))
    damaged.write_bytes(damaged.read_bytes()[::-1])
    with pytest.raises(ArtefactError, match=damaged.name):
        run(Context(more, Storage(root), from_="train/checkpoints/step-8"), ("export",))
    assert_bundle_holds(root, [first])


def test_a_large_catalogue_gets_an_index_with_its_recall(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, [(2, "fp32")])
    job = job.model_copy(update={"serve": Serve(index_above_items=11, index_recall=0.9)})
    run_ranks(1, trained_all, [job])
    run(Context(job, Storage(job.storage)), ("export",))
    bundle = Storage(job.storage) / "bundle"
    facts = bundle.read_json("index/index.json")
    assert facts["k"] == 10 and 0.9 <= facts["recall"] <= 1 and facts["num_states"] > 0
    assert {"index/index.json", "index/lists.safetensors"} <= set(bundle.verified("bundle").files)
    predictor = Predictor.load(bundle)
    assert predictor.describe()["index"] == facts
    assert first_difference(predictor, read_golden(bundle, 10)) is None
    few = job.model_copy(update={"serve": Serve(index_above_items=12)})
    run(Context(few, Storage(job.storage), force=True), ("export",))
    assert not any(name.startswith("index/") for name in bundle.verified("bundle").files)


def test_golden_requests_tell_made_up_users_where_the_model_takes_their_features(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    table = logs.write_csv(
        tmp_path / "users.txt", [(f"u{n}", "xy"[n % 2], str(20 + n)) for n in range(60)], ("user", "kind", "age")
    )
    features = {
        "path": str(table), "format": "csv", "columns": {"user_id": "user", "kind": "kind", "age": "age"},
        "numeric": ["age"],
    }  # fmt: skip
    job = logs.job(tmp_path, users=features)
    dataset, _ = logs.prepare_here(job, tmp_path / "run")
    encoder = Encoder.load(dataset / "encoder")
    job = job.model_copy(update={"model": MLPConfig(max_history=20)})
    torch.manual_seed(0)
    ranker = Ranker(job.model.build(encoder.catalog()), 20, encoder)
    requests = golden_requests(job, dataset, encoder, ranker)
    Storage(tmp_path).write_bytes(FILE, "\n".join(map(json.dumps, requests)).encode())
    golden = read_golden(Storage(tmp_path), 10)
    predictor = Predictor(job, encoder, ranker, "version")
    assert first_difference(predictor, golden) is None
    users = [one["request"]["user"] for one in requests]
    assert {user["kind"] for user in users} == {"x", "y"} and len({user["age"] for user in users}) == 5
    others = [replace(one, query=replace(one.query, user={})) for one in golden]
    assert first_difference(predictor, others) is not None
    plain = logs.job(tmp_path, users=features)  # a transformer: it takes none
    ranker = Ranker(plain.model.build(encoder.catalog()), 20, encoder)
    without = golden_requests(plain, dataset, encoder, ranker)
    assert not any("user" in one["request"] for one in without)


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.5), ("int8", (16 + 4) / 64)])
def test_stored_item_vectors_are_what_is_ranked_by_and_what_they_cost_is_told(
    precision: Any, share: float, tmp_path: Path
) -> None:
    (job,) = make_jobs(tmp_path, [(2, "fp32")])
    job = job.model_copy(update={"serve": Serve(item_vectors=precision)})
    run_ranks(1, trained_all, [job])
    run(Context(job, Storage(job.storage)), ("export",))
    bundle, dataset = Storage(job.storage) / "bundle", Storage(job.storage) / "dataset"
    told = bundle.read_json("metrics.json")["item_vectors"]
    assert (told["stored"], told["split"], told["num_targets"]) == (precision, "valid", 64)
    assert told["share_of_fp32_bytes"] == pytest.approx(share, abs=1e-4) and told["bytes"] == share * 4 * 14 * 16
    assert told["ndcg@10"] == pytest.approx(told["fp32_ndcg@10"], rel=0.1) and told["fp32_ndcg@10"] > 0
    assert f"- **Item vectors**: {precision}" in (bundle.path / "MODEL_CARD.md").read_text()
    predictor = Predictor.load(bundle)
    golden = read_golden(bundle, 10)
    assert first_difference(predictor, golden) is None
    model = predictor.ranker.model
    evaluator = Ranker(model, job.model.max_history, predictor.encoder, None, job.serve.item_vectors)
    plain = Ranker(model, job.model.max_history, predictor.encoder)
    for histories, targets in TargetReader(dataset, "valid"):
        lists = [ranker.top_k(histories, 10, None) for ranker in (predictor.ranker, evaluator, plain)]
        assert torch.equal(lists[0].scores_BK, lists[1].scores_BK) and torch.equal(lists[0].rows_BK, lists[1].rows_BK)
        assert not torch.equal(lists[0].scores_BK, lists[2].scores_BK)
        torch.testing.assert_close(lists[0].scores_BK, lists[2].scores_BK, atol=0.05, rtol=0)
        own = torch.from_numpy(predictor.ranker.target_scores(histories, targets.item))
        listed = predictor.ranker.scores_of_items(histories, targets.item[:1].astype("int64"))
        assert float(listed[0, 0]) == pytest.approx(float(own[0]), abs=1e-6)
        chunk = predictor.ranker.scores(histories)(0, 14)
        torch.testing.assert_close(own.float(), chunk.gather(1, torch.from_numpy(targets.item).long()[:, None])[:, 0])
    unquantised = Predictor(job, predictor.encoder, plain, "version")
    assert first_difference(unquantised, golden) is not None, "the golden requests are of the stored vectors"


def test_the_stored_vectors_are_read_and_not_made_again(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, [(2, "fp32")])
    job = job.model_copy(update={"serve": Serve(item_vectors="int8", index_above_items=11, index_recall=0.9)})
    run_ranks(1, trained_all, [job])
    run(Context(job, Storage(job.storage)), ("export",))
    bundle = Storage(job.storage) / "bundle"
    assert first_difference(Predictor.load(bundle), read_golden(bundle, 10)) is None  # also from the index
    tensors = load(bundle.read_bytes("item_vectors.safetensors"))
    tensors["codes"] = -tensors["codes"]
    bundle.write_bytes("item_vectors.safetensors", save(tensors))
    with pytest.raises(ArtefactError, match=r"item_vectors\.safetensors"):
        Predictor.load(bundle)
    turned = Predictor.load(bundle, verify=False)
    assert torch.equal(turned.ranker.vectors_ND[:], -ItemVectors.of(plain_vectors(turned), "int8")[:])


def plain_vectors(predictor: Predictor) -> torch.Tensor:
    with torch.inference_mode():
        return predictor.ranker.model.item_vectors(torch.arange(14))
