"""The page of a training that failed, through the pipeline and the command line: there, told, and gone again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from distft.cli.session import command_again, session
from distft.errors import NotFiniteError
from distft.pipeline import run
from distft.stages import Context
from tests.train.datasets import circle_job, write_circle


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_failed_training_leaves_a_page_that_goes_when_it_succeeds(tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    wild = circle_job(tmp_path, optimizer="sgd", learning_rate=1e30, checkpoint={"every_steps": 1})
    with pytest.raises(NotFiniteError) as raised:
        run(Context(wild, root, command="cd /shop && distft train wild.yaml"), ("train",))
    details = raised.value.details
    assert details and (details["cause"], details["rank"], details["num_workers"]) == ("not finite", None, 1)
    page = (tmp_path / "train/failure.html").read_text()
    assert details["page"] == str(tmp_path / "train/failure.html")
    for words in ("The loss of step", "not finite", "cd /shop &amp;&amp; distft train wild.yaml"):
        assert words in page
    run(Context(circle_job(tmp_path, epochs=1), root, force=True), ("train",))
    assert not list((tmp_path / "train").glob("failure*"))


def test_a_program_is_told_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    error = NotFiniteError("The loss of step 4 is nan")
    details = {"cause": "not finite", "rank": None, "num_workers": 2, "phase": "", "pid": None, "followed": []}
    details |= {"before": [], "checkpoint": None, "log": "", "at": "now", "resume": "distft train a", "page": "p.html"}
    details |= {"reached": 4}
    error.details = details
    with pytest.raises(typer.Exit), session(as_json=True):
        raise error
    out, err = capsys.readouterr()
    assert json.loads(out)["failure"] == details
    assert "not finite" in err and "distft train a" in err and "p.html" in err


def test_the_command_to_resume_is_the_one_given_less_what_would_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/venv/bin/distft", "train", "my job.yaml", "--force", "--set", "seed=3"])
    assert command_again() == f"cd {Path.cwd()} && distft train 'my job.yaml' --set seed=3"
