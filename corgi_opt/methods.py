"""The one table of methods, weakest first: what each is worth, what it needs, and how it is run.

A bound method is a file that computes it and a row here; everything that names methods reads this table. A row imports
nothing of what it runs: its caller passes the margins, or the ladder, that it works on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from corgi_opt.errors import InputError, UnknownMethodError

if TYPE_CHECKING:
    from corgi_solvers import Backend
    from torch import Tensor

    from corgi_opt._deadline import Deadline
    from corgi_opt.answering.ladder import Ladder
    from corgi_opt.bounding.margins import Margins
    from corgi_opt.problem.region import Norm
    from corgi_opt.problem.results import Proof

Asks = Literal["nothing", "lp", "milp"]
"""What a method needs a solver for: nothing, linear programs, or mixed-integer ones too."""


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colour, line and marker, each its own, so that methods can be told apart in print."""

    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Method:
    """``bound`` bounds all open atoms and returns the margins (a relaxation); ``solve`` takes the atoms that are left
    one by one and returns the reason why it stopped, or an empty string.

    ``asks``: what it needs a solver for. ``exact``: it decides an atom, up to float tolerance, so that brackets close.
    ``quick``: it runs before the attack. ``after``: the bounds that run before it. ``norms``: the norms that it takes.
    ``curves``: it solves networks with curved layers too (every relaxation bounds them). ``bent``: the method that
    answers in its place on such a network.
    """

    name: str
    look: Look
    bound: Callable[[Margins, Deadline], Tensor] | None = None
    solve: Callable[[Ladder, Backend, Deadline], str] | None = None
    asks: Asks = "nothing"
    exact: bool = False
    quick: bool = False
    after: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ("inf", "2", "1")
    curves: bool = False
    bent: str | None = None


def _auto(ladder: Ladder, solver: Backend, deadline: Deadline) -> str:
    """Branch and bound, and MILPs where only these answer: for atoms that are counted and a class that is kept."""
    answered = solver.capabilities.mip and ladder.ball.norm in TABLE["milp"].norms
    return ladder.bab(solver, solver if answered else None, deadline)


TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method("ibp", Look("#bbbbbb", ":", "x"), bound=lambda m, d: m.ibp(d), quick=True),
        Method("corgi", Look("#ccbb44", (0, (1, 1)), "v"), bound=lambda m, d: m.corgi(d), quick=True),
        Method("crown", Look("#66ccee", "-.", "o"), bound=lambda m, d: m.crown(d)),
        Method("dual", Look("#228833", (0, (5, 1)), "^"), bound=lambda m, d: m.dual(d), after=("crown",)),
        Method(
            "lp", Look("#ee6677", (0, (3, 1, 1, 1)), "s"), solve=lambda r, s, d: r.lp(s, d), asks="lp", after=("crown",)
        ),
        Method(
            "split",
            Look("#997700", (0, (6, 1, 1, 1, 1, 1)), "X"),
            solve=lambda r, s, d: r.split(d),
            after=("crown", "dual"),
            curves=True,
        ),
        Method(
            "milp",
            Look("#332288", (0, (8, 2)), "P"),
            solve=lambda r, s, d: r.milp(s, d),
            asks="milp",
            exact=True,
            after=("crown",),
            norms=("inf", "1"),
        ),
        Method(
            "bab",
            Look("#4477aa", "-", "D"),
            solve=lambda r, s, d: r.bab(s, None, d),
            asks="lp",
            exact=True,
            after=("crown",),
            bent="split",
        ),
        Method("auto", Look("#000000", "-", "*"), solve=_auto, asks="lp", exact=True, after=("crown",), bent="split"),
    )
}
"""The methods by name. Each certifies at least what those before it do, of those that take the same network (``split``
is for curved layers, which no other solved one takes); a stronger search starts where a weaker ended.

The colours are Paul Tol's bright scheme.
"""


def add(method: Method, before: str) -> None:
    """Adds a method to the table, just below the stronger one named ``before``."""
    rows = list(TABLE.values())
    rows.insert(list(TABLE).index(before), method)
    TABLE.clear()
    TABLE.update((row.name, row) for row in rows)


def weakest_first(names: Iterable[str]) -> list[str]:
    """Names of methods in the order of the table, each once."""
    wanted = set(names)
    return [name for name in TABLE if name in wanted]


def up_to(name: str) -> list[str]:
    """A method and all weaker ones, weakest first."""
    names = list(TABLE)
    return names[: names.index(name) + 1]


def settled_by(name: str, proof: Proof | None) -> str:
    """The method behind an answer: for ``auto`` the MILP where the proof is a solver's word, else branch and bound."""
    if name != "auto":
        return name
    return "milp" if proof == "solver" else "bab"


def check_method(method: object, norm: Norm, curved: Sequence[str] = ()) -> Method:
    """The row of a method that answers this norm; on a network with ``curved`` layers, of the one that answers there.

    Raises UnknownMethodError; InputError for a method that does not answer this norm, or such a network.
    """
    if not isinstance(method, str) or method not in TABLE:
        raise UnknownMethodError(method, list(TABLE))
    row = TABLE[method]
    if norm not in row.norms:
        answered = " and ".join(map(repr, row.norms))
        raise InputError(f"method {method!r} answers norm {answered}, not {norm!r}; method='bab' is exact there too")
    if not curved or row.solve is None or row.curves:
        return row
    if row.bent is None:
        raise InputError(
            f"method {method!r} takes affine and piecewise-linear layers only, and this network has {listed(curved)}; "
            "'ibp', 'corgi', 'crown', 'dual' and 'split' bound it, and method='auto' is the best of them"
        )
    return TABLE[row.bent]


def listed(layers: Sequence[str]) -> str:
    """The first layers by name, and how many there are."""
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more
