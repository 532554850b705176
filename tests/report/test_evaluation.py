"""The report page: complete, self-contained, and readable in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distft.evaluate.examples import Example
from distft.jobfile import load_job
from distft.report.evaluation import accounting, render, sizes, table_rows
from distft.report.groups import against_rows, chances, slice_lines, slice_tables
from distft.storage import Storage
from tests.report.browser import browsing, requests


def group(count: int, value: float) -> dict[str, object]:
    return {
        "count": count,
        "model": {"ndcg@10": value},
        "intervals": {"ndcg@10": [value - 0.01, value + 0.01]},
        "baselines": {"oracle": {"ndcg@10": 0.4}},
        "baseline_intervals": {"oracle": {"ndcg@10": [0.39, 0.41]}},
    }


METRICS = {
    "split": "test",
    "num_targets": 1234,
    "unknown_target_share": 0.025,
    "exclude_seen": "targets",
    "model": {
        "hr@1": 0.1, "ndcg@1": 0.1, "recall@10": 0.4, "hr@10": 0.4, "ndcg@10": 0.25,
        "coverage@10": 0.9, "novelty@10": 8.123, "arp@10": 1234.56, "gini@10": 0.5,
    },
    "baselines": {
        "oracle": {"hr@10": 0.6, "ndcg@10": 0.4},
        "popularity": {"hr@10": 0.05, "ndcg@10": 0.02, "coverage@10": 0.1},
        "co_occurrence": {"hr@10": 0.3, "ndcg@10": 0.2},
        "recently_seen": {"hr@10": 0.2, "ndcg@10": 0.1},
    },
    "intervals": {"hr@10": [0.38, 0.42]},
    "significance": {
        "metric": "ndcg@10",
        "baselines": {
            "popularity": {"difference": 0.23, "interval": [0.2, 0.25], "p_value": 1 / 10_001},
            "oracle": {"difference": -0.15, "interval": [-0.2, -0.1], "p_value": 0.0312},
        },
    },
    "slices": {
        "history_length": {"10-19": group(700, 0.3), "100+": group(34, 0.2), "5-9": group(500, 0.1)},
        "popularity": {"tail": group(34, 0.2), "head": group(1200, 0.26)},
        "event": {"purchase": group(1234, 0.25)},
    },
    "against": {
        "name": "yesterday",
        "model_version": "0123456789ab",
        "num_common_targets": 1200,
        "metrics": {"hr@10": 0.41, "ndcg@10": 0.24, "map@10": 0.2},
        "differences": {
            "ndcg@10": {"difference": 0.01, "interval": [-0.001, 0.021], "p_value": 0.07},
            "map@10": {"difference": 0.01, "interval": [-0.001, 0.021], "p_value": 0.07},
            "hr@10": {"difference": -0.01, "interval": [-0.02, -0.001], "p_value": 0.5},
        },
    },
}  # fmt: skip
VISITORS = [
    Example(
        [("view", "red <mug>"), ("search", "mug " + "x" * 90)], 3, ["blue mug", "green mug"], "green mug", "purchase", 2
    ),
    Example([], 0, ["blue mug"], "an item that is not in the catalogue", "purchase", None),
]


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
    return render(load_job("jobs/quickstart.yaml"), root, METRICS, "a/" * 60 + "step-8", VISITORS)


def test_rows_leave_out_what_repeats_another_row():
    rows = table_rows(METRICS)
    assert [row["metric"] for row in rows] == [
        "hr@1",
        "hr@10",
        "ndcg@10",
        "coverage@10",
        "novelty@10",
        "arp@10",
        "gini@10",
    ]
    assert rows[1]["interval"] == [0.38, 0.42]
    assert rows[1]["baselines"] == [0.05, 0.2, 0.3, 0.6], "popularity first, the oracle last"
    assert rows[3]["baselines"] == [0.1, None, None, None]


def test_groups_come_in_their_order_and_one_alone_is_not_shown():
    tables = slice_tables(METRICS, ["oracle", "popularity"])
    assert [[row["name"] for row in table["rows"]] for table in tables] == [["5–9", "10–19", "100+"], ["head", "tail"]]
    assert tables[0]["rows"][0] == {
        "name": "5–9", "count": 500, "model": 0.1, "interval": [0.1 - 0.01, 0.1 + 0.01], "baselines": [0.4, None],
    }  # fmt: skip
    assert slice_lines(METRICS)[1] == ("by popularity of the target", "head 0.2600 (1,200), tail 0.2000 (34)")


def test_a_comparison_is_told_once_a_metric_with_sign_and_chance():
    rows = against_rows(METRICS)
    assert [row["metric"] for row in rows] == ["hr@10", "ndcg@10"], "map repeats mrr where a list has one target"
    assert (rows[0]["difference"], rows[0]["interval"], rows[0]["p"]) == ("−0.0100", "−0.0200 to −0.0010", "0.50")
    assert chances(METRICS, ["popularity", "recently_seen", "oracle"]) == ["<0.0001", "–", "0.0312"]


def test_metrics_of_an_older_version_are_still_shown():
    old = {name: METRICS[name] for name in ("split", "num_targets", "model", "baselines", "intervals")}
    assert slice_tables(old, []) == slice_lines(old) == against_rows(old) == chances(old, ["oracle"]) == []


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
    figures = ("0.4000", "0.3800–0.4200", "0.0500", "1,234", "2.5%", "8.12", "1234.6", "&lt;0.0001")
    told = ("missing &lt;user&gt;", "kind: transformer", "red &lt;mug&gt;", "Against yesterday", "could not be shown")
    for text in (*figures, *told):
        assert text in page, text
    assert len(re.findall("<svg", page)) == 2
    assert not re.search(r"(src|href)=|https?://|<script", page)


def test_a_page_without_training_curves_is_whole(tmp_path):
    page = render(load_job("jobs/quickstart.yaml"), Storage(tmp_path), METRICS, "a bundle")
    assert "<svg" not in page and page.rstrip().endswith("</html>")


@pytest.mark.proof
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(page, tmp_path, width, scheme):
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    with browsing(tmp_path / "index.html", width, scheme) as driver:
        assert driver.title == "quickstart: evaluation"
        assert driver.get_log("browser") == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        tables = "return [...document.querySelectorAll('.scroll')].map(one => [one.scrollWidth, one.clientWidth])"
        for needed, there in driver.execute_script(tables):
            assert needed <= there, "also on a phone all baselines are in sight"
        assert requests(driver) == [(tmp_path / "index.html").as_uri()]
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        for summary in driver.find_elements("css selector", "summary"):
            summary.click()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        cells = driver.find_elements("css selector", "td.model")
        assert [cell.text.split()[0] for cell in cells][:4] == ["0.1000", "0.4000", "0.2500", "0.9000"]
