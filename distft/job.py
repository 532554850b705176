"""The job: one immutable, validated value that every stage is a function of.

Each section of the job file is a class of ``distft.sections``, or the ``Config`` of a component; its fields are the
keys, with their defaults and bounds: this is the only place where a default is defined. ``jobfile`` reads the YAML
and reports mistakes with line and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distft.component import KeyMistake, LossConfig, ModelConfig, Section, configs, refuse, union
from distft.deepspeed_keys import train_misfits
from distft.losses.softmax.config import Config as Softmax
from distft.models.transformer.config import Config as Transformer
from distft.schema import LABEL_METRICS, VALUE_METRICS, ExcludeSeen
from distft.sections.data import Data
from distft.sections.deploy import Deploy
from distft.sections.serve import Evaluate, Serve
from distft.sections.train import Finetune, Scaling, Tracking, Train
from distft.sections.tune import Tune
from distft.sections.values import Name, StorageText

if TYPE_CHECKING:
    AnyModel = ModelConfig
    AnyLoss = LossConfig
else:
    AnyModel = union("models", "kind", Transformer)
    AnyLoss = union("losses", "kind", Softmax)

StageName = Literal["prepare", "train", "tune", "finetune", "evaluate", "export", "deploy"]
STAGE_ORDER: tuple[StageName, ...] = ("prepare", "tune", "train", "finetune", "evaluate", "export", "deploy")


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
    deploy: Deploy = Deploy()

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
        for name, section in (("train", self.train), ("finetune", self.finetune)):
            if self.model.retrieval == "pair" and section and section.zero.stage == 3:
                # Its validation goes through the layers as often as a rank has pairs; stage 3 needs all ranks then.
                text = "expected 0, 1 or 2: a model {} is validated with all of its weights on every worker"
                refuse([((name, "zero", "stage"), text.format(self.model.kind))])
        return self

    @model_validator(mode="after")
    def _nothing_that_is_ranked_goes_unlearnt(self) -> Job:
        ranked, rules = self.evaluate.exclude_seen, get_args(ExcludeSeen)
        if rules.index(self.loss.excluded) < rules.index(ranked):
            text = f"expected no more than evaluate.exclude_seen ({ranked}): what no target was compared with while"
            refuse([(("loss", "exclude_seen"), f"{text} training would stand anywhere in a ranking")])
        return self

    @model_validator(mode="after")
    def _item_table_can_be_sharded(self) -> Job:
        if not self.model.item_table.is_sharded:
            return self
        path, mistakes = ("model", "item_table", "placement"), list[KeyMistake]()
        if not self.model.shards_items:
            text = f"a model {self.model.kind} needs all of its tables on every worker: use replicated, or a model over"
            mistakes.append((path, f"{text} the sequence of events, such as transformer"))
        if self.loss.needs_all_items:
            text = (
                f"the loss {self.loss.kind} needs the vectors of all items on every worker, and this table is sharded"
            )
            mistakes.append((path, f"{text}: use a loss of sampled items, such as sampled_softmax, or replicated"))
        if self.finetune is not None:
            text = "a fine-tuning starts from the whole table of its base on every worker: use replicated, which the"
            mistakes.append((path, f"{text} bundle of a model with a sharded table is as good for as any other"))
        refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _item_vectors_can_be_stored(self) -> Job:
        if self.model.retrieval == "pair" and self.serve.item_vectors != "fp32":
            text = f"expected fp32: a model {self.model.kind} scores pairs, and has no vectors of items to store"
            refuse([(("serve", "item_vectors"), text)])
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
        # A job that only fine-tunes has a section train all the same: that of the defaults, which suit no other loss.
        trains = {"train", "tune"} & set(self.stages) or "finetune" not in self.stages
        stopping = (("train", self.train if trains else None), ("finetune", self.finetune))
        watched: list[tuple[tuple[str, ...], str | None]] = [(("tune", "metric"), self.tune.metric)]
        watched += [
            ((name, "early_stopping", "metric"), section.early_stopping.metric)
            for name, section in stopping
            if section and section.early_stopping
        ]
        known = self.validation_metrics
        text = f"with the loss {self.loss.kind} validation computes {known} and loss"
        refuse([(path, text) for path, metric in watched if not self.validates(metric or "loss")])
        return self

    @property
    def validation_metrics(self) -> str:
        """What validation computes beside the loss, in words."""
        return ", ".join(self._judged_metrics) or "hr@k, ndcg@k, mrr@k, recall@k, map@k"

    @property
    def _judged_metrics(self) -> Sequence[str]:
        return {"labels": LABEL_METRICS, "values": VALUE_METRICS}.get(self.loss.judges or "", ())

    def validates(self, metric: str) -> bool:
        """True if validation computes this metric with the job's loss."""
        known = self._judged_metrics
        family, at, _ = metric.partition("@")
        ranks = bool(at) and not known and family != "coverage"
        return family == "loss" or ranks or metric in known

    def trained_as(self, stage: str) -> Job:
        """The job whose ``train`` section is what the stage trains by: of finetune that is its own section."""
        if stage != "finetune":
            return self
        assert self.finetune is not None, "the job is refused without"
        return self.model_copy(update={"train": self.finetune})

    @model_validator(mode="after")
    def _finetune_has_its_section(self) -> Job:
        if "finetune" in self.stages and self.finetune is None:
            refuse([(("finetune",), "this section is needed, with its key 'from': 'stages' lists finetune")])
        return self
