"""The verdict for one eps: CORGI, attack, CROWN, then dual ascent, LP, MILP or branch and bound for the atoms left.

The paper's bound comes first where it is quick. Else it comes last, to stand beside the answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._deadline import Deadline
from corgi_opt._progress import reporting
from corgi_opt.answering.asking import Means, asked, asked_of, chosen_property
from corgi_opt.answering.backends import check_solver, named_solver
from corgi_opt.answering.batches import over_images
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import Prover, checked, require_provable
from corgi_opt.errors import InputError, Interrupted, NumericalError
from corgi_opt.methods import Method, settled_by
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.original import Original
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm
from corgi_opt.problem.results import CORGI_CUT_OFF, Status, Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.search.attack import PgdOptions, rank_targets

LOG = logging.getLogger(__name__)

ATTACK_SHARE = 0.25
"""Of the time limit: what PGD may take before anything dearer than CORGI is proven."""

CORGI_SHARE = 0.1
"""Of the time limit: what the paper's bound may take where it is only recorded beside an answer."""

CORGI_FIRST = 1.0
"""Seconds that others wait for the paper's bound: what it settles they need not look at. A dearer one comes last."""


def climb(
    ladder: Ladder,
    method: Method,
    attack: Callable[[], object] | None,
    solver: Backend,
    deadline: Deadline,
    corgi: float = 0.0,
) -> Verdict:
    """Runs the rungs of a method until the goal of the ladder is reached.

    ``attack`` looks for a witness when the fast bound has not certified; None where an attack is known to fail.
    ``corgi``: seconds for the paper's bound beside the answer; a method that it is not asked for does without. A
    deadline that passes in a bound leaves what is proven by then.
    """
    LOG.debug("method %s: eps=%.6g", method.name, ladder.ball.eps)
    if method.name == "corgi" or (corgi > 0 and method.name != "ibp"):  # that one shows what intervals can do alone
        with suppress(TimeoutError, NumericalError):  # the rungs after it say so themselves
            first = deadline if method.name == "corgi" else deadline.within(min(corgi, CORGI_FIRST))
            ladder.bound("corgi", first)
    verdict = _climb_on(ladder, method, attack, solver, deadline)
    if corgi > 0 and math.isnan(verdict.corgi_margin):
        return _with_corgi(verdict, ladder, deadline.within(corgi))
    return verdict


def _climb_on(
    ladder: Ladder, method: Method, attack: Callable[[], object] | None, solver: Backend, deadline: Deadline
) -> Verdict:
    """The rungs after the paper's bound."""
    try:
        if method.quick:
            ladder.bound(method.name, deadline)  # the paper's again, where it was cut off
        if ladder.settled:
            return settle(ladder, method.name if method.quick else "corgi")
        if attack is not None:
            attack()
            if ladder.settled:
                return settle(ladder, "attack")
        if method.quick:
            return settle(ladder, method.name)
        return _bounded_and_solved(ladder, method, solver, deadline)
    except TimeoutError:
        return settle(ladder, method.name, "time limit reached in the bounds")
    except NumericalError as error:
        return settle(ladder, method.name, str(error))


def _with_corgi(verdict: Verdict, ladder: Ladder, deadline: Deadline) -> Verdict:
    """The verdict with the paper's bound beside it, or with the word that there was no time for that.

    On a ladder of its own, where no pair is settled yet. A witness must not contradict it; pairs that it proves and
    CROWN did not (that happens) count.
    """
    own = Ladder(ladder.question, ladder.ball.eps, ladder.device, goal=ladder.goal)
    if ladder.witness is not None:
        own.meet(ladder.witness.image)
    try:
        value = own.bound("corgi", deadline)
    except (TimeoutError, NumericalError):
        return replace(verdict, stats={**verdict.stats, CORGI_CUT_OFF: 1.0})
    seconds = {"seconds_corgi": own.stats["seconds_corgi"]}
    if verdict.status == "unknown" and verdict.method != "ibp" and own.certified:
        return settle(own, "corgi")
    return replace(verdict, corgi_margin=value, stats={**verdict.stats, **seconds})


def _bounded_and_solved(ladder: Ladder, method: Method, solver: Backend, deadline: Deadline) -> Verdict:
    """The bounds that a method stands on, its own, and the pairs that it solves."""
    for name in (*method.after, *([method.name] if method.bound else [])):
        ladder.bound(name, deadline)
        if ladder.settled:
            return settle(ladder, name)
    if method.solve is None:
        return settle(ladder, method.name)
    reason = method.solve(ladder, solver, deadline)
    return settle(ladder, settled_by(method.name, ladder.proof), reason)


def settle(ladder: Ladder, method: str, reason: str = "") -> Verdict:
    """The verdict that the ladder's state supports: a proven bound certifies, a replayed witness falsifies.

    ``reason``: why the goal was not reached, where there is more to say than that the method is too weak.
    """
    question, witness = ladder.question, ladder.witness
    status: Status = "falsified" if witness is not None else "certified" if ladder.certified else "unknown"
    said = {
        "falsified": "" if witness is None else witness.what_changed,
        "certified": "every pair keeps its order",
        "unknown": f"{method} leaves {ladder.unproven} pairs undecided",
    }
    return Verdict(
        asked=asked(question),
        status=status,
        eps=ladder.ball.eps,
        margin_lower=ladder.margin,
        margin_upper=ladder.met,
        corgi_margin=ladder.corgi,
        proof=ladder.proof if status == "certified" else None,
        counterexample=witness,
        method=method,
        reason=said[status] if ladder.settled or not reason else reason,
        stats=dict(ladder.stats),
        original=question.original,
    )


def unasked(about: Asked, eps: float, reason: str, original: Original | None) -> Verdict:
    """The verdict on an image at which a property is not defined, or does not hold."""
    return Verdict(about, "unknown", eps, -math.inf, 0.0, math.nan, None, None, "", reason, original=original)


def _tied(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    reason: str,
    class_idx: int | str | None,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    **given: Any,
) -> Verdict:
    """The verdict on an image of several at which the property is not defined."""
    norm, clip = given.get("norm", "inf"), given.get("clip", (0.0, 1.0))
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    kept, wanted = scene.predicted if given.get("keep_class") else None, chosen_property(property, k, within, net)
    return unasked(asked_of(scene, wanted, gap=0.0, kept=kept), eps, reason, Original.of(scene, wanted))


@pinned
@over_images(tied=_tied)
def verify(
    net: CamNetwork,
    x: Tensor,
    *,
    eps: float,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    keep_class: bool = False,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    method: str = "auto",
    solver: str | None = None,
    proof: Literal["float64", "checked"] = "float64",
    device: str | torch.device = "auto",
    seed: int = 0,
    time_limit: float = 300.0,
    progress: bool | None = None,
) -> Verdict:
    """Whether a property holds for every image within eps of x: that the k brightest CAM pixels stay the same.

    x (1, C, H, W), a tensor or a numpy array, and eps are in the units of the network's input; of several images (N, C,
    H, W), or classes, a list is returned, each verdict as it would be alone (of a tied image: unknown). ``norm``:
    "inf", "2" or "1" ("Linf", "l2" and numbers do as well). ``clip``: the box images live in, or None. ``method``:
    "ibp", "corgi", "crown", "dual" (bounds), "lp" (triangle relaxation on the pairs left), "milp" (exact; norms "inf"
    and "1"), "bab" (exact; branch and bound on ReLU phases); "auto": bab, and MILPs where only they answer. On a
    network with curved layers (``net.curved``), which no exact method takes, bab and auto are "split" (branch and bound
    on intervals), and lp and milp refuse. ``solver``, for lp, milp and the linear programs of bab: "highs" (default),
    "pulp:cbc", "cvxpy:clarabel" ...

    ``k``: the k brightest pixels stay the k brightest; with ``within``, each of them stays among the ``within``
    brightest. They are short for ``property=co.TopK(k, within)``; other properties have no short form.
    ``keep_class``: only images that keep the predicted class count as counterexamples.

    ``time_limit``: total seconds, kept to about two; what is proven by then is the verdict. CORGI's bound beside it has
    a tenth of them; where that is not enough, ``corgi_margin`` is NaN and ``stats["corgi_cut_off"]`` is 1.
    ``tie_tol``: pixels k and k+1 closer than this are tied (default 1e-9 of ``sum_c |W_c A_c|``). Only a proven
    lower bound certifies, only a replayed witness falsifies; everything else is unknown with a reason. ``progress``: a
    line that says what is left (None: where it can be seen). ``proof``: with "checked" a certificate is made at once,
    and only what the checker proves anew, rounding included, is certified. Ctrl-C raises Interrupted, a
    KeyboardInterrupt whose ``partial`` is the verdict so far.

    Raises InputError, UnknownMethodError, TieError; MissingPackageError where the solver is not installed;
    BoundOrderError if bounds contradict each other.
    """
    means = Means.of(net, method=method, norm=norm, solver=solver, device=device, time_limit=time_limit)
    if proof not in ("float64", "checked"):
        raise InputError(f"proof must be 'float64' or 'checked', got {proof!r}")
    wanted = chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    if proof == "checked":
        require_provable(net)
    leaves = check_solver(None, "bab", scene.norm) if proof == "checked" else named_solver(None, "bab", scene.norm)
    question = Question.ask(scene, wanted, tie_tol=tie_tol, keep_class=keep_class)
    with reporting(progress, "verify") as report:
        ladder = Ladder(question, eps, means.device, report=report)

        def attack() -> None:
            share = means.deadline.within(ATTACK_SHARE * means.seconds)
            ladder.attack(rank_targets(question, means.device), PgdOptions(seed=seed), share)

        try:
            LOG.info("verify by %s: eps=%.6g, %s", means.method.name, ladder.ball.eps, question.property.short)
            verdict = climb(ladder, means.method, attack, means.solver, means.deadline, CORGI_SHARE * means.seconds)
            LOG.info("verify by %s: %s by %s, %s", means.method.name, verdict.status, verdict.method, verdict.reason)
            if verdict.status == "unknown":
                return replace(verdict, reason=means.said(verdict.reason))
            prover = Prover(question, ladder.ball, verdict.counterexample, leaves, means.device)
            return checked(verdict, prover, means.deadline) if proof == "checked" else replace(verdict, prover=prover)
        except KeyboardInterrupt as stop:
            raise Interrupted(settle(ladder, means.method.name, "interrupted")) from stop
