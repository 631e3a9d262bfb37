"""What is handed out: the source archive is whole, and the files at the door agree with the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import corgi_opt as co

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FOLDERS = ("corgi_opt", "solvers/corgi_solvers", "tests", "docs", "examples", "benchmarks")
FILES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CITATION.cff", "LICENSE"),
    *("Makefile", "constraints.txt", "pyproject.toml", "mkdocs.yml", "MANIFEST.in", ".gitignore"),
)
LEFT_BY_RUNS = ("__pycache__", "*.pyc", ".*_cache", ".ipynb_checkpoints", "out", "*.egg-info", "build", "dist", "site")


def test_the_source_archive_holds_everything_that_the_tests_and_pages_need(tmp_path):
    copy = tmp_path / "copy"
    for folder in FOLDERS:
        shutil.copytree(REPO / folder, copy / folder, ignore=shutil.ignore_patterns(*LEFT_BY_RUNS))
    for file in FILES:
        shutil.copy(REPO / file, copy)
    (copy / "tests" / "__pycache__").mkdir()
    (copy / "tests" / "__pycache__" / "a.pyc").write_bytes(b"left by a run")
    wanted = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert len(wanted) > 300
    code = "from setuptools import build_meta; print(build_meta.build_sdist('made'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with tarfile.open(copy / "made" / done.stdout.splitlines()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted - held == set()
    assert [name for name in held if name.endswith(".pyc")] == []


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (REPO / "Makefile").read_text(encoding="utf-8"), re.M))


SCRIPTS = [REPO / ".ci" / "run", *sorted((REPO / ".github" / "workflows").glob("*.yml"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_machines_make_can_be_made(script):
    made = re.findall(r"\bmake ([a-z-]+)", script.read_text(encoding="utf-8"))
    assert set(made) <= targets() and (made or script.name == "release.yml")


def test_machines_do_what_they_are_there_for():
    names = [script.name for script in SCRIPTS]
    assert names == ["run", "ci.yml", "newest.yml", "release.yml"]
    _, ci, newest, release = (script.read_text(encoding="utf-8") for script in SCRIPTS)
    assert all(f"make {target}" in ci for target in ("lint", "test", "docs"))
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert re.search(rf'python: \["{re.escape(oldest)}"', ci)
    assert "make test-newest" in newest and "cron:" in newest
    assert "id-token: write" in release and "tags:" in release and "secrets." not in release


def test_hooks_call_tools_of_the_environment_that_make_makes():
    text = (REPO / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (\S+)", text) == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    assert re.findall(r"language: (\w+)", text) == ["system"] * 3  # nothing is fetched


def test_the_citation_is_of_this_version_and_names_the_paper():
    text = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {co.__version__}\n" in text and "version" in PROJECT["dynamic"]
    assert f"license: {PROJECT['license']}\n" in text
    assert "Certified Interpretability Robustness for Class Activation Mapping" in text
    assert "2301.11324" in text
