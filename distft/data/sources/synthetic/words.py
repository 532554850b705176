"""The words of the made-up shop: category nouns, styles and brand names.

Enters: how many of each. Leaves: that many different words of letters alone, so that a tokeniser keeps each whole.
Surprising choice: beyond the written lists, and for brands, words are spelt from a number in syllables, so that a
shop of any size has its words without drawing any.
"""

from __future__ import annotations

NOUNS = (
    "lamp kettle chair rug mirror curtain pillow mug clock vase basket shelf knife pan tray candle bowl towel "
    "blanket jacket boots scarf gloves backpack tent bottle helmet racket skates puzzle"
).split()
STYLES = (
    "red blue green black white yellow grey pink oak steel glass linen wool leather bamboo copper cotton marble "
    "silk velvet foldable compact striped quilted matte rustic round slim woven painted"
).split()
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_ENDINGS = {"category": "um", "style": "ish", "brand": "x"}


def category_words(count: int) -> list[str]:
    """The first ``count`` category nouns."""
    return _extended(NOUNS, count, "category")


def style_words(count: int) -> list[str]:
    """The first ``count`` styles."""
    return _extended(STYLES, count, "style")


def brand_words(count: int) -> list[str]:
    """The first ``count`` brand names."""
    return _extended([], count, "brand")


def _extended(listed: list[str], count: int, kind: str) -> list[str]:
    return listed[:count] + [_spelt(number) + _ENDINGS[kind] for number in range(count - len(listed))]


def _spelt(number: int) -> str:
    """Two syllables or more; a different word for every number."""
    base = len(_ONSETS) * len(_VOWELS)
    digits = [number * 29 % base]  # 29 and 70 share no factor: neighbours do not look alike
    number //= base
    while number or len(digits) < 2:
        digits.append(number % base)
        number //= base
    return "".join(_ONSETS[digit // len(_VOWELS)] + _VOWELS[digit % len(_VOWELS)] for digit in digits)
