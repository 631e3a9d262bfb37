"""Code that stands in pages of Markdown, taken out and run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def blocks(text: str, language: str) -> list[str]:
    """What is fenced as this language, in its order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run(block: str, page: Path, names: dict[str, Any]) -> None:
    """Runs one block among the names that those before it have made."""
    exec(compile(block, str(page), "exec"), names)
