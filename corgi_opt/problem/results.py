"""What comes back: Witness, Verdict, Radius. Frozen, each with where it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._deadline import Deadline, check_time_limit
from corgi_opt.drawing.charts import draw_ladder, html_table
from corgi_opt.errors import CertificateError
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.plain import Plain, numbers, plain, tensor
from corgi_opt.proof.certificate import Certificate

Status = Literal["certified", "falsified", "unknown"]
Proof = Literal["checked", "float64", "solver"]

Prover = Callable[[Deadline], Certificate]
"""Searches for the proof of an answer."""

READ_BACK = "the answer was read from JSON, or interrupted, without its network; ask again"

CORGI_CUT_OFF = "corgi_cut_off"
"""Key of ``stats`` where the paper's bound beside an answer was not finished in its share of the time limit."""


@dataclass(frozen=True, eq=False)
class Witness(Plain):
    """A counterexample image inside the region, replayed in float64 through the user's own torch model.

    ``image`` (1, C, H, W) float64, ``cam`` (H, W) there; ``pair``: what changed places (flat pixel indices, of a CAM;
    classes, of logits): the first was ahead of the second, and is by ``margin <= 0`` now (an exact tie breaks a strict
    order); ``distance`` to the centre in the question's norm; ``what_changed``: the same in words.
    """

    image: Tensor
    cam: Tensor
    pair: tuple[int, int]
    margin: float
    distance: float
    what_changed: str

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Witness:
        """What :meth:`to_dict` wrote."""
        return cls(**{**said, "image": tensor(said["image"]), "cam": tensor(said["cam"]), "pair": tuple(said["pair"])})

    def __repr__(self) -> str:
        return f"Witness(margin={self.margin:.6g}, {self.what_changed}, distance={self.distance:.6g})"


@dataclass(frozen=True, eq=False)
class Verdict(Plain):
    """The answer for one eps.

    ``asked``: the question. ``status``: certified (margin_lower > 0, proven), falsified (``counterexample`` replayed),
    or unknown (``reason`` says why). ``margin_lower <= margin <= margin_upper``, in units of the CAM. ``corgi_margin``:
    the paper's bound on the same question; NaN where it was not finished in its share of the time limit
    (``stats["corgi_cut_off"]`` is then 1). ``proof``: ``"checked"`` (the checker proved it, with bounds of all
    rounding), or, for a certified, ``"float64"`` (bounds computed in float64, less what rounding may hide; LPs too) or
    ``"solver"`` (rests on a MILP solver's word). ``method``: the stage that settled it.
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
    prover: Prover | None = field(default=None, repr=False)
    proven: Certificate | None = field(default=None, repr=False)

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

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Verdict:
        """What :meth:`to_dict` wrote; it has no proof and can make none."""
        known = numbers(said, margin_lower=-math.inf, margin_upper=math.inf, corgi_margin=math.nan)
        return cls(**_answered(known))

    @property
    def corgi_in_words(self) -> str:
        """CORGI's bound as text, or that its share of the time was not enough."""
        return "not finished" if math.isnan(self.corgi_margin) else f"{self.corgi_margin:.6g}"

    def plot(self, ax: Any = None) -> Any:
        """What is proven of the margin, CORGI's bound beside it, and the smallest margin met. Returns the Axes."""
        bounds = {"corgi": self.corgi_margin, self.method: self.margin_lower}
        ax = draw_ladder(bounds, self.margin_upper, "an image has", ax)
        ax.set_xlabel(f"margin of the {self.asked.in_words} at eps={self.eps:g}\n({self.asked.units})")
        ax.set_title(f"{self.status}: {self.reason}", fontsize=10, pad=20)
        return ax

    def _repr_html_(self) -> str:
        rows = {
            "question": f"eps={self.eps:g}, {self.asked.short}",
            "margin": f"in [{self.margin_lower:.6g}, {self.margin_upper:.6g}]",
            "CORGI's bound": self.corgi_in_words,
            "settled by": self.method + (f", proof: {self.proof}" if self.proof else ""),
            "reason": self.reason,
        }
        return html_table(self.status, rows)

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
    question; it has a tenth of the time limit, and where that was not enough, ``corgi`` is what it had certified by
    then (``corgi_cut_off``, also in ``stats``). ``attack``: the smallest eps PGD alone broke. ``reason`` says how the
    search ended; a radius of 0 for a tied image says so there.
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
    prover: Prover | None = field(default=None, repr=False)

    @pinned
    def prove(self, *, time_limit: float = 300.0) -> Certificate:
        """The proof that nothing changes at ``lower``, as :meth:`Verdict.prove`. Raises what that raises."""
        why = READ_BACK if self.lower > 0 else "the certified radius is 0"
        return _proven(self.prover, check_time_limit(time_limit), why)

    @pinned
    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the ratio."""
        return {**super().to_dict(), "ratio": plain(self.ratio)}

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Radius:
        """What :meth:`to_dict` wrote; it can make no proof."""
        known = numbers(said, lower=0.0, upper=math.inf, corgi=math.nan, attack=math.inf)
        return cls(**_answered({name: value for name, value in known.items() if name != "ratio"}))

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
        ax = draw_ladder({"corgi": self.corgi, self.method: self.lower}, self.upper, "counterexample at", ax)
        ax.set_xlabel(f"eps: {self.asked.in_words}\n({self.asked.units})")
        ax.set_title(self.reason, fontsize=10, pad=20)
        return ax

    def _repr_html_(self) -> str:
        rows = {
            "question": f"{self.asked.short}, by {self.method}",
            "certified up to": self.lower,
            "broken at": self.upper,
            "broken / certified": self.ratio,
            "CORGI": self.corgi_in_words,
            "PGD alone breaks": self.attack,
            "reason": self.reason,
        }
        return html_table("radius", rows)

    def __repr__(self) -> str:
        beside = f"corgi {self.corgi_in_words}, attack {self.attack:.6g}"
        bracket = f"[{self.lower:.6g}, {self.upper:.6g}]"
        return f"Radius({bracket}, {self.asked.short}, {self.method}; {beside}; {self.reason})"


def _answered(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every answer has."""
    witness = said["counterexample"]
    return {
        **said,
        "asked": Asked.from_dict(said["asked"]),
        "counterexample": None if witness is None else Witness.from_dict(witness),
        "stats": {name: math.nan if value is None else value for name, value in said["stats"].items()},
    }


def _proven(prover: Prover | None, deadline: Deadline, why_not: str) -> Certificate:
    if prover is None:
        raise CertificateError(f"there is nothing to prove: {why_not}")
    return prover(deadline)
