"""Search queries → words: the same function when a vocabulary is counted, a log is encoded and a request is served."""

from __future__ import annotations

import re
import unicodedata

MAX_QUERY_TOKENS = 32
"""Words of one query that are kept: a pasted page of text must not widen a whole batch."""


def _marks() -> str:
    """The combining marks (vowel signs of Hindi, accents without a letter of their own), as a character class."""
    marks = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code, before in zip(marks, [-1, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], -1], strict=True) if code + 1 != after]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


_MARK = _marks()
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_CJK}][{_MARK}]*|[^\W{_CJK}](?:[^\W{_CJK}]|[{_MARK}])*")


def words(text: str) -> list[str]:
    """The words of a query, at most ``MAX_QUERY_TOKENS``.

    Normalised (NFKC) and case-folded; a word is a run of letters, their marks, digits and underscores. Chinese and
    Japanese characters are words by themselves, because those scripts put no space between words.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:MAX_QUERY_TOKENS]
