"""The DeepSpeed configuration of a job, its optimiser and its learning rate.

Enters: the job's ``train`` section. Leaves: the dictionary that DeepSpeed takes, made in one place; what may be
passed through, and what not, stands in ``deepspeed_keys``. Surprising choice: the batch sizes in it are nominal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distft.deepspeed_keys import SECTIONS, Misfit, extra_misfits, train_misfits
from distft.errors import UsageError
from distft.sections.train import Train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RATE_FACTOR = "rate_factor"
"""Key of an optimiser's parameter groups: what the job's learning rate is multiplied by there."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    parameters: list[nn.Parameter]
    rate_factor: float = 1.0


def check_train(train: Train) -> None:
    """Raises UsageError for what DeepSpeed cannot do, or would do without telling that it changes the result."""
    _refuse(train_misfits(train))


def check_extra_keys(extra: Mapping[str, Any]) -> None:
    """Raises UsageError for a key of ``train.deepspeed`` that DeepSpeed or distft does not take."""
    _refuse(extra_misfits(extra))


def _refuse(misfits: Iterable[Misfit]) -> None:
    for misfit in misfits:
        raise UsageError(f"train.{'.'.join(misfit.path)} {misfit.what}", misfit.expected, misfit.remedy)


def build_config(train: Train, num_parameters: int, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a job: the only place where one is made.

    The batch sizes are nominal: how many histories stand behind a micro-batch only the step knows, and it sets
    the accumulation boundary by hand.
    """
    extra = {key: value for key, value in train.deepspeed.items() if key not in SECTIONS}
    config: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": _zero_section(train, num_parameters),
        **extra,
    }
    if train.precision != "fp32":
        config[train.precision] = {**train.deepspeed.get(train.precision, {}), "enabled": True}
        if train.zero.stage > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero_section(train: Train, num_parameters: int) -> dict[str, Any]:
    # DeepSpeed makes its buckets as large as it is told, however small the model is.
    bucket = max(1, min(num_parameters, train.zero.bucket_elements))
    bucket += bucket % 2  # it refuses an odd one where several ranks share the state
    section: dict[str, Any] = {
        "stage": train.zero.stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if train.zero.stage == 3:
        section["stage3_prefetch_bucket_size"] = bucket
    if train.zero.offload != "none":  # what rests in files is a CPU's for DeepSpeed
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if train.zero.stage == 3:
            section["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {**section, **train.deepspeed.get("zero_optimization", {})}


def build_optimizer(train: Train, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """Torch's fused optimiser over the parameters that train; its learning rate is set anew before every step.

    It starts at 0, because DeepSpeed takes one step on zero gradients while it sets itself up at some stages.
    """
    parameters = [{"params": group.parameters, RATE_FACTOR: group.rate_factor} for group in groups]
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=0.0, betas=train.betas, weight_decay=train.weight_decay, fused=True)


def learning_rate(train: Train, step: int, num_steps: int) -> float:
    """The learning rate of optimiser step ``step`` (from 0) of ``num_steps``: a pure function, so nothing is saved.

    Linear warm-up over ``warmup_steps``, then constant, or linear or half-cosine to 0 after the last step.
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    left = max(1, num_steps - train.warmup_steps)
    done = min(1.0, (step - train.warmup_steps) / left)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[train.decay]
    return train.learning_rate * factor
