"""What watches over an attempt from outside of its workers: runs in Ray Train's controller, and asks every rank.

Enters: Ray Train's polls of the workers. Leaves: an end of the attempt where it hangs, ``failures.json`` in the
stage's folder, and a checkpoint before the group is resized or a node is taken away. Surprising choice: no heartbeat
is sent. The controller calls every worker about once a second, on the actor's own thread, which answers also while
the training's thread waits in a collective; a worker that was stopped, or hangs in native code, does not answer.

See docs/decisions/0011-supervision.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.exceptions
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

from distft.errors import DistftError, StalledError
from distft.storage import Storage
from distft.train import failure as failures
from distft.train.failure import Failure
from distft.train.nodes import NODE_TASK_S, outcome, started, state_then_kill
from distft.train.position import Sighting, here, oom_kills
from distft.train.watchdog import Stall, Watchdog

ASK_S = 1.0
"""Pause between an answer and the next question to the same rank."""
SAVE_BEFORE_RESIZE_S = 60.0


def _look(with_stack: bool) -> Sighting:
    return here.look(with_stack)


def _want_save() -> None:
    here.save_wanted = True


class Supervisor(WorkerGroupCallback, ControllerCallback):
    """Ray Train's callback; made in the driver, works in the controller."""

    def __init__(self, folder: Storage, stall_timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = stall_timeout_s
        self._watchdog = Watchdog(stall_timeout_s)
        self._workers: list[Any] = []
        self._asked: dict[Any, int] = {}
        self._answered_s: dict[int, float] = {}
        self._failures: list[Failure] = []
        self._preempted = False
        self._requester = ""

    # -- Ray Train's hooks -----------------------------------------------------------------------------------

    def after_controller_start(self, train_run_context: Any) -> None:
        """The run begins; under this name Ray counts the room that it may use."""
        self._requester = f"train-{train_run_context.run_id}"

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Before a new group is sized, has the room counted anew: Ray does so every 20 s, whatever has gone since."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            counted = get_or_create_autoscaling_coordinator().get_reserved_resources
            ray.wait([counted.remote(self._requester, recompute=True)], timeout=NODE_TASK_S)

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """All workers run: the watch begins."""
        self._workers = worker_group.get_workers()
        self._asked, self._answered_s, self._preempted = {}, {}, False
        self._watchdog.start(range(len(self._workers)), time.monotonic())

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """About five times a second: asks, and judges what is known. Raises WorkerGroupError for a stall."""
        if not self._workers:
            return
        if worker_group_status.errors:
            self._note_errors(worker_group_status.errors)
            self._workers = []
            return
        if worker_group_status.get_preemption_info() is not None and not self._preempted:
            self._preempted = True
            self._execute(_want_save)
        if worker_group_status.finished:
            return
        self._ask()
        stall = self._watchdog.look(time.monotonic())
        if stall is not None:
            self._end(stall)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """The group is about to be started anew: what its workers did since the last checkpoint is saved first."""
        if not self._workers:
            return
        ends_s = time.monotonic() + min(SAVE_BEFORE_RESIZE_S, self._timeout_s)
        try:
            before = self._saved_step()
            self._execute(_want_save)
            while self._saved_step() == before and time.monotonic() < ends_s:
                time.sleep(0.1)
        except (ray.exceptions.RayError, TimeoutError):
            return  # one of them has gone meanwhile: the checkpoint before it will do

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """The watch ends."""
        self._workers = []

    def before_worker_group_abort(self, worker_group_context: Any) -> None:
        """The watch ends."""
        self._workers = []

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Takes the answers that have come, and asks those ranks again whose last answer is a while ago."""
        now_s = time.monotonic()
        for reference in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0] if self._asked else ():
            rank = self._asked.pop(reference)
            try:
                self._watchdog.saw(rank, ray.get(reference), now_s)
                self._answered_s[rank] = now_s
            except ray.exceptions.RayError:
                continue  # Ray Train's own poll tells why
        waiting = set(self._asked.values())
        pause_s = min(ASK_S, self._timeout_s / 10)
        for rank, worker in enumerate(self._workers):
            if rank not in waiting and now_s - self._answered_s.get(rank, 0.0) >= pause_s:
                self._asked[worker.execute_async(_look, self._watchdog.suspects(now_s))] = rank
                self._watchdog.asked(rank, now_s)

    def _execute(self, function: Callable[[], None]) -> None:
        for worker in self._workers:
            worker.execute_async(function)

    def _saved_step(self) -> int:
        """The step of the newest checkpoint that all ranks know to be committed. Raises RayError if one is gone."""
        references = [worker.execute_async(_look, False) for worker in self._workers]
        seen: list[Sighting] = ray.get(references, timeout=NODE_TASK_S)
        return min(sighting.saved_step for sighting in seen)

    # -- ends ------------------------------------------------------------------------------------------------

    def _end(self, stall: Stall) -> None:
        """Ends the attempt: kills its workers, which could not be asked to stop, and hands Ray Train the reason."""
        worker = self._workers[stall.rank]
        state = None
        if stall.silent:
            ends = [_ending(self._workers[rank].metadata) for rank in stall.ranks]
            state = outcome(ends[0])
        failure = self._failure(failures.STALL, stall.rank, _stalled(stall, state, worker))
        self._note(failure)
        for other in self._workers:
            ray.kill(other.actor)
        self._workers = []
        error = StalledError(
            failure.what,
            f"a sign of progress within scaling.stall_timeout_s ({self._timeout_s:g} s)",
            "Raise scaling.stall_timeout_s if a step, a batch of the validation or one file of a checkpoint may take "
            "longer on this cluster.",
        )
        raise WorkerGroupError(str(error), {stall.rank: error})

    def _note_errors(self, errors: dict[int, BaseException]) -> None:
        errors = self._with_the_dead(dict(errors))
        self._look_again()
        rank = failures.first_failing(errors)
        cause = failures.cause_of(errors[rank]) or failures.EXCEPTION
        what = f"Rank {rank} failed: {failures.last_line(errors[rank])}"
        if cause in (failures.KILLED, failures.NODE, failures.MEMORY, failures.PREEMPTED):
            cause, what = self._autopsy(rank, cause)
        own = failures.own_error(errors[rank])
        followed = tuple(other for other in sorted(errors) if other != rank)
        self._note(self._failure(cause, rank, f"Rank {rank} failed: {own.what}" if own else what, followed))

    def _with_the_dead(self, errors: dict[int, BaseException]) -> dict[int, BaseException]:
        """The errors, with those of processes that have gone where so far only their peers have told of it."""
        if any(failures.cause_of(error) for error in errors.values()):
            return errors
        others = [rank for rank in range(len(self._workers)) if rank not in errors]
        references = {self._workers[rank].execute_async(_look, False): rank for rank in others}
        deadline_s = time.monotonic() + NODE_TASK_S
        while references and time.monotonic() < deadline_s:
            done, _ = ray.wait(list(references), timeout=0.5)
            for reference in done:
                rank = references.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    return {**errors, rank: error}
                references[self._workers[rank].execute_async(_look, False)] = rank
                time.sleep(0.2)
        return errors

    def _look_again(self) -> None:
        """Learns where the ranks that live have come to: they stand at the step in which one of them failed."""
        references = {worker.execute_async(_look, False): rank for rank, worker in enumerate(self._workers)}
        for reference in ray.wait(list(references), num_returns=len(references), timeout=ASK_S)[0]:
            try:
                self._watchdog.saw(references[reference], ray.get(reference), time.monotonic())
            except ray.exceptions.RayError:
                continue  # the one that is gone

    def _autopsy(self, rank: int, cause: str) -> tuple[str, str]:
        """(cause, sentence) of a process that is gone."""
        metadata = self._workers[rank].metadata
        who = f"Rank {rank} (process {metadata.pid} on {metadata.node_ip})"
        alive = any(node["Alive"] for node in ray.nodes() if node["NodeID"] == metadata.node_id)
        if cause == failures.PREEMPTED:
            return cause, f"{who} is gone: its node was taken away, as it had announced"
        if cause == failures.NODE or not alive:
            return failures.NODE, f"{who} is gone: its node was lost"
        if cause == failures.MEMORY:
            return cause, f"{who} was killed by Ray, because its node ran out of memory"
        sighting = self._sighting(rank)
        kills = outcome(started(metadata.node_id, oom_kills))
        if kills is None:
            return failures.NODE, f"{who} is gone, and its node does not answer"
        if sighting and kills > sighting.oom_kills:
            size = f"{sighting.rss_bytes / 1e9:.1f} GB when last seen"
            return failures.MEMORY, f"{who} was killed by the kernel, because memory ran out (it held {size})"
        return failures.KILLED, f"{who} was killed, or crashed in native code: its process ended without a word"

    def _sighting(self, rank: int) -> Sighting | None:
        watched = self._watchdog.ranks.get(rank)
        return watched.sighting if watched else None

    def _failure(self, cause: str, rank: int, what: str, followed: tuple[int, ...] = ()) -> Failure:
        worker, sighting = self._workers[rank], self._sighting(rank)
        return Failure(
            cause=cause,
            what=what,
            rank=rank,
            num_workers=len(self._workers),
            reached=max((seen.step for seen in map(self._sighting, self._watchdog.ranks) if seen), default=None),
            step=sighting.step if sighting else None,
            phase=sighting.phase if sighting else "",
            node=worker.metadata.node_ip,
            pid=worker.metadata.pid,
            followed=followed,
            stack=sighting.stack if sighting else (),
            log=worker.log_file_path or "",
        )

    def _note(self, failure: Failure) -> None:
        self._failures.append(failure)
        with suppress(DistftError):  # a full disk, perhaps, which may be what the failure is
            failures.write_failures(self._folder, self._failures)


def _ending(metadata: Any) -> Any:
    return started(metadata.node_id, state_then_kill, metadata.pid)


def _stalled(stall: Stall, state: str | None, worker: Any) -> str:
    """The sentence for a stall; ``state`` of a process that does not answer, as its node tells it."""
    who = f"Rank {stall.rank} (process {worker.metadata.pid} on {worker.metadata.node_ip})"
    if len(stall.ranks) > 1 and not stall.silent:
        who = f"Ranks {', '.join(map(str, stall.ranks))}"
    place = ", before its first sign of life"
    if stall.sighting:
        seen = "last seen " if stall.silent else ""
        place = f", {seen}at step {stall.sighting.step} in: {stall.sighting.phase}"
    what = f"{who} made no progress for {stall.waited_s:.0f} s{place}"
    if not stall.silent:
        return what
    return (
        f"{what}. Its process does not answer: {state or 'it was stopped, hangs in native code, or its node is gone'}"
    )
