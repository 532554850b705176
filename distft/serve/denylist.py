"""The deny-list of a service: items that nobody is recommended, whatever the model thinks of them.

Enters: a text file, one item id a line. Leaves: the ids. Surprising choice: an id that the model does not know is no
mistake, because a shop's list outlives models; how many of the model's items are denied is told by ``GET /v1/model``.
"""

from __future__ import annotations

from pathlib import Path

from distft.errors import UsageError


def read_deny_list(path: Path) -> tuple[str, ...]:
    """The item ids of a file; empty lines are none. Raises UsageError for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unusable(path, f"byte {error.start} is not UTF-8") from None
    return tuple(line for line in text.splitlines() if line)


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"The deny-list {path} cannot be used: {reason}", "a text file with an item id a line")
