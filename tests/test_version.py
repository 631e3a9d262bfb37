"""The version stands in one place, and what is installed, said and imported is that."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import corgi_opt as co
from corgi_opt import _version

REPO = Path(__file__).parents[1]


def test_the_version_is_written_once():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "corgi_opt._version.__version__"}
    assert co.__version__ == _version.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", co.__version__)
    written = [p for p in (REPO / "corgi_opt").rglob("*.py") if f'"{co.__version__}"' in p.read_text()]
    assert [p.name for p in written] == ["_version.py"]


def test_the_project_says_who_and_where():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": "The corgi_opt developers"}]
    assert set(project["urls"]) == {"Homepage", "Repository", "Documentation", "Changelog"}
    assert all(url.startswith("https://github.com/corgi-opt/corgi_opt") for url in project["urls"].values())


def test_setuptools_reads_it(tmp_path, monkeypatch):
    from setuptools.config.pyprojecttoml import read_configuration  # type: ignore[import-untyped]

    monkeypatch.chdir(REPO)
    found = read_configuration("pyproject.toml", ignore_option_errors=False)
    assert found["project"]["version"] == co.__version__
