"""The section on predictions: complete, in the page and in the terminal."""

from __future__ import annotations

import re

import numpy as np
import pytest

from distft.evaluate.pointwise import summarise_labels, summarise_values
from distft.jobfile import load_job
from distft.report.evaluation import render
from distft.report.pointwise import baselines, calibration_plot, table_rows
from distft.storage import Storage
from tests.report.browser import browsing
from tests.report.test_evaluation import METRICS


@pytest.fixture(scope="module")
def part():
    rng = np.random.default_rng(0)
    label = (rng.random(1000) < 0.55).astype(np.float64)
    score = rng.normal(size=1000) + label
    scores = {"model": score, "regression": score / 2 + rng.normal(size=1000), "majority": np.full(1000, 0.2)}
    return summarise_labels(scores, label, 1)


@pytest.fixture
def page(part, tmp_path):
    return render(
        load_job("jobs/classic-mlp.yaml"), Storage(tmp_path / "run"), METRICS | {"pointwise": part}, "weights"
    )


def test_every_metric_has_a_row_beside_the_baselines(part):
    rows = table_rows(part)
    assert [row["metric"] for row in rows] == ["auc", "accuracy", "precision", "recall", "f1", "logloss"]
    assert baselines(part) == ["regression", "majority"]
    assert rows[0]["baselines"] == [part["baselines"]["regression"]["auc"], 0.5]
    assert rows[0]["interval"][0] < rows[0]["model"] < rows[0]["interval"][1]


def test_the_curve_rises_from_the_left_to_the_right_within_the_plot(part):
    places = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", calibration_plot(part)["points"])]
    assert len(places) == len(part["calibration"]) > 5
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert all(44 <= x <= 352 and 12 <= y <= 170 for x, y in places)
    assert calibration_plot({"calibration": []}) is None


def test_the_page_tells_of_labels_and_of_values(page, tmp_path):
    assert "<h2>Predictions</h2>" in page and "calibration" in page and "logistic regression" in page
    assert not re.search(r"(src|href)=|https?://|<script", page)
    value = np.array([3.0, 4.0, 5.0])
    errors = summarise_values({"model": value + 1, "majority": np.full(3, 4.0)}, value, 1)
    page = render(load_job("jobs/ml100k.yaml"), Storage(tmp_path), METRICS | {"pointwise": errors}, "weights")
    assert "rmse" in page and "calibration" not in page and "auc" not in page


@pytest.mark.proof
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_predictions_without_scrolling_sideways(page, tmp_path, width):
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    with browsing(tmp_path / "index.html", width) as driver:
        assert driver.get_log("browser") == []
        for summary in driver.find_elements("css selector", "summary"):
            summary.click()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        for place in driver.find_elements("css selector", ".scroll"):
            assert driver.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", place)
