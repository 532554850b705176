"""What freezing saves of a training step and of a checkpoint.

Run:  .venv/bin/python benchmarks/finetune.py step

A transformer of 8 blocks, 512 wide, over 20,000 items, 256 sampled negatives, ZeRO 0, one thread, batches of 16
histories of 50 events. All of it trains, or the table and the lower three quarters of the blocks are frozen, also with
their outputs kept on disk (``finetune.cache``; the first epoch, which computes and writes them, is not timed), or all
but 5% of the parameters; all take steps in turns. Counts also the bytes of a checkpoint of each.

Writes ``benchmarks/results/finetune-step.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the process groups that the tests use too

from distft.losses.sampled_softmax.config import Config as SampledSoftmax  # noqa: E402
from distft.models.memo import Memo  # noqa: E402
from distft.models.transformer.config import Config as Transformer  # noqa: E402
from distft.schema import Batch, Catalog  # noqa: E402
from distft.sections.train import Checkpoint as Rules  # noqa: E402
from distft.sections.train import Train, Zero  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.checkpoint import Progress  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.freeze import frozen_modules, names_by_group, selected  # noqa: E402
from distft.train.saving import Saver  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.ranks import group  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
NUM_ITEMS, ROWS, LENGTH, ROUNDS = 20_000, 16, 50, 5
CATALOG = Catalog(NUM_ITEMS, 2, 0, False, counts=np.ones(NUM_ITEMS, np.int64))
MODEL = Transformer(dim=512, num_blocks=8, num_heads=8, max_history=LENGTH)
LOSS = SampledSoftmax(num_negatives=256)
TRAIN = Train(zero=Zero(stage=0), learning_rate=1e-4)
QUARTER = ("embeddings", "blocks.0-5")
CASES = {"all": (), "quarter": QUARTER, "quarter, cached": QUARTER, "5%": ("embeddings", "blocks.0-6", "/up|out/")}


def batch(seed: int) -> Batch:
    """Full histories of random items, each position with the next item as its target."""
    draw = torch.Generator().manual_seed(seed)
    item_BL = torch.randint(2, NUM_ITEMS, (ROWS, LENGTH + 1), generator=draw)
    like = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    return Batch(
        item_BL=item_BL[:, :-1].contiguous(),
        event_BL=like + 1,
        gap_BL=like,
        query_BLQ=torch.zeros(ROWS, LENGTH, 0, dtype=torch.int64),
        length_B=torch.full((ROWS,), LENGTH),
        target_BL=item_BL[:, 1:].contiguous(),
        target_value_BL=torch.zeros(ROWS, LENGTH),
        user_row_B=torch.arange(ROWS),
        key_B=torch.randint(2**62, (ROWS,), generator=draw),
        step_key_B=torch.full((ROWS,), seed),
        label_BL=like,
        user_codes_BK=torch.zeros(ROWS, 0, dtype=torch.int64),
        user_numbers_BG=torch.zeros(ROWS, 0),
    )


def engine(words: tuple[str, ...], cached: bool) -> Engine:
    """The model under DeepSpeed, with what the words mean frozen; ``cached``: it has seen all batches."""
    torch.manual_seed(1)
    model = MODEL.build(CATALOG)
    module = Step(model, LOSS.build(CATALOG, model.state_dim))
    for name in selected(words, "freeze", names_by_group(model)):
        model.get_parameter(name).requires_grad_(False)
    module.frozen = frozen_modules(module)
    module.train()
    if cached:
        assert len(model.remember(Memo())) == 7
        for index in range(ROUNDS + 1):
            model.states(batch(index))
    return Engine(module, TRAIN, torch.device("cpu"))


def time_steps() -> dict[str, Any]:
    """Seconds of a step of each case, by turns, and the bytes of its checkpoint."""
    engines = {name: engine(words, "cached" in name) for name, words in CASES.items()}
    took: dict[str, list[float]] = {name: [] for name in CASES}
    for index in range(ROUNDS + 1):
        one = batch(index)
        for name, each in engines.items():
            started = time.perf_counter()
            train_step(each, [one], one, index, 1e-4)
            if index:  # the first makes the optimiser's state
                took[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in took.items()}
    sizes = {name: checkpoint_bytes(each, name != "all") for name, each in engines.items()}
    trainable = {name: sum(p.numel() for p in each.parameters.values()) for name, each in engines.items()}
    return {
        name: {
            "trainable_share": trainable[name] / trainable["all"],
            "step_s": sorted(round(value, 4) for value in took[name]),
            "step_of_full": round(median[name] / median["all"], 3),
            "checkpoint_bytes": sizes[name],
            "checkpoint_of_full": round(sizes[name] / sizes["all"], 4),
        }
        for name in CASES
    }


def checkpoint_bytes(one: Engine, frozen: bool) -> int:
    """Bytes of all files of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Storage(folder), one, Rules(asynchronous=False), base="a base" if frozen else None)
        saver.save(Progress(step=1))
        saver.close()
        return sum(path.stat().st_size for path in Path(folder, "checkpoints").rglob("*") if path.is_file())


def main() -> None:
    """Runs what the command line names."""
    if sys.argv[1:] != ["step"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as place, group(0, 1, place):
        found = time_steps()
    text = json.dumps({"load_average": os.getloadavg()[0], **found}, indent=2) + "\n"
    (RESULTS / "finetune-step.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
