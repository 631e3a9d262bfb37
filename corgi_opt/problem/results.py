"""What comes back: Verdict and Radius. Frozen, each with where it came from and the image that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, TypeVar

from corgi_opt._ambient import pinned
from corgi_opt._deadline import Deadline, check_time_limit
from corgi_opt.drawing.charts import draw_intervals, draw_ladder
from corgi_opt.drawing.tables import html_table, seconds_in_words
from corgi_opt.errors import CertificateError
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.original import Original
from corgi_opt.problem.plain import Plain, numbers, plain, plain_fields
from corgi_opt.problem.witness import REPLAYED, Witness, original_of, pictured
from corgi_opt.proof.certificate import Certificate

Status = Literal["certified", "falsified", "unknown"]
Proof = Literal["checked", "float64", "solver"]

Prover = Callable[[Deadline], Certificate]
"""Searches for the proof of an answer."""

READ_BACK = "the answer was read from JSON, or interrupted, without its network; ask again"

SECONDS = "seconds_"
"""How the keys of ``stats`` begin that are times of stages."""

CORGI_CUT_OFF = "corgi_cut_off"
"""Key of ``stats`` where the paper's bound beside an answer was not finished in its share of the time limit."""


@dataclass(frozen=True, eq=False)
class Verdict(Plain):
    """The answer for one eps.

    ``asked``: the question. ``status``: certified (margin_lower > 0, proven), falsified (``counterexample`` replayed),
    or unknown (``reason`` says why). ``margin_lower <= margin <= margin_upper``, in units of the CAM. ``corgi_margin``:
    the paper's bound on the same question; NaN where it was not finished in its share of the time limit
    (``stats["corgi_cut_off"]`` is then 1). ``proof``: ``"checked"`` (the checker proved it, with bounds of all
    rounding), or, for a certified, ``"float64"`` (bounds computed in float64, less what rounding may hide; LPs too) or
    ``"solver"`` (rests on a MILP solver's word). ``method``: the stage that settled it. ``original``: the image asked
    about, for pictures; None in what was read from JSON that lacks it.

    A verdict is neither true nor false: ``if verdict`` raises TypeError, since unknown is a third answer.
    """

    asked: Asked
    status: Status
    eps: float
    margin_lower: float
    margin_upper: float
    corgi_margin: float
    proof: Proof | None
    counterexample: Witness | None
    method: str
    reason: str
    stats: Mapping[str, float] = field(default_factory=dict)
    original: Original | None = None
    prover: Prover | None = field(default=None, repr=False)
    proven: Certificate | None = field(default=None, repr=False)

    @property
    def certified(self) -> bool:
        """Whether it is proven that the property holds for every image within eps."""
        return self.status == "certified"

    @property
    def falsified(self) -> bool:
        """Whether an image within eps breaks the property (``counterexample``)."""
        return self.status == "falsified"

    @property
    def unknown(self) -> bool:
        """Whether it is neither certified nor falsified."""
        return self.status == "unknown"

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a verdict is certified, falsified or unknown, so it is neither true nor false: use verdict.certified, "
            "verdict.falsified or verdict.status"
        )

    @property
    def seconds(self) -> float:
        """Seconds that all stages took together."""
        return _seconds(self.stats)

    @property
    def certificate(self) -> Certificate:
        """The proof that was made with ``proof="checked"``. Raises CertificateError where there is none yet."""
        if self.proven is None:
            raise CertificateError("no certificate is made yet; .prove(time_limit=...) makes one")
        return self.proven

    @pinned
    def prove(self, *, time_limit: float = 300.0) -> Certificate:
        """The proof as a file that ``co.check_certificate`` and ``corgi-opt check`` take, checked once.

        The search for it has ``time_limit`` seconds. Raises InputError; CertificateError where there is nothing to
        prove, or no proof is found (rivals that had to be counted and classes that had to be kept rest on MILPs, which
        leave none); MissingPackageError without the solver.
        """
        limit = check_time_limit(time_limit)
        why = "the verdict is unknown" if self.status == "unknown" else READ_BACK
        return self.proven or _proven(self.prover, limit, why)

    @pinned
    def to_dict(self) -> dict[str, Any]:
        """As JSON types, floats to the last bit; without the proof, which is a file of its own. The original image
        stands there once, not in the counterexample too."""
        return _said(self)

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Verdict:
        """What :meth:`to_dict` wrote, now or before it held the image; it has no proof and can make none."""
        known = numbers(said, margin_lower=-math.inf, margin_upper=math.inf, corgi_margin=math.nan)
        return cls(**_answered(known))

    @property
    def corgi_in_words(self) -> str:
        """CORGI's bound as text, or that its share of the time was not enough."""
        return "not finished" if math.isnan(self.corgi_margin) else f"{self.corgi_margin:.6g}"

    def plot(self, ax: Any = None) -> Any:
        """The proven interval of the margin against zero, and CORGI's beside it. Returns the Axes."""
        bounds = {"corgi": self.corgi_margin}
        if self.margin_lower != self.corgi_margin:
            # an attack proves nothing: what is known from below are the bounds before it
            bounds[self.method if self.method not in ("attack", "corgi", "") else "all bounds"] = self.margin_lower
        title = f"{self.status}: {self.reason}"
        where = f"at eps={self.eps:g} ({self.asked.units})"
        xlabel = f"margin of the {self.asked.in_words} {where}, in units of the CAM"
        return draw_intervals(bounds, self.margin_upper, title=title, xlabel=xlabel, ax=ax)

    def _repr_html_(self) -> str:
        rows = {
            "question": f"eps={self.eps:g}, {self.asked.short}",
            **self.asked.where,
            "margin": f"in [{self.margin_lower:.6g}, {self.margin_upper:.6g}]",
            "CORGI's bound": self.corgi_in_words,
            **_how(self),
        }
        return pictured(html_table(self.status, rows), self.original, self.counterexample)

    def __repr__(self) -> str:
        how = f", proof={self.proof!r}" if self.proof else ""
        return (
            f"Verdict({self.status}, eps={self.eps:g}, {self.asked.short}, margin in "
            f"[{self.margin_lower:.6g}, {self.margin_upper:.6g}], corgi {self.corgi_in_words}, "
            f"by {self.method}{how}; {self.reason})"
        )


@dataclass(frozen=True, eq=False)
class Radius(Plain):
    """A two-sided bracket: stable at every eps <= ``lower`` (proven), broken at ``upper`` (by ``counterexample``).

    ``upper`` is infinity when no counterexample was found. ``corgi``: the paper's certified radius on the same
    question; it has at most a tenth of the time limit, most of it when others have ended, and where that was not
    enough, ``corgi`` is what it had certified by then (``corgi_cut_off``, also in ``stats``). ``attack``: the smallest
    eps PGD alone broke. ``reason`` says how the search ended; a radius of 0 for a tied image says so there.
    ``original``: the image asked about, for pictures; None in what was read from JSON that lacks it.

    A radius is a bracket and no number: ``if radius`` raises TypeError.
    """

    asked: Asked
    lower: float
    upper: float
    method: str
    corgi: float
    attack: float
    proof: Proof | None
    counterexample: Witness | None
    reason: str
    stats: Mapping[str, float] = field(default_factory=dict)
    original: Original | None = None
    prover: Prover | None = field(default=None, repr=False)

    @pinned
    def prove(self, *, time_limit: float = 300.0) -> Certificate:
        """The proof that nothing changes at ``lower``, as :meth:`Verdict.prove`. Raises what that raises."""
        why = READ_BACK if self.lower > 0 else "the certified radius is 0"
        return _proven(self.prover, check_time_limit(time_limit), why)

    @pinned
    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the ratio. The original image stands there once, not in the counterexample too."""
        return {**_said(self), "ratio": plain(self.ratio)}

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Radius:
        """What :meth:`to_dict` wrote, now or before it held the image; it can make no proof."""
        known = numbers(said, lower=0.0, upper=math.inf, corgi=math.nan, attack=math.inf)
        return cls(**_answered({name: value for name, value in known.items() if name != "ratio"}))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a radius is a bracket, so it is neither true nor false: use radius.lower > 0 (something is certified) or "
            "radius.counterexample is not None (something is broken)"
        )

    @property
    def seconds(self) -> float:
        """Seconds that all stages took together."""
        return _seconds(self.stats)

    @property
    def corgi_cut_off(self) -> bool:
        """Whether ``corgi`` is only a lower end of the paper's radius, for want of time."""
        return bool(self.stats.get(CORGI_CUT_OFF, 0.0))

    @property
    def corgi_in_words(self) -> str:
        """CORGI's radius as text; ">=" where it is a lower end."""
        return f"{'>= ' if self.corgi_cut_off else ''}{self.corgi:.6g}"

    @property
    def ratio(self) -> float:
        """upper / lower: 1.0 means the exact radius is known."""
        return self.upper / self.lower if self.lower > 0 else float("inf")

    def plot(self, ax: Any = None) -> Any:
        """What is certified, CORGI's radius beside it, and the nearest counterexample. Returns the Axes."""
        return draw_ladder(
            {"corgi": self.corgi, self.method or "certified": self.lower},
            self.upper,
            title=f"radius of the {self.asked.in_words}: {self.reason}",
            xlabel=f"eps ({self.asked.units})",
            what="certified eps",
            at="counterexample at",
            ax=ax,
        )

    def _repr_html_(self) -> str:
        rows = {
            "question": self.asked.short,
            **self.asked.where,
            "certified up to": self.lower,
            "broken at": self.upper,
            "broken / certified": self.ratio,
            "CORGI": self.corgi_in_words,
            "PGD alone breaks": self.attack,
            **_how(self),
        }
        return pictured(html_table("radius", rows), self.original, self.counterexample)

    def __repr__(self) -> str:
        beside = f"corgi {self.corgi_in_words}, attack {self.attack:.6g}"
        bracket = f"[{self.lower:.6g}, {self.upper:.6g}]"
        return f"Radius({bracket}, {self.asked.short}, {self.method}; {beside}; {self.reason})"


def _how(answer: Verdict | Radius) -> dict[str, object]:
    """Rows of a table: what an answer rests on."""
    timed = any(name.startswith(SECONDS) for name in answer.stats)
    return {
        "proof": answer.proof or (REPLAYED if answer.counterexample is not None else "none"),
        "method": answer.method or "none",
        "seconds": seconds_in_words(answer.seconds) if timed else None,
        "reason": answer.reason,
    }


def _seconds(stats: Mapping[str, float]) -> float:
    return sum(value for name, value in stats.items() if name.startswith(SECONDS))


def _said(answer: Verdict | Radius) -> dict[str, Any]:
    """An answer as JSON types; its counterexample's original image is its own."""
    said = plain_fields(answer)
    witness = answer.counterexample
    if witness is not None and witness.original is answer.original:
        said["counterexample"]["original"] = None
    return said


A = TypeVar("A", bound="Verdict | Radius")


def about(answer: A, original: Original | None) -> A:
    """An answer, and its counterexample, about this image, where they were read without one."""
    if answer.original is not None:
        return answer
    return replace(answer, original=original, counterexample=_seen_beside(original, answer.counterexample))


def _seen_beside(original: Original | None, witness: Witness | None) -> Witness | None:
    """A counterexample with the image that it changes."""
    if witness is None or witness.original is not None:
        return witness
    return replace(witness, original=original)


def _answered(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every answer has."""
    original = original_of(said)
    witness = None if said["counterexample"] is None else Witness.from_dict(said["counterexample"])
    return {
        **said,
        "asked": Asked.from_dict(said["asked"]),
        "counterexample": _seen_beside(original, witness),
        "stats": {name: math.nan if value is None else value for name, value in said["stats"].items()},
        "original": original,
    }


def _proven(prover: Prover | None, deadline: Deadline, why_not: str) -> Certificate:
    if prover is None:
        raise CertificateError(f"there is nothing to prove: {why_not}")
    return prover(deadline)
