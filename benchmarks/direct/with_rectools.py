"""One epoch of RecTools' SASRecModel, to be run by a Python that has ``rectools[torch]`` and no distft.

Run:  python with_rectools.py INTERACTIONS SETTINGS

INTERACTIONS is an npz file with the arrays ``user`` and ``item``, in time order; SETTINGS a JSON object of the model's
arguments. Prints one JSON line: seconds of the epoch from its first batch to its last update, steps, targets, and
versions.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import rectools
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Watch(Callback):
    """Notes when the epoch begins and ends, and what it trained on."""

    started_s = seconds = 0.0
    steps = targets = 0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.started_s = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        self.targets += int((batch["y"] != 0).sum())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seconds = time.perf_counter() - self.started_s


WATCH = Watch()


def trainer() -> Trainer:
    """As RecTools makes it, with the watch."""
    return Trainer(
        max_epochs=1, min_epochs=1, deterministic=True, enable_progress_bar=False, enable_model_summary=False,
        logger=False, enable_checkpointing=False, devices=1, accelerator="cpu", callbacks=[WATCH],
    )  # fmt: skip


def main() -> None:
    path, settings = sys.argv[1], json.loads(sys.argv[2])
    arrays = np.load(path)
    time = pd.to_datetime(np.arange(len(arrays["user"])), unit="s")
    table = pd.DataFrame({"user_id": arrays["user"], "item_id": arrays["item"], "datetime": time, "weight": 1.0})
    dataset = Dataset.construct(table)
    model = SASRecModel(**settings, epochs=1, get_trainer_func=trainer, dataloader_num_workers=0)
    model.fit(dataset)
    watch = next(one for one in model.fit_trainer.callbacks if isinstance(one, Watch))
    versions = {
        "rectools": rectools.__version__,
        "torch": torch.__version__,
        "lightning": pytorch_lightning.__version__,
    }
    found = {"epoch_s": watch.seconds, "steps": watch.steps, "targets": watch.targets}
    print(json.dumps({**found, "threads": torch.get_num_threads(), "versions": versions}))


if __name__ == "__main__":
    main()
