"""``distft prepare`` as a user starts it, and the seconds that ``ray.init`` took of it.

Run:  python benchmarks/direct/timed_prepare.py SECONDS_FILE JOB...     (as ``distft prepare JOB...``)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ray

from distft.cli.main import main

init, seconds_file = ray.init, Path(sys.argv[1])


def timed_init(**options: Any) -> Any:
    started_s = time.perf_counter()
    try:
        return init(**options)
    finally:
        seconds_file.write_text(str(time.perf_counter() - started_s))


if __name__ == "__main__":
    ray.init = timed_init
    sys.argv = ["distft", "prepare", *sys.argv[2:]]
    main()
