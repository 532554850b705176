"""Job files: every mistake at once, with its place and the nearest valid name; and the round trip."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.catalogue import CATALOGUE
from distft.errors import JobError, UsageError
from distft.job import Job
from distft.jobfile import dump_job, load_job, parse_job, schema
from distft.sections.values import checked_storage
from distft.storage import canonical_json
from distft.train.validation import watched_metric

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


def told(lines: list[str], expected: list[str]) -> None:
    """Asserts that these mistakes are told, in this order, and no other."""
    assert len(lines) == 1 + len(expected), lines
    for line, part in zip(lines[1:], expected, strict=True):
        assert part in line


def test_three_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = GOOD + "sed: 2\nmodel: {kind: transformer, dims: 8}\ntrain:\n  epochs: many\n"
    assert mistakes(text) == [
        "3 mistakes in shop.yaml:",
        "shop.yaml:9:1: sed: there is no such key; did you mean 'seed'?",
        "shop.yaml:10:28: model.dims: there is no such key; did you mean 'dim'?",
        "shop.yaml:12:3: train.epochs: 'many': expected a whole number.",
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("model: {kind: transfomer}", "9:9: model.kind: 'transfomer'.*Did you mean 'transformer'"),
        ("train: {optimizer: adamm}", "9:9: train.optimizer: 'adamm'.*Did you mean 'adam"),
        ("train: {early_stopping: {metric: ndgc@10}}", "metric: 'ndgc@10'.*did you mean 'ndcg@10'"),
        ("train: {zero: {stage: 5}}", "train.zero.stage: 5: expected 0, 1, 2 or 3"),
        (
            "scaling: {num_workers: [4, 1]}",
            r"9:11: scaling.num_workers: \[4, 1\]: expected a whole number of at least 1, or \[min, max\] in",
        ),
        ("model: {dim: 30, num_heads: 4}", r"9:18: model.num_heads: 4: expected a divisor of dim \(30\)"),
        ("model: {dim: 12, num_heads: 4, positions: rotary}", "9:32: model.positions: 'rotary'.*an even width, not 3"),
        ("model: {kind: hstu, dim: 30, num_heads: 4}", r"9:30: model.num_heads: 4: expected a divisor of dim \(30\)"),
        ("model: {kind: cnn, window: 9, max_history: 8}", r"9:20: model.window: 9: this is above max_history \(8\)"),
        ("model: {copy: 1}", "9:9: model.copy: 1: expected true or false"),
        ("stages: [train, prepare]", "in this order: prepare, train"),
        ("stages: [prepare, trian]", "'trian'.*Did you mean 'train'"),
        ("seed: -1", "seed: -1: expected at least 0"),
        ("train: {learning_rate: .inf}", "learning_rate: .inf: expected a finite number"),
        ("tune: 3", "tune: 3: expected a section of keys"),
        ("loss: {kind: sofmax}", "9:8: loss.kind: 'sofmax'.*Did you mean 'softmax'"),
        (
            "loss: {kind: bce, num_negatives: 0, negatives_shared: true}",
            "9:37: loss.negatives_shared: true: there are no negatives to share with num_negatives: 0",
        ),
        ("loss: {kind: gbce, num_negatives: 0}", "9:20: loss.num_negatives: 0: expected at least 1"),
        (
            "loss: {kind: bce, sampling: in_batch}",
            "9:19: loss.sampling: 'in_batch': expected 'uniform' or 'popularity'",
        ),
        (
            "loss: {kind: sampled_softmax, sampling: in_batch, negatives_shared: false}",
            "9:51: loss.negatives_shared: false: the targets of a micro-batch .sampling: in_batch. are always shared",
        ),
        (
            "loss: {kind: adversarial, num_negatives: 300}",
            r"9:27: loss.num_negatives: 300: expected less than pool_size \(256\)",
        ),
        ("train: {augment: {mask: 1}}", "9:19: train.augment.mask: 1: expected less than 1"),
        (
            "train: {windows: each, augment: {crop: 0.5, mask: 0.1}}",
            "9:34: train.augment.crop: 0.5: with windows: each the last event is the target",
        ),
        ("loss: {kind: adversarial, temperature: 0}", "loss.temperature: 0: expected more than 0"),
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
    assert lines[1] == (
        "shop.yaml:4:19: data.target_events.0: 'purchas': this never occurs: the logs give purchase; "
        "did you mean 'purchase'?"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "shop.yaml:1:1: a job is a mapping"),
        ("- 1\n", "shop.yaml:1:1: a job is a mapping"),
        ("name: [1\n", "shop.yaml:2:1: this is not YAML that a job can hold: it ends where ',' or ']' is expected."),
        (
            "name: a\nname: b\n",
            "shop.yaml:2:1: this is not YAML that a job can hold: the key 'name' stands twice, first on line 1.",
        ),
        ("name: !!python/object:os.system x\n", "shop.yaml:1:7: .*the tag !!python/object:os.system is not known"),
    ],
)
def test_what_is_no_job_is_refused_in_words(text, expected):
    found = "\n".join(mistakes(text))
    assert expected in found or re.search(expected, found)


ALIASES = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n\tb: 1\n", "shop.yaml:2:1: .*tabs are not allowed for indentation, use spaces"),
        ("a: 1\n---\nb: 2\n", "shop.yaml:2:1: .*a second document starts here"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "shop.yaml:4:3: .*the key 'b' stands twice, first on line 2"),
        ("a: @b\n", "shop.yaml:1:4: .*a text that starts with '@' needs quotes"),
        ("a: b: c\n", "shop.yaml:1:5: .*a text with ': ' in it needs quotes"),
        ("a: 1\nb: \x07\n", r"shop.yaml:2:4: .*the character U\+0007 cannot stand in YAML"),
        ("a: 'b\n", "a quote is opened and never closed"),
        ("a: *b\n", "there is no anchor &name for the alias 'b'"),
        ('a: "\\ud800"\n', "shop.yaml:1:4: .*half of a character"),
        ("? [1]\n: 2\n", "shop.yaml:1:3: .*a key is a text"),
        ("a: {<<: 3}\n", "'<<' takes a section"),
        ("a: " + "[" * 3000, "nested more than 100 levels deep"),
        ("a: " + "[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ("a: &a [*a]", "nested more than 100 levels deep"),
        ("a: &a {<<: *a}", "nested more than 100 levels deep"),
        ("a: &a [1]\n" + ALIASES, "more than 100,000 values once its aliases are written out"),
    ],
)
def test_yaml_that_a_job_cannot_hold_is_refused_at_the_problem_and_soon(text, expected):
    started = time.monotonic()
    assert re.search(expected, "\n".join(mistakes(text)))
    assert time.monotonic() - started < 10


def test_anchors_aliases_and_merges_are_written_out():
    text = GOOD + "train: &base {epochs: 3, zero: {stage: 1}}\nfinetune: {<<: *base, from: x, epochs: 4}\n"
    job = parse_job(text)
    assert job.finetune is not None
    assert (job.finetune.epochs, job.finetune.zero.stage) == (4, 1)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1.E-3"])
def test_a_number_is_read_as_people_write_it(text):
    assert parse_job(GOOD + f"train: {{learning_rate: {text}}}\n").train.learning_rate == 1e-3
    assert parse_job(GOOD, "job", [f"train.learning_rate={text}"]).train.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["1000000", "1e6", "1.0e6", "1_000_000", "0xF4240", "+1000000"])
def test_a_whole_number_is_read_as_people_write_it(text):
    assert parse_job(GOOD + f"loss: {{max_logits: {text}}}\n").loss.max_logits == 1_000_000
    assert parse_job(GOOD, "job", [f"train.learning_rate={text}"]).train.learning_rate == 1e6


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("train: {epochs: true}", "9:9: train.epochs: true: expected a whole number."),
        ("train: {batch_size: '64'}", "9:9: train.batch_size: '64': expected a whole number; remove the quotes."),
        ("train: {epochs: }", "9:9: train.epochs: null: expected a whole number."),
        ("train: {epochs: 2024-01-01}", "9:9: train.epochs: '2024-01-01': expected a whole number."),
        ("train: {epochs: 1e30}", f"9:9: train.epochs: 1{'0' * 30}: expected at most 2147483647."),
        ("train: {epochs: 1e999999999}", "9:9: train.epochs: .inf: expected a whole number."),
        ("train: {epochs: 0e999999999}", "9:9: train.epochs: 0.0: expected a whole number."),
        ("train: {learning_rate: true}", "9:9: train.learning_rate: true: expected a number."),
        ("train: {zero: {stage: true}}", "9:16: train.zero.stage: true: expected 0, 1, 2 or 3."),
        ("train: {betas: 0.9}", "9:9: train.betas: 0.9: expected a list, such as [a, b]."),
        ("train: {betas: [0.9]}", "9:9: train.betas: [0.9]: expected a list of 2 entries."),
        ("train: {betas: [0.1, 0.2, 0.3]}", "9:9: train.betas: [0.1, 0.2, 0.3]: expected a list of 2 entries."),
        ("model: {item_features: yes}", "9:9: model.item_features: 'yes': expected true or false."),
        ("train:", "9:1: train: null: expected a section of keys (key: value)."),
        ("stages: []", "9:1: stages: []: expected a list of at least 1 entry."),
        ("finetune: {from: 3}", "9:12: finetune.from: 3: expected text; put it in quotes."),
        ("scaling: {use_gpu: maybe}", "9:11: scaling.use_gpu: 'maybe': expected true, false or auto."),
        (
            "scaling: {num_workers: two}",
            "9:11: scaling.num_workers: 'two': expected a whole number of at least 1, or [min, max] in that order for "
            "elastic training.",
        ),
        (
            "train: {early_stopping: {metric: ndgc@10}}",
            "9:26: train.early_stopping.metric: 'ndgc@10': expected a metric such as ndcg@10, hr@10, mrr@10, recall@10 "
            "or loss; did you mean 'ndcg@10'?",
        ),
    ],
)
def test_a_mistake_is_one_sentence_in_the_words_of_yaml(extra, expected):
    assert mistakes(GOOD + extra + "\n") == ["1 mistake in shop.yaml:", f"shop.yaml:{expected}"]


def test_a_name_is_told_what_it_may_hold():
    assert mistakes(GOOD.replace("shop\n", "Shop!\n", 1))[1] == (
        "shop.yaml:1:1: name: 'Shop!': expected 1 to 63 lower-case letters, digits and dashes, with no dash at "
        "either end."
    )


SOURCES = "expected 'files', 'movielens', 'sequences' or 'synthetic'."


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{source: synthetc}", f"9:8: data.events.1.source: 'synthetc': {SOURCES} Did you mean 'synthetic'?"),
        (
            "{sorce: synthetic}",
            f"9:8: data.events.1.sorce: there is no such key; did you mean 'source'? It is missing: {SOURCES}",
        ),
        ("{days: 3}", f"9:7: data.events.1.source: this key is needed and missing: {SOURCES}"),
        ("synthetic", "9:7: data.events.1: 'synthetic': expected a section of keys (key: value)."),
    ],
)
def test_what_tells_the_kind_of_a_section_is_told_at_its_key(entry, expected):
    assert mistakes(GOOD + f"    - {entry}\n")[1:] == [f"shop.yaml:{expected}"]


def test_a_split_of_no_known_kind_is_told_at_its_key():
    lines = mistakes(GOOD.replace("data:\n", "data:\n  split: {by: tme}\n"))
    assert lines[1].startswith(
        "shop.yaml:4:11: data.split.by: 'tme': expected 'leave_one_out', 'random' or 'time'. Did"
    )


def test_mistakes_of_the_file_and_of_every_override_are_told_together():
    lines = mistakes(GOOD + "sed: 1\n", "train.epochs=x", "seed=[", "tran.epochs", "train.betas=[3, 4]")
    assert lines[0] == "6 mistakes in shop.yaml:"
    assert lines[1].startswith("shop.yaml:9:1: sed")
    assert sorted(line.split(": ")[0] for line in lines[2:]) == [
        "--set seed=[", "--set train.betas=[3, 4]", "--set train.betas=[3, 4]", "--set train.epochs=x",
        "--set tran.epochs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("evaluate: {k: [0, -3]}", ["9:16: evaluate.k.0: 0: expected at least 1", "9:19: evaluate.k.1: -3"]),
        ("train: {betas: [2, 3]}", ["9:17: train.betas.0: 2: expected less than 1", "9:20: train.betas.1: 3"]),
        ("train: {batch_size: 3000000000}", ["train.batch_size: 3000000000: expected at most 2147483647"]),
        ("serve: {min_replicas: 5}", ["9:9: serve.min_replicas: 5: this is above max_replicas (4)"]),
        ("train: {early_stopping: {metric: auc}}", ["9:26: train.early_stopping.metric: 'auc': with the loss softmax"]),
        ("loss: {kind: bce, num_negatives: 0}\ntrain: {early_stopping: {metric: auc}}", ["data.label: this is needed"]),
        (
            "loss: {kind: mse}",
            ["train.early_stopping.metric: with the loss mse validation computes rmse, mae and loss"],
        ),
        ("train: {windows: each, baskets: true}", ["train.baskets: true: with windows: each every target"]),
        ("stages: [finetune]", ["finetune: this section is needed, with its key 'from'"]),
        ("train: {precision: fp16, zero: {stage: 0}}", ["9:9: train.precision: 'fp16': fp16 is not possible at"]),
        ("train: {zero: {stage: 0, offload: cpu}}", ["9:26: train.zero.offload: 'cpu': cpu is not possible at"]),
        ("train: {zero: {offload: nvme}}", ["9:9: train.zero.nvme_path: this is needed: offload is nvme"]),
        ("train: {zero: {nvme_path: /disk}}", ["9:16: train.zero.nvme_path: '/disk': this belongs to offload: nvme"]),
        (
            "finetune: {from: x, zero: {stage: 0, offload: cpu}}",
            ["9:38: finetune.zero.offload: 'cpu': cpu is not possible at finetune.zero.stage 0"],
        ),
        (
            "train: {deepspeed: {zero_optimization: {stage: 3, overlap_com: 1}, amp: 1, fp16: 3}}",
            [
                "9:41: train.deepspeed.zero_optimization.stage: 3: cannot be passed through. Set train.zero.stage.",
                "9:51: train.deepspeed.zero_optimization.overlap_com: 1: is not known. Did you mean zero_opt",
                "9:68: train.deepspeed.amp: 1: cannot be passed through. DeepSpeed 0.19 removed it",
                "9:76: train.deepspeed.fp16: 3: is not a mapping of keys.",
            ],
        ),
    ],
)
def test_a_job_that_could_never_run_is_refused(extra, expected):
    told(mistakes(GOOD + extra + "\n"), expected)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("items: {path: x, columns: {id: a}}", ["4:20: data.items.columns: item_id is missing"]),
        ("users: {path: x, columns: {item_id: a}}", ["4:20: data.users.columns: user_id is missing"]),
        (
            "items: {path: x, columns: {item_id: a, price: b}, numeric: [prize], text: [title, b]}",
            [
                "4:63: data.items.numeric.0: 'prize': expected a name of 'columns': item_id, price; did you mean",
                "4:85: data.items.text.1: 'b': expected a name of 'columns': item_id, price.",
            ],
        ),
        (
            "items: {path: x, header: [item, kind], columns: {item_id: id}}",
            ["4:52: data.items.columns.item_id: 'id': expected a name of 'header': item, kind; did you mean 'kind'?"],
        ),
        ("split: {by: time, valid_days: 1e30}", ["4:21: data.split.valid_days: 1"]),
        ("label: {}", ["data.label: expected either value_at_least, or event with within_s"]),
        ("label: {value_at_least: 4, event: view, within_s: 9}", ["data.label: expected either value_at_least"]),
        ("label: {value_at_least: 4}", ["loss softmax takes every target as positive"]),
        ("label: {event: view}", ["data.label.within_s: this is needed"]),
        ("label: {event: view, within_s: 0}", ["data.label.within_s: 0: expected more than 0"]),
        ("label: {value_at_least: 4, within_s: 9}", ["data.label.within_s: 9: this belongs to 'event'"]),
        ("label: {event: vew, within_s: 9}", ["data.label.event: 'vew': this never occurs"]),
        ("label: {event: purchase, within_s: 9}", ["data.label.event: 'purchase': this is one of target_events"]),
    ],
)
def test_a_feature_table_or_split_that_could_never_be_used_is_refused(section, expected):
    told(mistakes(GOOD.replace("data:\n", f"data:\n  {section}\n")), expected)


@pytest.mark.parametrize(
    ("encode", "expected"),
    [
        ("numbers: {clip: [0.9, 0.1]}", ["5:22: data.encode.numbers.clip: [0.9, 0.1]: expected [low, high], shares"]),
        ("features: {prize: {scale: unit}}", ["5:23: data.encode.features.prize: expected an item or user feature: "]),
        (
            "features: {price: {form: label}}",
            ["5:31: data.encode.features.price.form: 'label': this is for a category, and the feature is a number."],
        ),
        (
            "features: {brand: {scale: unit, missing: mean}, title: {form: label}}",
            [
                "5:31: data.encode.features.brand.scale: 'unit': this is for a number",
                "5:44: data.encode.features.brand.missing: 'mean': expected one of unknown, zero",
                "5:60: data.encode.features.title: this is a text",
            ],
        ),
    ],
)
def test_an_encoding_that_fits_no_feature_is_refused(encode, expected):
    items = "items: {path: x, columns: {item_id: a, price: b, brand: c, title: d}}"
    told(mistakes(GOOD.replace("data:\n", f"data:\n  {items}\n  encode: {{{encode}}}\n")), expected)


def test_features_that_come_with_a_log_are_checked_when_it_is_opened():
    text = GOOD.replace("data:\n", "data:\n  encode: {features: {price: {clip: [0, 1], missing: zero}}}\n")
    assert mistakes(text)[1:] == [
        "shop.yaml:4:23: data.encode.features.price: expected an item or user feature: none are given."
    ]
    encode = parse_job(text + "    - source: synthetic\n").data.encode
    assert (encode.number("price").clip, encode.number("price").missing, encode.number("age").missing) == (
        (0, 1), "zero", "mean",
    )  # fmt: skip


def test_the_default_features_may_be_absent():
    job = parse_job(GOOD.replace("data:\n", "data:\n  items: {path: x, columns: {item_id: a}}\n"))
    assert parse_job(dump_job(job)) == job


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("header: [u, i, t, u]", ["9:25: data.events.0.header.3: 'u': this name stands twice."]),
        ("header: [u, i]", ["7:41: data.events.0.columns.timestamp: 't': expected a name of 'header': u, i."]),
        ("event_types: {1: view}", ["9:7: data.events.0.event_types: this needs columns.event"]),
    ],
)
def test_a_log_that_could_never_be_read_is_refused(more, expected):
    told(mistakes(GOOD + f"      {more}\n"), expected)


def test_event_types_are_named_as_events_are():
    text = GOOD.replace("t}\n      event: purchase", "t, event: e}\n      event_types: {1: Buy, 2.50: purchase}")
    assert mistakes(text)[1] == (
        "shop.yaml:8:21: data.events.0.event_types.1: 'Buy': expected lower-case letters, digits and underscores, "
        "with a letter first."
    )
    source = parse_job(text.replace("Buy", "view")).data.events[0]
    assert source.event_types == {"1": "view", "2.50": "purchase"}


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("''", "expected a folder or a URI, this is empty."),
        ("' '", "expected a folder or a URI, this is empty."),
        ("'a '", "without spaces around it"),
        ('"a\\nb"', "or control characters in it"),
        ("~/x", "expected the whole path: ~ is not expanded here."),
        ("$HOME/x", "expected the whole path: $HOME is not expanded here."),
        ("file:/tmp/x", "expected three slashes and the whole path: file:///tmp/x."),
        ("file://tmp/x", "expected three slashes and the whole path: file:///tmp/x."),
        ("S3://b/x", "expected a scheme in lower case: s3://b/x."),
        ("s3:/b/x", "expected two slashes and a name: s3://b/x."),
        ("s3://", "expected two slashes and a name: s3://bucket/folder."),
    ],
)
def test_a_storage_that_would_name_another_place_is_refused(storage, expected):
    line = mistakes(GOOD.replace("runs/shop", storage))[1]
    assert line.startswith("shop.yaml:2:1: storage: ") and expected in line


@pytest.mark.parametrize("storage", ["runs/shop", "/srv/x", ".", "a:b/c", "file:///srv/x", "s3://b/x", "hdfs:///x"])
def test_a_storage_stays_as_it_is_written(storage):
    assert checked_storage(storage) == storage


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
        ("train..epochs=3", "--set train..epochs=3: expected key.path=value"),
        ("name.x=1", "name is 'shop', which is not a section, so it has no key 'x'"),
        ("data.events.7.path=x", "data.events is a list of 1 entry, numbered 0, so it has no '7'"),
        ("data.events.².path=x", "so it has no '²'"),
        ("train.early_stopping.metric=x", "is null in the file.*write --set train.early_stopping={metric: x}."),
        ("seed=[", "--set seed=[: the value is not YAML: it ends where a value is expected"),
        ("name=\udcff", "--set name=?: expected text in UTF-8."),
        ("seed={a: [}", "the value is not YAML: a value is expected where '}' stands."),
        (
            "data.split.by=tme",
            "--set data.split.by=tme: data.split.by: 'tme': expected 'leave_one_out', 'random' or 'time'",
        ),
        (
            "train.validate_.every_epochs=3",
            "--set train.validate_.every_epochs=3: train.validate_: there is no such key",
        ),
        ("seed='3'", "--set seed='3': seed: '3': expected a whole number; remove the quotes."),
    ],
)
def test_a_mistake_in_an_override_names_the_override(override, expected):
    found = "\n".join(mistakes(GOOD + "train: {early_stopping: null}\n", override))
    assert expected in found or re.search(expected, found), found


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "shop.yaml").write_text(GOOD)
    with pytest.raises(JobError, match=r"there is no such job file. Did you mean .*shop\.yaml"):
        load_job(tmp_path / "shp.yaml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)
    with pytest.raises(JobError, match=r"there is no such job file\.$"):
        load_job(tmp_path / "nosuch.yaml")


def test_a_binary_file_is_no_job(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: a\0b")
    with pytest.raises(JobError, match="not a job file"):
        load_job(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"name: \xff")
    with pytest.raises(JobError, match="not a text file"):
        load_job(tmp_path / "b.yaml")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_told_and_a_mark_before_utf8_is_not_in_the_way(tmp_path, encoding):
    (tmp_path / "a.yaml").write_text(GOOD, encoding)
    with pytest.raises(JobError, match="UTF-16, and a job is UTF-8: convert it"):
        load_job(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(GOOD, "utf-8-sig")
    assert load_job(tmp_path / "b.yaml").name == "shop"


KEYS = (
    "data train model scaling stages evaluate evaluate.k finetune tune.search train.betas train.deepspeed "
    "data.split data.items data.events.0 data.events.0.columns data.events.0.header name storage"
).split()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
A_FEW = settings(max_examples=60, deadline=None)
MANY = settings(max_examples=2000, deadline=None)


def read(text, overrides=()):
    """Gives a job or a JobError with words, and nothing else."""
    try:
        parse_job(text, "job", overrides)
    except JobError as error:
        assert str(error)


@A_FEW
@given(st.text(max_size=200))
def test_no_text_crashes_the_reader(text):
    read(text)


@A_FEW
@given(st.sampled_from(KEYS), VALUES)
def test_no_value_crashes_the_explanation(key, value):
    read(GOOD, [f"{key}={json.dumps(value)}"])


@pytest.mark.proof
@MANY
@given(st.text(max_size=200))
def test_no_text_of_many_crashes_the_reader(text):
    read(text)


@pytest.mark.proof
@MANY
@given(st.sampled_from(KEYS), VALUES)
def test_no_value_of_many_crashes_the_explanation(key, value):
    read(GOOD, [f"{key}={json.dumps(value)}"])


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_constructs_and_survives_the_round_trip(path):
    job = load_job(path)
    assert parse_job(dump_job(job)) == job
    head = path.read_text().splitlines()[0]
    assert f"ray job submit --working-dir . -- distft run jobs/{path.name}" in head


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_reads_files_that_fetch_brings_and_says_how(path):
    text = path.read_text()
    read = re.findall(r"\bdata/([\w-]+)/([^\s,}]+)", "\n".join(line.split("# ")[0] for line in text.splitlines()))
    made = re.findall(r"distft data synth jobs/[\w-]+\.yaml --out data/([\w-]+)", text)
    for name, pattern in read:
        if name in made:
            assert pattern in ("items/items.parquet", "events/*.parquet")
            continue
        assert fnmatch.filter([file.name for file in CATALOGUE[name].files], pattern), f"{name} has no {pattern}"
        assert f"distft data fetch {name}" in text
    assert read or "source: synthetic" in text


@pytest.mark.parametrize("kind", ["transformer", "hstu", "cnn"])
def test_a_loss_that_counts_no_additions_refuses_a_model_that_copies(kind):
    (line,) = mistakes(GOOD + f"model: {{kind: {kind}, copy: true}}\nloss: {{kind: bce}}")[1:]
    assert "model.copy: true: the loss bce cannot learn what to copy: leave this out, or take softmax" in line
    parse_job(GOOD + f"model: {{kind: {kind}, copy: false}}\nloss: {{kind: bce}}")
    parse_job(GOOD + f"model: {{kind: {kind}, copy: true}}")


FINETUNE = GOOD + "stages: [prepare, finetune]\nfinetune:\n  from: runs/base/bundle\n  epochs: 3\n"


def test_what_is_kept_of_frozen_layers_must_come_again():
    text = FINETUNE + "  cache: true\n  augment: {mask: 0.1, crop: 0.2}\n  zero: {stage: 3}\n"
    told(mistakes(text), [
        "finetune.augment.mask: 0.1: with cache: true a history must be the same in every epoch",
        "finetune.augment.crop: 0.2: with cache: true a history must be the same in every epoch",
        "finetune.zero.stage: 3: expected 0, 1 or 2 with cache: true",
    ])  # fmt: skip


def test_layers_train_later_in_the_order_of_time():
    unfreeze = "  unfreeze: [{{after_epochs: {}, layers: [blocks.1]}}, {{after_epochs: {}, layers: [blocks.0]}}]\n"
    parse_job(FINETUNE + unfreeze.format(1, 2))
    told(mistakes(FINETUNE + unfreeze.format(2, 1)), ["after_epochs: 1: expected more than 2"])
    told(mistakes(FINETUNE + unfreeze.format(1, 3)), ["after_epochs: 3: expected less than 3, the epochs of all"])


def test_a_job_that_only_fine_tunes_is_not_asked_about_its_training():
    pointwise = "loss: {kind: bce, num_negatives: 0}\n"
    text = FINETUNE.replace("  events:", "  label: {value_at_least: 4}\n  events:") + pointwise
    (line,) = mistakes(text)[1:]
    assert "finetune.early_stopping.metric" in line
    job = parse_job(text.replace("  epochs: 3", "  early_stopping: {metric: loss}"))
    with pytest.raises(UsageError, match=r"train.early_stopping.metric is ndcg@10 with the loss bce"):
        watched_metric(job)
    assert watched_metric(job.trained_as("finetune")) == "loss"


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


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:sesame@host:5000",
        "http://me:ses/ame@host",
        "postgresql://host/db?password=sesame",
        "ftp://a:sesame@b",
    ],
)
def test_no_password_of_a_uri_is_taken_or_told(uri: str) -> None:
    for text, override in ((f"tracking: {{mlflow: '{uri}'}}", []), ("", [f"tracking.mlflow={uri}"])):
        with pytest.raises(JobError) as caught:
            parse_job(f"{GOOD}\n{text}\n", "job", override)
        assert "sesame" not in str(caught.value) and "tracking.mlflow" in str(caught.value)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_model_of_pairs_takes_a_loss_of_pairs_and_weights_that_every_worker_holds(kind):
    pair = GOOD + f"model: {{kind: {kind}}}\nloss: {{kind: %s}}\ntrain: {{zero: {{stage: %d}}}}"
    (line,) = mistakes(pair % ("softmax", 2))[1:]
    assert f"expected a loss of single pairs, such as bce, for a model {kind}" in line
    (line,) = mistakes(pair % ("bce", 3))[1:]
    assert "train.zero.stage: 3: expected 0, 1 or 2" in line
    parse_job(pair % ("bce", 2))


SHARDED = "item_table: {placement: sharded}"


@pytest.mark.parametrize(
    ("sections", "path", "expected"),
    [
        (f"model: {{{SHARDED}}}", "placement", "the loss softmax needs the vectors of all items on every worker"),
        (f"model: {{{SHARDED}}}", "placement", "use a loss of sampled items, such as sampled_softmax, or replicated"),
        (f"model: {{kind: mlp, {SHARDED}}}\nloss: {{kind: bce}}", "placement", "such as transformer"),
        (
            f"model: {{{SHARDED}}}\nloss: {{kind: gbce}}\nfinetune: {{from: runs/base}}",
            "placement",
            "a fine-tuning starts from the whole table of its base on every worker: use replicated",
        ),
        ("model: {item_table: {optimizer: adamw}}", "optimizer", "this belongs to placement: sharded"),
        ("model: {item_table: {learning_rate: 0.1}}", "learning_rate", "is trained by train.learning_rate"),
    ],
)
def test_a_table_is_sharded_only_where_no_worker_needs_all_of_it(sections, path, expected):
    told = mistakes(GOOD + sections)
    assert any(f"model.item_table.{path}: " in line and expected in line for line in told), told


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bce", "adversarial"])
def test_a_sharded_table_goes_with_every_loss_that_asks_for_some_items(loss):
    section = parse_job(GOOD + f"model: {{{SHARDED}}}\nloss: {{kind: {loss}}}").model.item_table
    assert section.is_sharded and section.rule == "rowwise_adagrad"


def test_a_model_of_pairs_has_no_item_vectors_to_store():
    told = mistakes(GOOD + "model: {kind: mlp}\nloss: {kind: bce}\nserve: {item_vectors: int8}")
    assert any("expected fp32: a model mlp scores pairs, and has no vectors of items" in line for line in told), told
