"""Guarded promotion: a new model meets users only after it has shown what it can beside the running one.

Enters: a bundle and the service on this cluster. Leaves: the service on the new model, or on the one that it had and
the name of the check that refused the other; both in the service's record. Surprising choice: the new model is asked
through the same handle that clients' requests take, so that what is checked is what they would meet, its replicas,
batching and deny-list with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from distft.data.encode import Encoder
from distft.deploy import checks
from distft.deploy.checks import Answered, Check, Limits
from distft.deploy.live import DRAIN_S, Live, TrialPlan
from distft.errors import ArtefactError, RefusedError, ServingError, UsageError
from distft.lock import locked
from distft.promotions import Attempt, Outcome, note, read_record
from distft.schema import NUM_RESERVED
from distft.serve.app import application
from distft.serve.arrangement import ServedBundle, served_bundle
from distft.serve.golden import GoldenRequest, difference, read_golden
from distft.storage import Storage

START_TIMEOUT_S = 180.0
MAX_FAILED_SHARE = 0.01
"""Of the requests of a trial."""

Progress = Callable[[str, int, int], None]
STEPS = 5


@dataclass
class Verdict:
    """What became of a bundle."""

    model_version: str
    replaced: str
    checks: list[Check] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        told = [check.to_json() for check in self.checks]
        return {"model_version": self.model_version, "replaced": self.replaced, "checks": told}


def deploy(
    bundle: Storage,
    limits: Limits,
    trials: Sequence[TrialPlan] = (),
    state: Storage | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Promotes a bundle on the service of this cluster; Ray must be up.

    Raises RefusedError with the check that it did not pass, after which the old model goes on; UsageError where no
    service runs or it runs this model already; LockedError while another promotion is at work.
    """
    with _promoting(bundle, limits, state, progress) as promotion:
        new = promotion.opened(bundle)
        if new.version == promotion.verdict.replaced:
            what = f"The service runs model {new.version} already, which is that of {bundle}"
            raise UsageError(what, "another bundle", "Train or fine-tune a model first.")
        promotion.check_items(new)
        with promotion.beside(new):
            promotion.check_answers(new)
            for plan in trials:
                promotion.try_out(new, plan)
            promotion.exchange(new)
        promotion.note(new.uri, "promoted")
        return promotion.verdict


def roll_back(state: Storage | None = None, progress: Progress | None = None) -> Verdict:
    """Takes the service back to the model that it ran before; only the golden requests are asked.

    Raises UsageError where there is none, RefusedError where its bundle is no longer as it was.
    """
    with _promoting(None, Limits(), state, progress) as promotion:
        before = read_record(promotion.folder).before
        if before is None:
            what = f"{promotion.folder} knows of no model before {promotion.verdict.replaced}"
            raise UsageError(what, "a service that was promoted", "Deploy a bundle instead.")
        promotion.bundle = Storage(before.bundle)
        new = promotion.opened(promotion.bundle)
        if new.version != before.version:
            promotion.judge(Check("bundle", False, f"{new.uri} is model {new.version} now", before.version))
        with promotion.beside(new):
            promotion.check_golden(new)
            promotion.exchange(new)
        promotion.note(new.uri, "rolled back")
        return promotion.verdict


@contextmanager
def _promoting(
    bundle: Storage | None, limits: Limits, state: Storage | None, progress: Progress | None
) -> Iterator[_Promotion]:
    """Runs the block as the only promotion of this service, and keeps the reason where it refuses a model."""
    with closing(Live()) as live:
        folder = live.arrangement.state or (state and state.uri)
        if not folder:
            what = "The service was started without a folder for its state, and a promotion keeps its record there"
            raise UsageError(what, "a folder", "Give one with --state.")
        promotion = _Promotion(live, Storage(folder), limits, progress or (lambda *_: None), bundle)
        with locked(promotion.folder / "promotion"):  # the histories hold the folder itself
            if live.config["trial"] and promotion.running:  # of a promotion that was killed
                live.follow(promotion.running, live.application)
            live.remove_others()
            try:
                yield promotion
            except RefusedError as error:
                promotion.note("", "refused", error.what)
                error.details = promotion.verdict.to_json()
                raise
            except ServingError as error:
                promotion.note("", "refused", str(error))
                raise


class _Promotion:
    """One bundle on its way to users."""

    def __init__(self, live: Live, folder: Storage, limits: Limits, tell: Progress, bundle: Storage | None) -> None:
        self.live, self.folder, self.limits, self.tell, self.bundle = live, folder, limits, tell, bundle
        self.verdict = Verdict("", live.version())
        self.budget_s = limits.max_latency_s or live.target_latency_s
        self.running = self._running()

    def _running(self) -> ServedBundle | None:
        """The bundle of the running model; None where it is no longer there, so that nothing can be compared."""
        known = read_record(self.folder).running
        for place in (known.bundle if known else "", self.live.arrangement.bundle):
            with suppress(ArtefactError):
                served, _ = served_bundle(Storage(place))
                if place and served.version == self.verdict.replaced:
                    return served
        return None

    def judge(self, check: Check) -> None:
        """Adds a check. Raises RefusedError if it was not passed."""
        self.verdict.checks.append(check)
        if not check.passed:
            what = f"The model was refused by the check '{check.name}': {check.found}"
            raise RefusedError(what, check.wanted, f"The service goes on with model {self.verdict.replaced}.")

    def note(self, uri: str, outcome: Outcome, reason: str = "") -> None:
        """Writes what became of the bundle into the service's record."""
        told = [check.to_json() for check in self.verdict.checks]
        place = uri or (self.bundle.uri if self.bundle else "")
        note(self.folder, Attempt(place, self.verdict.model_version, outcome, reason, told))

    def opened(self, bundle: Storage) -> ServedBundle:
        """The new bundle, whole and trusted, with golden requests that can be read."""
        self.tell("checking the bundle", 0, STEPS)
        try:
            served, job = served_bundle(bundle, self.live.arrangement.trusted_key)
            read_golden(bundle, job.serve.max_k)
        except ArtefactError as error:
            self.judge(Check("bundle", False, str(error), "a bundle as it was exported"))
            raise
        self.verdict.model_version = served.version
        signed = ", signed" if self.live.arrangement.trusted_key else ""
        self.judge(Check("bundle", True, f"model {served.version}, whole{signed}", "as it was exported"))
        return served

    def check_items(self, new: ServedBundle) -> None:
        """Whether it still knows the items of the running model."""
        if self.running is not None:
            self.judge(checks.known_items(_item_ids(new), _item_ids(self.running), self.limits))

    @contextmanager
    def beside(self, new: ServedBundle) -> Iterator[None]:
        """Runs the block with the new model up; if that fails, it is taken down again."""
        self.tell("starting the new model beside the running one", 1, STEPS)
        try:
            try:
                self.live.start(new, START_TIMEOUT_S)
            except ServingError as error:
                self.judge(Check("start", False, error.what, "a replica that scores as the model was exported"))
            yield
        except BaseException:
            if self.live.application != application(new):
                self.live.remove(application(new))
            raise

    def check_golden(self, new: ServedBundle) -> list[GoldenRequest]:
        """The golden requests of the new model, answered through its handle as they were when it was exported."""
        name, wrong = application(new), []
        golden = self.live.golden(name)
        answers = self.live.ask(name, [request.query for request in golden])
        for number, (request, answer) in enumerate(zip(golden, answers, strict=True), start=1):
            found = difference(request, answer)
            if found:
                wrong.append(f"golden request {number}: {found}")
        # An index misses an item of some lists; without one, every list is as it was.
        needed = len(golden) if self.live.describe(name)["index"] is None else len(golden) // 2
        told = f"{len(golden) - len(wrong)} of {len(golden)} answered as exported"
        told += f"; {wrong[0]}" if wrong else ""
        self.judge(Check("golden", len(golden) - len(wrong) >= needed, told, f"at least {needed}"))
        return golden

    def check_answers(self, new: ServedBundle) -> None:
        """The checks of both models' answers to the golden requests of both bundles."""
        own = self.check_golden(new)
        self.tell("comparing it with the running model", 3, STEPS)
        before = None if self.running is None else _metric_of(self.running)
        self.judge(checks.floor(self._answered(new, own), self.limits, before))
        both = self._answered(new, [*own, *self.live.golden(self.live.application)])
        self.judge(checks.against_running(both, self.limits))
        self.judge(checks.coverage(both, self.limits))
        took_s = self.live.time(application(new), [request.query for request in own])
        self.judge(checks.latency(took_s, self.budget_s))

    def _answered(self, new: ServedBundle, golden: Sequence[GoldenRequest]) -> Answered:
        targets = [request.target for request in golden if request.target is not None]
        # Events of a type that the other model does not know are left out, as where they come from the store.
        queries = [replace(request.query, kept=True) for request in golden if request.target is not None]
        found = self.live.ask(application(new), queries), self.live.ask(self.live.application, queries)
        return Answered(targets, *found)

    def try_out(self, new: ServedBundle, plan: TrialPlan) -> None:
        """The model on real requests, see ``trial``."""
        if self.running is None:
            what = "The running model's bundle is gone, and a trial needs it"
            raise UsageError(what, "the bundle as it was", f"Deploy without --{plan.kind}.")
        self.tell(f"{plan.kind} of {plan.share:.0%} of the requests for {plan.seconds:g} s", 3, STEPS)
        found = self.live.try_out(self.running, new, plan)
        asked, failed, p95_s = found["asked"], found["failed"], found["p95_s"]
        if not asked:
            self.judge(Check(plan.kind, False, "no request came", "at least one"))
        told = f"{asked} requests, {failed} failed"
        told += "" if p95_s is None else f", {p95_s * 1000:.1f} ms for 95%"
        told += "" if found["overlap"] is None else f", {found['overlap']:.0%} of the items alike"
        passed = failed <= MAX_FAILED_SHARE * asked and (p95_s or 0.0) <= self.budget_s
        wanted = f"at most {MAX_FAILED_SHARE:.0%} failed, {self.budget_s * 1000:.1f} ms"
        self.judge(Check(plan.kind, passed, told, wanted))

    def exchange(self, new: ServedBundle) -> None:
        """Users meet the new model from now on."""
        self.tell("exchanging the models", 4, STEPS)
        old, known = self.live.application, read_record(self.folder).running
        if self.running is not None and (known is None or known.version != self.running.version):
            note(self.folder, Attempt(self.running.uri, self.running.version, "started"))  # nobody noted it
        self.live.follow(new)
        time.sleep(DRAIN_S)
        self.live.remove(old)
        self.tell("promoted", STEPS, STEPS)


def _item_ids(bundle: ServedBundle) -> NDArray[Any]:
    return Encoder.load(Storage(bundle.uri) / "encoder").item_ids[NUM_RESERVED:]


def _metric_of(bundle: ServedBundle) -> float | None:
    """What the evaluation said of a bundle's model."""
    found = Storage(bundle.uri).read_json("metrics.json").get("model", {}).get(checks.METRIC)
    return None if found is None else float(found)
