from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distft.deploy import handing
from distft.deploy.handing import hand_over
from distft.errors import RefusedError, RunError, ServingError, UsageError
from distft.sections.deploy import Deploy
from distft.storage import Storage
from distft.submit import Submitted


def says(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a program in the place of Python that writes its words down and says ``text``."""
    program, words = folder / "python", folder / "words"
    (folder / "text").write_text(text)
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {words}\necho noise >&2\ncat {folder}/text\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    return words


def test_the_section_becomes_the_words_of_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = says('{"model_version": "2", "replaced": "1", "checks": []}', tmp_path, monkeypatch)
    steps: list[tuple[str, int, int]] = []
    section = Deploy(state="/srv/service", min_metric=0.1, max_latency_ms=50)
    verdict = hand_over(Storage("/runs/next/bundle"), section, lambda *step: steps.append(step))
    assert verdict["model_version"] == "2"
    assert words.read_text().split() == [
        *("-m", "distft", "deploy", "/runs/next/bundle", "--min-metric", "0.1", "--min-of-before", "0.5"),
        *("--min-of-running", "0.95", "--min-items", "0.9", "--min-coverage", "0.5", "--max-latency-ms", "50.0"),
        *("--state", "/srv/service", "--json"),
    ]
    assert [done for _, done, _ in steps] == [0, 1]


@pytest.mark.parametrize(
    "kind, error", [("RefusedError", RefusedError), ("UsageError", UsageError), ("Interrupted", RunError)]
)
def test_its_errors_are_this_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception]
) -> None:
    text = f'{{"error": "{kind}", "message": "The model was refused", "failure": {{"checks": [1]}}}}'
    says(text, tmp_path, monkeypatch)
    with pytest.raises(error) as raised:
        hand_over(Storage("/b"), Deploy(), lambda *_: None)
    assert getattr(raised.value, "details") == {"checks": [1]}  # noqa: B009  of any of the three


def test_a_command_that_says_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says("", tmp_path, monkeypatch)
    with pytest.raises(ServingError, match="said nothing that can be read: noise"):
        hand_over(Storage("/b"), Deploy(), lambda *_: None)


def test_every_limit_is_an_option() -> None:
    from typer.testing import CliRunner

    from distft.cli.main import app

    shown = CliRunner().invoke(app, ["deploy", "--help"], env={"COLUMNS": "200"}).output
    missing = [key for key in Deploy.model_fields if f"--{key.replace('_', '-')}" not in shown]
    assert missing == ["address", "token_file"], "which only say where the verb is run"


def test_a_command_that_never_ends_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says("", tmp_path, monkeypatch)
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(handing, "LIMIT_S", 0.2)
    with pytest.raises(ServingError, match=r"distft deploy had not ended after 0\.2 s, and was ended"):
        hand_over(Storage("/b"), Deploy(), lambda *_: None)


def test_another_cluster_is_given_whole_paths_and_its_own_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[object] = []
    ended: list[str] = []
    status = "SUCCEEDED"

    class Jobs:
        def __init__(self, *arguments: object) -> None:
            asked.extend(arguments)

        def start(self, words: list[str], *_: object) -> str:
            asked.append(words)
            return "deploy-1"

        def follow(self, id_: str, write: Callable[[str], object], limit_s: float) -> Submitted:
            write('noise\n{"model_version": "2", "replaced": "1", "checks": []}\n')
            assert limit_s == handing.LIMIT_S
            return Submitted(id_, "deploy", "/runs", status, None, 0, "")

        stop = staticmethod(ended.append)

    monkeypatch.setattr("distft.submit.Jobs", Jobs)
    section = Deploy(state="runs/shop/service", address="http://shop-head-svc:8265", token_file="/etc/token")
    assert hand_over(Storage("runs/night/bundle"), section, lambda *_: None)["model_version"] == "2"
    address, token_file, words = asked
    assert (address, token_file) == ("http://shop-head-svc:8265", "/etc/token")
    assert isinstance(words, list) and words[:2] == ["deploy", f"{tmp_path}/runs/night/bundle"]
    assert words[-3:] == ["--state", f"{tmp_path}/runs/shop/service", "--json"]
    assert not any("token" in word for word in words), "it is for this process, and not for the command line"
    assert not ended
    status = "RUNNING"
    with pytest.raises(ServingError, match="deploy-1 at http://shop-head-svc:8265 had not ended after 1200 s"):
        hand_over(Storage("runs/night/bundle"), section, lambda *_: None)
    assert ended == ["deploy-1"]


def test_a_token_of_no_cluster_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"deploy\.address, which is not given"):
        Deploy(token_file="/etc/token")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "There is no bundle to deploy"),
        (["b", "--rollback"], "--rollback and a bundle are both given"),
        (["b"], "No service is named"),
        (["b", "--state", "nowhere"], "ray.json does not say where a service runs"),
        (["b", "--canary", "lots", "--state", "nowhere"], "--canary is 'lots'"),
    ],
)
def test_a_command_that_cannot_be_followed_says_why(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from distft.cli.main import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = CliRunner().invoke(app, ["deploy", *words, "--json"])
    assert told.exit_code == 2 and said in told.stderr, told.output
