"""The golden requests of a bundle: does this server still score as the evaluator did?

Enters: ``golden_requests.jsonl``, one {"request": body of /v1/recommend, "items": [{"item_id", "score"}], "target"} a
line; the target is what the user did next, where the model knows the item.
Leaves: the first difference, in words. Surprising choice: places of two items whose scores lie within the
tolerance may be exchanged, because another processor may add in another order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distft.errors import ArtefactError
from distft.serve.predictor import Predictor, Query, Recommendation
from distft.serve.problems import Problem
from distft.serve.requests import RecommendRequest, read_request
from distft.storage import Storage

TOLERANCE = 1e-5
FILE = "golden_requests.jsonl"


@dataclass(frozen=True)
class GoldenRequest:
    """A query, the answer that the evaluator's code gave when the bundle was made, and what the user did next."""

    query: Query
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    target: str | None = None


def read_golden(bundle: Storage, max_k: int) -> list[GoldenRequest]:
    """The golden requests of a bundle, for at most ``max_k`` items each.

    Raises ArtefactError where there are none or a line cannot be read.
    """
    lines = bundle.read_bytes(FILE).splitlines()
    if not lines:
        raise ArtefactError(f"{bundle.uri}/{FILE} is empty", "at least one request", "Export the model again.")
    return [_parse(line, f"{bundle.uri}/{FILE}:{number}", max_k) for number, line in enumerate(lines, start=1)]


def difference(golden: GoldenRequest, answer: Recommendation) -> str | None:
    """What differs between the expected and the given answer, or None."""
    if len(answer.item_ids) != len(golden.item_ids):
        return f"{len(answer.item_ids)} items instead of {len(golden.item_ids)}"
    if not golden.item_ids:
        return None
    for place, (expected, given) in enumerate(zip(golden.scores, answer.scores, strict=True), start=1):
        if not _close(expected, given):
            return f"score {given!r} in place {place} instead of {expected!r}"
    given_scores = dict(zip(answer.item_ids, answer.scores, strict=True))
    last = golden.scores[-1]
    for item_id, score in zip(golden.item_ids, golden.scores, strict=True):
        if item_id not in given_scores:
            if not _close(score, last):
                return f"item {item_id} is missing"
        elif not _close(score, given_scores[item_id]):
            return f"item {item_id} scores {given_scores[item_id]!r} instead of {score!r}"
    return None


def first_difference(predictor: Predictor, golden: Sequence[GoldenRequest]) -> str | None:
    """What the first wrong answer to a golden request differs in, or None if all are right."""
    answers = predictor.recommend([request.query for request in golden], exact=True)
    for number, (request, answer) in enumerate(zip(golden, answers, strict=True), start=1):
        found = difference(request, answer)
        if found:
            return f"golden request {number}: {found}"
    return None


def answered_as_expected(predictor: Predictor, golden: Sequence[GoldenRequest]) -> GoldenRequest:
    """The first golden request that the predictor answers right as it serves: an index may miss an item of some.

    Raises ArtefactError if there is none.
    """
    for request in golden:
        if difference(request, predictor.recommend([request.query])[0]) is None:
            return request
    what = f"The index finds the whole list of none of {len(golden)} golden requests"
    raise ArtefactError(what, f"a recall of {predictor.job.serve.index_recall}", "Export the model again.")


def _parse(line: bytes, place: str, max_k: int) -> GoldenRequest:
    try:
        value = json.loads(line)
        query = read_request(json.dumps(value["request"]).encode(), RecommendRequest).query()
        ids, scores = [i["item_id"] for i in value["items"]], [i["score"] for i in value["items"]]
        target = value.get("target")
    except (ValueError, KeyError, TypeError, Problem) as error:
        raise ArtefactError(f"{place} is no golden request: {error}", "", "Export the model again.") from error
    k = min(query.k, max_k)
    return GoldenRequest(replace(query, k=k, deny=False), tuple(ids[:k]), tuple(scores[:k]), target)


def _close(expected: float, given: float) -> bool:
    return abs(expected - given) <= TOLERANCE * max(1.0, abs(expected))
