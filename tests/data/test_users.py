"""The features of users as inputs, from a dataset and from a request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distft.data.encode import Encoder
from distft.data.features import FeatureSpec
from distft.data.parquet import read_table
from distft.data.users import Users, user_inputs
from distft.errors import ArtefactError
from distft.schema import PAD, UNKNOWN, UserFeature
from tests.data import logs

SPECS = (
    FeatureSpec("age", "number", missing="indicator", mean=40.0, std=10.0, low=20.0, high=60.0),
    FeatureSpec("city", "category", missing="unknown", vocabulary=("", "", "Bonn", "Ulm")),
    FeatureSpec("plan", "category", missing="zero", vocabulary=("", "", "free")),
    FeatureSpec("income", "number", missing="mean", mean=5.0, std=2.0, low=1.0, high=9.0),
)


def test_a_user_is_told_in_the_words_of_the_shop_and_another_is_unknown() -> None:
    users = Users.told(SPECS, [{"age": 50, "city": "Ulm", "plan": "free"}, {"city": "Paris"}])
    codes, numbers = users.of_rows(np.array([0, 1, -1, 7], np.int32))
    assert codes.tolist() == [[3, 2], [UNKNOWN, PAD], [UNKNOWN, PAD], [UNKNOWN, PAD]]
    assert numbers.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    inputs = user_inputs(SPECS)
    assert inputs == (
        UserFeature("city", 4), UserFeature("plan", 3),
        UserFeature("age"), UserFeature("age is missing"), UserFeature("income"),
    )  # fmt: skip


def test_the_users_of_a_dataset_are_what_a_request_would_tell(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    people = {f"u{n}": (["", "x", "y"][n % 3], "" if n % 5 == 0 else str(20 + n)) for n in range(60)}
    rows = [(user, kind, age) for user, (kind, age) in people.items()]
    table = logs.write_csv(tmp_path / "users.txt", rows, ("user", "kind", "age"))
    features = {
        "path": str(table), "format": "csv", "columns": {"user_id": "user", "kind": "kind", "age": "age"},
        "numeric": ["age"],
    }  # fmt: skip
    encode = {"features": {"age": {"missing": "indicator"}}}
    dataset, _ = logs.prepare_here(logs.job(tmp_path, users=features, encode=encode), tmp_path / "run")
    specs = Encoder.load(dataset / "encoder").user_features
    users = Users.of_dataset(dataset, specs)
    ids = {}
    for name in dataset.list():
        if name.startswith("train/"):
            part = read_table(dataset, name)
            ids |= dict(zip(part["user_row"].to_pylist(), part["user_id"].to_pylist(), strict=True))
    assert len(ids) > 30
    for row, user in ids.items():
        kind, age = people[user]
        told: dict[str, str | float] = {"kind": kind} if kind else {}
        if age:
            told["age"] = float(age)
        expected = Users.told(specs, [told]).of_rows(np.array([0], np.int32))
        found = users.of_rows(np.array([row], np.int32))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    assert users.of_rows(np.array([-1], np.int32))[0].tolist() == [[UNKNOWN]]
    path = Path(dataset.uri.removeprefix("file://")) / "users.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"\x00" * 9)
    with pytest.raises(ArtefactError):
        Users.of_dataset(dataset, specs)
