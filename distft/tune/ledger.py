"""The trials of a search on its storage: what each tries, how it stands, how it ended.

Enters: changes of a trial, from the one process that leads the search. Leaves: ``tune/trials/0003.json`` a trial,
beside the folder of its training. Surprising choice: Ray Tune's own record is scratch. These files and the journals of
the trainings are all that a search is continued from, so that it can be killed at any moment and read by anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from distft.schema import lower_is_better
from distft.searchspace import Values
from distft.storage import Storage
from distft.train.checkpoint import FOLDER, committed, step_of
from distft.train.journal import read_lines
from distft.tune.halving import Curve, best_of

Status = Literal["running", "finished", "ended early", "failed"]
TRIALS = "trials"


@dataclass(frozen=True)
class Trial:
    """One trial. ``values`` are those of the search; ``effective`` those that it trains with.

    ``curve``: (epoch, value) of its validations; ``train_s`` and ``valid_s``: seconds of its steps and validations.
    ``best_step`` is the step of the checkpoint that had the best value.
    """

    number: int
    values: Values
    effective: Values
    status: Status = "running"
    curve: tuple[tuple[int, float], ...] = ()
    best_epoch: int = 0
    best_value: float | None = None
    best_step: int = 0
    steps: int = 0
    train_s: float = 0.0
    valid_s: float = 0.0
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder and file."""
        return f"{self.number:04d}"

    @property
    def is_open(self) -> bool:
        """True if it is yet to end."""
        return self.status == "running"

    @property
    def epochs(self) -> int:
        """How many epochs it has come to, at the latest validation."""
        return self.curve[-1][0] if self.curve else 0


class Ledger:
    """The trials of one search, read once and written through."""

    def __init__(self, folder: Storage, metric: str) -> None:
        self.folder, self.metric = folder, metric

    @cached_property
    def trials(self) -> dict[int, Trial]:
        """All trials by their number."""
        names = [name for name in self.folder.list(TRIALS) if name.count("/") == 1 and name.endswith(".json")]
        found = [Trial(**_tuples(self.folder.read_json(name))) for name in names]
        return {trial.number: self._looked_up(trial) if trial.is_open else trial for trial in found}

    @property
    def lower(self) -> bool:
        """True if smaller values are better."""
        return lower_is_better(self.metric)

    def place(self, trial: Trial) -> Storage:
        """The folder of a trial's training."""
        return self.folder / TRIALS / trial.name

    def write(self, trial: Trial) -> Trial:
        """Notes how a trial stands."""
        self.trials[trial.number] = trial
        self.folder.write_json(f"{TRIALS}/{trial.name}.json", asdict(trial))
        return trial

    def best(self) -> Trial | None:
        """The trial with the best value, the first of equal ones; None where none has any."""
        ended = [
            trial for _, trial in sorted(self.trials.items()) if trial.best_value is not None and not trial.is_open
        ]
        if not ended:
            return None
        values: Curve = [(index, trial.best_value or 0.0) for index, trial in enumerate(ended)]
        found = best_of(values, self.lower)
        return ended[found[0]] if found else None

    def judged(self, number: int, epochs: int) -> Trial:
        """A running trial with the curve of its journal up to an epoch whose validation has been reported."""
        return self._looked_up(self.trials[number], epochs)

    def _looked_up(self, trial: Trial, epochs: int | None = None) -> Trial:
        """The trial with what its journal tells; without ``epochs`` only what is in a checkpoint is true."""
        folder = self.place(trial)
        if epochs is None:
            names = committed(folder / FOLDER)
            reached = max(map(step_of, names), default=-1)
            lines = [line for line in read_lines(folder) if line["step"] <= reached]
        else:
            lines = [line for line in read_lines(folder) if line["epoch"] <= epochs or line["kind"] != "valid"]
        valid = [line for line in lines if line["kind"] == "valid"]
        curve = tuple((int(line["epoch"]), float(line[self.metric])) for line in valid)
        best = best_of(curve, self.lower)
        train_s, valid_s = _seconds(lines)
        seen = replace(
            trial,
            curve=curve,
            # How far it ran on until it was told to end is a matter of speed, and of its seconds alone.
            steps=max((int(line["step"]) for line in lines if epochs is None or line["epoch"] <= epochs), default=0),
            train_s=train_s,
            valid_s=valid_s,
        )
        if best is None:
            return seen
        chosen = next(line for line in valid if line["epoch"] == best[0])
        kept = {name: value for name, value in chosen.items() if isinstance(value, float) and name != "time_s"}
        return replace(seen, best_epoch=best[0], best_value=best[1], best_step=int(chosen["step"]), metrics=kept)


def _seconds(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """(of the steps, of the validations): a validation begins when the epoch's last steps have been written down."""
    train_s = valid_s = 0.0
    before: dict[str, Any] = {"step": 0, "time_s": 0.0}
    for line in lines:
        if line["kind"] == "train":
            train_s += line.get("step_s", 0.0) * (line["step"] - before["step"])
        elif line["kind"] == "valid" and line["step"] == before["step"]:
            valid_s += line["time_s"] - before["time_s"]
        if line["kind"] in ("train", "valid"):
            before = line
    return round(train_s, 3), round(valid_s, 3)


def _tuples(written: dict[str, Any]) -> dict[str, Any]:
    return {**written, "curve": tuple((int(epoch), float(value)) for epoch, value in written["curve"])}
