"""All methods side by side, on one question or many: radii, or margins at fixed eps, with shared work done once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt._checks import check_rtol, resolve_device
from corgi_opt._deadline import check_time_limit
from corgi_opt._progress import reporting
from corgi_opt.answering.asking import asked, chosen_property, curved_layers
from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.batches import images_of
from corgi_opt.answering.margin_search import MarginSearch
from corgi_opt.answering.radius_search import RadiusSearch, tied
from corgi_opt.answering.verdict import unasked
from corgi_opt.drawing.charts import draw_intervals, draw_ladder, draw_shares
from corgi_opt.drawing.tables import html_grid, seconds_in_words
from corgi_opt.errors import InputError, Interrupted, TieError
from corgi_opt.methods import check_method, weakest_first
from corgi_opt.network.cam import CamNetwork
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.clip import Clip, checked_clip
from corgi_opt.problem.plain import Plain, plain
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.problem.results import Radius, Verdict, about
from corgi_opt.problem.scene import Scene
from corgi_opt.problem.witness import original_of
from corgi_opt.search.attack import PgdOptions

SHARED = 0.005
"""Seconds below which a method is said to have shared the work of the one before it: what is left is bookkeeping."""

Answer: TypeAlias = Radius | Verdict
Search: TypeAlias = RadiusSearch | MarginSearch


@dataclass(frozen=True, eq=False)
class Compared(Plain):
    """One question: of image number ``image``, what was ``asked``, ``eps`` (None: the radius). ``answers`` by method,
    weakest first: a Radius, or the Verdict with the best margin bounds that the method gives. ``seconds`` by stage;
    those of a method are what it added to the shared work of those before it.
    """

    image: int
    asked: Asked
    eps: float | None
    answers: Mapping[str, Answer]
    seconds: Mapping[str, float]

    @property
    def attack(self) -> float:
        """What nothing proven can reach: the smallest falsified eps, or the smallest margin met."""
        return min(_sides(a)[1] for a in self.answers.values())

    def lower(self, method: str) -> float:
        """What the method proves: a certified eps, or a lower bound of the margin."""
        return _sides(self.answers[method])[0]

    @pinned
    def to_dict(self) -> dict[str, Any]:
        """As JSON types, floats to the last bit. The original image stands there once, not in every answer."""
        said = super().to_dict()
        first = next(iter(self.answers.values())).original
        said["original"] = plain(first)
        for name, answer in self.answers.items():
            if answer.original is first:
                said["answers"][name]["original"] = None
        return said

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Compared:
        """What :meth:`to_dict` wrote, now or when every answer held its image."""
        kind = Radius if said["eps"] is None else Verdict
        original = original_of(said)
        answers: dict[str, Answer] = {n: about(kind.from_dict(a), original) for n, a in said["answers"].items()}
        return cls(said["image"], Asked.from_dict(said["asked"]), said["eps"], answers, dict(said["seconds"]))

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {self.lower(name):.6g}" for name in self.answers)
        what = "falsified at" if self.eps is None else f"margins at eps={self.eps:g}, at most"
        return f"image {self.image}, {self.asked.short}: {parts}; {what} {self.attack:.6g}"


@dataclass(frozen=True, eq=False)
class Comparison(Plain):
    """Methods side by side: one :class:`Compared` for every image, property and eps, in this order."""

    questions: tuple[Compared, ...]
    rtol: float

    @property
    def only(self) -> Compared:
        """The question, where there is one. Raises InputError for several."""
        if len(self.questions) != 1:
            raise InputError(f"the comparison holds {len(self.questions)} questions; choose one of .questions")
        return self.questions[0]

    @property
    def radii(self) -> Mapping[str, Radius]:
        """The radii of the only question, by method. Raises InputError for several, and for margins."""
        found = {name: a for name, a in self.only.answers.items() if isinstance(a, Radius)}
        if not found:
            raise InputError("the comparison is one of margins, not of radii: see .only.answers")
        return found

    def to_frame(self) -> Any:
        """A pandas DataFrame, indexed by what there are several of (image, k, eps ...) and by method.

        Of radii: certified_eps, falsified_eps, ratio, over_corgi, proof, seconds, reason. Of margins: status,
        margin_lower, margin_upper, proof, seconds, reason. ``seconds``: what the method added to those before it,
        rounded to a hundredth; 0.00 where what they had done was all that it needed.
        """
        import pandas as pd

        rows = [
            {**_axes(q), "method": name, **_columns(a), "seconds": round(_seconds(q, name), 2)}
            for q in self.questions
            for name, a in q.answers.items()
        ]
        frame = pd.DataFrame(rows)
        frame["reason"] = frame.pop("reason")  # the longest comes last
        axes = dict.fromkeys(axis for q in self.questions for axis in _axes(q))
        several = [axis for axis in axes if len({_axes(q).get(axis) for q in self.questions}) > 1]
        return frame.drop(columns=[axis for axis in axes if axis not in several]).set_index([*several, "method"])

    def plot(self, ax: Any = None) -> Any:
        """The ladder of bounds between zero and the attack; returns the matplotlib Axes.

        Of one question, a bar for each method; of several, every bound as a share of what the attack leaves.
        """
        return _ladder(self, ax) if len(self.questions) == 1 else _shares(self, ax)

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Comparison:
        """What :meth:`to_dict` wrote."""
        return cls(tuple(Compared.from_dict(question) for question in said["questions"]), said["rtol"])

    def __repr__(self) -> str:
        if len(self.questions) == 1:
            return f"Comparison({self.only!r})"
        return f"Comparison({len(self.questions)} questions:\n  " + "\n  ".join(map(repr, self.questions)) + ")"

    def _repr_html_(self) -> str:
        one = len(self.questions) == 1
        first = self.questions[0]
        about = f"{_briefly(first)}, {_where(first)}" if one else f"{len(self.questions)} questions, {_where(first)}"
        own: tuple[str, ...] = ("certified eps", "falsified eps", "ratio", "over CORGI")
        if first.eps is not None:
            own = ("status", "margin, proven", "margin, met")
        columns = (*(() if one else ("question",)), "method", *own, "proof", "seconds", "reason")
        rows = [
            (*(() if one else (f"image {q.image}, {_briefly(q)}",)), name, *_cells(q, name, a))
            for q in self.questions
            for name, a in q.answers.items()
        ]
        return html_grid(f"methods compared: {about}", columns, rows)


def _axes(question: Compared) -> dict[str, Any]:
    """What a question may differ from others in: image, property and the property's own numbers, eps."""
    values = question.asked.property.to_dict()
    return {"image": question.image, "property": values.pop("name"), **values, "eps": question.eps}


def _briefly(question: Compared) -> str:
    """The question in one line."""
    return question.asked.short if question.eps is None else f"eps={question.eps:g}, {question.asked.short}"


def _where(question: Compared) -> str:
    """Norm and box, which all questions of a comparison have in common."""
    return ", ".join(f"{name} {value}" for name, value in question.asked.where.items())


def _cells(question: Compared, method: str, answer: Answer) -> list[object]:
    """What a row of the table for a notebook says of a method."""
    columns = _columns(answer)
    proof, reason = columns.pop("proof") or "none", columns.pop("reason")
    return [*columns.values(), proof, added_in_words(question.seconds.get(method)), reason]


def added_in_words(seconds: float | None) -> str:
    """What a method's time added to that of the methods before it."""
    return "shared with the method before" if seconds is not None and seconds < SHARED else added_briefly(seconds)


def added_briefly(seconds: float | None) -> str:
    """The same for a table that has little room."""
    if seconds is None:
        return "-"
    return "shared" if seconds < SHARED else seconds_in_words(seconds)


def _ladder(comparison: Comparison, ax: Any) -> Any:
    q = comparison.only
    bounds, units = {name: q.lower(name) for name in q.answers}, q.asked.units
    title = f"{q.asked.in_words}, by method"
    if q.eps is not None:
        xlabel = f"margin at eps={q.eps:g} ({units}), in units of the CAM"
        return draw_intervals(bounds, q.attack, title=title, xlabel=xlabel, ax=ax)
    return draw_ladder(
        bounds, q.attack, title=title, xlabel=f"eps ({units})", what="certified eps", at="counterexample at", ax=ax
    )


def _shares(comparison: Comparison, ax: Any) -> Any:
    """Every bound as a share of what the attack leaves, where it leaves any: a margin above 0, a finite eps."""
    questions = comparison.questions
    methods = weakest_first(name for q in questions for name in q.answers)
    radii = questions[0].eps is None
    what = "certified eps / falsified eps" if radii else "margin proven / margin met"
    title, shown = f"tightness by method: {len(questions)} questions", sum(0 < q.attack < math.inf for q in questions)
    if shown < len(questions):
        others = "have no counterexample at an eps above 0" if radii else "are broken or were not answered"
        title += f", {shown} of them shown (the others {others})"
    return draw_shares(
        {m: [_share(q, m) for q in questions if m in q.answers] for m in methods},
        title=title,
        xlabel=f"{what} (L-{questions[0].asked.norm}, no unit)",
        limit="1: the exact value",
        ax=ax,
    )


def _share(q: Compared, method: str) -> float:
    return q.lower(method) / q.attack if 0 < q.attack < math.inf else math.nan


def _sides(answer: Answer) -> tuple[float, float]:
    if isinstance(answer, Radius):
        return answer.lower, answer.upper
    return answer.margin_lower, answer.margin_upper


def _columns(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Verdict):
        return {
            "status": answer.status,
            "margin_lower": answer.margin_lower,
            "margin_upper": answer.margin_upper,
            "proof": answer.proof,
            "reason": answer.reason,
        }
    return {
        "certified_eps": answer.lower,
        "falsified_eps": answer.upper,
        "ratio": answer.ratio,
        "over_corgi": answer.lower / answer.corgi if answer.corgi > 0 else math.nan,
        "proof": answer.proof,
        "reason": answer.reason,
    }


def _seconds(question: Compared, method: str) -> float:
    return question.seconds.get(method, math.nan)


@pinned
def compare(
    net: CamNetwork,
    x: Tensor,
    *,
    k: int | Sequence[int] | None = None,
    within: int | None = None,
    property: Property | str | Sequence[Property | str] | None = None,
    keep_class: bool = False,
    eps: float | Sequence[float] | None = None,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    methods: Sequence[str] | None = None,
    rtol: float = 0.01,
    solver: str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    time_limit: float = 600.0,
    progress: bool | None = None,
) -> Comparison:
    """What every method says, on one question or on many; arguments as in :func:`corgi_opt.radius`.

    x: one image (1, C, H, W) or several (N, C, H, W); ``k``, ``property`` and ``eps`` one or several. Without
    ``eps`` the radius is asked for. With it, the margin at that eps: the best bound each method gives (``verify`` stops
    at its sign), an exact method's to within ``rtol`` times the margin at the image. ``methods``: names; None means
    corgi, crown, dual, lp and bab (auto where rivals are counted or the class is kept); on a network with curved layers
    the first three, and split, which is what bab and auto are there.
    ``time_limit`` is the total for each method of a question. Raises TieError for a tied image (one of several has
    radius 0, or an unknown margin), BoundOrderError if bounds contradict each other or a replayed image. Ctrl-C raises
    Interrupted (``partial``: the comparison so far), or KeyboardInterrupt where no question was begun yet.
    """
    norm, epses = canonical_norm(norm), [None] if eps is None else _several("eps", eps)
    curved = curved_layers(net)
    wanted = _properties(net, property, k, within)
    if methods is None:
        exact = ("lp", "auto" if keep_class or within is not None else "bab")
        methods = ("corgi", "crown", "dual", *(("split",) if curved else exact))
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise InputError(f"methods must be a non-empty sequence of names or None, got {methods!r}")
    chosen = weakest_first(check_method(m, norm, curved).name for m in methods)
    where, tolerance, options = resolve_device(device), check_rtol(rtol), PgdOptions(seed=seed)
    check_time_limit(time_limit)
    backend = [check_solver(solver, method, norm) for method in chosen][-1]  # one and the same for every method
    images = images_of(x)
    cases = [(at, one, size) for at in range(len(images)) for one in wanted for size in epses]
    found: list[Compared] = []
    with reporting(progress, "compare") as report:
        try:
            for at, one, size in cases:
                scene = Scene.of(net, images[at], class_idx=class_idx, norm=norm, clip=checked_clip(clip))
                try:
                    question = Question.ask(scene, one, tie_tol=tie_tol, keep_class=keep_class)
                except TieError as tie:
                    if len(cases) == 1:
                        raise
                    found.append(_of_tied(tied(scene, one, keep_class, "", str(tie)), at, size, chosen))
                    continue
                search: Search
                if size is None:
                    search = RadiusSearch(question, where, options, tolerance, backend, report)
                else:
                    search = MarginSearch(question, size, where, tolerance, backend, report)
                found.append(_compared(search, question, at, size, chosen, time_limit))
        except _StoppedError as stop:
            raise Interrupted(Comparison((*found, stop.so_far), tolerance)) from stop
        except KeyboardInterrupt as stop:  # between two questions
            if not found:
                raise
            raise Interrupted(Comparison(tuple(found), tolerance)) from stop
    return Comparison(tuple(found), tolerance)


def _properties(net: Any, property: Any, k: Any, within: Any) -> list[Property]:
    """What is asked, once or several times over."""
    if property is not None:
        return [chosen_property(one, k, within, net) for one in _several("property", property)]
    return [chosen_property(None, one, within, net) for one in ([None] if k is None else _several("k", k))]


def _compared(
    search: Search, question: Question, image: int, eps: float | None, methods: Sequence[str], time_limit: float
) -> Compared:
    """One question by all methods. Raises _StoppedError with those that are done."""
    answers: dict[str, Answer] = {}

    def compared() -> Compared:
        return Compared(image, asked(question), eps, dict(answers), dict(search.seconds))

    try:
        for method in methods:
            answers[method] = search.run(method, check_time_limit(time_limit))
    except Interrupted as stop:
        raise _StoppedError(compared()) from stop
    return compared()


class _StoppedError(Exception):
    """Ctrl-C in the middle of a question."""

    def __init__(self, so_far: Compared) -> None:
        super().__init__()
        self.so_far = so_far


def _of_tied(nothing: Radius, image: int, eps: float | None, methods: Sequence[str]) -> Compared:
    """A question whose top-k set is not defined: radius 0, or a margin that nobody knows."""
    answer: Answer = nothing if eps is None else unasked(nothing.asked, eps, nothing.reason, nothing.original)
    answers = {name: replace(answer, method=name) for name in methods}
    return Compared(image, nothing.asked, eps, answers, {})


def _several(name: str, value: Any) -> list[Any]:
    """One value, or several."""
    if isinstance(value, Tensor) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise InputError(f"{name} must be one value or several, got none")
        return list(value)
    return [value]
