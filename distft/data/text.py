"""Search queries → words: the same function when a vocabulary is counted, a log is encoded and a request is served."""

from __future__ import annotations

import re
import unicodedata

MAX_QUERY_TOKENS = 32
"""Words of one query that are kept: a pasted page of text must not widen a whole batch."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def words(text: str) -> list[str]:
    """The words of a query, at most ``MAX_QUERY_TOKENS``.

    Normalised (NFKC) and case-folded; a word is a run of letters, digits and underscores. Chinese and Japanese
    characters are words by themselves, because those scripts put no space between words.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:MAX_QUERY_TOKENS]
