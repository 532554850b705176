"""The job: one immutable, validated value that every stage is a function of.

Each class below is a section of the job file; its fields are the keys, with their defaults and bounds: this is
the only place where a default is defined. ``jobfile`` reads the YAML and reports mistakes with line and column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from distft.component import (
    MAX_COUNT,
    EventName,
    KeyMistake,
    LossConfig,
    ModelConfig,
    Section,
    SourceConfig,
    configs,
    refuse,
    union,
)
from distft.deepspeed_keys import train_misfits
from distft.losses.softmax.config import Config as Softmax
from distft.models.transformer.config import Config as Transformer
from distft.schema import (
    ITEM_ID,
    LABEL_METRICS,
    METRIC_PATTERN,
    POINTWISE_METRICS,
    RANKING_METRICS,
    USER_ID,
    VALUE_METRICS,
)

if TYPE_CHECKING:
    AnySource = SourceConfig
    AnyModel = ModelConfig
    AnyLoss = LossConfig
else:
    AnySource = union("data/sources", "source")
    AnyModel = union("models", "kind", Transformer)
    AnyLoss = union("losses", "kind", Softmax)

MAX_DAYS = 36_500
StageName = Literal["prepare", "train", "tune", "finetune", "evaluate", "export"]
STAGE_ORDER: tuple[StageName, ...] = ("prepare", "tune", "train", "finetune", "evaluate", "export")


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _metric(name: str) -> str:
    if not METRIC_PATTERN.match(name):
        family, at, k = name.partition("@")
        near = difflib.get_close_matches(family, RANKING_METRICS if at else POINTWISE_METRICS, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}{at}{k}'?" if near else ""
        raise ValueError(f"expected a metric such as ndcg@10, hr@10, mrr@10, recall@10 or loss{hint}")
    return name


def _name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise ValueError("expected 1 to 63 lower-case letters, digits and dashes, with no dash at either end")
    return name


def checked_storage(text: str) -> str:
    """The text of a storage, unchanged; raises ValueError, in words, for one that would name another place."""
    if not text.strip():
        raise ValueError("expected a folder or a URI, this is empty")
    if text != text.strip() or any(character < " " for character in text):
        raise ValueError("expected a folder or a URI without spaces around it or control characters in it")
    if re.match(r"^[a-zA-Z0-9+.-]+://[^/]*:[^/]*@", text):
        raise ValueError("expected no password in it, since it stands in every artefact: name it in the environment")
    if text.startswith(("~", "$")):
        raise ValueError(f"expected the whole path: {text.split('/')[0]} is not expanded here")
    scheme, colon, rest = text.partition(":")
    if not colon or not re.match(r"^[A-Za-z][A-Za-z0-9+.-]+$", scheme) or not rest.startswith("/"):
        return text
    if scheme != scheme.lower():
        raise ValueError(f"expected a scheme in lower case: {scheme.lower()}:{rest}")
    if scheme == "file" and not re.match(r"^///[^/]", rest):
        raise ValueError(f"expected three slashes and the whole path: file:///{rest.lstrip('/')}")
    if not re.match(r"^//[^/]", rest) and scheme not in ("file", "hdfs", "viewfs"):
        raise ValueError(f"expected two slashes and a name: {scheme}://{rest.lstrip('/') or 'bucket/folder'}")
    return text


def _number_of_workers(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """One message for whatever is wrong, instead of one for each form that the key may have."""
    try:
        found = parse(value)
    except ValidationError:
        found = 0
    low, high = found if isinstance(found, tuple) else (found, found)
    if not 1 <= low <= high <= MAX_COUNT:
        raise ValueError("expected a whole number of at least 1, or [min, max] in that order for elastic training")
    return found


def _quantiles(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """One message for whatever is wrong."""
    try:
        low, high = parse(value)
    except ValidationError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise ValueError("expected [low, high], shares from 0 to 1 in that order, such as [0.01, 0.99]")
    return low, high


def _no_boolean(value: Any) -> Any:
    """In Python true equals 1, so that a literal 1 lets it pass."""
    return str(value).lower() if isinstance(value, bool) else value


def _use_gpu(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("expected true, false or auto")
    return value


def _mlflow_uri(text: str) -> str:
    found = re.match(r"^(sqlite|mysql|postgresql|mssql|https?)(\+[a-z0-9]+)?://(.+)$", text)
    if found is None:
        raise ValueError("expected sqlite:///FILE, or an MLflow server such as http://host:5000")
    if found[1] == "sqlite":
        if not re.match(r"^/[^/]|^//[^/]", found[3]):
            raise ValueError("expected three slashes and a path (sqlite:///runs/mlflow.db), or four and a whole path")
    elif re.search(r"[@?#]", found[3]):
        raise ValueError(
            "expected no user, password or parameters in it, since it stands in every artefact: a server's come from "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a database's from its driver's own files"
        )
    return text


NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": NAME_PATTERN})]
StorageText = Annotated[str, AfterValidator(checked_storage), Field(json_schema_extra={"minLength": 1})]
MlflowUri = Annotated[str, AfterValidator(_mlflow_uri)]
Metric = Annotated[str, AfterValidator(_metric)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NumWorkers = Annotated[int | tuple[int, int], WrapValidator(_number_of_workers)]
Quantiles = Annotated[tuple[float, float], WrapValidator(_quantiles)]
UseGpu = Annotated[bool | Literal["auto"], BeforeValidator(_use_gpu)]


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
                (("columns", ours), f"expected a name of 'header': {', '.join(header)}" + _hint(theirs, header))
                for ours, theirs in self.columns.items()
                if header and theirs not in header
            ]
            + [
                ((key, index), f"expected a name of 'columns': {', '.join(known)}" + _hint(name, known))
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
                found.append((("features", name), f"expected an item or user feature: {known}" + _hint(name, [*kinds])))
            elif kind == "text":
                found.append((("features", name), "this is a text, which is shown to people and not encoded"))
            else:
                found += [(("features", name, *path), text) for path, text in own.misfits(kind == "number")]
        return found


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
                (("target_events", index), f"this never occurs: the logs give {', '.join(known)}" + _hint(name, known))
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
            text = f"this never occurs: the logs give {', '.join(known)}" + _hint(label.event, known)
            mistakes.append((("label", "event"), text))
        elif label.event in self.target_events:
            mistakes.append((("label", "event"), "this is one of target_events: it cannot be its own label"))
        if self.split.by == "random":
            text = "a random split shows a history what came after its target, and so the label: use another"
            mistakes.append((("split", "by"), text))
        refuse(mistakes)
        return self


class Zero(Section):
    """DeepSpeed ZeRO: 0 replicates all state; 1 splits the optimiser, 2 also gradients, 3 also parameters."""

    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_boolean)] = 2
    offload: Literal["none", "cpu"] = Field(
        "none", description="where the optimiser state (stage 3: and weights) rests"
    )
    bucket_elements: int = Field(
        50_000_000, ge=1, le=MAX_COUNT, description="numbers sent in one message; more take memory, fewer take turns"
    )


class Validate(Section):
    """When the validation split is scored."""

    every_epochs: int = Field(1, ge=1, le=MAX_COUNT)


class EarlyStopping(Section):
    """When training ends before its last epoch."""

    metric: Metric = "ndcg@10"
    patience: int = Field(5, ge=1, le=MAX_COUNT, description="validations without a better value before training ends")


class Checkpoint(Section):
    """How often a checkpoint is written, and how many are kept."""

    every_steps: int = Field(200, ge=1, le=MAX_COUNT)
    keep: int = Field(2, ge=1, le=MAX_COUNT, description="latest checkpoints kept; the best one is kept beside them")
    asynchronous: bool = Field(
        True,
        description="write behind the training, from a copy of the state in the host's memory; false waits for it",
    )


class Augment(Section):
    """Changes of the training histories, drawn anew every epoch: for shops with few events a user."""

    crop: float = Field(0, ge=0, le=1, description="share of the rows that are cut to a run of half to all events")
    mask: float = Field(0, ge=0, lt=1, description="share of the items in every row that the model does not see")
    reorder: float = Field(
        0, ge=0, le=1, description="share of the rows of which a fifth, in one place, comes in another order"
    )


class Train(Section):
    """How a model is trained."""

    epochs: int = Field(20, ge=1, le=MAX_COUNT)
    batch_size: int = Field(128, ge=1, le=MAX_COUNT, description="histories per optimiser step, over all workers")
    learning_rate: float = Field(1e-3, gt=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="of adam and adamw")
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0, le=MAX_COUNT, description="steps over which the learning rate rises from 0")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up, to 0 at the end")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the whole gradient; 0 does not clip")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero: Zero = Zero()
    activation_checkpointing: bool = Field(
        False, description="keep only the input of each block, and compute the rest again for the gradient: less memory"
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="further DeepSpeed keys, passed through")
    windows: Literal["last", "all", "each"] = Field(
        "last",
        description="train on a long history's latest window, on all of them, or on each target by itself, with the "
        "events before it (random split: with all others of its user), which batch_size then counts",
    )
    baskets: bool = Field(
        False, description="a position predicts an event of the next time that has any, not one of its own: for logs "
        "whose baskets share a time",
    )  # fmt: skip
    max_tokens_per_micro_batch: int = Field(16_384, ge=1, le=MAX_COUNT, description="padded positions computed at once")
    augment: Augment = Augment()
    num_streams: int = Field(
        64, ge=1, le=MAX_COUNT, description="virtual reading streams; bounds the number of workers"
    )
    validate_: Validate = Field(Validate(), alias="validate")
    early_stopping: EarlyStopping | None = EarlyStopping()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _examples_keep_their_target(self) -> Train:
        changes = [key for key in ("crop", "reorder") if self.windows == "each" and getattr(self.augment, key)]
        text = "with windows: each the last event is the target, which this would take away; mask is possible"
        refuse([(("augment", key), text) for key in changes])
        return self

    @model_validator(mode="after")
    def _baskets_are_of_windows(self) -> Train:
        if self.baskets and self.windows == "each":
            refuse([(("baskets",), "with windows: each every target is predicted by itself, not as one of a basket")])
        return self


class Scaling(Section):
    """On what the training runs."""

    num_workers: NumWorkers = Field(1, description="a number, or [min, max] for elastic training")
    use_gpu: UseGpu = "auto"
    cpus_per_worker: float = Field(1, gt=0, le=MAX_COUNT)
    max_failures: int = Field(3, ge=-1, le=MAX_COUNT, description="restarts of the worker group; -1 is without limit")
    stall_timeout_s: float = Field(
        600, ge=5, le=MAX_COUNT, description="an attempt without any progress for so long is ended and started anew"
    )
    resize_interval_s: float = Field(
        60, ge=1, le=MAX_COUNT, description="how often an elastic training looks for room for more workers"
    )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Smallest and largest number of workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)


class Finetune(Train):
    """Training that starts from a trained model and freezes parts of it; otherwise the keys of ``train``."""

    from_: str = Field(alias="from", description="bundle or checkpoint")
    freeze: tuple[str, ...] = Field(("embeddings",), description="layer groups that do not train")
    learning_rate: float = Field(3e-4, gt=0)
    epochs: int = Field(5, ge=1, le=MAX_COUNT)


class Tune(Section):
    """A search over job keys."""

    num_trials: int = Field(16, ge=1, le=MAX_COUNT)
    search: dict[str, dict[str, Any]] = Field(
        default={
            "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "train.batch_size": {"choice": [64, 128, 256]},
        },
        description="job key → {loguniform | uniform: [low, high]} or {choice: [...]}",
    )


class Evaluate(Section):
    """How the test split is scored; baselines and the server follow the same exclusion rule."""

    k: tuple[Rank, ...] = Field((1, 5, 10, 20), min_length=1)
    exclude_seen: Literal["all", "targets", "none"] = Field(
        "all", description="items of the history that are not recommended: all, those of target events, or none"
    )


class Serve(Section):
    """How the service scales and what it accepts."""

    min_replicas: int = Field(1, ge=0, le=MAX_COUNT)
    max_replicas: int = Field(4, ge=1, le=MAX_COUNT)
    max_k: int = Field(1000, ge=1, le=MAX_COUNT, description="longest list that a request may ask for")
    max_batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="requests answered in one forward pass")
    batch_wait_s: float = Field(0.005, ge=0, le=1, description="how long the first request of a batch waits")
    request_timeout_s: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _replicas(self) -> Serve:
        if self.min_replicas > self.max_replicas:
            refuse([(("min_replicas",), f"this is above max_replicas ({self.max_replicas})")])
        return self


class Tracking(Section):
    """Where trainings are recorded beside their own folder."""

    mlflow: MlflowUri | None = Field(None, description="sqlite:///FILE, another database, or an MLflow server's URL")
    experiment: str | None = Field(None, min_length=1, max_length=250, description="in MLflow; else the job's name")

    @property
    def is_server(self) -> bool:
        """True where MLflow is reached over HTTP."""
        return (self.mlflow or "").startswith("http")


class Job(Section):
    """One run from event logs to a served model."""

    name: Name = Field(description="lower case, digits and dashes")
    storage: StorageText = Field(description="folder or URI; every stage writes below it")
    seed: int = Field(1, ge=0, lt=2**31)
    stages: tuple[StageName, ...] = Field(("prepare", "train", "evaluate", "export"), min_length=1)
    data: Data
    model: AnyModel = Transformer()
    loss: AnyLoss = Softmax()
    train: Train = Train()
    scaling: Scaling = Scaling()
    tracking: Tracking = Tracking()
    finetune: Finetune | None = None
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
        wanted = tuple(stage for stage in STAGE_ORDER if stage in stages)
        if wanted != stages:
            raise ValueError(f"expected each stage once and in this order: {', '.join(wanted)}")
        return stages

    @field_validator("train", "finetune")
    @classmethod
    def _deepspeed_can(cls, section: Train | None, info: ValidationInfo) -> Train | None:
        refuse(
            [(misfit.path, misfit.words(str(info.field_name))) for misfit in train_misfits(section)] if section else []
        )
        return section

    @model_validator(mode="after")
    def _loss_fits_the_model(self) -> Job:
        if self.model.has_own_scores and not self.loss.takes_own_scores:
            able = [
                str(config.model_fields["kind"].default)
                for config in configs("losses")
                if issubclass(config, LossConfig) and config.takes_own_scores
            ]
            text = f"the loss {self.loss.kind} cannot learn what to copy: leave this out, or take {' or '.join(able)}"
            refuse([(("model", "copy"), text)])
        if self.model.retrieval == "pair" and not self.loss.takes_pairs:
            refuse([(("loss", "kind"), f"expected a loss of single pairs, such as bce, for a model {self.model.kind}")])
        if self.model.retrieval == "pair" and self.train.zero.stage == 3:
            # Its validation goes through the layers as often as a rank has pairs; stage 3 needs all ranks each time.
            text = f"expected 0, 1 or 2: a model {self.model.kind} is validated with all of its weights on every worker"
            refuse([(("train", "zero", "stage"), text)])
        return self

    @model_validator(mode="after")
    def _labels_fit_the_loss(self) -> Job:
        judges, label = self.loss.judges, self.data.label
        mistakes: list[KeyMistake] = []
        if label and judges is None:
            text = f"the loss {self.loss.kind} takes every target as positive, and data.label tells which are not: "
            mistakes.append((("loss",), text + "use {kind: bce, num_negatives: 0}, or leave data.label out"))
        if judges == "labels" and label is None:
            text = f"this is needed: the loss {self.loss.kind} without negatives learns from targets that are 0 or 1"
            mistakes.append((("data", "label"), text))
        refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _validation_computes_the_metric(self) -> Job:
        known = {"labels": LABEL_METRICS, "values": VALUE_METRICS}.get(self.loss.judges or "", ())
        mistakes: list[KeyMistake] = []
        for name, section in (("train", self.train), ("finetune", self.finetune)):
            metric = section.early_stopping.metric if section and section.early_stopping else "loss"
            family, at, _ = metric.partition("@")
            if metric != "loss" and (not at or known or family == "coverage") and metric not in known:
                names = ", ".join(known) or "hr@k, ndcg@k, mrr@k, recall@k, map@k"
                text = f"with the loss {self.loss.kind} validation computes {names} and loss"
                mistakes.append(((name, "early_stopping", "metric"), text))
        refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _finetune_has_its_section(self) -> Job:
        if "finetune" in self.stages and self.finetune is None:
            refuse([(("finetune",), "this section is needed, with its key 'from': 'stages' lists finetune")])
        return self
