"""Does a running service rank as it was evaluated? The test users, replayed over HTTP.

Enters: a job, its dataset and model, and the URL of a service of that model. Leaves: the metrics of both, how far they
and the scores lie apart, and whether that is more than rounding. Surprising choice: both sides are told the history and
nothing else; what the dataset knows of users beside it stays out, because a client of the service may not know it.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from distft.data.encode import Encoder
from distft.data.shards import TargetReader
from distft.data.told import request_events
from distft.errors import ArtefactError, ServingError, UsageError
from distft.evaluate.metrics import ranking_metrics
from distft.job import Job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.schema import NUM_RESERVED
from distft.storage import Storage
from distft.topk import MISS

SCORE_TOLERANCE = 1e-5
"""Largest difference of a score, relative above 1."""

METRIC_TOLERANCE_USERS = 2
"""A metric may differ by so many users of all: those in whose list two items of nearly one score changed places."""

NUM_CLIENTS = 8
TIMEOUT_S = 60.0
MAX_TRIES = 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Served:
    """The answer to one request: item ids and scores, best first."""

    item_ids: list[str]
    scores: list[float]


class Endpoint:
    """A service of distft over HTTP; one connection for each thread that asks."""

    def __init__(self, url: str, key: str | None = None, ca_file: str | None = None) -> None:
        """Raises UsageError for what is no URL of HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise UsageError(
                f"--endpoint is {url!r}", "the URL of a service, such as http://127.0.0.1:8000", "Correct it."
            )
        self.url, self._parts, self._here = url.rstrip("/"), parts, threading.local()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._connections: list[http.client.HTTPConnection] = []
        self._context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON answer; asks again while the service says that it is busy. Raises UsageError, ServingError."""
        data = None if body is None else json.dumps(body).encode()
        for _ in range(MAX_TRIES):
            status, wait_s, answer = self._once(method, path, data)
            if status == 200:
                return answer
            if status == 401:
                told = "The service wants an API key" if "Authorization" not in self._headers else "The key is refused"
                raise UsageError(f"{told} at {self.url}", "a key of that service", "Give its file with --key-file.")
            if status not in (429, 503) or wait_s is None:
                break
            time.sleep(wait_s)
        raise ServingError(
            f"{self.url}{path} answered {status}: {answer.get('detail', answer)} {_fields(answer)}".rstrip()
        )

    def close(self) -> None:
        """Closes the connections of all threads; none may be asking."""
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _once(self, method: str, path: str, data: bytes | None) -> tuple[int, float | None, dict[str, Any]]:
        try:
            response, text = self._exchange(method, path, data)
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"{self.url} does not answer: {error or type(error).__name__}") from error
        retry = response.headers.get("Retry-After")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        if not isinstance(answer, dict) or not answer:
            raise ServingError(f"{self.url}{path} is no service of distft: {response.status} {text[:100]!r}")
        return response.status, float(retry) if retry and retry.isdecimal() else None, answer

    def _exchange(self, method: str, path: str, data: bytes | None) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection()
        for may_be_stale in (connection.sock is not None, False):
            try:
                connection.request(method, path, data, self._headers)
                response = connection.getresponse()
                return response, response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if not may_be_stale:  # a server may close a connection that was idle just when it is used again
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._here, "connection", None)
        if found is None:
            host, port = str(self._parts.hostname), self._parts.port
            found = (
                http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
                if self._context is None
                else http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._context)
            )
            self._here.connection = found
            self._connections.append(found)
        return found


def _fields(answer: dict[str, Any]) -> str:
    errors = answer.get("errors") or []
    return "; ".join(f"{error.get('field')}: {error.get('message')}" for error in errors)


def replay(
    job: Job, dataset: Storage, weights: Storage, endpoint: Endpoint, progress: Progress | None = None
) -> dict[str, Any]:
    """What ``--endpoint`` tells: evaluated and served metrics, their largest difference, and that of the scores.

    "passed": metrics within two users of all, scores within 1e-5. Raises ArtefactError where there is no test split.
    """
    reader = TargetReader(dataset, "test")
    if not reader.num_rows:
        raise ArtefactError(f"{dataset}/test holds no targets", "at least one", "Change data.split.")
    facts = endpoint.call("GET", "/v1/model")
    ks = [k for k in sorted(set(job.evaluate.k)) if k <= int(facts["max_k"])]
    if not ks:
        raise UsageError(f"evaluate.k is {list(job.evaluate.k)}, and the service gives {facts['max_k']} items at most")
    encoder = Encoder.of_dataset(dataset)
    model = job.model.build(encoder.catalog())
    fill(model, read_weights(weights))
    comparison = _Comparison(
        job, encoder, Ranker(model, job.model.max_history, encoder, None, job.serve.item_vectors), max(ks)
    )
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for histories, targets in reader:
            asked = ({"history": request_events(encoder, histories, i), "k": max(ks)} for i in range(len(histories)))
            served = list(pool.map(lambda body: _served(endpoint, body), asked))
            comparison.add(histories, targets, served)
            if progress:
                progress("replaying test users", comparison.num_targets, reader.num_rows)
    return {"endpoint": endpoint.url, "model_version": facts["model_version"], **comparison.result(ks)}


def _served(endpoint: Endpoint, body: dict[str, Any]) -> Served:
    items = endpoint.call("POST", "/v1/recommend", body)["items"]
    return Served([item["item_id"] for item in items], [float(item["score"]) for item in items])


class _Comparison:
    """Collects, target by target, what the evaluator's code and the service say."""

    def __init__(self, job: Job, encoder: Encoder, ranker: Ranker, k: int) -> None:
        self._job, self._encoder, self._ranker, self._k = job, encoder, ranker, k
        self._ranks: dict[str, list[int]] = {"evaluated": [], "served": []}
        self._users: set[int] = set()
        self._equal_lists = 0
        self._score_difference = self._relative_difference = 0.0
        self._lengths_differ = 0

    @property
    def num_targets(self) -> int:
        """Targets compared so far."""
        return len(self._ranks["served"])

    def add(self, histories: Any, targets: Any, served: Sequence[Served]) -> None:
        """Compares the answers to a batch of histories."""
        excluded = excluded_items(histories, self._job.evaluate.exclude_seen, self._encoder.target_codes)
        ranks = self._ranker.ranks(histories, targets.item, excluded)
        top = self._ranker.top_k(histories, self._k, excluded)
        lists = zip(top.rows_BK.numpy(), top.scores_BK.numpy(), strict=True)
        for (rows_K, scores_K), answer in zip(lists, served, strict=True):
            found_K = rows_K >= NUM_RESERVED
            self._compare([str(one) for one in self._encoder.item_ids[rows_K[found_K]]], scores_K[found_K], answer)
        ids = self._encoder.item_ids[targets.item]
        self._ranks["evaluated"] += ranks.tolist()
        self._ranks["served"] += list(_places(ids.tolist(), targets.item.tolist(), served))
        self._users |= set(histories.user_row.tolist())

    def _compare(self, item_ids: list[str], scores_K: Any, answer: Served) -> None:
        self._equal_lists += item_ids == answer.item_ids
        if len(scores_K) != len(answer.scores):
            self._lengths_differ += 1
            return
        apart_K = np.abs(np.asarray(scores_K, np.float64) - np.asarray(answer.scores))
        self._score_difference = max(self._score_difference, float(apart_K.max(initial=0)))
        relative_K = apart_K / np.maximum(1.0, np.abs(scores_K))
        self._relative_difference = max(self._relative_difference, float(relative_K.max(initial=0)))

    def result(self, ks: list[int]) -> dict[str, Any]:
        """The comparison as JSON."""
        means = {name: ranking_metrics(np.array(ranks, np.int64), ks) for name, ranks in self._ranks.items()}
        worst = max(abs(means["served"][name] - value) for name, value in means["evaluated"].items())
        allowed = METRIC_TOLERANCE_USERS / len(self._users)
        return {
            "num_targets": self.num_targets,
            "num_users": len(self._users),
            **means,
            "largest_metric_difference": worst,
            "allowed_metric_difference": allowed,
            "largest_score_difference": self._score_difference,
            "largest_relative_score_difference": self._relative_difference,
            "equal_lists": self._equal_lists,
            "lists_of_other_length": self._lengths_differ,
            "passed": worst <= allowed and self._relative_difference <= SCORE_TOLERANCE and not self._lengths_differ,
        }


def _places(ids: list[str], rows: list[int], served: Sequence[Served]) -> Iterator[int]:
    for item_id, row, answer in zip(ids, rows, served, strict=True):
        known = row >= NUM_RESERVED and item_id in answer.item_ids
        yield answer.item_ids.index(item_id) + 1 if known else MISS
