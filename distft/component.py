"""Pluggable components: the base of their configs, and the scan that finds them.

A component is a folder of two files: ``config.py`` (pydantic only, so that checking a job loads no torch) and
the code. The folder's name is the component's name. Adding one is adding a folder; nothing else is edited.
"""

from __future__ import annotations

import functools
import importlib
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag, model_validator

if TYPE_CHECKING:
    from distft.data.sources.base import Source
    from distft.losses.base import Loss
    from distft.models.base import Model
    from distft.schema import Catalog, ExcludeSeen


MAX_COUNT = 2**31 - 1
"""Bound of every count: what is above it is a slip of the keyboard, and would overflow where it is used."""
EVENT_PATTERN = r"^[a-z][a-z0-9_]*$"
KeyMistake = tuple[tuple[str | int, ...], str]
"""The path of a key below its section, and what is wrong there."""


class KeyMistakes(ValueError):
    """What a section's keys get wrong together: for each mistake the path of its key below the section, and words."""

    def __init__(self, *mistakes: KeyMistake) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in mistakes))
        self.mistakes = mistakes


def refuse(mistakes: Sequence[KeyMistake]) -> None:
    """Raises KeyMistakes if there are any: the last line of a section's check."""
    if mistakes:
        raise KeyMistakes(*mistakes)


def _event_name(name: str) -> str:
    if not re.match(EVENT_PATTERN, name) or name.endswith("\n"):
        raise ValueError("expected lower-case letters, digits and underscores, with a letter first")
    return name


EventName = Annotated[str, AfterValidator(_event_name), Field(json_schema_extra={"pattern": EVENT_PATTERN})]


class Section(BaseModel):
    """A part of the job file: immutable, and an unknown key is a mistake.

    Strict: a quoted number is a text and ``true`` is no 1. Only YAML's lists become the tuples of the keys.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class ItemTable(Section):
    """Where the table with a row for each item lies while a model trains, and how it is updated there."""

    placement: Literal["replicated", "sharded"] = Field(
        "replicated",
        description="replicated: a weight like any other, which ZeRO gathers whole; sharded: every worker holds its "
        "share of the rows and only those that a step looks up are exchanged, for tables too large for one device",
    )
    optimizer: Literal["rowwise_adagrad", "adamw"] | None = Field(
        None,
        description="of a sharded table, on the rows that a step looked up; by default rowwise_adagrad, which keeps "
        "one number a row, where adamw keeps two for each weight",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="of a sharded table; by default train.learning_rate, whose schedule it follows"
    )

    @model_validator(mode="after")
    def _only_a_sharded_one_has_its_own(self) -> ItemTable:
        given = [key for key in ("optimizer", "learning_rate") if getattr(self, key) is not None]
        if not self.is_sharded:
            text = "this belongs to placement: sharded; a replicated table is trained by train.{key}"
            refuse([((key,), text.format(key=key)) for key in given])
        return self

    @property
    def is_sharded(self) -> bool:
        """True where no worker holds all rows."""
        return self.placement == "sharded"

    @property
    def rule(self) -> Literal["rowwise_adagrad", "adamw"]:
        """The optimiser of a sharded table."""
        return self.optimizer or "rowwise_adagrad"


class ModelConfig(Section):
    """The ``model`` section; a subclass adds its own keys and builds its model."""

    kind: str
    retrieval: ClassVar[Literal["dot", "pair"]] = "dot"
    """That of the model: by the product of state and item vector, or pair by pair."""
    uses_users: ClassVar[bool] = False
    """True for models that take the features of users (``Batch.user_codes_BK`` and ``user_numbers_BG``)."""

    shards_items: ClassVar[bool] = False
    """True for models that look their items up in an ``ItemEmbedding`` alone, whose table may be sharded."""

    max_history: int = Field(50, ge=1, le=10_000, description="events of a history that the model reads: the latest")
    item_table: ItemTable = ItemTable()

    @property
    def has_own_scores(self) -> bool:
        """True where the model adds to the scores of single items, which not every loss can take."""
        return False

    def build(self, catalog: Catalog) -> Model:
        """A new model with freshly drawn weights (from torch's global generator)."""
        raise NotImplementedError


class SequenceConfig(ModelConfig):
    """The keys that all models over a sequence of events share."""

    shards_items: ClassVar[bool] = True
    dim: int = Field(64, ge=4, le=16_384, description="width of the embeddings and the blocks")
    num_blocks: int = Field(2, ge=1, le=256)
    dropout: float = Field(0.2, ge=0, lt=1)
    item_features: bool = Field(True, description="add embeddings of the items' categories and numbers")
    score: Literal["dot", "cosine"] = Field("dot", description="of a state and an item: their product, or their cosine")
    temperature: float = Field(0.05, gt=0, le=100, description="what the cosine is divided by")
    copy_: bool = Field(
        False, alias="copy", description="learn what an item gains that the history holds: for shops where people "
        "order what they have viewed, or the same goods again",
    )  # fmt: skip

    @property
    def has_own_scores(self) -> bool:
        return self.copy_


class LossConfig(Section):
    """The ``loss`` section; a subclass adds its own keys and builds its loss."""

    kind: str
    takes_own_scores: ClassVar[bool] = False
    """True if the loss counts what a model adds to the scores of single items (``Model.own_scores``)."""
    takes_pairs: ClassVar[bool] = True
    """False if the loss is for models alone that rank by the product of state and item vector."""
    needs_all_items: ClassVar[bool] = False
    """True if the loss asks for the vectors of all items, which no worker has where their table is sharded."""

    @property
    def judges(self) -> Literal["labels", "values"] | None:
        """What of a target its score is compared with: its label, of which it is the log-odds, or its value.

        None where the score is compared with those of other items. What judges labels or values is called pointwise.
        """
        return None

    @property
    def excluded(self) -> ExcludeSeen:
        """Items of the history with which no target is compared."""
        return "none"

    def values(self, scores: Any) -> Any:
        """The values that scores stand for, where the loss judges values."""
        return scores

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        """A new loss for a model of this catalog whose states are ``state_dim`` wide."""
        raise NotImplementedError


class SourceConfig(Section):
    """One entry of ``data.events``; a subclass adds its own keys and opens its source."""

    source: str
    has_features: ClassVar[bool] = True
    """False if features of items and users never come with such a log."""

    def event_names(self) -> tuple[str, ...]:
        """The event types that this log can hold, each once."""
        raise NotImplementedError

    def open(self) -> Source:
        """The source, ready to list its read tasks; raises DataError where its input is not there."""
        raise NotImplementedError


@functools.cache
def configs(folder: str) -> tuple[type[Section], ...]:
    """The ``Config`` class of every component folder below ``distft/<folder>``, in name order."""
    root = Path(__file__).parent / folder
    package = "distft." + folder.replace("/", ".")
    found = sorted(path.parent.name for path in root.glob("*/config.py"))
    return tuple(importlib.import_module(f"{package}.{name}.config").Config for name in found)


def union(folder: str, tag: str, default: type[Section] | None = None) -> Any:
    """The pydantic type of a section whose ``tag`` key names one of the components in ``folder``.

    ``default``: the component that is meant where a section leaves the key out.
    """
    members = [Annotated[config, Tag(config.model_fields[tag].default)] for config in configs(folder)]
    whole = functools.reduce(operator.or_, members)
    if len(members) == 1:
        return whole

    def tagged(section: Any) -> Any:
        if default is None or not isinstance(section, dict) or tag in section:
            return section
        return {tag: default.model_fields[tag].default, **section}

    return Annotated[whole, Field(discriminator=tag), BeforeValidator(tagged)]
