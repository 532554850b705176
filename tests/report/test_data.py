"""The data report: complete, self-contained, the same from the same input, and readable in a real browser."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from distft.job import Job
from distft.report.data import account, percent, render
from distft.terminal.console import Terminal
from distft.terminal.results import data_report
from tests.data import logs
from tests.report.browser import browsing, requests


def prepared(folder: Path, **data: Any) -> tuple[Job, dict[str, Any]]:
    logs.write_csv(folder / "log.csv", logs.rows())
    job = logs.job(folder, **data)
    return job, logs.prepare_here(job, folder / "run")[1]


@pytest.fixture
def stats(tmp_path: Path) -> dict[str, Any]:
    return prepared(tmp_path)[1]


@pytest.fixture
def page(tmp_path: Path, stats: dict[str, Any]) -> str:
    return render(logs.job(tmp_path).data, stats)


def test_the_page_holds_the_numbers_and_asks_for_nothing(page: str, stats: dict[str, Any]) -> None:
    assert not re.search(r"(src|href)=|https?://|<script|url\(|@import", page)
    for count in (stats["rows_in"], stats["kept"], stats["users"], stats["items"]):
        assert f"{count:,}" in page
    for reason, count in stats["rejected"]["by_reason"].items():
        assert re.search(rf"rejected: {reason.replace('_', ' ')}</td><td>{count:,}</td>", page), reason
    for reason, count in stats["filtered"]["by_reason"].items():
        assert not count or f"filtered: {reason.replace('_', ' ')}</td><td>{count:,}</td>" in page, reason
    assert "u1,i1,pv,yesterday,,1,1" in page
    for text in ("validation, from", "test targets", "History lengths", "Popularity", "by: time"):
        assert text in page, text


def test_every_plot_tells_in_words_what_it_shows(page: str, stats: dict[str, Any]) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2 + sum(count > 0 for count in stats["events_kept"].values())
    for plot in plots:
        named = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', plot)
        assert named is not None
        assert f'<title id="{named[1]}">' in plot and f'<desc id="{named[2]}">' in plot
    assert len(re.findall('id="[^"]+"', page)) == len(set(re.findall('id="[^"]+"', page)))


def test_the_order_of_keys_does_not_matter(tmp_path: Path, page: str, stats: dict[str, Any]) -> None:
    assert render(logs.job(tmp_path).data, json.loads(json.dumps(stats, sort_keys=True))) == page


def test_text_of_the_logs_cannot_become_markup(tmp_path: Path, stats: dict[str, Any]) -> None:
    stats["rejected"]["examples"]["bad timestamp"] = ["log.csv:1: <img src=x onerror=alert(1)>"]
    assert "&lt;img src=x onerror=alert(1)&gt;" in render(logs.job(tmp_path).data, stats)


@pytest.mark.parametrize("split", [{"by": "leave_one_out", "ties": "ordered"}, {"by": "random"}])
def test_other_splits_have_a_page(tmp_path: Path, split: dict[str, Any]) -> None:
    job, stats = prepared(tmp_path, split=split)
    page = render(job.data, stats)
    assert "validation, from" not in page and page.rstrip().endswith("</html>")


def test_a_log_without_a_clock_says_that_it_has_no_days(tmp_path: Path) -> None:
    columns = {ours: theirs for ours, theirs in logs.COLUMNS.items() if ours != "timestamp"}
    events = {"source": "files", "path": f"{tmp_path}/*.csv", "columns": columns, "event_types": logs.TYPES}
    job, stats = prepared(tmp_path, events=[events], split={"by": "leave_one_out"})
    assert stats["profile"]["periods"] is None
    page = render(job.data, stats)
    assert "The log tells the order of its events and no times" in page
    assert len(re.findall("<svg", page)) == 2


@pytest.mark.parametrize("minutes", [1, 400, 60 * 24 * 3, 60 * 24 * 900, 60 * 24 * 365 * 40])
def test_logs_of_any_span_are_drawn_in_few_bars(tmp_path: Path, minutes: int) -> None:
    rng = random.Random(2)
    times = [
        logs.START_S,
        logs.START_S + 60 * minutes,
        *(logs.START_S + rng.randrange(60 * minutes) for _ in range(300)),
    ]
    rows = [[f"u{n % 9}", f"i{n % 7}", "buy", str(time_s), "", "1", "1"] for n, time_s in enumerate(times)]
    logs.write_csv(tmp_path / "log.csv", rows)
    job = logs.job(tmp_path, split={"by": "leave_one_out", "ties": "ordered"})
    stats = logs.prepare_here(job, tmp_path / "run")[1]
    page = render(job.data, stats)
    plot = re.search(r'<svg[^>]*aria-labelledby="time-1-title.*?</svg>', page, flags=re.DOTALL)
    assert plot is not None
    bars = re.findall(r'class="bar', plot[0])
    assert 1 <= len(bars) <= 400
    assert (
        sum(int(found.replace(",", "")) for found in re.findall(r": ([\d,]+)</title></path>", plot[0]))
        == stats["kept"]
        > 290
    )
    ticks = re.findall(r'class="x[^"]*"', page.split('id="lengths-title"')[0])
    assert 1 <= len(ticks) <= 8


def test_the_shares_of_the_account_make_a_whole(stats: dict[str, Any]) -> None:
    rows = account(stats)
    assert sum(row["rows"] for row in rows) == stats["rows_in"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["fate"] for row in rows] == sorted(
        (row["fate"] for row in rows), key=["kept", "rejected", "filtered"].index
    )


def test_a_small_share_is_not_none() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.0005, 0.5, 1)] == ["0.0%", "< 0.1%", "0.1%", "50.0%", "100.0%"]


def test_the_terminal_shows_the_same_numbers(
    tmp_path: Path, stats: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert data_report(Terminal(as_json=False), str(tmp_path / "run")) == stats
    out, err = capsys.readouterr()
    assert f"report  {tmp_path}/run/dataset/report.html" in err
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert re.search(rf"kept +│ +{stats['kept']:,} │ +{percent(stats['kept'] / stats['rows_in'])} │ █+", out)
    for name, count in stats["events_kept"].items():
        assert re.search(rf"{name} +│ +{count:,} │.*[▁▂▃▄▅▆▇█]", out), name
    assert re.search(rf"test +│ +{stats['splits']['test']['rows']} │", out)
    assert f"{stats['profile']['histories']['quantiles']['median']} · " in out
    data_report(Terminal(as_json=True), str(tmp_path / "run"))
    assert capsys.readouterr().out == "", "with --json stdout is for the object alone"


@pytest.mark.proof
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light")])
def test_a_browser_shows_it_without_errors_requests_or_scrolling_sideways(
    page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with browsing(path, width, scheme) as driver:
        assert driver.title == "Data report"
        assert driver.get_log("browser") == []
        assert requests(driver) == [path.as_uri()]
        for summary in driver.find_elements("css selector", "summary"):
            summary.click()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        for plot in driver.find_elements("css selector", "svg"):
            assert plot.size["width"] > 150 and plot.size["height"] > 60
        hidden = """return [...document.querySelectorAll('table.wide')]
            .filter(t => t.scrollWidth > t.parentElement.clientWidth)"""
        assert driver.execute_script(hidden) == [], "also on a phone whole tables are in sight"
        overlap = """
            const boxes = [...document.querySelectorAll('.frame')].map(f => [...f.querySelectorAll('.x')]
                .map(t => t.getBoundingClientRect()).filter(b => b.width).sort((a, b) => a.left - b.left));
            return boxes.flatMap(row => row.slice(1).filter((b, n) => b.left < row[n].right)).length"""
        assert driver.execute_script(overlap) == 0, "labels of an axis do not touch"
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 28)")
