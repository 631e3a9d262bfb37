"""Whether a solver can be run, asked before any problem: what is absent, too old, broken or without a licence."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from pathlib import Path

import pytest
from corgi_solvers import (
    BackendBrokenError,
    BackendMissingError,
    Cvxpy,
    Highs,
    Pulp,
    backend,
    cvxpy,
    highs,
    names,
    pulp,
)
from corgi_solvers import installed as installed_module
from corgi_solvers.installed import installed, older

ALL = [name for name in names() if ":" in name or name == "highs"]


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulp, "_worked", set())


@pytest.mark.parametrize("name", [name for name in ALL if backend(name).available()])
def test_what_is_there_can_be_required_and_then_solves(name: str) -> None:
    solver = backend(name)
    try:
        solver.require()
    except (BackendBrokenError, BackendMissingError) as error:
        pytest.skip(str(error))  # a real one without a licence; PuLP 4 alone brings no CBC
    assert solver.solve(pulp.SMALLEST.relaxed()).objective == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_what_is_absent_is_missed_with_the_command_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pulp, cvxpy, highs):
        monkeypatch.setattr(module, "installed", lambda package: False)
    solver = backend(name)
    assert not solver.available()
    with pytest.raises(BackendMissingError, match=r"is not installed\. Run: pip install ") as caught:
        solver.require()
    assert caught.value.package in caught.value.pip
    monkeypatch.setattr(pulp, "installed", lambda package: package == "pulp")
    monkeypatch.setattr(cvxpy, "installed", lambda package: package == "cvxpy")
    if name != "pulp:cbc":
        with pytest.raises(BackendMissingError) as caught:
            solver.require()
        assert caught.value.package in caught.value.pip  # as soon as the door is there, what is behind it


@pytest.mark.parametrize(("name", "package"), [("pulp:cbc", "pulp"), ("pulp:highs", "pulp"), ("cvxpy:scs", "cvxpy")])
def test_what_is_too_old_is_missed(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"pulp": pulp, "cvxpy": cvxpy}[package]
    monkeypatch.setattr(module, "MINIMUM_VERSION", (99,))
    with pytest.raises(BackendMissingError, match=f"{package} is too old. Run: pip install -U"):
        backend(name).require()


def test_an_old_highs_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs, "MINIMUM_VERSION", (99, 0, 0))
    with pytest.raises(BackendMissingError, match="too old"):
        Highs().require()


@pytest.mark.parametrize(
    ("words", "least", "expected"),
    [
        ("3.3.2", (3, 3, 2), False),
        ("3.3.1", (3, 3, 2), True),
        ("3.10", (3, 3, 2), False),
        ("4.0.0a1", (3, 3, 2), False),
        ("1.4.4.dev0", (1, 5), True),
        ("unknown", (1, 5), False),
    ],
)
def test_versions_are_numbers(words: str, least: tuple[int, ...], expected: bool, monkeypatch) -> None:
    monkeypatch.setattr(installed_module, "_version", lambda package: words)
    assert older("some-package", least) is expected


def test_a_package_that_is_none_is_not_installed_and_not_old() -> None:
    assert not installed("no_such_package_is_there")
    assert not older("no_such_package_is_there", (99,))
    assert installed("numpy") and older("numpy", (99,)) and not older("numpy", (1,))
    assert importlib.metadata.version("numpy")


def test_a_pulp_that_finds_no_cbc_says_what_brings_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import pulp as real

    monkeypatch.setattr(real.COIN_CMD, "available", lambda self: False)
    monkeypatch.setattr(real, "listSolvers", lambda *args, **kwargs: [])
    with pytest.raises(BackendMissingError, match=r"cbc was not found by PuLP\. Run: pip install 'pulp>=3.3.2,<4'"):
        Pulp("cbc").require()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``engine(body)``: stands in for the Python that runs gurobi, which is installed; counts its runs."""
    if sys.platform == "win32":
        pytest.skip("needs POSIX: a script stands in for the solver")
    monkeypatch.setattr(pulp, "installed", lambda package: True)
    runs = tmp_path / "runs"

    def install(body: str) -> Path:
        script = tmp_path / "python"
        script.write_text(f"#!{sys.executable} -SE\nimport sys\nopen({str(runs)!r}, 'a').write('x')\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setattr(pulp, "sys", types.SimpleNamespace(executable=str(script), path=sys.path))
        return runs

    return install


SOLVES = """open(sys.argv[-1], 'w').write('''{"status": "optimal", "raw_status": "2", "x": [1.0], "row_dual": null,
"bound": 1.0, "nodes": 0, "iterations": 0, "version": "1"}''')"""


def test_an_engine_without_a_licence_is_broken_until_it_has_one(engine) -> None:
    engine("sys.exit('GurobiError: No Gurobi license found')")
    for _ in range(2):
        with pytest.raises(BackendBrokenError, match=r"gurobipy is installed but .*No Gurobi license found.*'highs'"):
            Pulp("gurobi").require()
    runs = engine(SOLVES)
    Pulp("gurobi").require()
    Pulp("gurobi", threads=2).require()
    assert runs.read_text() == "xxx"  # one that works is not asked again


def test_a_cbc_whose_words_are_not_understood_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the CBC in development is, which PuLP 4 brings with its extra."""
    if sys.platform == "win32":
        pytest.skip("needs POSIX: a script stands in for the solver")
    script = tmp_path / "cbc"
    script.write_text(f"#!{sys.executable} -SE\nprint('CBC devel')\n")
    script.chmod(0o755)
    monkeypatch.setattr(pulp, "cbc_executable", lambda: str(script))
    with pytest.raises(BackendBrokenError, match=r"cbc is installed but .*'highs'"):
        Pulp("cbc").require()


def test_an_engine_that_is_too_slow_to_tell_is_not_called_broken(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulp, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(pulp, "START_SECONDS", 0.0)
    engine("import time; time.sleep(60)")
    Pulp("gurobi").require()


def test_what_behind_the_door_is_named_first_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvxpy, "installed", lambda package: package != "scs")
    with pytest.raises(BackendMissingError, match=r"scs is not installed\. Run: pip install scs"):
        Cvxpy("scs").require()
    Cvxpy("clarabel").require()
