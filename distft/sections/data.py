"""The ``data`` section: where the events come from, how they are cleaned, labelled and split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from distft.component import MAX_COUNT, EventName, KeyMistake, Section, SourceConfig, refuse, union
from distft.schema import ITEM_ID, USER_ID
from distft.sections.features import Encode, Features
from distft.sections.values import MAX_DAYS, Quantiles, StorageText, hint

if TYPE_CHECKING:
    AnySource = SourceConfig
else:
    AnySource = union("data/sources", "source")


class Clean(Section):
    """What prepare drops, and how much it may reject."""

    min_user_events: int = Field(
        5, ge=1, le=MAX_COUNT, description="users with fewer events are dropped, iteratively (k-core)"
    )
    min_item_events: int = Field(
        5, ge=1, le=MAX_COUNT, description="items with fewer events are dropped, iteratively (k-core)"
    )
    max_rejected_share: float = Field(0.05, ge=0, le=1, description="above this share of unusable rows prepare fails")
    drop_duplicates: bool = Field(True, description="keep one of several rows that agree in every field")
    clip_value: Quantiles | None = Field(
        None, description="[low, high]: values of events beyond these quantiles of the training part are set to them"
    )
    repeat_window_s: float = Field(
        0, ge=0, le=MAX_DAYS * 86_400, description="drop an event that repeats one of at most so many seconds before, "
        "equal in all but its time; 0 keeps all",
    )  # fmt: skip


class LeaveOneOut(Section):
    """The last target of a user is the test, the one before it the validation, the rest trains."""

    by: Literal["leave_one_out"] = "leave_one_out"
    ties: Literal["fail", "ordered"] = Field(
        "fail",
        description="events that share user and timestamp with a target are a leak (fail), unless their order in "
        "the log is real (ordered)",
    )


class ByTime(Section):
    """The last ``test_days`` are the test, the ``valid_days`` before them the validation."""

    by: Literal["time"] = "time"
    valid_days: float = Field(28, gt=0, le=MAX_DAYS)
    test_days: float = Field(28, gt=0, le=MAX_DAYS)


class Random(Section):
    """Each target event goes to train, valid or test by chance; a history is the user's training events."""

    by: Literal["random"] = "random"
    valid_share: float = Field(0.1, gt=0, lt=1)
    test_share: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_trains(self) -> Random:
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share must be less than 1, so that something is left to train on")
        return self


Split = Annotated[LeaveOneOut | ByTime | Random, Field(discriminator="by")]


class Label(Section):
    """Which target events are positive (1) and which negative (0): by their own value, or by what follows them."""

    value_at_least: float | None = Field(None, description="positive: the value of the event is not below this")
    event: EventName | None = Field(
        None, description="positive: the same user has this event with the same item, later and within_s"
    )
    within_s: float | None = Field(None, gt=0, le=MAX_DAYS * 86_400, description="seconds that 'event' may take")

    @model_validator(mode="after")
    def _one_rule(self) -> Label:
        if (self.value_at_least is None) == (self.event is None):
            raise ValueError("expected either value_at_least, or event with within_s")
        if self.event and self.within_s is None:
            refuse([(("within_s",), "this is needed: how many seconds later the event still counts")])
        if self.within_s is not None and not self.event:
            refuse([(("within_s",), "this belongs to 'event', and there is none")])
        return self

    @property
    def within_ms(self) -> float:
        """Milliseconds that ``event`` may take."""
        return (self.within_s or 0.0) * 1000


class Vocabulary(Section):
    """Where the rows of items, categories, event types and query tokens come from, with the statistics of numbers."""

    from_: StorageText = Field(
        alias="from", description="dataset or bundle whose rows and statistics are kept; what is new is appended"
    )


class Pseudonyms(Section):
    """Users are known by the HMAC-SHA-256 of their ids: no artefact holds an id as the log has it."""

    key_file: StorageText = Field(
        description="file or URI of a secret key of at least 32 bytes, readable on every machine of the cluster"
    )


class Data(Section):
    """Where the events come from, how they are cleaned and split."""

    events: tuple[AnySource, ...] = Field(min_length=1, description="one or more logs, merged")
    items: Features | None = Field(None, description="item features; without it the sources' own, if they have any")
    users: Features | None = None
    clean: Clean = Clean()
    target_events: tuple[str, ...] = Field(("purchase",), min_length=1, description="predicted; others are context")
    split: Split = LeaveOneOut()
    label: Label | None = Field(None, description="makes the values of target events 0 or 1, for pointwise losses")
    vocabulary: Vocabulary | None = Field(None, description="without it prepare makes a vocabulary of its own")
    pseudonyms: Pseudonyms | None = Field(None, description="without it datasets hold user ids as the logs have them")
    max_context: int = Field(1000, ge=1, le=MAX_COUNT, description="events before a target that valid/ and test/ hold")
    min_token_count: int = Field(2, ge=1, le=MAX_COUNT, description="query tokens seen less often are unknown")
    encode: Encode = Encode()

    @field_validator("items")
    @classmethod
    def _items_have_ids(cls, table: Features | None) -> Features | None:
        return table and table.map_key(ITEM_ID)

    @field_validator("users")
    @classmethod
    def _users_have_ids(cls, table: Features | None) -> Features | None:
        return table and table.map_key(USER_ID)

    @model_validator(mode="after")
    def _encoding_fits(self) -> Data:
        """Features that come with a log are known when it is opened; prepare checks what is left here."""
        tables = [table for table in (self.users, self.items) if table]
        kinds = {name: kind for table in tables for name, kind in table.kinds().items()}
        complete = len(tables) == 2 or not any(source.has_features for source in self.events)
        encode = self.encode
        if not complete:
            known = {name: own for name, own in encode.features.items() if name in kinds}
            encode = encode.model_copy(update={"features": known})
        refuse([(("encode", *path), text) for path, text in encode.mistakes(kinds)])
        return self

    @model_validator(mode="after")
    def _targets_occur(self) -> Data:
        known = sorted({name for source in self.events for name in source.event_names()})
        refuse(
            [
                (("target_events", index), f"this never occurs: the logs give {', '.join(known)}" + hint(name, known))
                for index, name in enumerate(self.target_events)
                if name not in known
            ]
        )
        return self

    @model_validator(mode="after")
    def _label_can_be_told(self) -> Data:
        label = self.label
        if label is None or label.event is None:
            return self
        known = sorted({name for source in self.events for name in source.event_names()})
        mistakes: list[KeyMistake] = []
        if label.event not in known:
            text = f"this never occurs: the logs give {', '.join(known)}" + hint(label.event, known)
            mistakes.append((("label", "event"), text))
        elif label.event in self.target_events:
            mistakes.append((("label", "event"), "this is one of target_events: it cannot be its own label"))
        if self.split.by == "random":
            text = "a random split shows a history what came after its target, and so the label: use another"
            mistakes.append((("split", "by"), text))
        refuse(mistakes)
        return self
