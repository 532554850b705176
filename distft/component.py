"""Pluggable components: the base of their configs, and the scan that finds them.

A component is a folder of two files: ``config.py`` (pydantic only, so that checking a job loads no torch) and
the code. The folder's name is the component's name. Adding one is adding a folder; nothing else is edited.
"""

from __future__ import annotations

import functools
import importlib
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Tag

if TYPE_CHECKING:
    from distft.data.sources.base import Source
    from distft.losses.base import Loss
    from distft.models.base import Model
    from distft.schema import Catalog


class Section(BaseModel):
    """A part of the job file: immutable, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The ``model`` section; a subclass adds its own keys and builds its model."""

    kind: str
    max_history: int = Field(50, ge=1, le=10_000, description="events of a history that the model reads: the latest")

    def build(self, catalog: Catalog) -> Model:
        """A new model with freshly drawn weights (from torch's global generator)."""
        raise NotImplementedError


class LossConfig(Section):
    """The ``loss`` section; a subclass adds its own keys and builds its loss."""

    kind: str

    def build(self, catalog: Catalog) -> Loss:
        """A new loss for a model of this catalog."""
        raise NotImplementedError


class SourceConfig(Section):
    """One entry of ``data.events``; a subclass adds its own keys and opens its source."""

    source: str

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


def union(folder: str, tag: str) -> Any:
    """The pydantic type of a section whose ``tag`` key names one of the components in ``folder``."""
    members = [Annotated[config, Tag(config.model_fields[tag].default)] for config in configs(folder)]
    whole = functools.reduce(operator.or_, members)
    return Annotated[whole, Field(discriminator=tag)] if len(members) > 1 else whole
