"""The console script in this process, and models for it to find."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import MODELS, Ran

from corgi_opt.cli import main as cli


@pytest.fixture
def corgi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the console script in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["corgi-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr()]
        return Ran(int(exited.value.code or 0), *plain)

    return run


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with my_models.py, its helper, and the same as package.module; also the current directory."""
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "helper_of_models.py").write_text("SEED = 2\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "my_" in name or "helper_of_models" in name:
            del sys.modules[name]
