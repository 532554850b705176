"""The report page: complete, self-contained, and readable in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distft.jobfile import load_job
from distft.report.evaluation import accounting, render, sizes, table_rows
from distft.storage import Storage
from tests.report.browser import browsing

METRICS = {
    "split": "test",
    "num_targets": 1234,
    "unknown_target_share": 0.025,
    "exclude_seen": "targets",
    "model": {"hr@1": 0.1, "ndcg@1": 0.1, "recall@10": 0.4, "hr@10": 0.4, "ndcg@10": 0.25, "coverage@10": 0.9},
    "baselines": {
        "oracle": {"hr@10": 0.6, "ndcg@10": 0.4},
        "popularity": {"hr@10": 0.05, "ndcg@10": 0.02},
        "recently_seen": {"hr@10": 0.2, "ndcg@10": 0.1},
    },
    "intervals": {"hr@10": [0.38, 0.42]},
}


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "run")
    stats = {
        "rows_in": 100,
        "kept": 80,
        "rejected": {"by_reason": {"missing <user>": 15, "never": 0}},
        "filtered": {"by_reason": {"k_core_item": 5}},
        "users": 7,
        "splits": {"train": {"events": 60}, "valid": {"rows": 3}, "test": {"rows": 4}},
        "times": {"first_ms": 1_704_067_285_714, "last_ms": 1_711_840_018_582, "test_start_ms": 1_711_000_000_000},
    }
    storage.write_json("dataset/stats.json", stats)
    lines = [{"kind": "train", "step": step, "epoch": 1, "loss": 5 - step / 10} for step in range(1, 9)]
    lines += [{"kind": "valid", "step": step, "epoch": 1, "loss": 4, "ndcg@10": 0.1 * step} for step in (4, 8)]
    storage.write_bytes("train/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return storage


@pytest.fixture
def page(root: Storage) -> str:
    return render(load_job("jobs/quickstart.yaml"), root, METRICS, "train/checkpoints/step-8")


def test_rows_leave_out_what_repeats_another_row():
    rows = table_rows(METRICS)
    assert [row["metric"] for row in rows] == ["hr@1", "hr@10", "ndcg@10", "coverage@10"]
    assert rows[1]["interval"] == [0.38, 0.42]
    assert rows[1]["baselines"] == [0.05, 0.2, 0.6], "popularity first, the oracle last"
    assert rows[3]["baselines"] == [None, None, None]


def test_every_row_of_the_logs_is_accounted_for(root):
    assert accounting(root / "dataset") == [
        ("rows in the logs", 100),
        ("events kept", 80),
        ("rejected: missing <user>", 15),
        ("filtered: k core item", 5),
    ]


def test_the_sizes_and_days_of_the_splits_are_told(root):
    assert sizes(root / "dataset") == [
        ("users", 7),
        ("events to train on", 60),
        ("validation targets", 3),
        ("test targets", 4),
        ("first day", "2024-01-01"),
        ("test from", "2024-03-21"),
        ("last day", "2024-03-30"),
    ]


def test_the_page_holds_everything_and_asks_for_nothing(page):
    for text in ("0.4000", "0.3800–0.4200", "0.0500", "1,234", "2.5%", "missing &lt;user&gt;", "kind: transformer"):
        assert text in page, text
    assert len(re.findall("<svg", page)) == 2
    assert not re.search(r"(src|href)=|https?://|<script", page)


def test_a_page_without_training_curves_is_whole(tmp_path):
    page = render(load_job("jobs/quickstart.yaml"), Storage(tmp_path), METRICS, "a bundle")
    assert "<svg" not in page and page.rstrip().endswith("</html>")


@pytest.mark.proof
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(page, tmp_path, width):
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    with browsing(tmp_path / "index.html", width) as driver:
        assert driver.title == "quickstart: evaluation"
        assert driver.get_log("browser") == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        table = "return [document.querySelector('.scroll').scrollWidth, document.querySelector('.scroll').clientWidth]"
        needed, there = driver.execute_script(table)
        assert needed <= there, "also on a phone all baselines are in sight"
        for summary in driver.find_elements("css selector", "summary"):
            summary.click()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        cells = driver.find_elements("css selector", "td.model")
        assert [cell.text.split()[0] for cell in cells] == ["0.1000", "0.4000", "0.2500", "0.9000"]
