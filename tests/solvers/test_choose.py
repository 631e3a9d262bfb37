"""Backends by name, found without importing anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from corgi_solvers import Cvxpy, Highs, ProblemError, Pulp, backend, names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("highs", Highs()),
        ("pulp", Pulp("cbc")),
        ("pulp:cbc", Pulp("cbc")),
        ("pulp:gurobi", Pulp("gurobi")),
        ("cvxpy", Cvxpy("clarabel")),
        ("cvxpy:clarabel", Cvxpy("clarabel")),
        ("cvxpy:scs", Cvxpy("scs")),
    ],
)
def test_names_stand_for_backends(name: str, expected: object) -> None:
    assert backend(name) == expected
    assert name in names()


def test_every_name_works() -> None:
    for name in names():
        found = backend(name)
        assert name.split(":")[0] == found.name
        assert found.capabilities.lp
        assert isinstance(found.available(), bool)


@pytest.mark.parametrize("name", ["", "HIGHS", "pulp:", "pulp:glpk", "cvxpy:mosek", "gurobi"])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ProblemError, match="highs, pulp, pulp:cbc") as caught:
        backend(name)
    assert repr(name) in str(caught.value)


def test_nothing_is_imported_to_find_out_what_is_there() -> None:
    code = (
        "import sys, json, corgi_solvers as s; [s.backend(n).available() for n in s.names()]\n"
        "print(json.dumps(sorted({'highspy', 'pulp', 'cvxpy', 'clarabel', 'torch'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert json.loads(done.stdout) == []
