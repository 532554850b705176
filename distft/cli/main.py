"""The command line with all its verbs: one per stage, no logic.

Surprising choice: every verb imports what it needs when it runs, so that ``distft --help`` answers at once.
"""

from __future__ import annotations

import sys
import traceback

# In the order in which the help lists their verbs.
# ruff: noqa: F401, I001
from distft.cli import stages
from distft.cli import clusters
from distft.cli import serving
from distft.cli import deploying
from distft.cli import logs
from distft.cli.root import app
from distft.errors import EXIT_FAILED

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line. An error that is not ours is a defect: it keeps its trace, with exit code 3."""
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_FAILED)
