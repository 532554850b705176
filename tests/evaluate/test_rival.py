"""A bundle with another encoder ranks what this dataset's rows mean, not the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distft.data import ragged
from distft.data.encode import Encoder, RawEvent
from distft.data.shards import Targets
from distft.errors import ArtefactError
from distft.evaluate.rival import Rival, check_common
from distft.jobfile import parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.storage import Storage
from distft.topk import MISS
from tests.serve.bundles import JOB, encoder, events, write_bundle

MORE = [RawEvent("i3", "cart", 1), RawEvent("ours alone", "view", 2), RawEvent("i4", "rating", 3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Storage:
    return write_bundle(Storage(tmp_path_factory.mktemp("other")))


def our_encoder() -> Encoder:
    """Other rows for the same ids, other codes, a type and an item that the bundle does not know, and one word less."""
    base = encoder()
    ids = np.array(["", "", "ours alone", *base.item_ids[:1:-1]], object)
    names = ("rating", "search", "purchase", "cart", "view")
    return replace(
        base,
        item_ids=ids,
        counts=np.zeros(len(ids), np.int64),
        event_names=names,
        features=(),
        token_words=("", "", "red", "lamp", "mug"),
    )


def targets(item: np.ndarray) -> Targets:
    size = len(item)
    return Targets(item.astype(np.int32), np.ones(size, np.int8), np.zeros(size, np.int64), np.zeros(size, np.float32))


@pytest.mark.parametrize("rule", ["all", "targets", "none"])
def test_ranks_are_those_that_the_bundle_gives_to_the_shops_own_words(bundle, rule):
    ours, theirs = our_encoder(), encoder()
    raw = [[*MORE, *events(seed, seed)] for seed in range(12)]
    wanted = ["ours alone", *(f"i{index}" for index in range(11))]
    mine = ragged.concat([ours.encode_events(row) for row in raw])
    found = Rival(bundle, ours).ranks(mine, targets(ours.item_rows(wanted)), rule)

    words = dict.fromkeys(("blue",), "nothing")  # our encoder does not know it, so that nobody is told
    known = [
        [replace(e, query=e.query and " ".join(words.get(w, w) for w in e.query.split())) for e in row]
        for row in ([e for e in row if e.event != "rating"] for row in raw)
    ]
    direct = ragged.concat([theirs.encode_events(row) for row in known])
    job = parse_job(JOB)
    model = job.model.build(theirs.catalog())
    fill(model, read_weights(bundle))
    excluded = excluded_items(direct, rule, theirs.target_codes)
    expected = Ranker(model, job.model.max_history, theirs).ranks(direct, theirs.item_rows(wanted), excluded)
    assert found.tolist() == expected.tolist()
    assert found[0] == MISS and (found[1:] < MISS).sum() > 5


def test_a_bundle_that_knows_nothing_of_this_shop_is_refused(bundle):
    strangers = replace(our_encoder(), item_ids=np.array(["", "", "a", "b"], object), counts=np.zeros(4, np.int64))
    with pytest.raises(ArtefactError, match=r"knows no item of this dataset, of 2\. .*--against"):
        Rival(bundle, strangers)
    with pytest.raises(ArtefactError, match="knows no target of the split, of 3"):
        check_common(bundle, np.zeros(3, bool))


def test_what_is_no_whole_bundle_is_refused(bundle, tmp_path):
    with pytest.raises(ArtefactError, match="There is no bundle at"):
        Rival(Storage(tmp_path), our_encoder())
    copy = write_bundle(Storage(tmp_path))
    data = bytearray(copy.read_bytes("model.safetensors"))
    data[-1] ^= 1
    (copy.path / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"model\.safetensors has SHA-256"):
        Rival(copy, our_encoder())
