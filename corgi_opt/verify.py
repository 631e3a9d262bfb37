"""The ladder for one eps: CORGI, attack, CROWN, then dual ascent, LP or MILP for only the pairs that are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Literal

import torch
from corgi_solvers import Highs
from torch import Tensor

from corgi_opt.bounds.crown import Bounded, Relaxed
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.triangle import triangle
from corgi_opt.errors import BoundOrderError, InputError, UnknownMethodError
from corgi_opt.margins import Margins, timed
from corgi_opt.network.cam import CamNetwork
from corgi_opt.question import Question, resolve_device
from corgi_opt.results import Proof, Verdict, Witness
from corgi_opt.search.attack import PgdOptions, Targets, pgd, polish, rank_pairs, replay
from corgi_opt.search.deadline import Deadline
from corgi_opt.search.pairs import Encoding, PairAnswer, PairSolver
from corgi_opt.spec import Clip, Norm, canonical_norm

METHODS = ("ibp", "corgi", "crown", "dual", "lp", "milp", "auto")

Relaxation = Literal["ibp", "corgi", "crown", "dual"]

SOLVER_SAFETY = 1e-6
"""Subtracted from every bound that rests on HiGHS (tolerances 1e-7 and finer on rows of order one), likewise."""


class Ladder:
    """All that is proven so far about one question at one eps. Bounds only ever tighten.

    ``lower`` (k, P-k): best proven lower bound of ``CAM_i - CAM_j`` for each top pixel i (rows, in the order of
    ``question.topk.top``) and rest pixel j. ``witness``: the counterexample with the smallest margin met. ``above``:
    the same question at a larger eps; what is proven there holds here.
    """

    def __init__(self, question: Question, eps: float, device: torch.device, above: Ladder | None = None) -> None:
        self.question, self.device = question, device
        self.ball = question.ball(eps)
        known = None if above is None else above.margins.known(0)
        self.margins: Margins = Margins(question, [eps], torch.float64, device, known)
        self.witness: Witness | None = None
        self.by_solver = torch.zeros_like(self.lower, dtype=torch.bool)
        if above is not None:
            self.by_solver |= above.by_solver
        self._attacked = False

    # --- what is known ---------------------------------------------------------------------------------------

    @property
    def lower(self) -> Tensor:
        return self.margins.lower[0]

    @property
    def stats(self) -> dict[str, float]:
        return self.margins.stats

    @property
    def margin(self) -> float:
        """The best proven lower bound on the margin."""
        return float(self.lower.min())

    @property
    def undecided(self) -> list[tuple[int, int]]:
        """Entries (row, column) of ``lower`` that are not proven positive, the most doubtful first."""
        rows, columns = torch.nonzero(self.lower <= 0, as_tuple=True)
        order = torch.argsort(self.lower[rows, columns], stable=True)
        return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))

    @property
    def certified(self) -> bool:
        return self.margin > 0

    @property
    def proof(self) -> Proof:
        """Rests on the solver where any pair needed it."""
        return "solver" if bool(self.by_solver.any()) else "float64"

    # --- the rungs -------------------------------------------------------------------------------------------

    def bound(self, name: Relaxation) -> float:
        """Runs a relaxation on the pairs that are open; returns the best proven margin over those."""
        found = float(getattr(self.margins, name)()[0])
        self._check_order()
        return found

    def lp(self, deadline: Deadline) -> str:
        """The triangle LP on every pair left, until one stays undecided. Returns why it stopped, or ''."""
        return self._solve("lp", triangle, lambda relaxed: relaxed.only(0), deadline)

    def milp(self, deadline: Deadline) -> str:
        """The exact MILP on every pair left, until one is broken or stays undecided. Returns why it stopped, or ''."""
        # its binaries say what the planes of pooling windows do, exactly
        return self._solve("milp", big_m, lambda relaxed: replace(relaxed.only(0), planes={}), deadline)

    def attack(self, targets: Targets, options: PgdOptions) -> Witness | None:
        """Pairwise PGD, unless a witness is already known."""
        if self.witness is None and not self._attacked:
            with timed(self.stats, "attack"):
                found = pgd(self.question, self.ball, targets, self.device, options)
            self._attacked = True
            if found is not None:
                self.found(found)
        return self.witness

    def found(self, witness: Witness) -> None:
        """Keeps a replayed witness and checks the ordering against everything proven so far."""
        if self.witness is None or witness.margin < self.witness.margin:
            self.witness = witness
        self._check_order()

    # --- how -------------------------------------------------------------------------------------------------

    def _solve(self, name: str, encoding: Encoding, given: Callable[[Relaxed], Bounded], deadline: Deadline) -> str:
        self.bound("crown")
        relaxed = self.margins.relaxed
        assert relaxed is not None  # crown has just computed it
        solver = PairSolver(self.question.net, self.ball, self.question.class_idx, given(relaxed), encoding, Highs())
        safety = SOLVER_SAFETY * self.question.scale
        with timed(self.stats, name):
            for entry in self.undecided:
                if deadline.over:
                    return f"time limit reached with {len(self.undecided)} pairs undecided"
                answer = solver.solve(self._pair(entry), safety, deadline)
                self._record(name, entry, answer, safety)
                if answer.image is not None and answer.upper <= safety and self._broken(entry, answer):
                    return ""
                if not float(self.lower[entry]) > 0:
                    i, j = self._pair(entry)
                    return f"{name} leaves pixels {i} and {j} undecided{_because(name, answer)}"
        return ""

    def _record(self, name: str, entry: tuple[int, int], answer: PairAnswer, safety: float) -> None:
        bound = answer.lower - safety
        dual = float(self.margins.by_relaxed[0][entry])
        if name == "lp" and not answer.reason and bound < dual - 2 * safety:
            raise BoundOrderError(
                f"the LP bound {answer.lower:.9g} of pair {self._pair(entry)} is below a dual bound {dual:.9g} on the "
                "same relaxation"
            )
        if name == "milp" and answer.image is not None and answer.upper < float(self.lower[entry]) - 2 * safety:
            raise BoundOrderError(
                f"the MILP found {answer.upper:.9g} for pair {self._pair(entry)} below a proven bound "
                f"{float(self.lower[entry]):.9g}"
            )
        self.stats["solved_pairs"] = self.stats.get("solved_pairs", 0) + 1
        self.stats["largest_binaries"] = max(self.stats.get("largest_binaries", 0), answer.binaries)
        self.stats["nodes"] = self.stats.get("nodes", 0) + answer.nodes
        if bound > float(self.lower[entry]):
            self.lower[entry] = bound
            self.by_solver[entry] = True
        self._check_order()

    def _broken(self, entry: tuple[int, int], answer: PairAnswer) -> bool:
        """Whether the solver's point, replayed and if need be polished, is a witness."""
        assert answer.image is not None
        found = replay(self.question, self.ball, answer.image)
        found = found or polish(self.question, self.ball, answer.image, self._pair(entry))
        if found is not None:
            self.found(found)
        return found is not None

    def _pair(self, entry: tuple[int, int]) -> tuple[int, int]:
        topk = self.question.topk
        return int(topk.top[entry[0]]), int(topk.rest[entry[1]])

    def _check_order(self) -> None:
        """No proven bound may exceed the margin of a replayed image."""
        if self.witness is None:
            return
        cam = self.witness.cam.flatten()
        topk = self.question.topk
        there = cam[topk.top][:, None] - cam[topk.rest][None, :]
        excess = self.lower - there
        if float(excess.max()) > 0:
            i, j = self._pair(divmod(int(excess.argmax()), len(topk.rest)))
            raise BoundOrderError(
                f"at eps={self.ball.eps:g} a lower bound of CAM_{i} - CAM_{j} exceeds its value at a replayed image "
                f"by {float(excess.max()):.3g}; nothing is certified, please report this"
            )


def _because(name: str, answer: PairAnswer) -> str:
    if answer.reason:
        return f" ({answer.reason})"
    if name == "lp":
        return f" (its bound is {answer.lower:.6g}: method too weak here)"
    return f" (minimum in [{answer.lower:.6g}, {answer.upper:.6g}]: too close to zero for float arithmetic)"


def climb(ladder: Ladder, method: str, attack: Callable[[], object] | None, deadline: Deadline) -> Verdict:
    """Runs the rungs of a method until the question is settled at this eps.

    ``attack`` looks for a witness when the fast bound has not certified; None where an attack is known to fail.
    """
    if method == "ibp":
        # alone on its ladder, so that the answer shows what intervals can do; CORGI beside it
        ladder.bound("ibp")
        corgi = Ladder(ladder.question, ladder.ball.eps, ladder.device).bound("corgi")
    else:
        corgi = ladder.bound("corgi")
    if ladder.certified:
        return settle(ladder, "ibp" if method == "ibp" else "corgi", "", corgi)
    if attack is not None:
        attack()
    if ladder.witness is not None:
        return settle(ladder, "attack", "", corgi)
    if method in ("ibp", "corgi"):
        return settle(ladder, method, f"{method} is too weak here", corgi)
    relaxations: tuple[Relaxation, ...] = ("crown", "dual") if method == "dual" else ("crown",)
    for name in relaxations:
        ladder.bound(name)
        if ladder.certified:
            return settle(ladder, name, "", corgi)
    if method in relaxations:
        return settle(ladder, method, f"{method} leaves {len(ladder.undecided)} pairs undecided", corgi)
    rung = ladder.lp if method == "lp" else ladder.milp
    return settle(ladder, method, rung(deadline), corgi)


def settle(ladder: Ladder, method: str, reason: str, corgi: float) -> Verdict:
    """The verdict that the ladder's state supports: a proven bound certifies, a replayed witness falsifies."""
    question, witness = ladder.question, ladder.witness
    at_center = float(question.topk.margin(question.cam[None])[0])
    upper = at_center if witness is None else min(at_center, witness.margin)
    if witness is not None:
        status, reason = "falsified", reason or witness.what_changed
    elif ladder.certified:
        status, reason = "certified", "every pair keeps its order"
    else:
        status, reason = "unknown", reason or "undecided"
    return Verdict(
        status=status,  # type: ignore[arg-type]
        eps=ladder.ball.eps,
        k=question.topk.k,
        class_idx=question.class_idx,
        margin_lower=ladder.margin,
        margin_upper=upper,
        corgi_margin=corgi,
        proof=ladder.proof if status == "certified" else None,
        counterexample=witness,
        method=method,
        reason=reason,
        stats=dict(ladder.stats),
    )


def check_method(method: str, norm: Norm) -> str:
    """The method's own name ("auto" is the strongest that answers the norm).

    Raises UnknownMethodError; InputError for a method that does not answer this norm.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    if method == "auto":
        return "milp" if norm == "inf" else "dual"
    if norm != "inf" and method in ("lp", "milp"):
        raise InputError(f"method {method!r} answers norm 'inf' only so far, not {norm!r}; use method='dual'")
    return method


def check_time_limit(time_limit: float) -> Deadline:
    if isinstance(time_limit, bool) or not isinstance(time_limit, Real) or not time_limit > 0:
        raise InputError(f"time_limit must be a positive number of seconds, got {time_limit!r}")
    return Deadline(float(time_limit))


def verify(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int,
    method: str = "auto",
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    time_limit: float = 300.0,
    tie_tol: float | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> Verdict:
    """Whether the k brightest CAM pixels stay the same for every image within eps of x.

    x (1, C, H, W) and eps are in the units of the network's input; ``norm``: "inf", "2" or "1". ``method``: "ibp",
    "corgi", "crown", "dual" (bounds), "lp" (triangle relaxation on the pairs left), "milp" (exact); these two for norm
    "inf" only; "auto": milp, or dual where that does not answer. ``clip``: the box images live in, or None.
    ``time_limit``: total seconds; it bounds the solver, the bound passes before it always finish.
    ``tie_tol``: pixels k and k+1 closer than this are tied (default 1e-9 of ``sum_c |W_c A_c|``). Only a proven
    lower bound certifies, only a replayed witness falsifies; everything else is unknown with a reason.

    Raises InputError, UnknownMethodError, TieError; BoundOrderError if bounds contradict each other.
    """
    norm = canonical_norm(norm)
    chosen, deadline, where = check_method(method, norm), check_time_limit(time_limit), resolve_device(device)
    question = Question.ask(net, x, k=k, class_idx=class_idx, norm=norm, clip=clip, tie_tol=tie_tol)
    ladder = Ladder(question, eps, where)
    return climb(ladder, chosen, lambda: ladder.attack(rank_pairs(question, where), PgdOptions(seed=seed)), deadline)
