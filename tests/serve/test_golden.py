from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distft.errors import ArtefactError
from distft.serve.golden import GoldenRequest, difference, first_difference, read_golden
from distft.serve.predictor import Predictor, Query, Recommendation
from distft.storage import Storage
from tests.serve.bundles import write_bundle

GOLDEN = GoldenRequest(Query([], 3), ("a", "b", "c"), (3.0, 2.0, 1.0))


def answer(ids: str, *scores: float) -> Recommendation:
    return Recommendation(list(ids), list(scores), 0, "model", "v")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (answer("abc", 3.0, 2.0, 1.0), None),
        (answer("abc", 3.00002, 2.0, 0.999995), None),  # within 1e-5 of the score's size
        (answer("abd", 3.0, 2.0, 1.0), None),  # the last place is a tie with what stood behind it
        (answer("ab", 3.0, 2.0), "2 items instead of 3"),
        (answer("abc", 3.0, 2.001, 1.0), "place 2"),
        (answer("bac", 3.0, 2.0, 1.0), "item a scores"),
        (answer("dbc", 3.0, 2.0, 1.0), "item a is missing"),
    ],
)
def test_difference(given: Recommendation, complaint: str | None) -> None:
    found = difference(GOLDEN, given)
    assert found is None if complaint is None else complaint in str(found)


def test_items_closer_than_the_tolerance_may_change_places() -> None:
    golden = replace(GOLDEN, scores=(3.0, 2.999995, 1.0))
    assert difference(golden, answer("bac", 3.0, 2.999995, 1.0)) is None


def test_a_bundle_answers_its_golden_requests(bundle: Storage, predictor: Predictor) -> None:
    golden = read_golden(bundle, 1000)
    assert len(golden) == 30 and all(len(request.item_ids) == 10 for request in golden)
    assert first_difference(predictor, golden) is None
    assert {len(request.item_ids) for request in read_golden(bundle, 4)} == {4}
    assert first_difference(predictor, read_golden(bundle, 4)) is None


def test_other_scores_are_told(tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path), golden_shift=1e-3)
    found = first_difference(Predictor.load(bundle), read_golden(bundle, 10))
    assert found is not None and found.startswith("golden request 1: score")


@pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n", '{"request": {"k": 0}, "items": []}\n', "[]\n"])
def test_files_that_hold_no_golden_request(tmp_path: Path, text: str) -> None:
    (tmp_path / "golden_requests.jsonl").write_text(text)
    with pytest.raises(ArtefactError, match="golden_requests"):
        read_golden(Storage(tmp_path), 10)
