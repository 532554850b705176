"""How fast targets are ranked among all items, against how fast this machine multiplies matrices at all.

Run:  .venv/bin/python benchmarks/ranking.py

``small``: 6,040 users and 3,416 items, 165 of them excluded for each user, as in ML-1M: all ranks, and from these every
metric with its bootstrap interval. ``large``: 100,000 users and 1,000,000 items, 20 excluded each. States and vectors
are random, 64 wide; the ranks of some users are compared with a plain count over one row of scores. The rate of the
machine is the best of a few large fp32 products by either library in torch, before and after. Memory is the largest
resident size of the process, which holds nothing else. Writes ``benchmarks/results/ranking.json``.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distft.evaluate.metrics import ranking_metrics
from distft.evaluate.resampling import intervals
from distft.models.products import times_transposed
from distft.ranking import DotScores, dot_ranks
from distft.schema import NUM_RESERVED
from distft.topk import MISS

WIDTH = 64
KS = (1, 5, 10, 20)
NUM_CHECKED = 50


def main() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        rate = machine_rate()
        small = measured(6_040, 3_416, 165, metrics=True)
        users, items = (int(text) for text in sys.argv[1:3]) if len(sys.argv) > 2 else (100_000, 1_000_000)
        large = measured(users, items, 20, metrics=False)
        rate = max(rate, machine_rate())
    large["share_of_machine"] = round(large["gflops"] / rate, 3)
    result = {
        "command": f"benchmarks/ranking.py {' '.join(sys.argv[1:])}".strip(),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "machine_gflops": round(rate, 1),
        "small": small,
        "large": large,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    text = json.dumps(result, indent=2)
    (Path(__file__).parent / "results" / "ranking.json").write_text(text + "\n")
    print(text)


def machine_rate(size: int = 4096) -> float:
    """GFLOP/s of the best of a few products of two square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    fast = min(seconds(lambda: times_transposed(a, b)) for _ in range(3))
    usual = min(seconds(lambda: a @ b.T) for _ in range(3))
    return 2 * size**3 / min(fast, usual) / 1e9


def measured(num_users: int, num_items: int, num_excluded: int, metrics: bool) -> dict[str, Any]:
    """Ranks of one target a user, timed, and some of them counted again."""
    rng = np.random.default_rng(0)
    num_rows = num_items + NUM_RESERVED
    x_BD, vectors_ND = torch.randn(num_users, WIDTH), torch.randn(num_rows, WIDTH)
    target_B = torch.from_numpy(rng.integers(NUM_RESERVED, num_rows, num_users))
    all_excluded = rng.integers(NUM_RESERVED, num_rows, (num_users, num_excluded)).astype(np.int32)
    excluded = list(all_excluded)
    dot_ranks(x_BD[:1024], vectors_ND[:2000], target_B[:1024].clamp(max=1999))  # threads and kernels are there
    start_s = time.perf_counter()
    rank_B = dot_ranks(x_BD, vectors_ND, target_B, excluded)
    ranked_s = time.perf_counter() - start_s
    result: dict[str, Any] = {"users": num_users, "items": num_items, "width": WIDTH, "excluded": num_excluded}
    result |= {"ranks_s": round(ranked_s, 3), "gflops": round(2 * num_users * num_items * WIDTH / ranked_s / 1e9, 1)}
    if metrics:
        ranks = rank_B.numpy()
        took_s = seconds(lambda: (ranking_metrics(ranks, KS), intervals(ranks, np.arange(num_users), KS, 1)))
        result["metrics_s"] = round(took_s, 3)
    checked = rng.choice(num_users, NUM_CHECKED, replace=False).tolist()
    counted, found = [], [int(rank_B[user]) for user in checked]
    for user in checked:
        first = user // 8 * 8  # a row alone is multiplied by other code, whose last bits may move a target by a place
        s_N = DotScores(x_BD[first : first + 8], vectors_ND)(0, num_rows)[user - first]
        counted.append(counted_again(s_N, int(target_B[user]), excluded[user]))
    result["checked"] = len(checked)
    result["checked_equal"] = sum(one == other for one, other in zip(found, counted, strict=True))
    return result


def counted_again(s_N: Tensor, target: int, excluded: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """The target's rank by a plain count over all scores of one user."""
    if target in excluded:
        return MISS
    own = s_N[target].clone()
    s_N[torch.from_numpy(excluded.astype(np.int64))] = -torch.inf
    s_N[:NUM_RESERVED] = -torch.inf
    return 1 + int((s_N > own).sum()) + int((s_N[:target] == own).sum())


def seconds(work: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def processor() -> str:
    """The processor's name, and how many of its cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
