"""One fuzzed case after another: builds it, asks questions, attacks what is certified, replays what is falsified.

``python tests/fuzz_run.py 17`` prints the case of seed 17, its questions and answers, and what is wrong with them;
``python tests/fuzz_run.py 0:200`` counts over a range of seeds.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz_attack import Attack, linear_radius, margin_at, random_points
from fuzz_nets import Case, random_case
from fuzz_oracle import Asked, Oracle, Region, state_of
from torch import Tensor

import corgi_opt as co
from corgi_opt.problem.region import Norm

SECONDS = 5.0
"""``time_limit`` of each call; what is not done by then is unknown."""

PATIENCE = 150.0
"""Seconds for a whole case; one that takes longer hangs (a quiet core needs less than one)."""

ROUNDING = 1e-12
"""Of the size of the sums behind a CAM: what two right evaluations in float64 may differ by, and more."""

PARITY = 1e-9
"""Of the same: what a CAM of the package may be off (half-precision batch norms fold with errors of this order)."""


@dataclass(frozen=True)
class Fault:
    """``kind``: untyped, broken, witness, cam, head, changed, refused, order, hang, bracket or bounds."""

    seed: int
    kind: str
    what: str


@dataclass
class Tally:
    """What was fuzzed: counts by name, and all faults."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def table(self) -> str:
        return "\n".join(f"{self.counts[name]:7d}  {name}" for name in sorted(self.counts))


class _HangError(BaseException):
    """Raised in the middle of a case that takes too long; no ``except Exception`` stops it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: where it rings first may swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def fuzz(seed: int, tally: Tally, show: bool = False) -> None:
    """One case; its counts and faults go to the tally."""
    run = Run(seed, tally, show)
    try:
        with at_most(PATIENCE):
            run.case()
    except _HangError:
        frames = "".join(traceback.format_exc().splitlines(keepends=True)[-7:-1])
        run.fault("hang", f"still at it after {PATIENCE:g} s, in {run.doing}\n{frames}")


class Run:
    """The case of one seed."""

    def __init__(self, seed: int, tally: Tally, show: bool) -> None:
        self.seed, self.tally, self.show, self.doing = seed, tally, show, "random_case"
        self.r = random.Random(f"questions {seed}")

    def fault(self, kind: str, what: str) -> None:
        self.tally.faults.append(Fault(self.seed, kind, f"{what}\nin {self.doing}"))
        self.note(f"*** {kind}: {what}")

    def note(self, text: str) -> None:
        if self.show:
            print(text, flush=True)

    def count(self, *names: str) -> None:
        self.tally.counts.update(names)

    def case(self) -> None:
        case = random_case(self.seed)
        self.note(str(case))
        self.oracle = Oracle(case)
        self.count("nets")
        net = self.build(case)
        if net is None:
            return
        self.count("nets built", f"built from {next(case.model.parameters()).dtype}")
        if not self.oracle.has_cam:
            self.fault("head", "its scores are no linear map of averaged features, and it was built")
            return
        if self.cams_agree(net):
            for _ in range(3):
                Question(self, case, net).ask()

    def build(self, case: Case) -> co.CamNetwork | None:
        problem: str | None = None
        try:
            net = self.call("from_torch", case, co.from_torch, case.model, case.x)
        except co.CorgiError as error:
            problem = type(error).__name__
            self.note(f"refused: {error}")
            self.count("nets refused", f"refused: {problem}")
            if isinstance(error, (co.ParityError, co.BoundOrderError)):
                self.fault("order", f"{problem}: {error}")
        except _FaultError:
            return None
        if self.r.random() < (0.9 if problem is None else 0.6):
            return net if problem is None else None
        try:
            listed = self.call("check_model", case, co.check_model, case.model, case.x, show=False)
            if bool(listed) != (problem is not None):
                self.fault("refused", f"check_model lists {listed}, and from_torch says {problem}")
        except co.CorgiError as error:
            if problem is None:
                self.fault("refused", f"check_model refuses ({error}) what from_torch builds")
        except _FaultError:
            pass
        return net if problem is None else None

    def call(self, name: str, case: Case, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the package; notes what it does to the caller's objects, and errors that are not its own."""
        shown = ", ".join(f"{key}={case.clip_in_words if key == 'clip' else value!r}" for key, value in kwargs.items())
        self.doing = f"co.{name}({shown})"
        tensors = [case.x, *(case.clip if case.clip is not None else ())]
        before = state_of(case.model, *tensors)
        try:
            return function(*args, **kwargs)
        except co.CorgiError:
            raise
        except Exception as error:
            own = [f for f in traceback.extract_tb(error.__traceback__) if "/corgi_opt/" in f.filename]
            at = f"{own[-1].filename.split('/corgi_opt/')[-1]}:{own[-1].lineno}" if own else "?"
            self.fault("untyped", f"{type(error).__name__} at {at}: {str(error)[:500]}")
            raise _FaultError from error
        finally:
            after = state_of(case.model, *tensors)
            changed = [key for key in before | after if before.get(key) != after.get(key)]
            if changed:
                self.fault("changed", f"the caller's own: {', '.join(changed[:4])}")

    def cams_agree(self, net: co.CamNetwork) -> bool:
        """Whether CAMs of the network, at the image and elsewhere, are the oracle's."""
        oracle = self.oracle
        if net.classes != oracle.classes:
            self.fault("cam", f"{net.classes} classes for {oracle.classes}")
            return False
        for step, class_idx in ((0.0, 0), (0.5, oracle.classes - 1)):
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(oracle.x.shape, generator=generator, dtype=torch.float64)
            image = oracle.x + step * noise * float(oracle.x.abs().max())
            self.doing = f"net.cam(image {step}, {class_idx})"
            ours, theirs = oracle.cam(image, class_idx), net.cam(image, class_idx).flatten()
            size = oracle.size(image, class_idx)
            if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= PARITY * size):
                self.fault("cam", f"the CAM is off; ours {ours.tolist()}, theirs {theirs.tolist()}, size {size}")
                return False
        return True


class _FaultError(Exception):
    """A fault was noted; nothing more to see in this call."""


NORMS: tuple[Norm, ...] = ("inf", "inf", "inf", "2", "2", "1")
METHODS = ("auto", "auto", "bab", "milp", "lp", "dual", "crown", "crown", "corgi", "ibp")
EXACT = ("bab", "milp", "lp")
"""Which take no network with curved layers."""


class Question:
    """One question about a case, asked in several ways. ``known``: images that may break it."""

    def __init__(self, run: Run, case: Case, net: co.CamNetwork) -> None:
        self.run, self.case, self.net, self.r = run, case, net, run.r
        self.oracle, self.known = run.oracle, list[Tensor]()
        r, oracle = self.r, run.oracle
        self.norm = r.choice(NORMS)
        scores = oracle.logits(oracle.x)
        predicted = int(scores.argmax())
        class_idx = None if r.random() < 0.6 else r.randrange(oracle.classes)
        self.class_idx = predicted if class_idx is None else class_idx
        cam = oracle.cam(oracle.x, self.class_idx)
        order = cam.argsort(descending=True, stable=True)
        self.size = oracle.size(oracle.x, self.class_idx)
        gaps = cam[order[:-1]] - cam[order[1:]]
        clear = [at + 1 for at in range(len(gaps)) if float(gaps[at]) > 1e-8 * self.size]
        k = r.choice(clear) if clear and r.random() < 0.9 else r.randint(1, len(gaps))
        self.gap = float(gaps[k - 1])
        within = r.randint(k, len(gaps)) if r.random() < 0.15 else None
        keep = oracle.classes > 1 and r.random() < 0.12
        self.asked = Asked(self.class_idx, order[:k], k if within is None else within, predicted if keep else None)
        self.about: dict[str, Any] = {"k": k, "norm": self.norm, "clip": case.clip, "time_limit": SECONDS}
        self.about |= {"class_idx": class_idx} if class_idx is not None else {}
        self.about |= {"within": within} if within is not None else {}
        self.about |= {"keep_class": True} if keep else {}
        self.about |= {"tie_tol": 0.0} if r.random() < 0.05 else {}

    def ask(self) -> None:
        linear = linear_radius(self.oracle, self.asked, self.norm)
        near = linear if 0 < linear < 1e30 else float(self.oracle.x.abs().max()) * 0.01 or 0.01
        for _ in range(self.r.choice((1, 1, 2))):
            spread = self.r.choices(((-1.5, 0.0), (-0.4, 0.3), (0.3, 1.0)), (3, 4, 1))[0]
            share = 10 ** self.r.uniform(*spread) if self.r.random() < 0.92 else self.r.choice((0.0, 1e-9, 30.0, 1e6))
            self.verify(near * share)
        other = self.r.random()
        if other < 0.25:
            self.radius()
        elif other < 0.37:
            self.heat_map(near * 10 ** self.r.uniform(-1.5, 0.3))
        elif other < 0.42 and "within" not in self.about and "keep_class" not in self.about:
            self.compare(near * 10 ** self.r.uniform(-1.0, 0.0))

    def method(self) -> str:
        method = self.r.choice(METHODS)
        if self.net.curved and method in EXACT:
            self.run.count("curved")
            return "auto"
        return "auto" if method == "milp" and self.norm == "2" else method

    def call(self, name: str, **kwargs: Any) -> Any:
        """An answer, or None (an image without a top-k set is refused rightly)."""
        function = getattr(co, name)
        self.run.count("questions", f"norm {self.norm}", f"asked: {name} {kwargs.get('method', '')}")
        try:
            answer = self.run.call(name, self.case, function, self.net, self.case.x, **kwargs)
        except co.TieError as error:
            self.run.count("tied")
            if self.gap > 1e-8 * self.size:
                self.run.fault("refused", f"TieError at a gap of {self.gap} (sums of {self.size}): {error}")
            return None
        except co.CorgiError as error:
            order = isinstance(error, (co.ParityError, co.BoundOrderError))
            self.run.fault("order" if order else "refused", f"{type(error).__name__}: {error}")
            return None
        except _FaultError:
            return None
        self.run.note(f"{self.run.doing}\n  -> {answer}")
        return answer

    # --- what is asked ----------------------------------------------------------------------------------------------

    def verify(self, eps: float) -> None:
        about = self.about | {"eps": eps, "method": self.method(), "seed": self.r.randrange(3)}
        if self.r.random() < 0.1 and "keep_class" not in about and "within" not in about and not self.net.curved:
            about["proof"] = "checked"
        answer = self.call("verify", **about)
        if answer is None:
            return
        self.judge(answer, eps, about["method"])
        if answer.status != "unknown" and self.r.random() < 0.1:
            self.certificate(answer)

    def judge(self, answer: co.Verdict, eps: float, method: str) -> None:
        """A verdict against an attack, and its witness replayed."""
        self.run.count(f"verify: {answer.status}", f"{method}: {answer.status}")
        region = Region.of(self.oracle.x, eps, self.norm, self.case.box)
        if answer.status == "falsified":
            self.replay(answer.counterexample, region)
        if answer.status == "certified":
            self.count_certified(answer.proof)
            if not answer.margin_lower > 0:
                self.run.fault("broken", f"certified with margin_lower {answer.margin_lower}")
        elif answer.status == "unknown":
            kind = "time" if "time limit" in answer.reason else "weak" if "too weak" in answer.reason else "other"
            self.run.count(f"unknown: {kind}")
        bound = max(answer.margin_lower, answer.corgi_margin) if answer.corgi_margin == answer.corgi_margin else None
        self.attacked(answer.margin_lower if bound is None else bound, region, answer.status == "certified")
        if not answer.margin_lower <= answer.margin_upper + ROUNDING * self.size:
            self.run.fault("bracket", f"margin in [{answer.margin_lower}, {answer.margin_upper}]")

    def count_certified(self, proof: object) -> None:
        box = self.case.box
        clip = "none" if box is None else "one" if box[0].numel() == 1 else "per channel"
        self.run.count("certified", f"certified, norm {self.norm}", f"certified, clip {clip}", f"certified by {proof}")
        for name in ("within", "keep_class"):
            self.run.count(*([f"certified, {name}"] if name in self.about else []))

    def attacked(self, bound: float, region: Region, certified: bool) -> None:
        """No image of the region has a margin below a proven bound; none of a certified one has <= 0."""
        found = Attack(self.oracle, self.asked, region, self.run.seed, self.known)
        self.run.count("attacks")
        allowed = ROUNDING * self.oracle.size(found.image, self.class_idx)
        if certified and found.margin <= 0:
            self.run.count("broken")
            self.run.fault("broken", f"certified ({bound}), and {found.margin} at {found.image.tolist()}")
        elif found.margin < bound - allowed:
            self.run.fault("broken", f"the bound {bound} is above {found.margin} at {found.image.tolist()}")
        if found.margin <= 0 and len(self.known) < 8:
            self.known.append(found.image)

    def replay(self, witness: Any, region: Region) -> None:
        if witness is None:
            self.run.fault("witness", "falsified without an image")
            return
        image = witness.image.detach().clone()
        self.known.append(image)
        allowed = ROUNDING * self.oracle.size(image, self.class_idx)
        if not region.holds(image, slack=1e-15 if self.norm != "inf" else 0.0):
            self.run.fault("witness", f"outside, {region.distance(image)!r} of {region.eps!r}: {image.tolist()}")
        margin = margin_at(self.oracle, self.asked, image)
        if margin is None:
            self.run.fault("witness", f"another class is predicted at {image.tolist()}")
        elif not margin <= allowed:
            self.run.fault("witness", f"the margin is {margin} at {image.tolist()}")
        if not bool((witness.cam.flatten() - self.oracle.cam(image, self.class_idx)).abs().max() <= allowed):
            self.run.fault("witness", "its cam is not the CAM of its image")
        if abs(witness.distance - region.distance(image)) > 1e-14 * region.distance(image):
            self.run.fault("witness", f"its distance is {region.distance(image)!r}, not {witness.distance!r}")

    def radius(self) -> None:
        rtol = self.r.choice((0.01, 0.01, 0.1, 0.002))
        found = self.call("radius", **self.about, method=self.method(), rtol=rtol)
        if found is None:
            return
        tied = found.lower == found.upper == 0.0
        if tied and self.gap > 1e-8 * self.size:
            self.run.fault("refused", f"radius 0 ({found.reason}) at a gap of {self.gap} (sums of {self.size})")
        elif not tied and not 0 <= found.lower < found.upper:
            self.run.fault("bracket", f"{found!r}")
        if found.method != "ibp" and found.corgi > found.lower * (1 + 1e-12):
            self.run.fault("bracket", f"CORGI's radius is larger: {found!r}")
        self.run.count("radius: " + ("tied" if tied else "closed" if found.ratio <= 1 + rtol else "open"))
        if found.counterexample is not None:
            self.replay(found.counterexample, Region.of(self.oracle.x, found.upper, self.norm, self.case.box))
        if found.upper <= found.lower * (1 + rtol):
            self.just_above(found.upper * 1.05)
        if found.lower > 0:
            self.count_certified(found.proof)
            self.attacked(0.0, Region.of(self.oracle.x, found.lower, self.norm, self.case.box), True)

    def just_above(self, eps: float) -> None:
        """How often our attack, alone, breaks what breaks: what it is worth on what is certified."""
        region = Region.of(self.oracle.x, eps, self.norm, self.case.box)
        broken = Attack(self.oracle, self.asked, region, self.run.seed, []).margin <= 0
        self.run.count("breakable", *(["breakable and broken"] if broken else []))

    def compare(self, eps: float) -> None:
        methods = ["corgi", "crown", "dual", *(("split",) if self.net.curved else ("lp", "bab"))]
        found = self.call("compare", **self.about, eps=eps, methods=methods)
        for method in methods if found is not None else ():
            self.judge(found.only.answers[method], eps, method)

    def heat_map(self, eps: float) -> None:
        about = {key: self.about[key] for key in ("k", "norm", "clip", "class_idx") if key in self.about}
        found = self.call("heat_map", **about, eps=eps, method=self.r.choice(("ibp", "corgi", "crown", "dual")))
        if found is None:
            return
        region = Region.of(self.oracle.x, eps, self.norm, self.case.box)
        points = [random_points(region, 40, torch.Generator().manual_seed(self.run.seed)), region.center]
        inside = torch.cat([p for batch in points for p in batch[:, None] if region.holds(p)] or [region.center])
        with torch.no_grad():
            cams = self.oracle.cams(inside, self.class_idx)
        allowed = ROUNDING * max(self.oracle.size(inside[at : at + 1], self.class_idx) for at in (0, len(inside) - 1))
        low, high = found.lower.flatten() - allowed, found.upper.flatten() + allowed
        if not bool(((cams >= low) & (cams <= high)).all()):
            self.run.fault("bounds", f"a CAM leaves its interval: {cams.amin(0) - low}, {high - cams.amax(0)}")
        ahead = (cams[:, None, :] > cams[:, :, None] + 2 * allowed).sum(2) + 1  # the best rank that ties leave
        behind = (cams[:, None, :] >= cams[:, :, None] - 2 * allowed).sum(2)
        if bool((behind < found.best.flatten()).any() | (ahead > found.worst.flatten()).any()):
            self.run.fault("bounds", "a pixel leaves its proven ranks")
        self.run.count("heat maps")
        self.bounds(eps, inside)

    def bounds(self, eps: float, inside: Tensor) -> None:
        """Every value of the last feature map lies in its interval, alone and in a batch of regions."""
        method = self.r.choice(("ibp", "crown", "crown", "dual"))
        self.run.doing = f"co.bounds(eps={eps}, norm={self.norm}, clip={self.case.clip_in_words}, method={method})"
        try:
            balls = [co.Ball(self.oracle.x, size, self.norm, self.case.clip) for size in (eps, eps / 2)]
            found = co.bounds(self.net, balls, method=method)[self.net.features]
        except Exception as error:
            kind = "refused" if isinstance(error, co.CorgiError) else "untyped"
            self.run.fault(kind, f"{type(error).__name__}: {error}")
            return
        with torch.no_grad():
            features = self.oracle.run(inside)[0]
        allowed = ROUNDING * float(features.abs().max()) + 1e-9 * float((found.upper[0] - found.lower[0]).max())
        if not bool(((features >= found.lower[0] - allowed) & (features <= found.upper[0] + allowed)).all()):
            self.run.fault("bounds", "a feature leaves its interval")
        self.run.count("bounds")

    def certificate(self, answer: co.Verdict) -> None:
        """What a verdict is worth to somebody else: saved, loaded and checked against a fresh copy of the model."""
        self.run.doing = f"certificate of {answer}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "fuzzed.cert"
                answer.prove().save(path)
                self.run.count("certificates made")
                checked = co.check_certificate(path, self.net)
                self.run.count("certificates checked")
                if checked is None:
                    self.run.fault("order", "a certificate that says nothing")
        except co.CertificateError as error:
            self.run.count(f"no certificate: {str(error)[:60]}")
        except co.CorgiError as error:
            self.run.fault("order", f"its own certificate: {type(error).__name__}: {error}")
        except Exception as error:
            self.run.fault("untyped", f"certificate: {type(error).__name__}: {error}")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    tally, start = Tally(), time.monotonic()
    seeds = [s for a in arguments for s in (range(*map(int, a.split(":"))) if ":" in a else [int(a)])]
    for seed in seeds:
        fuzz(seed, tally, show=len(seeds) == 1)
    if len(seeds) > 1:
        for fault in tally.faults:
            print(f"seed {fault.seed}: {fault.kind}: {fault.what[:600]}\n")
    print(tally.table(), f"\n{len(tally.faults)} faults, {time.monotonic() - start:.0f} s", sep="")


if __name__ == "__main__":
    main(sys.argv[1:])
