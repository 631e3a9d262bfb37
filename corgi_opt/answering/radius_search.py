"""The bracket: the largest eps a method certifies, and the smallest eps that is known to break."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import check_rtol
from corgi_opt._deadline import Deadline
from corgi_opt._progress import Report, reporting, silent
from corgi_opt.answering.asking import Means, asked, asked_of, chosen_property
from corgi_opt.answering.backends import named_solver
from corgi_opt.answering.batches import over_images
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import Prover
from corgi_opt.answering.verdict import ATTACK_SHARE, CORGI_FIRST, CORGI_SHARE, climb
from corgi_opt.errors import BoundOrderError, Interrupted, NumericalError, TieError
from corgi_opt.methods import TABLE, settled_by, up_to, weakest_first
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.original import Original
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm
from corgi_opt.problem.results import CORGI_CUT_OFF, Proof, Radius, Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.problem.witness import Witness
from corgi_opt.search.attack import PgdOptions, attack_radius, polish, rank_targets, shrink
from corgi_opt.search.closing import NEAR, Closing, Probe
from corgi_opt.search.crossing import Crossing, Point

LOG = logging.getLogger(__name__)

MOST_PROBES = 60

MOST_LADDERS = 8
"""That are kept for other eps; each holds the bounds of every node."""

PROBE_SHARE = 0.7
"""Of what is left: what one probe of a relaxation may take. One that takes longer is tried at a smaller eps."""

CHEAP = 0.02
"""Of what is left: a CROWN pass that took no more need not be followed by CROWN's radius before the first tree."""

FEWEST_SECONDS, SECONDS_SHARE = 0.5, 1 / 32
"""What an exact probe has at first, beside its CROWN pass: so many seconds, or this share of what is left."""

GLANCE = 0.02
"""Share of the time that CORGI has before other methods; where it does not suffice, it goes on when they have ended."""

ROUGH = 1.03
"""How near to its end CROWN's radius is taken where an exact search only goes on from there."""

FAR = 1.25
"""Ratio of attack to CROWN radius from which an exact search starts in the middle: a probe too far up takes long."""


@dataclass(frozen=True)
class Certified:
    """The largest eps a method has certified on a question, with its margin there, and what it rests on.

    ``cut``: time was over before the search was.
    """

    eps: float
    margin: float
    proof: Proof | None
    reason: str
    cut: bool = False

    @property
    def point(self) -> Point:
        return Point(self.eps, self.margin)


class RadiusSearch:
    """Brackets for one question, method by method; the attack, bounds and certified radii are shared between them."""

    def __init__(
        self,
        question: Question,
        device: torch.device,
        options: PgdOptions,
        rtol: float,
        solver: Backend,
        report: Report = silent,
    ) -> None:
        self.question, self.device, self.options, self.rtol = question, device, options, rtol
        self._solver, self._report = solver, report
        span = float(question.x.max() - question.x.min()) or 1.0
        self.largest = min(question.whole_range, 10.0 * span)
        self.nearest: Witness | None = None
        self._best = Certified(0.0, question.gap, "float64", "")  # of all methods, for who interrupts
        self.seconds: dict[str, float] = {}
        self._attacked: float | None = None
        self._attack_cut = False
        self._corgi_pass = 0.0  # seconds of the longest
        self._linear = self.largest  # where the linearised network breaks
        self._certified: dict[str, Certified] = {}
        self._so_far: dict[str, Certified] = {}  # of methods whose radius is on the way
        self._crossings: dict[str, Crossing] = {}
        self._ladders: dict[float, Ladder] = {}

    def run(self, method: str, deadline: Deadline) -> Radius:
        """The bracket of one method; ``deadline`` bounds the whole call.

        Weakest first, each from where the one before ended, and none that others only stand on takes more than its
        share: the attack a quarter of the time, CORGI a second or a fiftieth. Both go on when some is left in the end,
        CORGI for a tenth of the time.
        """
        limit = deadline.left
        glance = max(GLANCE * limit, min(CORGI_FIRST, CORGI_SHARE * limit))
        try:
            self.attack(deadline.within(ATTACK_SHARE * limit))
            self.certified("ibp", deadline.within(deadline.left / 2))  # next to nothing, but there in no time
            for name in weakest_first({"corgi", method, *_first(method)}):
                beside = name == "corgi" and method != "corgi"
                self.certified(name, deadline.within(glance) if beside else deadline)
            if self._attack_cut and not deadline.over:
                self.attack(deadline)
            if self._certified["corgi"].cut:
                self.certified("corgi", deadline.within(CORGI_SHARE * limit - glance))
        except KeyboardInterrupt as stop:
            raise Interrupted(self._bracket(method, replace(self._best, reason="interrupted"))) from stop
        self._check_order()
        return self._bracket(method, self._certified[method])

    def _bracket(self, method: str, found: Certified) -> Radius:
        corgi = self._certified.get("corgi")
        upper = self.nearest.distance if self.nearest is not None else float("inf")
        stats = {f"seconds_{name}": s for name, s in self.seconds.items()}
        return Radius(
            asked=asked(self.question),
            lower=found.eps,
            upper=upper,
            method=settled_by(method, found.proof),
            corgi=float("nan") if corgi is None else corgi.eps,
            attack=float("nan") if self._attacked is None else self._attacked,
            proof=found.proof if found.eps > 0 else None,
            counterexample=self.nearest,
            reason=self._reason(method, found, upper),
            stats=stats | ({CORGI_CUT_OFF: 1.0} if corgi is not None and corgi.cut else {}),
            original=self.question.original,
            prover=self._prover(found.eps) if found.eps > 0 else None,
        )

    def _prover(self, eps: float) -> Prover:
        norm = self.question.norm
        leaves = named_solver(None, "bab", norm)
        return Prover(self.question, self.question.ball(eps), None, leaves, self.device)

    def attack(self, deadline: Deadline) -> float:
        """The smallest eps that PGD alone breaks (infinity when it breaks none up to the largest eps tried).

        One that was cut off goes on from there when it is called again.
        """
        if self._attacked is None or self._attack_cut:
            with self._timed("attack"):
                targets = rank_targets(self.question, self.device)
                self._linear = min(float(targets.radii[0]), self.largest)
                found = attack_radius(
                    self.question,
                    targets,
                    self.device,
                    self.options,
                    deadline,
                    rtol=self.rtol,
                    largest=self.largest,
                    start=self.nearest,
                )
            self.nearest, self._attack_cut = found, deadline.over
            self._attacked = float("inf") if found is None else found.distance
            LOG.info("attack: nearest counterexample at eps=%.6g%s", self._attacked, " (cut off)" * self._attack_cut)
        return self._attacked

    def certified(self, method: str, deadline: Deadline) -> Certified:
        """The largest eps (within rtol) that the method certifies below the nearest witness, or that it has by now."""
        before = self._certified.get(method)
        if before is None or (before.cut and not deadline.over):
            LOG.info("radius by %s: begins%s", method, "" if before is None else " again")
            with self._timed(method):
                find = self._closing if TABLE[method].exact else self._limit
                self._certified[method] = find(method, deadline)
            found = self._certified[method]
            LOG.info("radius by %s: certified up to eps=%.6g %s", method, found.eps, found.reason)
        return self._certified[method]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """What is called for on the way (a weaker radius) stands under its own name."""
        start, others = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            elsewhere = sum(self.seconds.values()) - others
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start - elsewhere

    # --- the two searches ------------------------------------------------------------------------------------

    def _limit(self, method: str, deadline: Deadline) -> Certified:
        """Where a relaxation's margin crosses zero. Every step is proven, so that what is had at any time is certified.

        It begins at the nearest witness: a pass there leaves few neurons and atoms open for all smaller eps.
        """
        low = self._known_below(method)
        crossing = self._crossing(method, self._upper())
        for _ in range(MOST_PROBES):
            if crossing.closed and not crossing.stopped:
                all_of_it = self.nearest is None and crossing.low.eps >= self.largest
                return replace(low, reason="certified up to the largest eps tried" if all_of_it else "")
            if deadline.over or crossing.stopped:
                return replace(low, reason="time limit", cut=True)
            low = max(low, self._step(method, crossing, deadline), key=lambda c: c.eps)
        return replace(low, reason=f"no certified eps above {low.eps:g} in {MOST_PROBES} probes")

    def _roughly(self, method: str, deadline: Deadline) -> Certified:
        """What a relaxation certifies within ``ROUGH`` of its end; its search goes on from there when asked to."""
        crossing = self._crossing(method, self._upper())
        with self._timed(method):
            for _ in range(MOST_PROBES):
                near = crossing.low.eps > 0 and crossing.high.eps <= ROUGH * crossing.low.eps
                if near or crossing.closed or crossing.stopped or deadline.over:
                    break
                self._step(method, crossing, deadline)
        return self._known_below(method)

    def _crossing(self, method: str, first: float) -> Crossing:
        """The search of a method, as far as it is; a new one begins at ``first``."""
        low = self._known_below(method).point
        if method not in self._crossings or (method in self._certified and self._crossings[method].forgone):
            high = Point(self._upper(), -math.inf)
            # what the one before left is near, and its ladders leave few atoms open
            at = None if _first(method) else first
            if at is not None:
                low = Point(low.eps, self.question.gap)  # a weaker margin says nothing here
                if self._attack_cut and self.nearest is None:
                    at = self._linear  # the attack was stopped before it met anything: about there it would have
            self._crossings[method] = Crossing(low, high, self.rtol, at)
        crossing = self._crossings[method]
        crossing.low = max(crossing.low, low, key=lambda p: p.eps)
        return crossing

    def _step(self, method: str, crossing: Crossing, deadline: Deadline) -> Certified:
        """One probe; what is certified by it, or by those before it."""
        at, share = crossing.ask(), deadline.within(PROBE_SHARE * deadline.left)
        start = time.monotonic()
        verdict = self._probe(method, at, share)
        if method == "corgi":
            taken = math.inf if share.over else time.monotonic() - start
            self._corgi_pass = max(self._corgi_pass, taken)
        if verdict.status == "certified":
            crossing.tell(at, verdict.margin_lower)
            found = self._proven(at, verdict)
            self._so_far[method] = max(found, self._so_far.get(method, found), key=lambda c: c.eps)
            return found
        if share.over:
            crossing.forgo(at)
        else:
            crossing.tell(at, min(verdict.margin_lower, 0.0))
        return Certified(0.0, 0.0, "float64", "")

    def _closing(self, method: str, deadline: Deadline) -> Certified:
        """An exact method: short probes just below the nearest witness or in the middle (search/closing.py).

        A CROWN pass comes first, from which all smaller eps profit. Where it was cheap, a tree is tried at once, and
        CROWN's radius is taken when that stays undecided; where it was not, before anything else.
        """
        alone = self.question.groups.every
        crown = self._crossing("crown", self._upper() / (1 + NEAR * self.rtol))
        low, cheap = self._known_below(method), False
        if alone and not crown.begun and not crown.closed and not deadline.over:
            start, allowed = time.monotonic(), CHEAP * deadline.left
            low = max(low, self._step("crown", crown, deadline), key=lambda c: c.eps)
            cheap = not crown.forgone and time.monotonic() - start <= allowed
        if not cheap:
            low = max(low, self._roughly("crown", deadline), key=lambda c: c.eps)
        near = cheap or self._upper() <= FAR * low.eps
        closing = Closing(self.rtol, max(FEWEST_SECONDS, SECONDS_SHARE * deadline.left), near)
        for _ in range(MOST_PROBES):
            probe = closing.ask(low.eps, self._upper())
            if probe is None or deadline.over:
                break
            verdict, share = self._decided(method, probe, deadline)
            if verdict.status == "certified":
                low = self._proven(probe.eps, verdict)
                closing.certified()
            elif verdict.counterexample is not None:
                self._draw_near(verdict.counterexample, deadline)
                closing.broken()
            else:
                closing.undecided(probe, f"undecided at eps={probe.eps:.6g}: {verdict.reason}", not share.over)
                # a cheap radius bounds how far down a bisection may have to go; dearer ones where it does not arrive
                low = max(low, self._roughly("crown", deadline), key=lambda c: c.eps)
                for name in ("crown", "dual", "lp") if closing.stuck else ():
                    low = max(low, self.certified(name, deadline), key=lambda c: c.eps)
        else:
            return replace(low, reason=f"not closed in {MOST_PROBES} probes")
        why = closing.why(low.eps, self._upper())
        return replace(low, reason=why or ("time limit" if deadline.over else ""), cut=deadline.over)

    def _decided(self, method: str, probe: Probe, deadline: Deadline) -> tuple[Verdict, Deadline]:
        """An exact verdict, and the share of time that it had beside its CROWN pass."""
        with suppress(TimeoutError, NumericalError):  # which the verdict will say
            ladder = self._ladder(probe.eps)
            self._corgi_first(ladder, deadline)
            ladder.bound("crown", deadline)
        share = deadline.within(probe.seconds)
        return self._probe(method, probe.eps, share), share

    def _proven(self, eps: float, verdict: Verdict) -> Certified:
        found = Certified(eps, verdict.margin_lower, verdict.proof, "")
        self._best = max(self._best, found, key=lambda c: c.eps)
        return found

    def _draw_near(self, witness: Witness, deadline: Deadline) -> None:
        """Takes a solver's witness for the nearest one, and PGD from it to nearer ones."""
        step = 2 * self.rtol
        best = shrink(self.question, witness)
        while step > self.rtol / 8 and not deadline.over:
            ball = self.question.ball(best.distance / (1 + step))
            worst = self.question.groups.worst(self.question.see(best.image).atoms)
            closer = polish(self.question, ball, best.image, worst)
            if closer is None:
                step /= 2
            else:
                best = shrink(self.question, closer)
        if self.nearest is None or best.distance < self.nearest.distance:
            self.nearest = best

    # --- shared ----------------------------------------------------------------------------------------------

    def _upper(self) -> float:
        return self.nearest.distance if self.nearest is not None else self.largest

    def _known_below(self, method: str) -> Certified:
        """What this method and those below it have certified already; eps 0 is certified by the image itself."""
        start = Certified(0.0, self.question.gap, "float64", "")
        known = [c for found in (self._certified, self._so_far) for m, c in found.items() if m in up_to(method)]
        best = max([start, *known], key=lambda c: c.eps)
        return Certified(best.eps, best.margin, best.proof, "")

    def _probe(self, method: str, eps: float, deadline: Deadline) -> Verdict:
        ladder = Ladder(self.question, eps, self.device) if method == "ibp" else self._ladder(eps)
        if self.nearest is not None and ladder.ball.contains(self.nearest.image) and not TABLE[method].exact:
            ladder.meet(self.nearest.image)
        if method != "ibp" and not TABLE[method].exact:
            with suppress(TimeoutError, NumericalError):  # which the verdict will say
                self._corgi_first(ladder, deadline)
        verdict = climb(ladder, TABLE[method], None, self._solver, deadline)
        LOG.info("probe by %s: eps=%.6g %s, margin >= %.4g", method, eps, verdict.status, verdict.margin_lower)
        return verdict

    def _corgi_first(self, ladder: Ladder, deadline: Deadline) -> None:
        """Where it is quick: what it settles, others need not look at."""
        if self._corgi_pass <= CORGI_FIRST:
            ladder.bound("corgi", deadline)

    def _ladder(self, eps: float) -> Ladder:
        if eps not in self._ladders:
            while len(self._ladders) >= MOST_LADDERS:
                self._ladders.pop(min(self._ladders))  # what a larger eps leaves open is all that smaller ones look at
            # the nearest larger eps, of those whose neurons are bounded if there are any
            above = sorted((ladder.margins.relaxed is None, e) for e, ladder in self._ladders.items() if e > eps)
            larger = self._ladders[above[0][1]] if above else None
            self._ladders[eps] = Ladder(self.question, eps, self.device, larger, self._report)
        return self._ladders[eps]

    def _check_order(self) -> None:
        """No certified eps, of any method so far, may reach the nearest witness (which later methods move)."""
        for method, found in self._certified.items():
            if self.nearest is not None and found.eps >= self.nearest.distance:
                raise BoundOrderError(
                    f"{method} certified eps={found.eps:.9g} although an image at distance "
                    f"{self.nearest.distance:.9g} breaks it; nothing is certified, please report this"
                )

    def _reason(self, method: str, found: Certified, upper: float) -> str:
        if upper <= found.eps * (1 + self.rtol):
            return f"bracket closed to rtol={self.rtol:g}"
        if found.reason:
            return found.reason
        if self.nearest is None:
            return f"no counterexample up to eps={self.largest:g}, the largest tried"
        return f"{method} certifies no further (resolved to rtol={self.rtol:g}); the gap to the attack is its looseness"


def _first(method: str) -> list[str]:
    """Radii that a relaxation takes before its own: what they would have certified in the same time is never lost.

    Exact methods take CROWN's when they need it (:meth:`RadiusSearch._closing`), and all begin with intervals and
    CORGI.
    """
    row = TABLE[method]
    if row.exact or row.quick:
        return []
    return [name for name in up_to(method)[:-1] if TABLE[name].bound is not None and not TABLE[name].quick]


@pinned
@over_images()
def radius(
    net: CamNetwork,
    x: Tensor,
    *,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    keep_class: bool = False,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    method: str = "auto",
    rtol: float = 0.01,
    solver: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    time_limit: float = 600.0,
    progress: bool | None = None,
) -> Radius:
    """The two-sided bracket of the largest eps up to which a property holds: the k brightest CAM pixels cannot change.

    Arguments as in :func:`corgi_opt.verify`. ``rtol``: relative resolution; for an exact method the bracket closes to
    ``upper / lower <= 1 + rtol`` unless ``reason`` says why not, for a relaxation ``lower`` is within rtol of the
    largest eps it certifies. A tied image has radius 0, with that reason. Of several images or classes, a list.

    ``time_limit`` is shared so that a method certifies at least what CROWN does in the same time. The attack has a
    quarter of it at first. CORGI's radius, which is recorded beside the answer, has a tenth
    (``Radius.corgi_cut_off`` says where that was not enough). CROWN's comes before the first tree or MILP unless a
    pass of it is next to nothing. An exact probe has few seconds, which double where they decide nothing.
    """
    means = Means.of(net, method=method, norm=norm, solver=solver, device=device, time_limit=time_limit)
    tolerance, wanted = check_rtol(rtol), chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm=norm, clip=clip)
    try:
        question = Question.ask(scene, wanted, tie_tol=tie_tol, keep_class=keep_class)
    except TieError as tie:
        return tied(scene, wanted, keep_class, means.method.name, str(tie))
    with reporting(progress, "radius") as report:
        options = PgdOptions(seed=seed)
        search = RadiusSearch(question, means.device, options, tolerance, means.solver, report)
        found = search.run(means.method.name, means.deadline)
    return replace(found, reason=means.said(found.reason))


def tied(scene: Scene, property: Property, keep_class: bool, method: str, reason: str) -> Radius:
    """The radius of an image at which a property is not defined, or does not hold."""
    about = asked_of(scene, property, gap=0.0, kept=scene.predicted if keep_class else None)
    return Radius(about, 0.0, 0.0, method, 0.0, 0.0, None, None, reason, original=Original.of(scene, property))
