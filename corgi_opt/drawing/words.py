"""Titles and labels in lines that fit a width."""

from __future__ import annotations

import re
import textwrap

WHOLE = re.compile(r"\[[^\[\]]*\]|\bclass \d+")
"""What no line ends within: an interval, and a class with its number."""


def wrapped(text: str, inches: float, *, letters: float = 11, least: int = 10) -> str:
    """Lines that fit a width, of so many letters an inch, and at least of ``least``."""
    held = WHOLE.sub(lambda found: found[0].replace(" ", "\xa0"), text)
    return textwrap.fill(held, max(least, round(letters * inches)), break_long_words=False).replace("\xa0", " ")
