"""The console of one command: lines and tables for people, one paragraph for a mistake, one JSON object for scripts.

Progress and messages go to stderr, results to stdout; with ``--json`` stdout holds one JSON object alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distft.errors import DistftError


class Terminal:
    """The console of one command."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = sys.stdout
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(stderr=True, highlight=False) if as_json else Console(file=self.stdout, highlight=False)

    def say(self, text: str) -> None:
        """A line for people."""
        self.err.print(text, markup=False)

    def stage(self, name: str, state: str) -> None:
        """Where a run is."""
        self.err.print(f"[bold]{escape(name)}[/] {escape(state)}")

    def fail(self, error: DistftError) -> None:
        """The paragraph that a mistake gets; where workers failed, also what is known of it."""
        self.err.print(f"[bold red]error[/] {escape(str(error))}")
        if error.details and "resume" in error.details:
            from distft.report.failure import text

            self.say(text(error.details))
            self.say(f"  page: {error.details['page']}")

    def warn(self, text: str) -> None:
        """A paragraph about what went on differently than it should."""
        self.err.print(f"[bold yellow]warning[/] {escape(text)}")

    def show(self, text: str) -> None:
        """Plain text that was asked for."""
        self.out.print(text, markup=False, soft_wrap=True)

    def result(self, value: Mapping[str, Any]) -> None:
        """The JSON object of ``--json``: the last line on stdout."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False, allow_nan=False), file=self.stdout, flush=True)

    def pass_on(self, text: str) -> None:
        """What a job on a cluster said, as it is."""
        stream = sys.stderr if self.as_json else self.stdout
        stream.write(text)
        stream.flush()

    def texts(self, title: str, rows: Sequence[tuple[str, ...]]) -> None:
        """Rows of words."""
        table = Table(show_header=False)
        for _ in rows[0]:
            table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.titled(title, table)

    def columns(self, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Words to the left, numbers to the right; a last column after two numbers is drawn, not read."""
        table = Table(header_style="", show_header=any(names))
        for place, name in enumerate(names):
            table.add_column(name, justify="right" if 0 < place < 3 else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.titled(title, table)

    def counts(self, title: str, rows: list[tuple[str, Any]]) -> None:
        """Names and numbers."""
        table = Table(show_header=False)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        for name, value in rows:
            table.add_row(name, _shown(value))
        self.titled(title, table)

    def titled(self, title: str, table: Table) -> None:
        """A table below its name."""
        self.out.print(f"[bold]{escape(title)}[/]", soft_wrap=True)  # rich would break a title at the table's width
        self.out.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)
