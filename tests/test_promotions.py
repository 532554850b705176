from __future__ import annotations

from pathlib import Path

import pytest

from distft.errors import ArtefactError
from distft.promotions import FILE, KEPT, Attempt, Model, bundle_at, note, read_record
from distft.storage import MANIFEST, Storage


def test_what_is_promoted_runs_and_what_it_replaced_is_remembered(tmp_path: Path) -> None:
    state = Storage(tmp_path / "service")
    assert read_record(state).running is None
    note(state, Attempt("/a", "1", "started"))
    note(state, Attempt("/b", "2", "refused", "The model was refused"))
    record = note(state, Attempt("/b", "3", "promoted"))
    assert (record.running, record.before) == (Model("/b", "3"), Model("/a", "1"))
    record = note(state, Attempt("/a", "1", "rolled back"))
    assert (record.running, record.before) == (Model("/a", "1"), Model("/b", "3"))
    assert note(state, Attempt("/a", "1", "started")).before == Model("/b", "3"), "a service that starts again"
    assert [one.outcome for one in read_record(state).attempts] == [
        "started",
        "refused",
        "promoted",
        "rolled back",
        "started",
    ]
    assert read_record(state).attempts[1].reason == "The model was refused"


def test_only_so_many_attempts_are_kept(tmp_path: Path) -> None:
    state = Storage(tmp_path)
    for number in range(KEPT + 3):
        note(state, Attempt("/a", str(number), "refused"))
    kept = read_record(state)
    assert len(kept.attempts) == KEPT and kept.attempts[-1].version == str(KEPT + 2) and kept.running is None


def test_the_folder_of_a_service_stands_for_its_model(tmp_path: Path) -> None:
    state = Storage(tmp_path / "service")
    assert bundle_at(state.uri).uri == state.uri
    note(state, Attempt("/x/bundle", "1", "refused"))
    with pytest.raises(ArtefactError, match="Nothing is served"):
        bundle_at(state.uri)
    note(state, Attempt("/a/bundle", "1", "started"))
    assert bundle_at(state.uri).uri == "/a/bundle"


def test_a_service_that_nobody_noted_runs_the_bundle_beside_its_folder(tmp_path: Path) -> None:
    state, bundle = Storage(tmp_path / "service"), Storage(tmp_path / "bundle")
    assert bundle_at(state.uri).uri == state.uri, "there is no bundle"
    bundle.make()
    bundle.write_json(MANIFEST, {})
    assert bundle_at(state.uri).uri == bundle.uri
    assert bundle_at(str(tmp_path / "servce")).uri == str(tmp_path / "servce"), "a slip of the keyboard"
    note(state, Attempt("/x/bundle", "1", "refused"))
    assert bundle_at(state.uri).uri == bundle.uri, "a refused model changes nothing"
    note(state, Attempt("/x/bundle", "1", "promoted"))
    assert bundle_at(state.uri).uri == "/x/bundle"


@pytest.mark.parametrize("text", ["{}", '{"running": {"x": 1}, "before": null, "attempts": []}', "[]", "no json"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtefactError, match=FILE):
        read_record(Storage(tmp_path))
