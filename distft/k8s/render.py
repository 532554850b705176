"""What ``distft k8s render`` prints: the Kubernetes objects of a job file.

Enters: a job, its file, and wishes. Leaves: objects, and their YAML. Surprising choice: a job file that is not in the
image travels in a ConfigMap, so that a job of one's own needs no image of one's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distft.errors import UsageError
from distft.job import Job
from distft.k8s.memory import worker_gib
from distft.k8s.pods import IMAGE, Json
from distft.k8s.promotion import check_service
from distft.k8s.workloads import (
    JOB_FILE,
    JOB_FOLDER,
    NAMESPACE,
    Target,
    config_map,
    dump,
    object_name,
    ray_cron_job,
    ray_job,
    ray_service,
)
from distft.promotions import FOLDER
from distft.storage import Storage

KINDS = ("job", "service", "cron")
MAX_CONFIG_MAP_BYTES = 1024**2
_IMAGE = r"[^\s@:]+(:\d+/[^\s@:]+)?(:[\w.-]+|@sha256:[0-9a-f]{64})"
_FIELD = r"(\*|\d+(-\d+)?)(/[1-9]\d*)?"
_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
"""Of minute, hour, day of the month, month and day of the week."""


@dataclass(frozen=True)
class Wish:
    """Options of the command; None is the default of each."""

    kind: str = "job"
    image: str | None = None
    in_image: str | None = None
    namespace: str | None = None
    bundle: str | None = None
    schedule: str | None = None
    suspended: bool = False
    num_items: int | None = None
    service: str | None = None


def rendered(job: Job, path: str, wish: Wish) -> tuple[list[Json], str]:
    """The objects of a job and their YAML. Raises UsageError for wishes that do not fit."""
    _check(wish)
    _check_of_one_kind(wish)
    own = wish.kind != "service" and wish.in_image is None
    trains, dataset = wish.kind != "service", Storage(job.storage) / "dataset"
    target = Target(
        job_path=wish.in_image or f"{JOB_FOLDER}/{JOB_FILE}",
        image=wish.image or IMAGE,
        namespace=wish.namespace or NAMESPACE,
        config_map=f"{object_name(job, 'RayJob')}-file" if own else None,
        service=wish.service,
        worker_gib=worker_gib(job, wish.num_items, dataset if own and dataset.is_local else None) if trains else 0,
    )
    objects: list[Json] = []
    if own:
        text = Path(path).read_text(encoding="utf-8")
        if len(text.encode()) > MAX_CONFIG_MAP_BYTES:
            what = f"{path} has more than {MAX_CONFIG_MAP_BYTES} bytes, and a ConfigMap holds no more"
            raise UsageError(what, "a smaller job file", "Or build it into the image and give --in-image PATH.")
        objects.append(config_map(target, text))
    if wish.kind == "job":
        objects.append(ray_job(job, target))
    elif wish.kind == "cron":
        assert wish.schedule is not None
        objects.append(ray_cron_job(job, target, wish.schedule))
    else:
        objects.append(ray_service(job, target, wish.bundle or f"{job.storage.rstrip('/')}/{FOLDER}"))
    if wish.suspended:
        objects[-1]["spec"] = {"suspend": True, **objects[-1]["spec"]}
    return objects, dump(*objects)


def _check(wish: Wish) -> None:
    if wish.kind not in KINDS:
        raise UsageError(f"--kind is {wish.kind!r}", " or ".join(KINDS), "Choose one of them.")
    if (wish.schedule is None) == (wish.kind == "cron"):
        what = "--kind cron has no --schedule" if wish.schedule is None else f"--schedule, and --kind {wish.kind}"
        raise UsageError(what, "both of them together, or neither", "For every night at two: --schedule '0 2 * * *'.")
    if wish.schedule is not None and not _is_schedule(wish.schedule):
        what = f"--schedule is {wish.schedule!r}"
        raise UsageError(what, "minute, hour, day, month and weekday, such as '0 2 * * *'", "Correct it.")
    if wish.suspended and wish.kind == "cron":
        what = "--suspended, and --kind cron"
        raise UsageError(what, "--kind job or service", "A cron job waits for its time anyway.")
    if wish.image is not None and (not re.fullmatch(_IMAGE, wish.image) or wish.image.endswith(":latest")):
        what, wanted = f"--image is {wish.image!r}", "a name with a tag that stays, or with a digest"
        raise UsageError(what, wanted, "Without one, or with 'latest', it is another image tomorrow.")


def _check_of_one_kind(wish: Wish) -> None:
    if wish.bundle is not None and wish.kind != "service":
        raise UsageError(f"--bundle, and --kind {wish.kind}", "--kind service", "A job makes its own bundle.")
    if wish.num_items is not None and wish.kind == "service":
        raise UsageError("--items, and --kind service", "--kind job or cron", "A service has its items in its bundle.")
    if wish.service is not None and wish.kind == "service":
        raise UsageError("--service, and --kind service", "--kind job or cron", "Its name is that of the job.")
    if wish.service is not None:
        check_service(wish.service)


def _is_schedule(text: str) -> bool:
    """True for five fields of numbers within their bounds, as the operator reads them."""
    fields = text.split(" ")
    return len(fields) == len(_BOUNDS) and all(map(_is_field, fields, _BOUNDS))


def _is_field(text: str, bounds: tuple[int, int]) -> bool:
    parts = text.split(",")
    if not all(re.fullmatch(_FIELD, part) for part in parts):
        return False
    numbers = [int(number) for part in parts for number in re.findall(r"\d+", part.partition("/")[0])]
    return all(bounds[0] <= number <= bounds[1] for number in numbers)
