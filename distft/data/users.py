"""The features of users as a model takes them: codes and numbers of each user row, and of a user who is not known.

Enters: ``dataset/users.parquet`` and the specs that it was encoded by; when serving, features in the shop's words.
Leaves: ``Users``, from which the rows of a batch are looked up. A category is its first code; a missing number is the
spec's substitute, with a further number that tells it where the spec wants one. Surprising choice: the unknown user
is the last row of the table, so that the user row -1 finds it without being looked for.

Shape legend: U users and then the unknown one, B histories, K categories, G numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distft.data.features import FeatureColumn, FeatureSpec
from distft.data.numbers import scaled, substitute
from distft.data.parquet import read_table
from distft.errors import ArtefactError
from distft.schema import PAD, UNKNOWN, UserFeature
from distft.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[np.int64]
    Numbers = NDArray[np.float32]

FILE = "users.parquet"


def user_inputs(specs: Sequence[FeatureSpec]) -> tuple[UserFeature, ...]:
    """The inputs that features of users become: categories, then numbers."""
    categories = [UserFeature(spec.name, len(spec.vocabulary)) for spec in specs if spec.kind == "category"]
    numbers = []
    for spec in specs:
        if spec.kind == "number":
            told = [UserFeature(f"{spec.name} is missing")] if spec.missing == "indicator" else []
            numbers += [UserFeature(spec.name), *told]
    return (*categories, *numbers)


@dataclass(frozen=True, eq=False)
class Users:
    """Codes [U + 1, K] and numbers [U + 1, G] of all users; the last row is the unknown one."""

    codes_UK: Codes
    numbers_UG: Numbers

    def of_rows(self, user_row_B: NDArray[np.int32]) -> tuple[Codes, Numbers]:
        """(codes_BK, numbers_BG) of user rows; a row that is not in the table is the unknown user's."""
        last = len(self.codes_UK) - 1
        row_B = np.where((user_row_B >= 0) & (user_row_B < last), user_row_B, last)
        return self.codes_UK[row_B], self.numbers_UG[row_B]

    @classmethod
    def none(cls) -> Users:
        """For models that take no features of users."""
        return cls(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32))

    @classmethod
    def told(cls, specs: Sequence[FeatureSpec], users: Sequence[Mapping[str, str | float]]) -> Users:
        """Users whose features are given in the shop's words; a feature that is left out is not known."""
        codes, numbers = [], []
        for values in (*users, {}):
            inputs = [_told(spec, values.get(spec.name)) for spec in specs]
            codes.append([code for code, _ in inputs if code is not None])
            numbers.append([number for _, some in inputs for number in some])
        return cls(
            np.array(codes, np.int64).reshape(len(codes), -1), np.array(numbers, np.float32).reshape(len(numbers), -1)
        )

    @classmethod
    def of_dataset(cls, dataset: Storage, specs: Sequence[FeatureSpec]) -> Users:
        """The users of a dataset. Raises ArtefactError where their file is damaged."""
        unknown = cls.told(specs, ())
        if not specs:
            return unknown
        manifest = dataset.manifest("dataset")
        if manifest is None or FILE not in manifest.files:
            raise ArtefactError(f"{dataset}/{FILE} is not there", "the users' features", "Prepare the dataset again.")
        dataset.verify_file(FILE, manifest.files[FILE])
        table = read_table(dataset, FILE)
        codes, numbers = [], []
        for spec in specs:
            column = FeatureColumn.from_arrow(spec, table[spec.name])
            if spec.kind == "category":
                first = column.first_codes().astype(np.int64)
                codes.append(np.where(first == UNKNOWN, _no_category(spec), first))
            else:
                absent = column.absent()
                numbers.append(np.where(absent, substitute(spec), np.nan_to_num(column.values)))
                numbers += [absent.astype(np.float32)] if spec.missing == "indicator" else []
        return cls(
            np.concatenate([_columns(codes, len(table), np.int64), unknown.codes_UK]),
            np.concatenate([_columns(numbers, len(table), np.float32), unknown.numbers_UG]).astype(np.float32),
        )


def _columns(columns: Sequence[NDArray[np.generic]], num_rows: int, dtype: type[np.generic]) -> NDArray[np.generic]:
    return np.stack(columns, 1).astype(dtype) if columns else np.zeros((num_rows, 0), dtype)


def _no_category(spec: FeatureSpec) -> int:
    return PAD if spec.missing == "zero" else UNKNOWN


def _told(spec: FeatureSpec, value: str | float | None) -> tuple[int | None, list[float]]:
    """(The code of a category, the inputs of a number) for one value in the shop's words."""
    if spec.kind == "category":
        known = value is not None and str(value) in spec.vocabulary[2:]
        return (spec.vocabulary.index(str(value)) if known else _no_category(spec)), []
    if spec.kind != "number":
        return None, []
    absent = not isinstance(value, int | float) or not np.isfinite(value)
    number = float(substitute(spec)) if absent else float(scaled(spec, np.array([value], np.float64))[0])
    return None, [number, *([float(absent)] if spec.missing == "indicator" else [])]
