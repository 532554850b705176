"""Verbs of event logs and public data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from distft.cli.root import group
from distft.cli.session import AsJson, JobPath, Overrides, StorageUri, checked_place, load, session

data_app = group("data", "Data sets: list them, fetch one, or make one up.")


@data_app.command("list")
def data_list(json: AsJson = False) -> None:
    """List the data sets that fetch knows."""
    with session(json) as terminal:
        from distft.data.fetch import CATALOGUE

        entries = [(entry.name, entry.title, entry.home) for entry in CATALOGUE.values()]
        terminal.texts("data sets", entries)
        terminal.result({"data_sets": [dict(zip(("name", "title", "home"), one, strict=True)) for one in entries]})


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    from_: Annotated[str | None, typer.Option("--from", metavar="DIR_OR_URL", help="a folder or mirror")] = None,
    json: AsJson = False,
) -> None:
    """Download a data set into data/NAME, where the shipped jobs read it."""
    with session(json) as terminal:
        from distft.data.fetch import fetch
        from distft.terminal.progress import watching

        with watching(terminal) as watcher:
            fetched = fetch(name, source=from_, progress=watcher.progress)
        terminal.show(fetched.text())
        terminal.result(fetched.to_json())


@data_app.command("synth")
def data_synth(
    job: JobPath,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="folder for the files")],
    format_: Annotated[str, typer.Option("--format", help="csv or parquet")] = "parquet",
    set_: Overrides = None,
    json: AsJson = False,
) -> None:
    """Write the events of a job's synthetic shop as files, and print the part of a job that reads them."""
    with session(json) as terminal:
        loaded, folder = load(job, set_, None), checked_place("--out", out)
        from distft.data.synthesize import as_yaml, synthesize
        from distft.terminal.progress import watching

        with watching(terminal) as watcher:
            section = synthesize(loaded, folder, format_, watcher.progress)
        terminal.show(as_yaml(section).rstrip())
        terminal.result(section)


@data_app.command("forget")
def data_forget(
    user: Annotated[str, typer.Argument(metavar="USER", help="the user's id, as the logs have it")],
    job: JobPath,
    set_: Overrides = None,
    storage: StorageUri = None,
    json: AsJson = False,
) -> None:
    """Drop one user from a job's dataset, and say what must be made again."""
    with session(json) as terminal:
        loaded = load(job, set_, storage)
        from distft.pipeline import forget
        from distft.stages import Context
        from distft.storage import Storage
        from distft.terminal import results

        forgotten = forget(Context(loaded, Storage(loaded.storage)), user)
        results.forgotten(terminal, loaded.storage, forgotten)
        terminal.result(forgotten)
