"""A predictor with an index, against the scan of the same predictor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distft.ann import Index, IndexFacts
from distft.data.encode import RawEvent
from distft.item_vectors import Precision
from distft.jobfile import parse_job
from distft.ranking import Ranker
from distft.schema import NUM_RESERVED
from distft.serve.predictor import Predictor, Query
from distft.storage import Storage
from tests.serve.bundles import JOB, encoder, events, write_bundle

QUERIES = [Query(events(seed, 1 + seed % 20), k=1 + seed % 10) for seed in range(40)]


NUM_LISTS = 8


def indexed(num_probed: int = NUM_LISTS, copy: bool = False, precision: Precision = "fp32") -> Predictor:
    """A predictor whose index probes all of its lists, or fewer."""
    job = parse_job(JOB, "tiny.yaml", ("model.copy=true",) if copy else ())
    encoding = encoder()
    torch.manual_seed(1)
    model = job.model.build(encoding.catalog())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ranker = Ranker(model, 20, encoding, None, precision)
    assert ranker.vectors_ND is not None
    vectors_ND = ranker.vectors_ND[:].clone()
    centres_LD = vectors_ND[10 : 10 + NUM_LISTS]
    lists = (vectors_ND[NUM_RESERVED:] @ centres_LD.T).argmax(1)
    index = Index(ranker.vectors_ND, centres_LD, lists, IndexFacts(NUM_LISTS, num_probed, 10, 0.9, 50))
    return Predictor(job, encoding, ranker, "version", index)


@pytest.mark.parametrize(("copy", "precision"), [(False, "fp32"), (True, "fp32"), (False, "fp16"), (True, "int8")])
def test_all_lists_give_what_a_scan_gives(copy: bool, precision: Precision) -> None:
    predictor = indexed(copy=copy, precision=precision)
    queries = [*QUERIES, Query([], 5), Query(events(1, 5), 5, None, {"category": ["toys"]}), Query(events(2, 5), 50)]
    for found, scanned in zip(predictor.recommend(queries), predictor.recommend(queries, exact=True), strict=True):
        assert found.item_ids == scanned.item_ids and found.source == scanned.source
        assert found.scores == pytest.approx(scanned.scores, abs=1e-5)


def test_an_item_that_the_model_copies_is_found_wherever_its_list_is() -> None:
    predictor = indexed(1, copy=True)
    query = Query([RawEvent(f"i{number}", "view") for number in range(5)], 10, exclude_seen=False)
    scanned = predictor.recommend([query], exact=True)[0]
    copied = {f"i{number}" for number in range(5)} & set(scanned.item_ids)
    assert copied <= set(predictor.recommend([query])[0].item_ids) and copied


def test_a_list_is_full_also_where_few_candidates_were_found() -> None:
    answers = indexed(1).recommend(QUERIES)
    assert [len(answer.item_ids) for answer in answers] == [query.k for query in QUERIES]
    assert answers != indexed(1).recommend(QUERIES, exact=True), "one list does not hold the best of all"


def test_the_model_tells_of_its_index() -> None:
    assert indexed().describe()["index"] == {
        "num_lists": 8, "num_probed": 8, "k": 10, "recall": 0.9, "num_states": 50
    }  # fmt: skip


def test_the_index_of_a_bundle_is_what_answers(tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path))
    built = indexed(1).index
    assert built
    built.save(bundle)
    bundle.write_manifest("bundle", {}, {"name": "tiny"})
    predictor = Predictor.load(bundle)
    assert predictor.index and predictor.index.facts == built.facts
    assert predictor.describe()["index"] == bundle.read_json("index/index.json")
    assert predictor.recommend(QUERIES) != predictor.recommend(QUERIES, exact=True), "one list does not hold all"
