"""The regression that a pointwise model must beat: the model ``linear``, fitted to the same examples and features.

Enters: a job with a pointwise loss, and its dataset. Leaves: the weights of a logistic regression (of a linear one,
where the loss judges values), and what is said of everybody. It is fitted here by plain Adam, whose rate falls to 0,
within half a minute: no part of the job's training is used but its seed and max_history. Surprising choice: at most
``MAX_STEPS`` steps are taken, however large the log: a few weights an item are soon told.

Shape legend: B examples of a step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distft.data.collate import Side, example_batch
from distft.data.encode import Encoder
from distft.data.shards import TrainReader, load_histories
from distft.data.units import Cutting
from distft.job import Job
from distft.models.base import Model, last_states
from distft.models.linear.config import Config as Linear
from distft.ranking import target_scores
from distft.storage import Storage

BATCH_SIZE = 256
LEARNING_RATE = 0.05
MAX_EPOCHS = 8
MAX_STEPS = 600


def fit(job: Job, dataset: Storage) -> dict[str, Tensor]:
    """The weights of the fitted ``linear`` model."""
    encoder = Encoder.of_dataset(dataset)
    side = Side.of(encoder, dataset)
    size = job.model.max_history
    torch.manual_seed(job.seed)
    model = build(job, encoder)
    reader = TrainReader(
        dataset,
        seed=job.seed,
        batch_size=BATCH_SIZE,
        windows="each",
        max_history=size,
        target_codes=encoder.target_codes,
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    num_steps = min(MAX_STEPS, MAX_EPOCHS * reader.steps_per_epoch)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / num_steps)
        rows = reader.step_rows(*divmod(step, reader.steps_per_epoch))
        batch = example_batch(rows, size, encoder.has_clock, side=side)
        place_B1 = (batch.length_B - 1).clamp(min=0)[:, None]
        target_B, value_B = (t.gather(1, place_B1)[:, 0] for t in (batch.target_BL, batch.target_value_BL))
        x_BD = last_states(model.states(batch), batch.length_B)
        optimizer.zero_grad()
        _loss(job, target_scores(model, x_BD, target_B, batch), value_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.state_dict()


def build(job: Job, encoder: Encoder) -> Model:
    """A ``linear`` model for the dataset of a job."""
    return Linear(max_history=job.model.max_history).build(encoder.catalog())


def score_of_everybody(job: Job, dataset: Storage) -> float:
    """The one score that fits all training targets best: the log-odds of their positive share, or their mean value."""
    encoder = Encoder.of_dataset(dataset)
    rows = load_histories(dataset, "train")
    values = rows.value[Cutting("each", 1, encoder.target_codes).targets(rows)]
    mean = float(values.mean(dtype=np.float64)) if len(values) else 0.5
    if job.loss.judges == "values":
        return mean
    mean = min(max(mean, 1e-6), 1 - 1e-6)
    return math.log(mean / (1 - mean))


def _loss(job: Job, score_B: Tensor, value_B: Tensor) -> Tensor:
    if job.loss.judges == "labels":
        return F.binary_cross_entropy_with_logits(score_B, value_B)
    return F.mse_loss(job.loss.values(score_B), value_B)
