"""Proofs are made of what is true alone, whatever a solver says, within their time, and where they are asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from certificates import cases
from corgi_solvers import Highs, Problem, Solution, Status
from patience import diagonal, mostly_slow

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering import backends
from corgi_opt.answering import prover as prove
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import Prover, certified
from corgi_opt.errors import CertificateError, ProofError
from corgi_opt.proof.certificate import Certificate, PartTree
from corgi_opt.proof.checker import Margins, check
from corgi_opt.search import branch as branch_module
from corgi_opt.search.decide import Branched


class Liar:
    """A backend that answers leaves' linear programs as it likes."""

    def __init__(self, change: str) -> None:
        self.change, self.honest, self.asked = change, Highs(), 0
        self.capabilities = self.honest.capabilities

    def solve(self, problem: Problem, **given: Any) -> Solution:
        self.asked += 1
        if self.change == "raises":
            raise RuntimeError("the solver died")
        found = self.honest.solve(problem, **given)
        y = np.zeros(problem.m) if found.row_dual is None else found.row_dual
        duals = {
            "negated": -y,
            "shuffled": y[::-1].copy(),
            "NaN": np.full(problem.m, np.nan),
            "empty": None,
            "huge": 1e300 * np.ones(problem.m),
            "stale": np.ones(problem.m),
        }
        return replace(found, bound=1e6, row_dual=duals[self.change])


CHANGES = ("negated", "shuffled", "NaN", "empty", "huge", "stale", "raises")


SOME = [(change, 6) for change in ("negated", "NaN", "raises")]


@pytest.mark.parametrize(("change", "step"), mostly_slow([*SOME, *((c, 1) for c in CHANGES)], SOME))
def test_a_solver_that_lies_proves_nothing(change, step, monkeypatch):
    # the cases are kept for other tests, and are made before anything is changed
    unstable = [case for case in cases() if case.stable is False and case.asked.norm != "2"][::step]
    monkeypatch.setattr(branch_module, "SETTLED", 1e9)  # so that every node is left to the solver,
    monkeypatch.setattr(branch_module._Tree, "_meet", lambda tree, images: None)  # and no counterexample is met
    asked_in_all = 0
    for case in unstable:
        liar: Any = Liar(change)
        arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
        question = ask(case.net, case.asked.x, tie_tol=None, **arguments)
        prover = Prover(question, question.ball(case.asked.eps), None, liar, torch.device("cpu"))
        with pytest.raises((CertificateError, ProofError, RuntimeError)):
            prover(Deadline(20.0))
        asked_in_all += liar.asked
    assert asked_in_all > 5 / step


class Fake:
    """A backend that ends every run in one way, whatever the problem, and makes up the rest."""

    def __init__(self, status: Status, change: str) -> None:
        self.status, self.change, self.asked = status, change, 0
        self.capabilities = Highs().capabilities

    def require(self) -> None:
        pass

    def solve(self, problem: Problem, **given: Any) -> Solution:
        self.asked += 1
        honest = Highs().solve(problem.relaxed(), time_limit=10.0)
        y = np.zeros(problem.m) if honest.row_dual is None else honest.row_dual
        x = np.zeros(problem.n) if honest.x is None else honest.x
        duals = {
            "negated": -y,
            "shuffled": y[::-1].copy(),
            "NaN": y * np.nan,
            "empty": None,
            "stale": np.ones(problem.m),
        }
        point = {"NaN": x * np.nan, "empty": None}.get(self.change, x)
        bound = {"NaN": np.nan, "empty": np.inf}.get(self.change, 1e6)
        report = replace(honest.report, raw_status="optimal")
        return Solution(self.status, 1e6, bound, point, duals[self.change], report)


FAKES: list[list[Any]] = [[*Status], ["negated", "shuffled", "NaN", "empty", "stale"]]


@pytest.mark.parametrize(("status", "change"), mostly_slow(product(*FAKES), diagonal(*FAKES)))
def test_no_backend_talks_the_checker_into_a_certificate(status, change, monkeypatch, what_is_certified_is_attacked):
    """Whatever a backend makes of a MILP or an LP: with proof="checked" only what is true is certified.

    Without, a MILP rests on the backend's word (proof="solver"), as it says.
    """
    unstable = [c for c in cases() if c.stable is False and c.asked.norm != "2"][:5]
    # verdicts that are yet to be checked may be wrong here
    monkeypatch.setattr(sys.modules["corgi_opt.answering.verdict"], "settle", what_is_certified_is_attacked)
    fake = Fake(status, change)
    monkeypatch.setattr(backends, "backend", lambda name: fake)
    for case in unstable:
        monkeypatch.setattr(Ladder, "attack", lambda *given: None)  # or the attack would settle it
        for method in ("milp", "lp"):
            try:
                verdict = co.verify(case.net, case.asked.x, method=method, proof="checked", **case.asked.arguments)
            except co.BoundOrderError:
                continue  # caught in contradiction
            assert verdict.status != "certified" and verdict.proof is None
    assert fake.asked > 0


def test_time_limits_and_falsehoods_leave_no_certificate():
    case = next(c for c in cases() if c.stable is False and c.asked.within is None)
    arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
    question = ask(case.net, case.asked.x, tie_tol=None, **arguments)
    with pytest.raises(CertificateError, match="not decided"):
        certified(question, question.ball(case.asked.eps), Highs(), torch.device("cpu"), Deadline(20.0))
    unknown = co.verify(case.net, case.asked.x, method="corgi", **{**case.asked.arguments, "eps": case.asked.eps / 2})
    if unknown.status == "unknown":
        with pytest.raises(CertificateError, match="nothing to prove"):
            unknown.prove()


def test_a_certificate_that_is_not_made_yet_is_made_as_the_message_says(monkeypatch):
    case = next(c for c in cases() if c.verdict.status == "certified" and c.asked.within is None)
    plain = co.verify(case.net, case.asked.x, method="bab", **case.asked.arguments)
    with pytest.raises(CertificateError, match=r"\.prove\(time_limit=\.\.\.\) makes one"):
        _ = plain.certificate
    assert check(plain.prove(time_limit=60), case.network).kind == "certified"
    assert case.verdict.prove(time_limit=1e-9) is case.verdict.certificate  # it is there
    for wrong in (0, -1.0, "60", True, float("nan")):
        with pytest.raises(co.InputError, match="time_limit must be a positive number"):
            plain.prove(time_limit=wrong)  # type: ignore[arg-type]
    given = []

    def made_before(*given_: Any) -> Certificate:
        given.append(given_[-1].left)
        return case.certificate

    monkeypatch.setattr(prove, "certified", made_before)
    plain.prove(time_limit=7.0)
    assert 6.0 < given[0] <= 7.0


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_trees_that_the_checker_proves_less_of_are_searched_for_with_more_to_spare(failures, monkeypatch):
    case = next(c for c in cases() if c.verdict.status == "certified" and len(c.certificate.trees) == 1)
    arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
    question = ask(case.net, case.asked.x, tie_tol=None, **arguments)
    about = question, question.ball(case.asked.eps), Highs(), torch.device("cpu"), Deadline(20.0)
    spares, left, take = [], failures, Margins.add_tree

    def searched(*given: Any, **named: Any) -> Any:
        spares.append(given[2])
        return Branched(*given, **named)

    def less_at_first(margins: Any, proof: PartTree) -> float:
        nonlocal left
        left -= 1
        return -1e-8 if left >= 0 else take(margins, proof)

    monkeypatch.setattr(prove, "Branched", searched)
    monkeypatch.setattr(Margins, "add_tree", less_at_first)
    if failures == 2:
        with pytest.raises(CertificateError, match="the margin is only proven to be above"):
            certified(*about)
    else:
        certificate = certified(*about)
        assert len(certificate.trees) == 1
        monkeypatch.undo()
        assert check(certificate, case.network).kind == "certified"
    assert spares == [1e-9 * question.scale, 1e-6 * question.scale]


def test_a_radius_has_a_certificate():
    case = next(c for c in cases() if c.asked.within is None and c.asked.norm == "inf")
    arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
    found = co.radius(case.net, case.asked.x, method="bab", **arguments)
    certificate = found.prove(time_limit=60)
    assert certificate.claim.region.eps == found.lower and check(certificate, case.network).kind == "certified"
