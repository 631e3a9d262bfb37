"""The bracket: the largest eps a method certifies, and the smallest eps that is known to break."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from corgi_solvers import Backend
from torch import Tensor

from corgi_opt.ambient import pinned
from corgi_opt.arguments import check_rtol
from corgi_opt.backends import check_solver, named_solver
from corgi_opt.clip import Clip
from corgi_opt.deadline import Deadline
from corgi_opt.errors import BoundOrderError, Interrupted, TieError
from corgi_opt.ladder import Ladder
from corgi_opt.margins import Known, Margins
from corgi_opt.network.cam import CamNetwork
from corgi_opt.progress import Report, reporting, silent
from corgi_opt.prove import Prover
from corgi_opt.question import Question, resolve_device
from corgi_opt.results import Proof, Radius, Verdict, Witness
from corgi_opt.search.attack import PgdOptions, attack_radius, polish, rank_targets, shrink
from corgi_opt.search.crossing import Point, crossing, probes
from corgi_opt.spec import Norm, canonical_norm
from corgi_opt.verify import check_method, check_time_limit, climb

LADDER_ORDER = ("ibp", "corgi", "crown", "dual", "lp", "milp", "bab", "auto")
"""Each certifies at least what the ones before it do; a stronger search starts where a weaker one ended."""

EXACT = ("milp", "bab", "auto")
"""Methods whose brackets close."""

MOST_PROBES = 60

PROVING_SECONDS = 600.0
"""For who asks for the certificate of a radius."""

FAR = 1.25
"""Ratio of attack to CROWN radius from which a bisection starts in the middle, where rivals are allowed."""

Solvers = Callable[[str], Backend]
"""The backend of a method."""


@dataclass(frozen=True)
class Certified:
    """The largest eps a method has certified on a question, with its margin there, and what it rests on."""

    eps: float
    margin: float
    proof: Proof | None
    reason: str

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
        solvers: Solvers,
        report: Report = silent,
    ) -> None:
        self.question, self.device, self.options, self.rtol = question, device, options, rtol
        self._solver_of, self._report = solvers, report
        span = float(question.x.max() - question.x.min()) or 1.0
        self.largest = min(question.whole_range, 10.0 * span)
        self.nearest: Witness | None = None
        self._best = Certified(0.0, question.topk.gap, "float64", "")  # of all methods, for who interrupts
        self.seconds: dict[str, float] = {}
        self._attacked: float | None = None
        self._certified: dict[str, Certified] = {}
        self._ladders: dict[float, Ladder] = {}

    def run(self, method: str, deadline: Deadline) -> Radius:
        """The bracket of one method; ``deadline`` bounds the whole call."""
        try:
            self.attack(deadline)
            for name in sorted({"corgi", method}, key=LADDER_ORDER.index):
                self.certified(name, deadline)  # weakest first: each starts where the one before ended
        except KeyboardInterrupt as stop:
            raise Interrupted(self._bracket(method, replace(self._best, reason="interrupted"))) from stop
        self._check_order()
        return self._bracket(method, self._certified[method])

    def _bracket(self, method: str, found: Certified) -> Radius:
        corgi = self._certified.get("corgi")
        if method == "auto":
            method = "milp" if found.proof == "solver" else "bab"
        upper = self.nearest.distance if self.nearest is not None else float("inf")
        return Radius(
            lower=found.eps,
            upper=upper,
            k=self.question.topk.k,
            within=self.question.topk.within,
            class_idx=self.question.class_idx,
            method=method,
            corgi=float("nan") if corgi is None else corgi.eps,
            attack=float("nan") if self._attacked is None else self._attacked,
            proof=found.proof if found.eps > 0 else None,
            counterexample=self.nearest,
            reason=self._reason(method, found, upper),
            stats={f"seconds_{name}": s for name, s in self.seconds.items()},
            prover=self._prover(found.eps) if found.eps > 0 else None,
        )

    def _prover(self, eps: float) -> Prover:
        norm = self.question.norm
        leaves = named_solver(None, "bab", norm)
        return Prover(self.question, self.question.ball(eps), None, leaves, self.device, PROVING_SECONDS)

    def attack(self, deadline: Deadline) -> float:
        """The smallest eps that PGD alone breaks (infinity when it breaks none up to the largest eps tried)."""
        if self._attacked is None:
            start = time.monotonic()
            targets = rank_targets(self.question, self.device)
            self.nearest = attack_radius(
                self.question, targets, self.device, self.options, deadline, rtol=self.rtol, largest=self.largest
            )
            self._attacked = float("inf") if self.nearest is None else self.nearest.distance
            self.seconds["attack"] = time.monotonic() - start
        return self._attacked

    def certified(self, method: str, deadline: Deadline) -> Certified:
        """The largest eps (within rtol) that the method certifies below the nearest witness."""
        if method not in self._certified:
            start, others = time.monotonic(), sum(self.seconds.values())
            found = self._closing(method, deadline) if method in EXACT else self._limit(method, deadline)
            self._certified[method] = found
            # what this method called for on the way (a weaker radius) stands under that name
            elsewhere = sum(self.seconds.values()) - others
            self.seconds[method] = time.monotonic() - start - elsewhere
        return self._certified[method]

    # --- the two searches ------------------------------------------------------------------------------------

    def _limit(self, method: str, deadline: Deadline) -> Certified:
        """Where a relaxation's margin crosses zero.

        A float32 search finds the place; what it says is proven in float64 just below it, and if that fails (or for an
        LP, which has no float32 search) the search goes on with proven probes.
        """
        low, high = self._known_below(method), Point(self._upper(), -math.inf)
        if self.nearest is None or method == "corgi":  # what everything is checked against is checked at the witness
            verdict = self._probe(method, high.eps, deadline)
            if verdict.status == "certified":
                return Certified(high.eps, verdict.margin_lower, verdict.proof, "certified up to the largest eps tried")
            high = Point(high.eps, verdict.margin_lower)
        ahead: list[float] = []
        if method != "lp" and not deadline.over:
            guess, high = self._estimated(method, low.point, high, deadline)
            ahead = [guess.eps, guess.eps / (1 + self.rtol / 4)]
        for _ in range(MOST_PROBES):
            if low.eps > 0 and high.eps <= low.eps * (1 + self.rtol):
                return replace(low, reason="")
            if deadline.over:
                return replace(low, reason="time limit")
            at = ahead.pop(0) if ahead else probes(low.point, high, self.rtol)[0]
            if not low.eps < at < high.eps:
                continue
            verdict = self._probe(method, at, deadline)
            if verdict.status == "certified":
                low = self._proven(at, verdict)
            else:
                high = Point(at, verdict.margin_lower)
        return replace(low, reason=f"no certified eps above {low.eps:g} in {MOST_PROBES} probes")

    def _estimated(self, method: str, low: Point, high: Point, deadline: Deadline) -> tuple[Point, Point]:
        """``low`` and ``high`` narrowed by a float32 search, or as they are when time is over."""
        estimates = Estimates(self.question, method, self.device, deadline)
        if high.eps in self._ladders:
            estimates.know(high.eps, self._ladders[high.eps].margins)
        try:
            (there,) = estimates([high.eps])
            return crossing(estimates, low, Point(high.eps, min(there, 0.0)), self.rtol / 2)
        except TimeoutError:
            return low, high

    def _closing(self, method: str, deadline: Deadline) -> Certified:
        """An exact method: probe just below the nearest witness first, then bisect towards what is certified.

        An eps that stays undecided (time, or too close to zero for float arithmetic) splits the bracket: what is
        certified is pushed up to it from below, what is broken down to it from above.
        """
        pairwise = self.question.topk.allowed == 0
        low, step = self._known_below(method), 0.9 * self.rtol
        if not pairwise:
            low = max(low, self.certified("crown", deadline), key=lambda c: c.eps)
            if self._upper() > FAR * low.eps:  # the attack may be far off, and a probe too far up takes long
                step = math.inf
        doubts: dict[float, str] = {}  # eps that stayed undecided, and why
        for _ in range(MOST_PROBES):
            high = self._upper()
            doubts = {eps: why for eps, why in doubts.items() if low.eps < eps < high}
            first, last = min(doubts, default=high), max(doubts, default=high)
            if deadline.over or high <= low.eps * (1 + self.rtol):
                break
            if first > low.eps * (1 + self.rtol / 4):
                at = max((low.eps * first) ** 0.5, first / (1 + step))
            elif high > last * (1 + self.rtol / 4):
                at = (last * high) ** 0.5
            else:
                break
            verdict = self._probe(method, at, deadline.within(max(deadline.left / 2, 5.0)))
            if verdict.status == "certified":
                low = self._proven(at, verdict)
                continue
            if verdict.counterexample is not None:
                self._draw_near(verdict.counterexample)
            else:
                doubts[at] = f"undecided at eps={at:.6g}: {verdict.reason}"
            # a cheap radius bounds how far down a bisection may have to go; a dearer one where it may not arrive
            weaker = "lp" if doubts and method == "milp" else "crown"
            low = max(low, self.certified(weaker, deadline), key=lambda c: c.eps)
            step = math.inf if self._upper() > FAR * low.eps and not pairwise else 4 * self.rtol
        return replace(low, reason=next(iter(doubts.values()), "time limit" if deadline.over else ""))

    def _proven(self, eps: float, verdict: Verdict) -> Certified:
        found = Certified(eps, verdict.margin_lower, verdict.proof, "")
        self._best = max(self._best, found, key=lambda c: c.eps)
        return found

    def _draw_near(self, witness: Witness) -> None:
        """Takes a solver's witness for the nearest one, and PGD from it to nearer ones."""
        step = 2 * self.rtol
        best = shrink(self.question, witness)
        while step > self.rtol / 8:
            ball = self.question.ball(best.distance / (1 + step))
            closer = polish(self.question, ball, best.image, best.pair)
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
        """What the methods below this one have certified already; eps 0 is certified by the image itself."""
        weaker = LADDER_ORDER[: LADDER_ORDER.index(method)]
        start = Certified(0.0, self.question.topk.gap, "float64", "")
        known = [c for m, c in self._certified.items() if m in weaker]
        best = max([start, *known], key=lambda c: c.eps)
        return Certified(best.eps, best.margin, best.proof, "")

    def _probe(self, method: str, eps: float, deadline: Deadline) -> Verdict:
        ladder = Ladder(self.question, eps, self.device) if method == "ibp" else self._ladder(eps)
        if self.nearest is not None and ladder.ball.contains(self.nearest.image) and method not in EXACT:
            ladder.found(self.nearest)
        return climb(ladder, method, None, self._solver_of(method), deadline)

    def _ladder(self, eps: float) -> Ladder:
        if eps not in self._ladders:
            while len(self._ladders) >= 8:  # each holds the bounds of every node
                self._ladders.pop(next(iter(self._ladders)))
            above = min((e for e in self._ladders if e > eps), default=None)
            larger = None if above is None else self._ladders[above]
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


class Estimates:
    """Margins of a method at several eps, in float32 and one batch; they prove nothing.

    Each eps looks only at the pairs that the smallest eps above it (tried so far) left open, and keeps what was
    known there. Raises TimeoutError.
    """

    def __init__(self, question: Question, method: str, device: torch.device, deadline: Deadline) -> None:
        self._question, self._method, self._device, self._deadline = question, method, device, deadline
        self._known: dict[float, Known] = {}

    def know(self, eps: float, margins: Margins) -> None:
        """Starts from what is proven at one eps."""
        self._known[eps] = margins.known(0).to(torch.float32)

    def __call__(self, epses: Sequence[float]) -> list[float]:
        above = min((e for e in self._known if e >= max(epses)), default=None)
        margins = Margins(
            self._question, epses, torch.float32, self._device, None if above is None else self._known[above]
        )
        if above is None and self._method in ("crown", "dual"):
            margins.corgi(self._deadline)  # cheaper than CROWN, and leaves less for it
        found: Tensor = getattr(margins, self._method)(self._deadline)
        self._known |= {eps: margins.known(case) for case, eps in enumerate(epses)}
        return [float(margin) for margin in found]


@pinned
def radius(
    net: CamNetwork,
    x: Tensor,
    *,
    k: int,
    method: str = "auto",
    rtol: float = 0.01,
    class_idx: int | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    time_limit: float = 600.0,
    tie_tol: float | None = None,
    within: int | None = None,
    keep_class: bool = False,
    solver: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Radius:
    """The two-sided bracket of the largest eps at which the k brightest CAM pixels of x cannot change.

    Arguments as in :func:`corgi_opt.verify`. ``rtol``: relative resolution; for an exact method the bracket closes to
    ``upper / lower <= 1 + rtol`` unless ``reason`` says why not, for a relaxation ``lower`` is within rtol of the
    largest eps it certifies. A tied image has radius 0, with that reason.
    """
    norm = canonical_norm(norm)
    chosen, deadline, where = check_method(method, norm), check_time_limit(time_limit), resolve_device(device)
    tolerance = check_rtol(rtol)
    backend = check_solver(solver, chosen, norm)
    try:
        question = Question.ask(
            net,
            x,
            k=k,
            class_idx=class_idx,
            norm=norm,
            clip=clip,
            tie_tol=tie_tol,
            within=within,
            keep_class=keep_class,
        )
    except TieError as tie:
        return tied(net, x, k, within, class_idx, chosen, str(tie))
    with reporting(progress, "radius") as report:
        search = RadiusSearch(question, where, PgdOptions(seed=seed), tolerance, lambda _: backend, report)
        return search.run(chosen, deadline)


def tied(
    net: CamNetwork, x: Tensor, k: int, within: int | None, class_idx: int | None, method: str, reason: str
) -> Radius:
    """The radius of an image whose top-k set is not defined."""
    chosen = net.class_index(x, class_idx)
    return Radius(0.0, 0.0, k, k if within is None else within, chosen, method, 0.0, 0.0, None, None, reason)
