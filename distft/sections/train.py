"""The ``train`` section, and those beside it: fine-tuning, on what it runs, where it is recorded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from distft.component import MAX_COUNT, KeyMistake, Section, refuse
from distft.sections.values import Beta, Metric, MlflowUri, NumWorkers, UseGpu, no_boolean


class Zero(Section):
    """DeepSpeed ZeRO: 0 replicates all state; 1 splits the optimiser, 2 also gradients, 3 also parameters."""

    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(no_boolean)] = 2
    offload: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where fp32 weights and optimiser state rest (at stage 3 cpu and nvme hold the weights of "
        "the forward pass in the CPU's memory)",
    )  # fmt: skip
    nvme_path: str | None = Field(
        None, min_length=1, description="folder of a fast disk of every machine that trains, for offload: nvme"
    )
    bucket_elements: int = Field(
        50_000_000, ge=1, le=MAX_COUNT, description="numbers sent in one message; more take memory, fewer take turns"
    )

    @model_validator(mode="after")
    def _files_have_a_folder(self) -> Zero:
        if self.offload == "nvme" and self.nvme_path is None:
            refuse([(("nvme_path",), "this is needed: offload is nvme, and says not where")])
        if self.offload != "nvme" and self.nvme_path is not None:
            refuse([(("nvme_path",), "this belongs to offload: nvme")])
        return self


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


class LowRank(Section):
    """Adapters of low rank beside the linear layers of the frozen blocks, merged into them on export."""

    rank: int = Field(8, ge=1, le=4096)


class Unfreeze(Section):
    """When more of the model begins to train."""

    after_epochs: int = Field(ge=1, le=MAX_COUNT)
    layers: tuple[str, ...] = Field(min_length=1, description="of those in freeze, named likewise")


class Finetune(Train):
    """Training that starts from a trained model and freezes parts of it; otherwise the keys of ``train``."""

    from_: str = Field(alias="from", min_length=1, description="bundle, checkpoint, or folder of a training")
    freeze: tuple[str, ...] = Field(
        ("embeddings",),
        description="what does not train: layer groups (embeddings, blocks.0-3, blocks, head), 'first 5' of them, "
        "or a /regex/ over names of parameters",
    )
    unfreeze: tuple[Unfreeze, ...] = Field((), description="what of it trains later, in the order of time")
    cache: bool = Field(
        False, description="keep what the lowest layers give, as far as they are frozen, in a file of each worker's "
        "folder for temporary files: computed once, not in every epoch",
    )  # fmt: skip
    reset: tuple[str, ...] = Field((), description="what starts anew instead of from the base, named likewise")
    lora: LowRank | None = Field(None, description="train adapters of low rank beside the frozen blocks' linear layers")
    learning_rate: float = Field(3e-4, gt=0)
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="learning rates of some layer groups, named likewise; all others have the one"
    )
    epochs: int = Field(5, ge=1, le=MAX_COUNT)

    @model_validator(mode="after")
    def _later_is_later(self) -> Finetune:
        epochs = [0, *(one.after_epochs for one in self.unfreeze), self.epochs]
        mistakes: list[KeyMistake] = []
        for place, (before, now, after) in enumerate(zip(epochs, epochs[1:], epochs[2:], strict=False)):
            if now <= before:
                text = f"expected more than {before}, that of the one before: they stand in the order of time"
                mistakes.append((("unfreeze", place, "after_epochs"), text))
            if place == len(self.unfreeze) - 1 and now >= after:
                text = f"expected less than {after}, the epochs of all: nothing would train after it"
                mistakes.append((("unfreeze", place, "after_epochs"), text))
        refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _what_is_kept_comes_again(self) -> Finetune:
        if not self.cache:
            return self
        changes = [key for key in ("crop", "mask", "reorder") if getattr(self.augment, key)]
        text = "with cache: true a history must be the same in every epoch, or what is kept of it is never used"
        mistakes: list[KeyMistake] = [(("augment", key), text) for key in changes]
        if self.zero.stage == 3:
            text = "expected 0, 1 or 2 with cache: true: at stage 3 all workers go through every layer together"
            mistakes.append((("zero", "stage"), text))
        refuse(mistakes)
        return self


class Tracking(Section):
    """Where trainings are recorded beside their own folder."""

    mlflow: MlflowUri | None = Field(None, description="sqlite:///FILE, another database, or an MLflow server's URL")
    experiment: str | None = Field(None, min_length=1, max_length=250, description="in MLflow; else the job's name")

    @property
    def is_server(self) -> bool:
        """True where MLflow is reached over HTTP."""
        return (self.mlflow or "").startswith("http")
