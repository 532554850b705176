"""The DeepSpeed configuration of a job, its optimiser and its learning rate; what may be passed through, and what not.

Enters: the job's ``train`` section. Leaves: the dictionary that DeepSpeed takes, made in one place. Surprising
choice: ``train.deepspeed`` is held against a list of keys that are known to be harmless, because DeepSpeed ignores
a key that it does not know, and several that it knows would change the result without a word.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distft.errors import UsageError
from distft.job import Train

MAX_BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced in one message: DeepSpeed's default of 5e8 takes 2 GB however small the model is."""

ZERO_KEYS = frozenset(
    {
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "ignore_unused_parameters",
        "log_trace_cache_warnings", "overlap_comm", "reduce_bucket_size", "reduce_scatter",
        "stage3_allgather_sequential", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold", "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size", "use_multi_rank_bucket_allreduce",
    }
)  # fmt: skip
FP16_KEYS = frozenset(
    {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale"}
)
SECTIONS: dict[str, frozenset[str]] = {"zero_optimization": ZERO_KEYS, "fp16": FP16_KEYS}
TOP_KEYS = frozenset(
    {
        "comms_logger", "communication_data_type", "csv_monitor", "disable_python_gc", "flops_profiler",
        "memory_breakdown", "tensorboard", "timers", "wall_clock_breakdown", "wandb",
    }
)  # fmt: skip
INSTEAD = {
    "train_batch_size": "train.batch_size counts histories per step; set that.",
    "train_micro_batch_size_per_gpu": "Micro-batches are cut by train.max_tokens_per_micro_batch; set that.",
    "gradient_accumulation_steps": "It follows from train.max_tokens_per_micro_batch; set that.",
    "managed_gradient_accumulation": "distft sets the accumulation boundary itself; leave it out.",
    "optimizer": "Set train.optimizer, train.learning_rate, train.betas, train.momentum and train.weight_decay.",
    "scheduler": "Set train.warmup_steps and train.decay.",
    "gradient_clipping": "Set train.clip_norm.",
    "bf16": "Set train.precision to bf16.",
    "bfloat16": "Set train.precision to bf16.",
    "fp16.enabled": "Set train.precision to fp16.",
    "amp": "DeepSpeed 0.19 removed it: set train.precision to bf16 or fp16.",
    "torch_autocast": "Set train.precision to bf16 or fp16.",
    "zero_optimization.stage": "Set train.zero.stage.",
    "zero_optimization.offload_optimizer": "Set train.zero.offload to cpu.",
    "zero_optimization.offload_param": "Set train.zero.offload to cpu with train.zero.stage 3.",
    "zero_optimization.round_robin_gradients": "It reorders the state that checkpoints are cut from; leave it out.",
    "prescale_gradients": "It would break the exact division by the whole batch's count; leave it out.",
    "gradient_predivide_factor": "It would break the exact division by the whole batch's count; leave it out.",
    "gradient_allreduce_op": "It would break the exact division by the whole batch's count; leave it out.",
    "elasticity": "DeepSpeed 0.19 removed it: set scaling.num_workers to [min, max].",
    "sparse_gradients": "DeepSpeed 0.19 removed it; leave it out.",
    "nebula": "DeepSpeed 0.19 removed it: distft writes its own checkpoints; leave it out.",
    "checkpoint": "distft writes its own checkpoints: set train.checkpoint.",
    "curriculum_learning": "DeepSpeed 0.19 removed it; leave it out.",
    "data_efficiency": "distft reads the data itself; leave it out.",
    "progressive_layer_drop": "DeepSpeed 0.19 removed it; leave it out.",
    "compression_training": "DeepSpeed 0.19 removed it; leave it out.",
    "quantize_training": "DeepSpeed 0.19 removed it; leave it out.",
    "eigenvalue": "DeepSpeed 0.19 removed it; leave it out.",
    "sparse_attention": "DeepSpeed 0.19 removed it; leave it out.",
    "steps_per_print": "Progress is in metrics.jsonl; leave it out.",
}


def check_train(train: Train) -> None:
    """Raises UsageError for what DeepSpeed cannot do, or would do without telling that it changes the result."""
    check_extra_keys(train.deepspeed)
    if train.precision == "fp16" and train.zero.stage == 0:
        raise UsageError(
            "train.precision is fp16 at train.zero.stage 0",
            "stage 1, 2 or 3: at stage 0 DeepSpeed 0.19 divides by a loss scale that it never multiplied by",
            "Set train.zero.stage to 1.",
        )
    if train.zero.offload == "cpu" and train.zero.stage == 0:
        raise UsageError(
            "train.zero.offload is cpu at train.zero.stage 0",
            "stage 1, 2 or 3, where the optimiser state is split from the weights",
            "Set train.zero.stage to 2, or train.zero.offload to none.",
        )


def check_extra_keys(extra: Mapping[str, Any]) -> None:
    """Raises UsageError for a key of ``train.deepspeed`` that DeepSpeed or distft does not take."""
    for key, value in extra.items():
        if key not in SECTIONS:
            _check_key(key, "", TOP_KEYS | SECTIONS.keys())
            continue
        if not isinstance(value, Mapping):
            raise UsageError(f"train.deepspeed.{key} is {value!r}", "a mapping of keys")
        for inner in value:
            _check_key(inner, f"{key}.", SECTIONS[key])


def _check_key(key: str, section: str, allowed: frozenset[str]) -> None:
    if key in allowed:
        return
    if section + key in INSTEAD:
        raise UsageError(f"train.deepspeed.{section}{key} cannot be passed through", "", INSTEAD[section + key])
    near = difflib.get_close_matches(key, allowed, 1)
    remedy = f"Did you mean {section}{near[0]}?" if near else "Remove it."
    raise UsageError(f"train.deepspeed.{section}{key} is not known", f"one of {', '.join(sorted(allowed))}", remedy)


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
    section: dict[str, Any] = {
        "stage": train.zero.stage,
        "reduce_bucket_size": max(1, min(num_parameters, MAX_BUCKET_ELEMENTS)),
    }
    if train.zero.offload == "cpu":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if train.zero.stage == 3:
            section["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {**section, **train.deepspeed.get("zero_optimization", {})}


def build_optimizer(train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's fused optimiser over the parameters that train; its learning rate is set anew before every step.

    It starts at 0, because DeepSpeed takes one step on zero gradients while it sets itself up at some stages.
    """
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
