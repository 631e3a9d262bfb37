"""`make demo` says what it will do before it does it; the lines are those that make would run."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPO = Path(__file__).parents[1]


def lines(*arguments: str) -> list[str]:
    """What make would run where nothing is installed."""
    command = ["make", "-n", "-B", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()


def installs(found: list[str]) -> list[str]:
    return [line for line in found if "pip install" in line]


def test_the_demo_says_what_is_loaded_before_it_is():
    found = lines("demo")
    first = next(at for at, line in enumerate(found) if "pip install" in line)
    said = " ".join(line for line in found[:first] if line.startswith("echo"))
    for word in ("200 MB", "on disk", "minutes", "TORCH_INDEX"):
        assert word in said
    assert found[-1] == ".venv/bin/corgi-opt demo" and found[-2].startswith("echo")


def test_the_progress_of_pip_is_seen():
    (install,) = installs(lines("demo"))
    assert "--quiet" not in install and "index-url" not in install


def test_torch_alone_comes_from_the_index_that_is_named():
    torch, rest = installs(lines("demo", "TORCH_INDEX=https://example.org/cpu"))
    assert "--no-deps --index-url 'https://example.org/cpu' torch" in torch and "-c constraints.txt" in torch
    assert "index-url" not in rest and rest.endswith("-e '.[dev]'")
