"""The DeepSpeed configuration, what may be passed through, and the learning rate as a function of the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distft.errors import UsageError
from distft.sections.train import Train
from distft.train.engine import Engine
from distft.train.settings import build_config, check_extra_keys, check_train, learning_rate
from distft.train.step import Step
from tests.train.ranks import Toy, ToyLoss


def train(**section: Any) -> Train:
    return Train.model_validate(section)


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        ({"prescale_gradients": True}, "whole batch"),
        ({"gradient_predivide_factor": 2.0}, "whole batch"),
        ({"gradient_allreduce_op": "sum"}, "whole batch"),
        ({"gradient_clipping": 1.0}, "train.clip_norm"),
        ({"train_batch_size": 8}, "train.batch_size"),
        ({"optimizer": {"type": "AdamW"}}, "train.optimizer"),
        ({"bf16": {"enabled": True}}, "train.precision"),
        ({"fp16": {"enabled": True}}, "train.precision"),
        ({"zero_optimization": {"stage": 3}}, "train.zero.stage"),
        ({"elasticity": {"enabled": True}}, "scaling.num_workers"),
        ({"comunication_data_type": "fp32"}, "communication_data_type"),
        ({"zero_optimization": {"overlap_com": True}}, "zero_optimization.overlap_comm"),
        ({"zero_optimization": 2}, "mapping"),
        ({"made_up": 1}, "Remove it"),
    ],
)
def test_keys_that_cannot_be_passed_through_are_refused_with_what_to_do(extra: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_extra_keys(extra)
    assert remedy in str(caught.value)


def test_allowed_keys_reach_the_configuration() -> None:
    section = train(deepspeed={"communication_data_type": "fp32", "zero_optimization": {"overlap_comm": False}})
    config = build_config(section, 100, 2)
    assert config["communication_data_type"] == "fp32"
    zero = {"stage": 2, "reduce_bucket_size": 100, "allgather_bucket_size": 100, "overlap_comm": False}
    assert config["zero_optimization"] == zero
    assert config["train_batch_size"] == 2


def test_every_allowed_zero_key_is_one_of_deepspeeds(one_rank: None) -> None:
    extra = {"zero_optimization": {"overlap_comm": False, "sub_group_size": 1000, "reduce_scatter": True}}
    extra["zero_optimization"] |= {"stage3_param_persistence_threshold": 10}
    Engine(Step(Toy(), ToyLoss()), train(zero={"stage": 3}, deepspeed=extra), torch.device("cpu")).close()


def test_buckets_hold_the_model_at_most() -> None:
    for stage, names in ((2, ("reduce", "allgather")), (3, ("reduce", "allgather", "stage3_prefetch"))):
        zero = build_config(train(zero={"stage": stage, "bucket_elements": 60}), 100, 2)["zero_optimization"]
        assert [zero[f"{name}_bucket_size"] for name in names] == [60] * len(names)
        zero = build_config(train(zero={"stage": stage}), 100, 2)["zero_optimization"]
        assert zero["reduce_bucket_size"] == 100
        odd = build_config(train(zero={"stage": stage}), 101, 2)["zero_optimization"]
        assert odd["allgather_bucket_size"] == 102, "DeepSpeed refuses an odd one"


def test_everything_that_deepspeed_removed_is_refused_by_name() -> None:
    from deepspeed.runtime import config

    removed = [*config._REMOVED_TOP_LEVEL_CONFIG_KEYS, *config._REMOVED_ZERO_CONFIG_KEYS]
    assert len(removed) > 10
    for key in removed:
        inner = key in config._REMOVED_ZERO_CONFIG_KEYS
        with pytest.raises(UsageError, match=r"removed it|Set train"):
            check_extra_keys({"zero_optimization": {key: 1}} if inner else {key: {}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"zero": {"stage": 0, "offload": "cpu"}}, "stage 1, 2 or 3"),
        ({"zero": {"stage": 0}, "precision": "fp16"}, "loss scale"),
    ],
)
def test_combinations_that_do_not_work_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_train(train(**section))


def test_fp16_is_refused_on_a_cpu(one_rank: None) -> None:
    with pytest.raises(UsageError, match="bf16"):
        Engine(Step(Toy(), ToyLoss()), train(precision="fp16"), torch.device("cpu"))


def test_a_model_that_is_frozen_whole_is_refused(one_rank: None) -> None:
    with pytest.raises(UsageError, match="frozen"):
        Engine(Step(Toy(), ToyLoss()).requires_grad_(False), train(), torch.device("cpu"))


def test_learning_rate_warms_up_and_decays() -> None:
    warm = train(learning_rate=1.0, warmup_steps=4, decay="linear")
    assert [learning_rate(warm, step, 14) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(warm, 4, 14) == 1.0 and learning_rate(warm, 9, 14) == 0.5
    assert learning_rate(warm, 14, 14) == 0.0 == learning_rate(warm, 99, 14)
    cosine = train(learning_rate=1.0, decay="cosine")
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)
    assert learning_rate(cosine, 2, 10) > 0.8 > 0.2 > learning_rate(cosine, 8, 10)
    assert {learning_rate(train(learning_rate=0.3), step, 10) for step in range(10)} == {0.3}
