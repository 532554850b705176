"""Items that nobody is recommended: in lists of models, of popularity, of pair models and of an index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distft.errors import UsageError
from distft.jobfile import parse_job
from distft.ranking import Ranker
from distft.serve.denylist import read_deny_list
from distft.serve.followed import RELOAD_S, Followed
from distft.serve.golden import first_difference, read_golden
from distft.serve.predictor import Predictor, Query
from distft.storage import Storage
from tests.serve.bundles import JOB, NUM_ITEMS, encoder, events, write_bundle
from tests.serve.test_indexed import indexed

DENIED = ("i0", "i3", "i7", "i8", "i20", "i33", "not one of this model")
ALLOWED = {f"i{number}" for number in range(NUM_ITEMS)} - set(DENIED)
QUERIES = [
    Query(events(1, 5), NUM_ITEMS, False),
    Query(events(2, 30), NUM_ITEMS, True, exclude_items=("i1", "i3")),
    Query([], NUM_ITEMS),
    Query(events(3, 5), NUM_ITEMS, False, {"category": ["toys", "garden"]}),
    Query([], NUM_ITEMS, None, {"category": ["toys"]}),
]


def with_model(model: str) -> Predictor:
    overrides = (f"model={model}", "loss={kind: bce}", f"serve.max_k={NUM_ITEMS}")
    job, encoding = parse_job(JOB, "tiny.yaml", overrides), encoder()
    return Predictor(job, encoding, Ranker(job.model.build(encoding.catalog()), 20, encoding), "version")


@pytest.mark.parametrize("model", ["{kind: transformer, dim: 16, max_history: 20}", "{kind: mlp}", "{kind: linear}"])
def test_lists_are_what_they_were_without_the_denied_items(model: str) -> None:
    predictor = with_model(model)
    before = predictor.recommend(QUERIES)
    predictor.deny(DENIED)
    assert predictor.describe()["denied_items"] == len(DENIED) - 1
    for told, denied in zip(before, predictor.recommend(QUERIES), strict=True):
        left = [(i, s) for i, s in zip(told.item_ids, told.scores, strict=True) if i in ALLOWED]
        assert list(zip(denied.item_ids, denied.scores, strict=True)) == left
        assert set(told.item_ids) & set(DENIED) and denied.source == told.source
    predictor.deny(())
    assert predictor.recommend(QUERIES) == before and predictor.describe()["denied_items"] == 0


@pytest.mark.parametrize("copy", [False, True])
def test_an_index_finds_the_best_of_what_is_left(copy: bool) -> None:
    predictor = indexed(copy=copy)
    queries = [Query(events(seed, 1 + seed % 20), 1 + seed % 10, False) for seed in range(30)]
    queries += [Query(events(1, 5), 5, None, {"category": ["toys"]}), Query([], 5)]
    predictor.deny([f"i{number}" for number in range(0, NUM_ITEMS, 2)])
    for found, scanned in zip(predictor.recommend(queries), predictor.recommend(queries, exact=True), strict=True):
        assert found.item_ids == scanned.item_ids
        assert all(int(item_id[1:]) % 2 for item_id in found.item_ids)
        assert found.scores == pytest.approx(scanned.scores, abs=1e-5)
    few = [f"i{number}" for number in range(5, NUM_ITEMS)]
    predictor.deny(few)
    alone = replace(queries[0], k=10, exclude_items=("i1", "i6"))
    assert set(predictor.recommend([alone])[0].item_ids) == {"i0", "i2", "i3", "i4"}


def test_what_proves_the_model_is_asked_as_if_nothing_were_denied(tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path))
    predictor, golden = Predictor.load(bundle), read_golden(bundle, 50)
    predictor.deny([f"i{number}" for number in range(NUM_ITEMS)])
    assert first_difference(predictor, golden) is None
    asked = replace(golden[0].query, deny=True)
    told, untold = predictor.recommend([asked, golden[0].query])
    assert told.item_ids == [] and tuple(untold.item_ids) == golden[0].item_ids


def test_the_file_is_followed_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file, now_s = tmp_path / "deny.txt", [0.0]
    file.write_bytes(b"\xef\xbb\xbfi1\r\n\r\n a name with blanks \nBu\xc3\xa4\n")
    followed = Followed(file, read_deny_list, lambda: now_s[0])
    first = followed.value()
    assert first == ("i1", " a name with blanks ", "Buä")
    file.write_text("i2\n")
    assert followed.value() is first, "it is not looked at with every request"
    now_s[0] += RELOAD_S
    assert followed.value() == ("i2",)
    for spoil in (lambda: file.write_bytes(b"\xff"), file.unlink):
        spoil()
        now_s[0] += RELOAD_S
        assert followed.value() == ("i2",)
    with pytest.raises(UsageError, match=r"deny\.txt cannot be used: No such file"):
        read_deny_list(file)
