"""The ``tune`` section: a search over job keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from distft.component import MAX_COUNT, KeyMistake, Section, refuse
from distft.sections.values import Metric


class Candidates(Section):
    """The values that a search tries for one key: exactly one of the three."""

    loguniform: tuple[float, float] | None = Field(None, description="[low, high]: any number, each ratio as likely")
    uniform: tuple[float, float] | None = Field(None, description="[low, high]: any number between")
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these values")

    @model_validator(mode="after")
    def _one_kind(self) -> Candidates:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected exactly one of loguniform: [low, high], uniform: [low, high] and choice: [...]")
        mistakes: list[KeyMistake] = []
        if self.bounds is not None:
            low, high = self.bounds
            if low >= high:
                mistakes.append(((given[0],), "expected [low, high], the lower one first"))
            elif self.loguniform and low <= 0:
                mistakes.append(((given[0], 0), "expected more than 0: a ratio to 0 is not a number"))
        values = list(self.choice or ())
        if any(value in values[:index] for index, value in enumerate(values)):
            mistakes.append((("choice",), "expected each value once"))
        refuse(mistakes)
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest number; None for a choice."""
        return self.loguniform or self.uniform


def _dotted(search: Any) -> Any:
    """The keys of a search with dots: ``--set tune.search.train.epochs=...`` makes sections within each other."""
    if not isinstance(search, Mapping):
        return search
    if not search:
        raise ValueError("expected at least one key, such as train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}")
    return dict(_flat(search))


def _flat(search: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in search.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value and not value.keys() & Candidates.model_fields.keys():
            if all(isinstance(inner, Mapping) for inner in value.values()):
                yield from _flat(value, name)
                continue
        yield name, value


class Asha(Section):
    """Ends trials early that are behind: at each of a few epochs only the best share of them goes on."""

    min_epochs: int = Field(1, ge=1, le=MAX_COUNT, description="epochs before the first judgement")
    reduction_factor: int = Field(
        3, ge=2, le=MAX_COUNT, description="of so many trials one goes on, for so many times the epochs"
    )


class Tune(Section):
    """A search over job keys: many short trainings, of which the best gives the job its values."""

    algorithm: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="tpe: Optuna's, which tries more near what was good; grid: every combination of choices once",
    )
    seed: int | None = Field(None, ge=0, le=MAX_COUNT, description="of what is tried; else the job's")
    num_trials: int = Field(
        16, ge=1, le=MAX_COUNT, description="with that of the job's own values; a grid has as many as combinations"
    )
    epochs: int | None = Field(None, ge=1, le=MAX_COUNT, description="of a trial at most; else train.epochs")
    metric: Metric | None = Field(None, description="of the validation; else that of train.early_stopping")
    asha: Asha | None = Asha()
    search: Annotated[dict[str, Candidates], BeforeValidator(_dotted)] = Field(
        default={
            "train.learning_rate": Candidates(loguniform=(1e-4, 1e-2)),
            "train.batch_size": Candidates(choice=(64, 128, 256)),
        },
        description="job key → {loguniform | uniform: [low, high]} or {choice: [...]}",
    )
    scale_learning_rate: Literal["none", "sqrt", "linear"] = Field(
        "none",
        description="the searched rate is that of the job's own batch size; in a batch b times as large it is "
        "multiplied by the root of b (for adam) or by b (for sgd)",
    )
    num_workers: int = Field(
        1, ge=1, le=MAX_COUNT, description="of a trial; more are for models too large for one, not for more trials"
    )
    max_concurrent: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="trials at a time; else as many as the cluster has room for"
    )

    @model_validator(mode="after")
    def _keys_go_together(self) -> Tune:
        mistakes: list[KeyMistake] = []
        if self.algorithm == "grid":
            text = "a grid has no range: list its values, {choice: [...]}"
            mistakes += [(("search", key), text) for key, one in self.search.items() if one.choice is None]
        if self.scale_learning_rate != "none" and "train.batch_size" not in self.search:
            text = "this scales with the batch size, which the search leaves alone: search train.batch_size too"
            mistakes.append((("scale_learning_rate",), text))
        refuse(mistakes)
        return self
