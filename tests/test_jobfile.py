"""Job files: every mistake at once, with its place and the nearest valid name; and the round trip."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.errors import JobError
from distft.job import Job
from distft.jobfile import dump_job, load_job, parse_job, schema
from distft.storage import canonical_json

ROOT = Path(__file__).parent.parent
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))

GOOD = """\
name: shop
storage: runs/shop
data:
  events:
    - source: files
      path: log.csv
      columns: {user_id: u, item_id: i, timestamp: t}
      event: purchase
"""


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        parse_job(text, "shop.yaml", overrides)
    return str(caught.value).splitlines()


def test_three_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = GOOD + "sed: 2\nmodel: {kind: transformer, dims: 8}\ntrain:\n  epochs: many\n"
    assert mistakes(text) == [
        "3 mistakes in shop.yaml:",
        "shop.yaml:9:1: sed: there is no such key; did you mean 'seed'?",
        "shop.yaml:10:28: model.dims: there is no such key; did you mean 'dim'?",
        "shop.yaml:12:3: train.epochs: 'many': expected a valid integer, unable to parse string as an integer.",
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("model: {kind: transfomer}", "9:9: model.kind: 'transfomer'.*Did you mean 'transformer'"),
        ("train: {optimizer: adamm}", "9:9: train.optimizer: 'adamm'.*Did you mean 'adam"),
        ("train: {early_stopping: {metric: ndgc@10}}", "metric: 'ndgc@10'.*did you mean 'ndcg@10'"),
        ("train: {zero: {stage: 5}}", "train.zero.stage: 5: expected 0, 1, 2 or 3"),
        ("scaling: {num_workers: [4, 1]}", "scaling: num_workers must be at least 1"),
        ("model: {dim: 30, num_heads: 4}", r"num_heads \(4\) must divide dim \(30\)"),
        ("stages: [train, prepare]", "in this order: prepare, train"),
        ("stages: [prepare, trian]", "'trian'.*Did you mean 'train'"),
        ("seed: -1", "seed: -1: expected greater than or equal to 0"),
        ("train: {learning_rate: .inf}", "learning_rate: inf: expected a finite number"),
        ("tune: 3", "tune: 3: expected a valid dictionary"),
    ],
)
def test_a_mistake_says_where_what_and_what_was_expected(extra, expected):
    lines = mistakes(GOOD + extra + "\n")
    assert len(lines) == 2
    assert re.search(expected, lines[1]), lines[1]


def test_mistakes_inside_a_list_name_their_own_line():
    lines = mistakes(GOOD.replace("path: log.csv", "pth: log.csv"))
    assert lines[0] == "2 mistakes in shop.yaml:"
    assert lines[1] == "shop.yaml:5:7: data.events.0.path: this key is needed and missing."
    assert lines[2] == "shop.yaml:6:7: data.events.0.pth: there is no such key; did you mean 'path'?"


def test_target_events_must_occur_in_the_logs():
    lines = mistakes(GOOD.replace("data:\n", "data:\n  target_events: [purchas]\n"))
    assert "target_events ['purchas'] never occur: the logs give purchase" in lines[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "shop.yaml:1:1: a job is a mapping"),
        ("- 1\n", "shop.yaml:1:1: a job is a mapping"),
        ("name: [1\n", "shop.yaml:2:1: this is not YAML"),
        ("name: a\nname: b\n", "shop.yaml:2:1: this is not YAML: found duplicate key"),
        ("name: !!python/object:os.system x\n", "name"),
    ],
)
def test_what_is_no_job_is_refused_in_words(text, expected):
    assert expected in "\n".join(mistakes(text))


def test_overrides_reach_sections_lists_and_absent_keys():
    job = parse_job(GOOD, "job", ["train.epochs=3", "data.events.0.path=b.csv", "train.zero.stage=1", "seed=7"])
    assert (job.train.epochs, job.data.events[0].path, job.train.zero.stage, job.seed) == (3, "b.csv", 1, 7)
    job = parse_job(
        GOOD, "job", ["data.target_events=[purchase]", "train.learning_rate=1e-4", "scaling.num_workers=[1, 2]"]
    )
    assert job.train.learning_rate == 1e-4 and job.scaling.worker_range == (1, 2)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "--set train.epoch=3: train.epoch: there is no such key; did you mean 'epochs'?"),
        ("train.epochs", "--set train.epochs: expected key.path=value"),
        ("name.x=1", "is not a section"),
        ("data.events.7.path=x", "not in the job"),
        ("seed=[", "the value is not YAML"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(override, expected):
    assert expected in "\n".join(mistakes(GOOD, override))


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "shop.yaml").write_text(GOOD)
    with pytest.raises(JobError, match=r"there is no such job file. Did you mean .*shop\.yaml"):
        load_job(tmp_path / "shp.yaml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)


def test_a_binary_file_is_no_job(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: a\0b")
    with pytest.raises(JobError, match="not a job file"):
        load_job(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="not a text file"):
        load_job(tmp_path / "b.yaml")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_crashes_the_reader(text):
    try:
        parse_job(text)
    except JobError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from(["data", "train", "model", "scaling", "stages", "evaluate", "data.split", "data.events.0"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_no_value_crashes_the_explanation(key, value):
    try:
        parse_job(GOOD, "job", [f"{key}={json.dumps(value)}"])
    except JobError as error:
        assert str(error)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_constructs_and_survives_the_round_trip(path):
    job = load_job(path)
    assert parse_job(dump_job(job)) == job
    head = path.read_text().splitlines()[0]
    assert f"ray job submit --working-dir . -- distft run jobs/{path.name}" in head


def test_a_job_is_immutable():
    job = parse_job(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 3  # type: ignore[misc]
    assert isinstance(job, Job)


def test_the_published_schema_is_current():
    published = (ROOT / "docs" / "job.schema.json").read_bytes()
    assert published == canonical_json(schema()), "run: .venv/bin/distft schema > docs/job.schema.json"


def test_check_answers_on_the_command_line(tmp_path):
    (tmp_path / "shop.yaml").write_text(GOOD + "sed: 1\n")
    command = [sys.executable, "-m", "distft", "check", str(tmp_path / "shop.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "shop.yaml:9:1: sed: there is no such key; did you mean 'seed'?" in done.stderr
    assert json.loads(done.stdout)["error"] == "JobError"
    assert "Traceback" not in done.stderr
