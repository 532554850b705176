"""The command itself, to which the modules beside this one add their verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from distft import __version__

app = typer.Typer(
    name="distft",
    help="From a shop's event logs to an autoscaled recommender on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def group(name: str, about: str) -> typer.Typer:
    """A verb with verbs of its own."""
    verbs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(verbs, name=name, help=about)
    return verbs


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass
