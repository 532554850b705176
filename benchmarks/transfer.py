"""What a trained model is worth in another market, shop or kind of event: the shipped fine-tunings, over three seeds.

Run:  .venv/bin/python benchmarks/transfer.py CASE FOLDER base [SEED ...]
      .venv/bin/python benchmarks/transfer.py CASE FOLDER finetune|scratch ["KEY=VALUE; KEY=VALUE" ...]
      .venv/bin/python benchmarks/transfer.py CASE FOLDER

CASE is one of those in CASES: the job of a base, the job that is fine-tuned from it, and the job whose model, loss and
``train`` section train the same dataset from scratch. Everything is trained by one worker in this process, below
FOLDER. ``base`` trains the bases and prepares the targets' datasets; what was killed goes on. ``finetune`` and
``scratch`` train with these keys of the section (``finetune`` or ``train``; ``model.KEY`` is of the model), once for
each argument, with the first seed, to choose them on the validation split: the test split is not looked at then, and
nothing is written.

Without a word after FOLDER all seeds are trained, where they are not yet, and the test targets are ranked by what was
fine-tuned, by the base as it was (new items with the vectors that fine-tuning would begin with) and by what was trained
from scratch. Each seed is that of all its trainings, but that some cases have fewer bases (``num_bases``). p is of the
paired randomisation test over users, of all seeds together. ``steps`` are all that were taken, ``best_step`` is the one
whose weights are taken. Needs the data sets that the jobs name.

Writes ``benchmarks/results/transfer-CASE.json``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the process groups that the tests use too

from distft import pipeline  # noqa: E402
from distft.data.encode import Encoder  # noqa: E402
from distft.data.shards import TargetReader  # noqa: E402
from distft.evaluate.metrics import per_list  # noqa: E402
from distft.evaluate.resampling import compare  # noqa: E402
from distft.job import Job  # noqa: E402
from distft.jobfile import dump_job, load_job, parse_job  # noqa: E402
from distft.models.adapters import merged  # noqa: E402
from distft.models.weights import fill, read_weights  # noqa: E402
from distft.ranking import Ranker, excluded_items  # noqa: E402
from distft.stages import Context  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.base import find_base, inherited, keep  # noqa: E402
from distft.train.loop import Loop  # noqa: E402
from distft.train.start import opened, start  # noqa: E402
from distft.train.step import Step  # noqa: E402
from tests.train.ranks import group  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (1, 2, 3)
Ints = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """Names of job files. ``scratch_changes``: what training from scratch has otherwise. ``variants``: further
    fine-tunings, name → keys of the section. ``num_bases``: of the seeds that have a base of their own; the others have
    the first one's.
    """

    base: str
    target: str
    scratch: str
    scratch_changes: tuple[str, ...] = ()
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    num_bases: int = len(SEEDS)

    def base_seed(self, seed: int) -> int:
        """The seed of the base of a seed."""
        return seed if seed <= self.num_bases else SEEDS[0]


LORA = ("learning_rate=3e-3", "decay=constant", "weight_decay=10.0", "epochs=1")
CASES = {
    "online-retail": Case(
        "online-retail-uk",
        "online-retail-abroad",
        "online-retail-abroad",
        variants={
            "lora": ("freeze=[blocks]", "lora={rank: 8}", *LORA),
            "lora, embeddings frozen": ("freeze=[embeddings, blocks]", "lora={rank: 8}", *LORA),
        },
        num_bases=1,
    ),
    "jdata": Case("jdata-views", "jdata-orders", "jdata"),
    "movielens": Case("ml1m-titles", "ml100k-finetune", "ml100k", num_bases=1),
    "stores": Case("quickstart", "second-store", "second-store", num_bases=1),
}


def train_base(case: Case, folder: Path, seed: int) -> None:
    """Trains the base of one seed, and prepares the target's dataset from it."""
    base = load_job(str(ROOT / f"jobs/{case.base}.yaml"), [f"seed={seed}", f"storage={folder}/base-{seed}"])
    root = Storage(base.storage) / "train"
    if not root.exists("manifest.json"):
        prepared(base)
        result = trained(base, "train", "train")
        root.write_manifest("train")
        print(json.dumps({"base": seed, **shown(result)}), flush=True)
    prepared(target_job(case, folder, seed))


def prepared(job: Job) -> None:
    """Brings the dataset of a job up to date, on an embedded Ray."""
    pipeline.run(Context(job, Storage(job.storage)), ("prepare",))


def trained(job: Job, stage: str, name: str) -> dict[str, Any]:
    """Trains into the folder ``name``, with one worker in this process; goes on where the same job was killed."""
    root, working = Storage(job.storage), job.trained_as(stage)
    folder, text = root / name, dump_job(job).encode()
    if not folder.exists("job.yaml") or folder.read_bytes("job.yaml") != text:
        folder.delete_tree()
        folder.make()
        folder.write_bytes("job.yaml", text)
    started = opened(working, root / "dataset")
    if started is not None:
        keep(folder, started.used)
    result = Loop(working, root, name, torch.device("cpu"), lambda line: None).run()
    best = folder / str(folder.read_json("best.json")["checkpoint"])
    return {"steps": result.steps, "best_step": result.best_step, "valid": result.best_metric, "weights": best}


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """What is told of a training."""
    return {key: value for key, value in result.items() if key != "weights"}


def target_job(case: Case, folder: Path, seed: int) -> Job:
    """The job that is fine-tuned, on the base and in the folder of one seed."""
    number = case.base_seed(seed)
    base = folder / f"base-{number}"
    sets = [f"finetune.from={base}/train", f"data.vocabulary.from={base}/dataset"]
    sets += [f"storage={folder}/target-{number}", f"seed={seed}"]
    return load_job(str(ROOT / f"jobs/{case.target}.yaml"), sets)


def changed(job: Job, section: str, changes: Sequence[str]) -> Job:
    """The job with other keys of a section, and of the model where a change begins with that."""
    sets = [change if change.startswith("model.") else f"{section}.{change}" for change in changes]
    return parse_job(dump_job(job), job.name, sets)


def fine_tuned(case: Case, folder: Path, seed: int, changes: Sequence[str], name: str) -> tuple[Job, dict[str, Any]]:
    """The fine-tuning of one seed."""
    job = changed(inherited(target_job(case, folder, seed)), "finetune", changes)
    return job, trained(job, "finetune", name)


def from_scratch(case: Case, folder: Path, seed: int, changes: Sequence[str], name: str) -> tuple[Job, dict[str, Any]]:
    """Training on the target's dataset alone, by the job that does so."""
    plain = load_job(str(ROOT / f"jobs/{case.scratch}.yaml"))
    job = target_job(case, folder, seed)
    if case.scratch == case.target:
        job = inherited(job).model_copy(update={"train": plain.train})
    else:
        job = job.model_copy(update={"train": plain.train, "model": plain.model, "loss": plain.loss})
    job = changed(job, "train", (*case.scratch_changes, *changes))
    return job, trained(job, "train", name)


def untouched(job: Job) -> dict[str, torch.Tensor]:
    """The base's weights for the target's rows, as a fine-tuning would begin with them."""
    assert job.finetune is not None
    encoder = Encoder.of_dataset(Storage(job.storage) / "dataset")
    model = job.model.build(encoder.catalog())
    module = Step(model, job.loss.build(encoder.catalog(), model.state_dim))
    plain = job.finetune.model_copy(update={"freeze": (), "lora": None, "reset": ()})
    start(module, find_base(job.finetune.from_).weights(), encoder, plain)
    return merged(model.state_dict())


def ranks(job: Job, weights: dict[str, torch.Tensor], split: str) -> tuple[Ints, Ints]:
    """(rank_T, user_T) of the targets of a split."""
    dataset = Storage(job.storage) / "dataset"
    encoder = Encoder.of_dataset(dataset)
    model = job.model.build(encoder.catalog())
    fill(model, weights)
    ranker = Ranker(model, job.model.max_history, encoder)
    parts = []
    for histories, targets in TargetReader(dataset, split):
        excluded = excluded_items(histories, job.evaluate.exclude_seen, encoder.target_codes)
        parts.append((ranker.ranks(histories, targets.item, excluded), histories.user_row))
    rank_T, user_T = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return rank_T, user_T


def ndcg(rank_T: Ints) -> float:
    """The mean ndcg@10."""
    return float(per_list(rank_T, [10])["ndcg@10"].mean())


def choose(case: Case, folder: Path, what: str, changes: list[str]) -> dict[str, Any]:
    """How a training with these keys validates, with the first seed."""
    run = fine_tuned if what == "finetune" else from_scratch
    job, result = run(case, folder, 1, changes, f"tried-{os.getpid()}")
    found: dict[str, Any] = {"what": what, "changes": changes, **shown(result)}
    # As the test is ranked: by popularity where there is no history, of which the training's own validation knows not.
    found["ranked_valid"] = ndcg(ranks(job, read_weights(result["weights"]), "valid")[0])
    Storage(job.storage).delete_tree(f"tried-{os.getpid()}")
    if what == "finetune":
        found["base_ranked_valid"] = ndcg(ranks(job, untouched(job), "valid")[0])
    return found


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """The figures of every seed, and the comparison over all of them."""
    seeds: list[dict[str, Any]] = []
    found: dict[str, list[Ints]] = {}
    users = []
    for seed in SEEDS:
        train_base(case, folder, case.base_seed(seed))
        runs = {
            name: fine_tuned(case, folder, seed, changes, f"{name}-{seed}")
            for name, changes in {"finetune": (), **case.variants}.items()
        }
        runs["scratch"] = from_scratch(case, folder, seed, (), f"scratch-{seed}")
        line: dict[str, Any] = {"seed": seed}
        first: tuple[Job, dict[str, Any]] = (runs["finetune"][0], {})
        for name, (job, result) in {"base": first, **runs}.items():
            weights = read_weights(result["weights"]) if result else untouched(job)
            rank_T, user_T = ranks(job, weights, "test")
            found.setdefault(name, []).append(rank_T)
            line[name] = {**shown(result), "test_ndcg@10": ndcg(rank_T)}
        users.append(user_T)
        print(json.dumps(line), flush=True)
        seeds.append(line)
    return {
        "test": {"targets": len(users[0]), "users": len(np.unique(users[0]))},
        **compared(found, users),
        "seeds": seeds,
    }


def compared(found: dict[str, list[Ints]], users: list[Ints]) -> dict[str, Any]:
    """What all seeds say together, and what share of the fine-tuning's gain over the base each variant has."""
    together = {name: np.concatenate(all_ranks) for name, all_ranks in found.items()}
    user_T = np.concatenate(users)  # one user's targets stay together over all seeds
    against = {
        name: compare(together["finetune"], rank_T, user_T, [10], 1)["ndcg@10"]
        for name, rank_T in together.items()
        if name != "finetune"
    }
    means = {name: ndcg(rank_T) for name, rank_T in together.items()}
    result: dict[str, Any] = {"mean_test_ndcg@10": means, "finetune_against": against}
    variants = means.keys() - {"base", "finetune", "scratch"}
    if variants:
        gain = means["finetune"] - means["base"]
        result["share_of_gain"] = {name: (means[name] - means["base"]) / gain for name in sorted(variants)}
    return result


def main() -> None:
    """Runs what the command line names."""
    if len(sys.argv) < 3 or sys.argv[1] not in CASES:
        sys.exit(__doc__)
    name, folder, words = sys.argv[1], Path(sys.argv[2]).absolute(), sys.argv[3:]
    with tempfile.TemporaryDirectory() as place, group(0, 1, place):
        if not words:
            found = measured(CASES[name], folder)
            text = json.dumps({"load_average": os.getloadavg()[0], **found}, indent=2) + "\n"
            (RESULTS / f"transfer-{name}.json").write_text(text)
            print(text)
        elif words[0] == "base":
            for seed in words[1:] or SEEDS:
                train_base(CASES[name], folder, int(seed))
        elif words[0] in ("finetune", "scratch"):
            for tried in words[1:] or [""]:
                changes = [change.strip() for change in tried.split(";") if change.strip()]
                print(json.dumps(choose(CASES[name], folder, words[0], changes)), flush=True)
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
