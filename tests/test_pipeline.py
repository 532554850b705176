"""The whole path on a small shop, once; then what the artefacts are, and what a second command does with them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft.cli.main import app as cli
from distft.data.encode import Encoder, RawEvent
from distft.data.histories import read_histories
from distft.data.shards import TargetReader
from distft.errors import ArtefactError, DataError, LockedError, StageChangedError, UsageError
from distft.job import Job
from distft.jobfile import dump_job, load_job, parse_job
from distft.lock import locked
from distft.models.weights import fill, read_weights
from distft.pipeline import based, fingerprint, replay, run
from distft.promotions import Attempt, note
from distft.ranking import Ranker, excluded_items
from distft.report.data import render
from distft.sections.serve import Evaluate
from distft.serve.api import build_api
from distft.serve.golden import first_difference, read_golden
from distft.serve.histories import Histories, Keeping
from distft.serve.predictor import Predictor, Query
from distft.stages import STAGES, Context, Watcher, trained
from distft.storage import Storage
from tests.serve.over_http import over_http
from tests.serve.test_api import InProcess

pytestmark = pytest.mark.ray

SMALL = [
    "data.events.0.num_users=300",
    "data.events.0.num_items=240",
    "data.events.0.num_categories=4",
    "data.events.0.num_brands=6",
    "data.events.0.num_styles=6",
    "data.clean={min_user_events: 2, min_item_events: 2}",
    "train.epochs=2",
    "train.batch_size=64",
    "train.early_stopping=null",
    "scaling.num_workers=1",
    "model.dim=16",
]


def small_job(storage: object, *more: str) -> Job:
    return load_job("jobs/quickstart.yaml", [*SMALL, f"storage={storage}", *more])


def states(job: Job, *, force: bool = False, stages: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
    """Runs the job; gives what was told about its stages."""
    told: list[tuple[str, str]] = []
    watcher = Watcher(stage=lambda name, state: told.append((name, state)))
    run(Context(job, Storage(job.storage), watcher, force), stages or job.stages)
    return told


@pytest.fixture(scope="module")
def finished(ray_session, tmp_path_factory):
    """A job that ran through all its stages; tests copy it before they change it."""
    job = small_job(tmp_path_factory.mktemp("path") / "run")
    told = states(job)
    assert told == [(stage, state) for stage in job.stages for state in ("starts", "done")]
    return job


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.storage, tmp_path / "run")
    return finished.model_copy(update={"storage": str(tmp_path / "run")})


def test_every_artefact_is_whole_and_nothing_else_is_left(finished):
    root = Storage(finished.storage)
    for stage in (STAGES[name] for name in finished.stages):
        (root / stage.artefact).verified(stage.kind)
    assert sorted({name.split("/")[0] for name in root.list()}) == ["bundle", "dataset", "report", "train"]
    names = {name for name in root.list("bundle") if "/encoder/" not in name}
    wanted = [
        "MODEL_CARD.md",
        "golden_requests.jsonl",
        "job.yaml",
        "manifest.json",
        "metrics.json",
        "model.safetensors",
    ]
    assert names == {f"bundle/{name}" for name in wanted}


def test_the_dataset_has_its_report_in_the_manifest(finished):
    dataset = Storage(finished.storage) / "dataset"
    assert "report.html" in dataset.manifest("dataset").files
    page = dataset.read_bytes("report.html").decode()
    assert page == render(finished.data, dataset.read_json("stats.json")), "a function of what stands in stats.json"


def test_metrics_are_consistent_and_the_oracle_is_best(finished):
    metrics = Storage(finished.storage).read_json("report/metrics.json")
    assert metrics["num_targets"] == TargetReader(Storage(finished.storage) / "dataset", "test").num_rows
    assert set(metrics["baselines"]) == {"popularity", "recently_seen", "co_occurrence", "oracle"}
    oracle = metrics["baselines"]["oracle"]
    for name, values in {**metrics["baselines"], "model": metrics["model"]}.items():
        assert values["hr@20"] <= oracle["hr@20"] + 0.05, name
        assert values["hr@1"] == values["ndcg@1"] == values["mrr@1"]
        assert values["hr@1"] <= values["hr@5"] <= values["hr@10"] <= values["hr@20"]
    low, high = metrics["intervals"]["hr@10"]
    assert low <= metrics["model"]["hr@10"] <= high
    for values in (metrics["model"], *metrics["baselines"].values()):
        assert 0 < values["coverage@20"] <= 1 and 0 <= values["gini@20"] < 1
        assert values["novelty@20"] > 0 and values["arp@20"] >= 0
    assert metrics["baselines"]["popularity"]["arp@10"] == max(v["arp@10"] for v in metrics["baselines"].values())
    assert metrics["significance"]["baselines"]["oracle"]["difference"] < 0
    for way, groups in metrics["slices"].items():
        assert sum(group["count"] for group in groups.values()) == metrics["num_targets"], way
        for group in groups.values():
            assert set(group["baselines"]) == set(group["baseline_intervals"]) == set(metrics["baselines"])
            low, high = group["intervals"]["ndcg@10"]
            assert low <= group["model"]["ndcg@10"] <= high
        total = sum(group["count"] * group["model"]["ndcg@10"] for group in groups.values())
        assert total / metrics["num_targets"] == pytest.approx(metrics["model"]["ndcg@10"])


def test_the_report_shows_slices_and_visitors(finished):
    page = Storage(finished.storage).read_bytes("report/index.html").decode()
    assert page.count("<h3>Visitor ") == 10
    for title in ("By kind of target", "Popularity of the target", "co-occurrence", "p, ndcg@10"):
        assert title in page, title


def test_a_model_does_not_differ_from_its_own_bundle(copied):
    root = Storage(copied.storage)
    context = Context(copied, root, against=str(root / "bundle"))
    summary = run(context, ("evaluate",))["evaluate"]
    rival = summary["against"]
    assert rival["name"] == copied.name
    assert rival["num_common_targets"] == round(summary["num_targets"] * (1 - summary["unknown_target_share"]))
    for name, one in rival["differences"].items():
        assert (one["difference"], one["p_value"]) == (0, 1), name
        assert rival["metrics"][name] == summary["model"][name]
    assert "Against quickstart" in root.read_bytes("report/index.html").decode()
    assert root.read_json("report/metrics.json") == summary
    flip(copied.storage, "bundle/encoder/items.parquet")
    for against, problem in (
        (f"{root}/bundle", "items.parquet"),
        (f"{root}/dataset", "holds a dataset"),
        ("x", "no bundle"),
    ):
        with pytest.raises(ArtefactError, match=problem):
            run(Context(copied, root, against=against), ("evaluate",))
    assert (root / "report").verified("report").info == summary


def test_the_server_side_gives_what_the_evaluator_gave(finished):
    bundle = Storage(finished.storage) / "bundle"
    predictor, golden = Predictor.load(bundle), read_golden(bundle, finished.serve.max_k)
    assert len(golden) == 200
    assert first_difference(predictor, golden) is None


def test_the_place_in_a_served_list_is_the_evaluated_rank(finished):
    """For 200 test users: the target stands in the bundle's list where the checkpoint's ranking puts it."""
    root = Storage(finished.storage)
    encoder, predictor = Encoder.of_dataset(root / "dataset"), Predictor.load(root / "bundle")
    model = finished.model.build(encoder.catalog())
    fill(model, read_weights(trained(Context(finished, root))))
    ranker = Ranker(model, finished.model.max_history, encoder)
    golden = read_golden(root / "bundle", finished.serve.max_k)
    places, ranks = [], []
    for histories, targets in TargetReader(root / "dataset", "test"):
        excluded = excluded_items(histories, finished.evaluate.exclude_seen, encoder.target_codes)
        ranks += ranker.ranks(histories, targets.item, excluded).tolist()
        queries = [Query(request.query.events, k=10) for request in golden[len(places) : len(places) + len(histories)]]
        for answer, target in zip(predictor.recommend(queries), targets.item.tolist(), strict=False):
            rows = encoder.item_rows(answer.item_ids).tolist()
            places.append(rows.index(target) + 1 if target in rows else None)
    assert len(places) == len(golden) == 200
    assert places == [rank if rank <= 10 else None for rank in ranks[:200]]
    assert sum(place is not None for place in places) > 20, "enough of them are in the list for this to say something"


def test_a_service_ranks_as_its_model_was_evaluated(copied):
    root = Storage(copied.storage)
    metrics = root.read_json("report/metrics.json")
    backend = InProcess(Predictor.load(root / "bundle"))
    with over_http(build_api(backend)) as url:
        result = replay(Context(copied, root), url)
        assert result == root.read_json("endpoint.json") and result["passed"]
        assert result["num_targets"] == metrics["num_targets"] == result["equal_lists"]
        assert result["largest_score_difference"] < 1e-5 and result["largest_metric_difference"] == 0
        expected = {name: metrics["model"][name] for name in result["evaluated"]}
        assert result["evaluated"] == pytest.approx(expected, abs=1e-12)
        done = CliRunner().invoke(cli, [*command(copied, root), "--endpoint", url])
        assert done.exit_code == 0 and json.loads(done.stdout.splitlines()[-1]) == result, done.output
        backend.predictor.job = copied.model_copy(update={"evaluate": Evaluate(exclude_seen="none")})
        wrong = CliRunner().invoke(cli, [*command(copied, root), "--endpoint", url])
        told = json.loads(wrong.stdout.splitlines()[-1])
        assert wrong.exit_code == 3 and told["failure"]["equal_lists"] < result["num_targets"], wrong.output
        assert "does not rank as the model was evaluated" in told["message"]


def command(job: Job, root: Storage) -> list[str]:
    """``distft evaluate`` of a job, as its file."""
    root.write_bytes("job.yaml", dump_job(job).encode())
    return ["evaluate", f"{root}/job.yaml", "--json"]


def test_a_bundle_brings_histories_if_it_is_asked_to(copied, tmp_path):
    root = Storage(copied.storage)
    assert not root.list("bundle/histories")
    job = copied.model_copy(update={"serve": copied.serve.model_copy(update={"export_histories": True})})
    states(job, force=True, stages=("export",))
    manifest = (root / "bundle").verified("bundle")
    assert any(name.startswith("histories/") for name in manifest.files)
    assert "`histories/` holds what users did" in root.read_bytes("bundle/MODEL_CARD.md").decode()
    user, events = next(iter(read_histories(root / "bundle")))

    async def kept() -> list[RawEvent]:
        histories = Histories(Keeping("embedded", str(tmp_path / "state"), job.name, 50))
        num_new = await histories.fill(root / "bundle", "this")
        assert num_new > 5 * 300 and await histories.fill(root / "bundle", "this") == 0
        found = await histories.events(user)
        await histories.close()
        return found

    assert asyncio.run(kept()) == events[-50:]


def test_a_second_run_does_nothing(copied):
    assert states(copied) == [(stage, "skipped") for stage in copied.stages]


def test_a_changed_key_is_refused_by_name_unless_forced(copied):
    changed = copied.model_copy(update={"evaluate": copied.evaluate.model_copy(update={"k": (3,)})})
    with pytest.raises(StageChangedError, match=r"evaluate\.k was \[1, 5, 10, 20\], is now \[3\].*--force"):
        states(changed, stages=("evaluate",))
    assert states(changed, force=True, stages=("evaluate",)) == [("evaluate", "starts"), ("evaluate", "done")]
    assert "hr@3" in Storage(copied.storage).read_json("report/metrics.json")["model"]
    other = copied.model_copy(update={"seed": 9})
    with pytest.raises(StageChangedError, match="seed was 1, is now 9"):
        states(other)


def test_the_same_job_on_the_same_data_makes_the_same_bundle(copied):
    stages = [STAGES[name] for name in copied.stages]
    before = [(Storage(copied.storage) / stage.artefact).manifest(stage.kind) for stage in stages]
    assert {state for _, state in states(copied, force=True)} == {"starts", "done"}
    for stage, first in zip(stages, before, strict=True):
        again = (Storage(copied.storage) / stage.artefact).manifest(stage.kind)
        differing = {name for name in first.files | again.files if first.files.get(name) != again.files.get(name)}
        if stage.kind == "train":  # its files are named by the attempt that wrote them
            assert again.info == first.info
        else:
            assert differing <= {"job.yaml", "index.html"}, "these name the storage, which was copied"


def test_more_epochs_continue_and_the_later_stages_follow(copied):
    more = copied.model_copy(update={"train": copied.train.model_copy(update={"epochs": 3})})
    told = states(more)
    assert [name for name, state in told if state == "skipped"] == ["prepare"]
    lines = [json.loads(line) for line in Storage(more.storage).read_bytes("train/metrics.jsonl").splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps)), "no step is taken twice"
    assert max(line["epoch"] for line in lines) == 3
    assert states(more) == [(stage, "skipped") for stage in more.stages]


def flip(storage: str, pattern: str) -> str:
    """Changes one bit in the middle of a file; gives its name."""
    path = min(Path(storage).glob(pattern))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize("pattern", ["dataset/encoder/items.parquet", "dataset/test/*.parquet", "train/best.json"])
@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_a_damaged_input_is_named_and_nothing_is_made_of_it(copied, pattern, stage):
    root = Storage(copied.storage)
    before = (root / STAGES[stage].artefact).manifest(STAGES[stage].kind)
    name = flip(copied.storage, pattern)
    with pytest.raises(ArtefactError, match=name):
        states(copied, force=True, stages=(stage,))
    assert (root / STAGES[stage].artefact).verified(STAGES[stage].kind) == before


def test_force_keeps_the_model_where_another_cannot_be_trained(copied):
    for change in ({"precision": "fp16"}, {"num_streams": 1}):
        scaling = copied.scaling.model_copy(update={"num_workers": 2})
        train = copied.train.model_copy(update=change)
        with pytest.raises(UsageError):
            states(copied.model_copy(update={"train": train, "scaling": scaling}), force=True, stages=("train",))
        (Storage(copied.storage) / "train").verified("train")


def test_what_a_later_stage_refuses_is_told_before_the_first_one_works(copied):
    train = copied.train.model_copy(update={"epochs": 9})
    evaluate = copied.evaluate.model_copy(update={"k": (3,)})
    before = (Storage(copied.storage) / "train").manifest("train")
    with pytest.raises(StageChangedError, match="evaluate"):
        states(copied.model_copy(update={"train": train, "evaluate": evaluate}))
    assert (Storage(copied.storage) / "train").manifest("train") == before


def test_a_training_that_this_machine_could_never_run_is_refused_before_anything_is_prepared(ray_session, tmp_path):
    job = small_job(tmp_path / "run", "scaling={num_workers: 1, use_gpu: false, cpus_per_worker: 999}")
    with pytest.raises(UsageError, match="1 workers of 999 CPU each do not fit on this cluster"):
        states(job)
    assert Storage(job.storage).manifest("dataset") is None
    assert not (tmp_path / "run" / "dataset").exists()


def test_force_makes_an_artefact_again_whose_manifest_is_damaged(copied):
    manifest = Storage(copied.storage).path / "report" / "manifest.json"
    for text in ("xx", "{}", '{"kind": "report", "files": null}', "[]"):
        manifest.write_text(text)
        with pytest.raises(ArtefactError, match=r"report/manifest\.json"):
            states(copied, stages=("evaluate",))
    states(copied, force=True, stages=("evaluate",))
    (Storage(copied.storage) / "report").verified("report")


def test_feature_tables_are_inputs_too(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("user,item,time\na,b,1\n")
    items.write_text("item,kind\nb,mug\n")
    job = parse_job(f"""
        name: shop
        storage: {tmp_path}/run
        data:
          events:
            - {{source: files, path: {log}, event: purchase, columns: {{user_id: user, item_id: item}}}}
          items: {{path: {items}, columns: {{item_id: item, category: kind}}}}
        """)
    before = fingerprint(Context(job, Storage(job.storage)), "prepare")
    items.write_text("item,kind\nb,cup\n")
    assert fingerprint(Context(job, Storage(job.storage)), "prepare") != before
    items.unlink()
    with pytest.raises(DataError, match=r"items\.csv"):
        fingerprint(Context(job, Storage(job.storage)), "prepare")


def test_the_key_and_the_base_are_inputs_wherever_they_lie(finished, tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    section = {"pseudonyms": {"key_file": str(key)}, "vocabulary": {"from": f"{finished.storage}/bundle"}}
    wanted = small_job(tmp_path / "run", *(f"data.{name}={json.dumps(value)}" for name, value in section.items()))
    before = fingerprint(Context(wanted, Storage(wanted.storage)), "prepare")
    assert not {"data.pseudonyms", "data.pseudonyms.key_file"} & set(before["keys"])
    assert key.read_text() not in json.dumps(before)
    assert before["inputs"]["data.vocabulary"] == Encoder.load(Storage(finished.storage) / "bundle/encoder").identity
    key.write_text("another key " * 8)
    after = fingerprint(Context(wanted, Storage(wanted.storage)), "prepare")
    changed = {name for name in before["inputs"] if before["inputs"][name] != after["inputs"][name]}
    assert changed == {"data.pseudonyms"}
    key.write_text("short")
    with pytest.raises(UsageError, match="holds a key of 5 bytes"):
        states(wanted)


def test_a_model_that_is_not_there_is_asked_for_in_plain_words(finished, tmp_path):
    context = Context(finished, Storage(finished.storage), from_=str(tmp_path / "nothing"))
    with pytest.raises(ArtefactError, match=r"no checkpoint or bundle at .*--from"):
        trained(context)


def test_two_runs_on_one_storage_are_refused(copied):
    with locked(Storage(copied.storage)), pytest.raises(LockedError, match="is writing to"):
        states(copied)


def test_stages_need_what_comes_before_them(ray_session, tmp_path):
    job = small_job(tmp_path / "empty")
    for stage in ("train", "tune", "finetune"):
        with pytest.raises(ArtefactError, match=r"There is no dataset at .* Run 'distft prepare' first"):
            states(job, stages=(stage,))


def test_the_fingerprint_leaves_out_what_does_not_matter(finished):
    context = Context(finished, Storage(finished.storage))
    keys = fingerprint(context, "train")["keys"]
    assert {"seed", "model.dim", "train.batch_size", "train.learning_rate"} <= set(keys)
    assert not {"train.epochs", "train.zero.stage", "train.checkpoint.keep", "scaling.num_workers"} & set(keys)


def test_a_run_stays_with_the_model_that_a_service_ran_when_it_began(tmp_path: Path) -> None:
    service = Storage(tmp_path / "service")
    note(service, Attempt("/models/1/bundle", "1", "started"))
    changes = [f"{key}={service.uri}" for key in ("data.vocabulary.from", "finetune.from")]
    job = load_job("jobs/second-store.yaml", [*changes, f"storage={tmp_path / 'night'}"])
    context = Context(job, Storage(job.storage))

    def bases(context: Context) -> set[str]:
        found = based(context).job
        assert found.data.vocabulary and found.finetune
        return {found.data.vocabulary.from_, found.finetune.from_}

    assert bases(context) == {"/models/1/bundle"}
    note(service, Attempt("/models/2/bundle", "2", "promoted"))
    assert bases(context) == {"/models/1/bundle"}, "also where the command is given again"
    assert bases(Context(job, Storage(tmp_path / "next-night"))) == {"/models/2/bundle"}
    plain = Context(load_job("jobs/second-store.yaml"), Storage(tmp_path / "other"))
    assert based(plain) is plain and not (tmp_path / "other").exists()
