from __future__ import annotations

import pytest

from distft.data.text import MAX_QUERY_TOKENS, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red SHOES, size-42!", ["red", "shoes", "size", "42"]),
        ("红色鞋子 Nike", ["红", "色", "鞋", "子", "nike"]),
        ("新しいhat", ["新", "し", "い", "hat"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),  # vowel signs are marks, not letters
        ("cafe\u0301 x\u0323", ["caf\u00e9", "x\u0323"]),  # accents with and without a form of their own
        ("ＳＴＲＡẞＥ", ["strasse"]),
        ("\U00020000\U00031350", ["\U00020000", "\U00031350"]),
        ("🎄 !?", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_pasted_page_is_cut() -> None:
    assert len(words("a " * 999)) == MAX_QUERY_TOKENS
