"""What of DeepSpeed a job may set, known without DeepSpeed: so that ``distft check`` tells it in milliseconds.

Enters: the job's ``train`` section. Leaves: what does not fit, with the key and the remedy. Surprising choice:
``train.deepspeed`` is held against a list of keys that are known to be harmless, because DeepSpeed ignores a key
that it does not know, and several that it knows would change the result without a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from distft.sections.train import Train

ZERO_KEYS = frozenset(
    {
        "allgather_partitions", "contiguous_gradients", "ignore_unused_parameters",
        "log_trace_cache_warnings", "overlap_comm", "reduce_scatter",
        "stage3_allgather_sequential", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold", "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold", "stage3_use_all_reduce_for_fetch_params",
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
    "zero_optimization.reduce_bucket_size": "Set train.zero.bucket_elements.",
    "zero_optimization.allgather_bucket_size": "Set train.zero.bucket_elements.",
    "zero_optimization.stage3_prefetch_bucket_size": "Set train.zero.bucket_elements.",
    "zero_optimization.mics_shard_size": "DeepSpeed 0.19 removed it: set train.zero.stage to 3.",
    "zero_optimization.mics_hierarchical_params_gather": "DeepSpeed 0.19 removed it: set train.zero.stage to 3.",
    "zero_optimization.zeropp_loco_param": "DeepSpeed 0.19 removed it; leave it out.",
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
    "activation_checkpointing": "Set train.activation_checkpointing to true.",
    "graph_harvesting": "DeepSpeed 0.19 removed it; leave it out.",
    "eigenvalue": "DeepSpeed 0.19 removed it; leave it out.",
    "sparse_attention": "DeepSpeed 0.19 removed it; leave it out.",
    "steps_per_print": "Progress is in metrics.jsonl; leave it out.",
}


class Misfit(NamedTuple):
    """One key below ``train`` that cannot be: what is wrong with it, what was expected, the remedy."""

    path: tuple[str, ...]
    what: str
    expected: str
    remedy: str

    def words(self, section: str) -> str:
        """The sentences to be told after the key and its value; ``section`` is train, or finetune with its keys."""
        # The nearest name says more than a list of all of them.
        expected = f"Expected {self.expected}" if self.expected and not self.remedy.startswith("Did you") else ""
        sentences = [part if part.endswith((".", "?")) else f"{part}." for part in (self.what, expected, self.remedy)]
        told = " ".join(sentence for sentence in sentences if sentence != ".")
        return told.replace("train.", f"{section}.")


def train_misfits(train: Train) -> Iterator[Misfit]:
    """What DeepSpeed cannot do, or would do without telling that it changes the result."""
    yield from extra_misfits(train.deepspeed)
    if train.precision == "fp16" and train.zero.stage == 0:
        yield Misfit(
            ("precision",),
            "fp16 is not possible at train.zero.stage 0",
            "stage 1, 2 or 3: at stage 0 DeepSpeed 0.19 divides by a loss scale that it never multiplied by",
            "Set train.zero.stage to 1.",
        )
    if train.zero.offload != "none" and train.zero.stage == 0:
        yield Misfit(
            ("zero", "offload"),
            f"{train.zero.offload} is not possible at train.zero.stage 0",
            "stage 1, 2 or 3, where the optimiser state is split from the weights",
            "Set train.zero.stage to 2, or train.zero.offload to none.",
        )


def extra_misfits(extra: Mapping[str, Any]) -> Iterator[Misfit]:
    """The keys of ``train.deepspeed`` that DeepSpeed or distft does not take."""
    for key, value in extra.items():
        if key not in SECTIONS:
            yield from _misfit(("deepspeed",), key, TOP_KEYS | SECTIONS.keys())
        elif not isinstance(value, Mapping):
            yield Misfit(("deepspeed", key), "is not a mapping of keys", "", "")
        else:
            for inner in value:
                yield from _misfit(("deepspeed", key), inner, SECTIONS[key])


def _misfit(section: tuple[str, ...], key: str, allowed: frozenset[str]) -> Iterator[Misfit]:
    prefix = "".join(f"{part}." for part in section[1:])
    if key in allowed:
        return
    if prefix + key in INSTEAD:
        yield Misfit((*section, key), "cannot be passed through", "", INSTEAD[prefix + key])
        return
    near = difflib.get_close_matches(key, allowed, 1)
    remedy = f"Did you mean {prefix}{near[0]}?" if near else "Remove it."
    yield Misfit((*section, key), "is not known", f"one of {', '.join(sorted(allowed))}", remedy)
