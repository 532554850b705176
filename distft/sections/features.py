"""Tables of item and user features, and how features become inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from distft.component import KeyMistake, Section, refuse
from distft.schema import ITEM_ID, USER_ID
from distft.sections.values import Quantiles, hint


class Features(Section):
    """A table of item or user features: CSV, JSON Lines or Parquet."""

    path: str = Field(description="file, glob or URI")
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    separator: str | None = Field(None, min_length=1, max_length=1, description="of a CSV; guessed from the name")
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    encoding: str = "utf-8"
    columns: dict[str, str] = Field(description="feature name → column; must name item_id (or user_id)")
    numeric: tuple[str, ...] = Field(("price",), description="features that are numbers; the others are categories")
    text: tuple[str, ...] = Field(("title",), description="features that are only shown to people")

    @model_validator(mode="after")
    def _features_have_columns(self) -> Features:
        """The default names may be absent: they are for the tables that have them."""
        known = list(self.columns)
        header = self.header or ()
        refuse(
            [
                (("columns", ours), f"expected a name of 'header': {', '.join(header)}" + hint(theirs, header))
                for ours, theirs in self.columns.items()
                if header and theirs not in header
            ]
            + [
                ((key, index), f"expected a name of 'columns': {', '.join(known)}" + hint(name, known))
                for key, names in (("numeric", self.numeric), ("text", self.text))
                for index, name in enumerate(names)
                if name not in self.columns and name not in type(self).model_fields[key].default
            ]
        )
        return self

    def kinds(self) -> dict[str, str]:
        """Feature name → number, category or text."""
        return {
            name: "number" if name in self.numeric else "text" if name in self.text else "category"
            for name in self.columns
            if name not in (ITEM_ID, USER_ID)
        }

    def map_key(self, key: str) -> Features:
        """The same table; raises KeyMistakes where no column holds the key that its rows are found by."""
        if key not in self.columns:
            refuse([(("columns",), f"{key} is missing: name the column that holds it, {key}: ...")])
        return self


Scale = Literal["standard", "unit", "symmetric"]
Form = Literal["label", "one_hot"]


class Numbers(Section):
    """How numeric features become inputs of a model. Statistics are those of the items (users) that train."""

    scale: Scale = Field(
        "standard", description="mean 0 and deviation 1; or to [0, 1] (unit) or [-1, 1] (symmetric), ends held"
    )
    clip: Quantiles | None = Field(
        None, description="[low, high]: numbers beyond these quantiles are set to them, and counted"
    )
    missing: Literal["mean", "zero", "indicator"] = Field(
        "mean", description="a missing number is the mean, 0 (before scaling), or the mean and an input that tells it"
    )


class Categories(Section):
    """How features that are categories become inputs of a model."""

    form: Form = Field(
        "label", description="an item's first category, as a number (label), or all of them, a 0 or 1 each (one_hot)"
    )
    missing: Literal["unknown", "zero"] = Field(
        "unknown", description="no category is one of its own, whose effect is learnt, or adds nothing (zero)"
    )


class FeatureEncoding(Section):
    """What is different for one feature; a key that is left out is that of ``numbers`` or ``categories``."""

    scale: Scale | None = Field(None, description="of a number")
    clip: Quantiles | None = Field(None, description="of a number; [0, 1] clips nothing")
    form: Form | None = Field(None, description="of a category")
    missing: Literal["mean", "zero", "indicator", "unknown"] | None = Field(
        None, description="mean, zero or indicator of a number; unknown or zero of a category"
    )

    def misfits(self, number: bool) -> list[KeyMistake]:
        """What it asks of a number that only a category has, or the other way round."""
        kind, other = ("number", "category") if number else ("category", "number")
        keys = ("form",) if number else ("scale", "clip")
        found: list[KeyMistake] = [
            ((key,), f"this is for a {other}, and the feature is a {kind}") for key in keys if getattr(self, key)
        ]
        valid = ("mean", "zero", "indicator") if number else ("unknown", "zero")
        if self.missing and self.missing not in valid:
            found.append((("missing",), f"expected one of {', '.join(valid)}: the feature is a {kind}"))
        return found


class Encode(Section):
    """How the features of items and users become inputs of a model."""

    numbers: Numbers = Numbers()
    categories: Categories = Categories()
    features: dict[str, FeatureEncoding] = Field(
        default_factory=dict, description="feature name → what is different for it"
    )

    def number(self, name: str) -> Numbers:
        """How the numeric feature ``name`` is encoded."""
        return self.numbers.model_copy(update=self._own(name, Numbers))

    def category(self, name: str) -> Categories:
        """How the category ``name`` is encoded."""
        return self.categories.model_copy(update=self._own(name, Categories))

    def _own(self, name: str, kind: type[Section]) -> dict[str, Any]:
        own = self.features.get(name, FeatureEncoding())
        return {key: value for key in kind.model_fields if (value := getattr(own, key)) is not None}

    def mistakes(self, kinds: Mapping[str, str]) -> list[KeyMistake]:
        """What is asked of features that there are not, or of another kind; ``kinds``: number, category or text."""
        found: list[KeyMistake] = []
        for name, own in self.features.items():
            kind = kinds.get(name)
            if kind is None:
                known = ", ".join(one for one, kind in kinds.items() if kind != "text") or "none are given"
                found.append((("features", name), f"expected an item or user feature: {known}" + hint(name, [*kinds])))
            elif kind == "text":
                found.append((("features", name), "this is a text, which is shown to people and not encoded"))
            else:
                found += [(("features", name, *path), text) for path, text in own.misfits(kind == "number")]
        return found
