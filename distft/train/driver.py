"""From a job to a finished training: starts Ray Train's workers, follows them, explains how they ended.

Enters: a job and the storage of its run, on a Ray that is up. Leaves: the stage's folder (job.yaml, metrics.jsonl,
best.json, checkpoints/) under a manifest that says "running", then "finished". Surprising choice: Ray Train starts
and restarts the workers, and nothing more; they find our own last checkpoint by themselves, so what Ray keeps of a
run is scratch and is removed.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch._C._distributed_c10d import HashStore

from distft import cluster
from distft.errors import ArtefactError, UsageError
from distft.job import Job
from distft.jobfile import dump_job
from distft.storage import MANIFEST, Manifest, Storage
from distft.train import failure as failures
from distft.train.base import keep
from distft.train.checkpoint import FOLDER
from distft.train.following import Line, Observer, Shown, following
from distft.train.gauges import Gauges
from distft.train.loop import Loop, Report, TrainResult, num_threads, ray_worker
from distft.train.network import Network
from distft.train.room import Room, check_room, has_gpus
from distft.train.settings import check_train
from distft.train.start import opened
from distft.train.supervisor import Supervisor
from distft.train.tensorboard import TensorBoard
from distft.train.tracking import MlflowRun, check_reachable, check_tracking
from distft.train.validation import watched_metric

__all__ = ["EndedEarly", "TrainResult", "check", "train", "train_trial"]

Progress = Callable[[dict[str, Any]], None]


class EndedEarly(Exception):
    """Raised by the ``report`` of a trial: it has seen enough."""


def train(
    job: Job,
    root: Storage,
    made_from: dict[str, Any],
    *,
    stage: str = "train",
    anew: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains ``job`` on ``root/dataset`` into ``root/<stage>``, from the newest checkpoint there if there is one.

    ``made_from`` goes into the manifest. ``progress`` is called in this process with each new line of
    metrics.jsonl. A finished training returns at once, unless ``train.epochs`` was raised since, or
    ``train.early_stopping`` changed. ``anew`` removes what is there, once it is sure that this job can be trained. The
    stage finetune trains by the job's section of that name, from its base; a line of the kind "start" tells what is
    taken over and what is frozen.
    Raises UsageError for a job that cannot run on this cluster, TrainingError where the workers failed too often.
    """
    folder = root / stage
    written, job = job, job.trained_as(stage)
    finished = None if anew else _finished(folder, job)
    if finished is not None:
        return finished
    use_gpu = check(job, root)
    base = opened(job, root / "dataset")
    if anew:
        folder.delete_tree()
    folder.make()
    told: dict[str, Any] = {}
    if base is not None:
        keep(folder, base.used)
        told = {"start": base.summary}
        (progress or (lambda line: None))({"kind": "start", **base.summary})
    _begin(written, folder, made_from)
    with scratch_of(folder) as scratch, following(folder, _observers(job, folder, stage, use_gpu, progress)):
        outcome = _fit(job, root, stage, use_gpu, scratch)
    failures.forget(folder)
    result = TrainResult(**outcome)
    wanted = {"epochs_wanted": job.train.epochs, "early_stopping": _stopping(job)}
    _write_manifest(folder, made_from, {"status": "finished", **asdict(result), **wanted, **told}, _listing(folder))
    return result


def train_trial(
    job: Job, root: Storage, stage: str, report: Report, use_gpu: bool, group: tuple[Storage, Sequence[Any]]
) -> TrainResult | None:
    """Trains one trial of a search, from its newest checkpoint if there is one; None if it was ended early.

    With one worker that is this process, which pays for its imports and for the process group once, however many
    trials it trains; ``report`` is called after every validation that a checkpoint has, and may raise EndedEarly.
    More workers are started by Ray Train, for which ``group`` has a folder for its own state, that the caller removes
    because this process may be killed in its midst, and the callbacks that then do the reporting.
    """
    folder = root / stage
    _begin(job, folder, {})
    with following(folder, _observers(job, folder, stage, use_gpu, None)):
        if job.scaling.num_workers == 1:
            outcome = _fit_here(job, root, stage, use_gpu, report)
        else:
            scratch, callbacks = group
            scratch.make()
            outcome = _fit(job, root, stage, use_gpu, scratch, callbacks)
    failures.forget(folder)
    return TrainResult(**outcome) if outcome else None


def _begin(job: Job, folder: Storage, made_from: dict[str, Any]) -> None:
    folder.make()
    failures.forget(folder)
    folder.write_bytes("job.yaml", dump_job(job).encode())
    _write_manifest(folder, made_from, {"status": "running"}, {})


def _finished(folder: Storage, job: Job) -> TrainResult | None:
    """The result of a training that is over, unless the job now wants more epochs or stops by another rule."""
    manifest = folder.manifest("train")
    info = dict(manifest.info) if manifest else {}
    if info.get("status") != "finished":
        return None
    if job.train.epochs > info["epochs_wanted"] or _stopping(job) != info["early_stopping"]:
        return None
    return TrainResult(**{field.name: info[field.name] for field in fields(TrainResult)})


def _stopping(job: Job) -> dict[str, Any] | None:
    rule = job.train.early_stopping
    return rule.model_dump(mode="json") if rule else None


# -- before ------------------------------------------------------------------------------------------------


def check(job: Job, root: Storage, workers_key: str = "scaling.num_workers") -> bool:
    """Raises for what would only fail in the workers, or wait for ever; True if the training is to use GPUs.

    ``workers_key``: the key of the job file that says how many workers.
    """
    check_train(job.train)
    watched_metric(job)
    check_tracking(job)
    if (root / "dataset").manifest("dataset") is None:
        raise ArtefactError(f"There is no dataset at {root}/dataset", "", "Run distft prepare first.")
    workers = job.scaling.worker_range[1]
    if workers > job.train.num_streams:
        raise UsageError(
            f"{workers_key} is {workers} with train.num_streams {job.train.num_streams}",
            "at least one reading stream a worker",
            f"Set train.num_streams to {workers} or more.",
        )
    use_gpu = check_size(job, workers_key)
    check_reachable(job)
    return use_gpu


def check_size(job: Job, workers_key: str = "scaling.num_workers") -> bool:
    """Raises UsageError for a training that this cluster could never run; True if it is to use GPUs."""
    wanted = job.scaling.use_gpu
    use_gpu = has_gpus() if wanted == "auto" else wanted
    if job.train.precision == "fp16" and not use_gpu:
        raise UsageError("train.precision is fp16 on CPUs", "fp32 or bf16", "Set train.precision to bf16.")
    check_room(job.scaling, use_gpu, workers_key)
    return use_gpu


def _observers(job: Job, folder: Storage, stage: str, use_gpu: bool, progress: Progress | None) -> list[Observer]:
    """Who sees the training: the terminal, TensorBoard, Ray's metrics and, if the job asks, MLflow."""
    show = progress or (lambda line: None)
    gauges = Gauges(job.name, stage)
    observers: list[Observer] = [_Restarts(folder, gauges, show), Shown(show), TensorBoard(folder), gauges]
    observers.append(Room(job.scaling, use_gpu, show))
    if job.tracking.mlflow is not None:
        observers.append(MlflowRun(job, stage, folder, show))
    return observers


class _Restarts(Observer):
    """Tells of every failure that the run got over, once the new workers have sent a sign of life."""

    def __init__(self, folder: Storage, gauges: Gauges, show: Progress) -> None:
        self._folder, self._gauges, self._show = folder, gauges, show
        self._told = 0

    def see(self, lines: Sequence[Line]) -> None:
        if not lines:
            return
        failed = failures.read_failures(self._folder)
        for failure in failed[self._told :]:
            message = f"{failure['what']}. The workers were started again, and are at step {lines[0]['step']:,}"
            self._gauges.restarted()
            self._show({"kind": "warning", "step": lines[0]["step"], "message": message})
        self._told = len(failed)


# -- the run -----------------------------------------------------------------------------------------------


def _fit(
    job: Job, root: Storage, stage: str, use_gpu: bool, scratch: Storage, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Rank 0's result, after as many restarts of the workers as the job allows."""
    system, path = scratch.filesystem()
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config={
            "job": job,
            "root": root,
            "stage": stage,
            "use_gpu": use_gpu,
        },
        torch_config=Network(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.scaling.num_workers,
            elastic_resize_monitor_interval_s=job.scaling.resize_interval_s,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.scaling.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=os.path.basename(stage),
            storage_path=path,
            storage_filesystem=None if scratch.is_local else system,
            failure_config=FailureConfig(max_failures=job.scaling.max_failures),
            callbacks=[Supervisor(root / stage, job.scaling.stall_timeout_s), *callbacks],
        ),
    )
    try:
        with _own_interrupts():
            outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise failures.as_error(root / stage, error, os.path.join(cluster.logs_folder(), "train")) from error
    if "error" in outcome:
        raise failures.met_by_all(root / stage, outcome["error"], outcome["num_workers"])
    return dict(outcome)


def _fit_here(job: Job, root: Storage, stage: str, use_gpu: bool, report: Report) -> dict[str, Any] | None:
    """The result of the one worker, which is this process; nothing restarts it. None if ``report`` ended it."""
    torch.set_num_threads(num_threads(job))
    device = torch.device("cuda" if use_gpu else "cpu")
    if not dist.is_initialized():  # DeepSpeed remembers a process's first group: it stays for the next trial
        dist.init_process_group("nccl" if use_gpu else "gloo", store=HashStore(), rank=0, world_size=1)
    try:
        return asdict(Loop(job, root, stage, device, report).run())
    except EndedEarly:
        return None
    finally:
        gc.collect()  # modules and DeepSpeed's hooks know each other


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ctrl-C as everywhere else: Ray's handler stops the workers, but then ends the process as if all were well."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def scratch_of(folder: Storage) -> Iterator[Storage]:
    """A folder for Ray's own state of this run, removed with those that killed runs left."""
    left = {path.split("/", 1)[0] for path in folder.list()}
    if folder.is_local:
        left |= {path.name for path in folder.path.glob("ray-*")}  # an empty one has no files to be listed by
    for name in left:
        if name.startswith("ray-"):
            folder.delete_tree(name)
    name = f"ray-{uuid.uuid4().hex[:8]}"
    (folder / name).make()
    try:
        yield folder / name
    finally:
        folder.delete_tree(name)


# -- after -------------------------------------------------------------------------------------------------


def _listing(folder: Storage) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file that the stage leaves; those of checkpoints come from their manifests."""
    files = {}
    names = [name for name in folder.list() if name != MANIFEST and not name.startswith("ray-")]
    for name in names:
        parts = name.split("/")
        if parts[0] != FOLDER:
            files[name] = folder.describe(name)
        elif parts[-1] == MANIFEST:
            files[name] = folder.describe(name)
            manifest = (folder / "/".join(parts[:-1])).manifest("checkpoint")
            listed = manifest.files if manifest else {}
            files |= {"/".join([*parts[:-1], file]): described for file, described in listed.items()}
    return files


def _write_manifest(
    folder: Storage, made_from: dict[str, Any], info: dict[str, Any], files: dict[str, dict[str, Any]]
) -> None:
    folder.write_json(MANIFEST, vars(Manifest("train", files, made_from, info)))
