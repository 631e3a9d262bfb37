"""A solver that is named, or that a method needs, is there: else every entrance says so before any work."""

from __future__ import annotations

import pytest
import torch
from corgi_solvers import BackendBrokenError, Highs, Pulp, cvxpy, highs, names, pulp
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.answering import prover as prove
from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.problem.question import Question
from corgi_opt.study import Plan
from corgi_opt.study.ask import Ask


def planned(net: co.CamNetwork, x: torch.Tensor, **given: object) -> Plan:
    question = {"k": 2, "eps": 0.001, "method": "lp", **given}
    return Plan.of({"name": "p", "models": {"m": "digits"}, "images": {"t": x}, "questions": [question]})


CALLS = {
    "verify": lambda net, x, **given: co.verify(net, x, eps=0.001, k=2, **given),
    "radius": lambda net, x, **given: co.radius(net, x, k=2, **given),
    "compare": lambda net, x, **given: co.compare(net, x, k=2, **given),
    "compare, margins": lambda net, x, **given: co.compare(net, x, k=2, eps=0.001, methods=["corgi", "lp"], **given),
    "margin": lambda net, x, **given: tight_margin(net, x, eps=0.001, k=2, **given),
    "question of a plan": lambda net, x, **given: Ask("radius", 2, "lp", **given),
    "plan": planned,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


@pytest.fixture(scope="module")
def asked() -> tuple[co.CamNetwork, torch.Tensor]:
    x = image(1, 6, 6)
    return co.from_torch(seeded(Plain, 2), x), x


@pytest.fixture
def nothing_is_installed(monkeypatch):
    for module in (pulp, cvxpy, highs):
        monkeypatch.setattr(module, "installed", lambda package: False)
    monkeypatch.setattr(pulp, "_worked", set())


@pytest.fixture
def no_work(monkeypatch):
    def ask(*_: object, **__: object) -> None:
        pytest.fail("work before the refusal")

    monkeypatch.setattr(Question, "ask", ask)


@every_call
@pytest.mark.parametrize("solver", [name for name in names() if ":" in name or name == "highs"])
def test_a_solver_that_is_not_there_is_refused_first(asked, call, solver, nothing_is_installed, no_work):
    with pytest.raises(co.MissingPackageError, match=f"solver '{solver}' needs .* Run: pip install") as found:
        call(*asked, solver=solver)
    assert found.value.package in found.value.pip
    assert isinstance(found.value, co.CorgiError) and isinstance(found.value, ImportError)


@every_call
def test_one_that_is_named_is_there_whether_the_method_asks_it_or_not(asked, call, nothing_is_installed, no_work):
    methods = {"methods": ["crown"]} if call is CALLS["compare"] else {"method": "crown"}
    if call is CALLS["question of a plan"] or call is CALLS["compare, margins"]:
        methods = {}
    with pytest.raises(co.MissingPackageError, match="gurobi"):
        call(*asked, solver="pulp:gurobi", **methods)


@every_call
def test_so_is_a_default_that_a_method_asks(asked, call, nothing_is_installed, no_work):
    with pytest.raises(co.MissingPackageError, match=r"'highspy', which is not installed\. Run: pip install"):
        call(*asked)
    with pytest.raises(co.MissingPackageError, match=r"'cvxpy', which is not installed\. Run: pip install"):
        call(*asked, norm="2")


def test_a_default_that_no_method_asks_may_be_absent_until_a_proof_asks_it(asked, nothing_is_installed, monkeypatch):
    net, x = asked
    found = co.verify(net, x, eps=1e-5, k=2, method="crown")
    assert found.status == "certified"
    assert co.radius(net, x, k=2, method="corgi").lower > 0

    def tree(question: Question, ball: co.Ball, solver: Highs, *_: object) -> None:
        solver.solve(pulp.SMALLEST)

    with monkeypatch.context() as patch:
        patch.setattr(prove, "certified", tree)
        with pytest.raises(co.MissingPackageError, match="a proof needs the package 'highspy'"):
            found.prove()
    assert found.prove()  # bounds alone prove it
    with pytest.raises(co.MissingPackageError, match="'highspy'"):
        co.verify(net, x, eps=1e-5, k=2, method="crown", proof="checked")


@every_call
def test_one_that_is_too_old_is_refused_first(asked, call, monkeypatch, no_work):
    monkeypatch.setattr(highs, "MINIMUM_VERSION", (99, 0, 0))
    with pytest.raises(co.MissingPackageError, match=r"'highspy', which \S+ is too old\. Run: pip install -U"):
        call(*asked)


@every_call
def test_one_without_a_licence_is_refused_first(asked, call, monkeypatch, no_work):
    def broken(self: Pulp) -> None:
        raise BackendBrokenError("gurobipy", "No Gurobi license found")

    monkeypatch.setattr(Pulp, "require", broken)
    with pytest.raises(co.InputError, match=r"solver 'pulp:gurobi': .*No Gurobi license found.*take another"):
        call(*asked, solver="pulp:gurobi")
    monkeypatch.undo()
    call(*asked, solver="highs")  # as it says


@every_call
@pytest.mark.parametrize("solver", ["", "gurobi", "pulp:glpk", 3])
def test_what_is_no_solver_is_refused_first(asked, call, solver, no_work):
    with pytest.raises(co.InputError, match="solver"):
        call(*asked, solver=solver)


def test_what_is_there_is_taken():
    assert check_solver(None, "auto", "inf") == Highs()
    assert check_solver("pulp:highs", "milp", "inf") == Pulp("highs")
