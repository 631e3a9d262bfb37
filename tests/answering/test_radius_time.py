"""How a radius shares its time: against made-up bounds, attacks and trees that cost what they are said to, by a clock
that only they move. Nothing here looks at the real time.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import asking
import pytest
import torch
from nets import Pooled, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering.radius_search import MOST_LADDERS, ROUGH, RadiusSearch
from corgi_opt.methods import TABLE, Method, up_to
from corgi_opt.problem.question import Question

RTOL = 0.01
RELAXED = ("ibp", "corgi", "crown", "dual", "lp")


def _cheap_tree(eps: float) -> float:
    return 0.01


@dataclass
class World:
    """A made-up network: ``radii`` of relaxations (with the attack at 1), ``costs`` of their passes in seconds, and
    ``tree(eps)``, those of deciding an eps exactly, whose radius is ``exact``. CROWN below an eps where it was is had
    for a twentieth. ``log``: what was asked, as (method, eps, when it ended, outcome).
    """

    costs: dict[str, float]
    radii: dict[str, float] = field(
        default_factory=lambda: {"ibp": 1e-4, "corgi": 0.2, "crown": 0.7, "dual": 0.73, "lp": 0.75}
    )
    attack: float = 1.0
    exact: float = 0.9995
    tree: Callable[[float], float] = _cheap_tree
    now: float = 0.0
    log: list[tuple[str, float, float, str]] = field(default_factory=list)
    ladders: list[FakeLadder] = field(default_factory=list)
    attack_calls: list[float] = field(default_factory=list)
    attack_left: float = field(init=False)

    def __post_init__(self) -> None:
        self.attack_left = self.attack

    def spend(self, seconds: float, deadline: Deadline) -> None:
        """Raises TimeoutError when the deadline passes first."""
        left = deadline.left
        self.now += min(seconds, left)
        if seconds > left:
            self.now += 1e-9
            raise TimeoutError("time limit")

    # --- what radius.py calls --------------------------------------------------------------------------------

    def attack_radius(self, question: Any, *given: Any, start: Any = None, **options: Any) -> Any:
        deadline = given[3]
        self.attack_calls.append(deadline.left)
        before = self.now
        try:
            self.spend(self.attack_left, deadline)
        except TimeoutError:
            self.attack_left -= self.now - before
            return start
        return SimpleNamespace(distance=1.0, image="witness")

    def climb(self, ladder: FakeLadder, row: Method, attack: None, solver: Any, deadline: Deadline) -> Any:
        method, lower, status, reason = row.name, -1.0, "unknown", "too weak"
        try:
            if method in RELAXED:
                for name in ("crown", "dual", "lp"):
                    if RELAXED.index(name) < RELAXED.index(method):
                        ladder.bound(name, deadline)
                lower = ladder.bound(method, deadline)
            else:
                lower = ladder.bound("crown", deadline)
                if not lower > 0:
                    self.spend(self.tree(ladder.eps), deadline)
                    lower = self.exact - ladder.eps
            status = "certified" if lower > 0 else "unknown" if method in RELAXED else "falsified"
        except TimeoutError:
            reason = "time limit"
        self.log.append((method, ladder.eps, self.now, status))
        met = SimpleNamespace(distance=ladder.eps, image="witness", pair=(0, 1)) if status == "falsified" else None
        return SimpleNamespace(status=status, margin_lower=lower, proof="float64", counterexample=met, reason=reason)

    def probes(self, *methods: str) -> list[float]:
        return [eps for name, eps, _, _ in self.log if name in methods]

    def certified(self, *methods: str) -> float:
        return max((e for name, e, _, how in self.log if how == "certified" and name in methods), default=0.0)


class FakeLadder:
    def __init__(self, world: World, eps: float, above: FakeLadder | None) -> None:
        self.world, self.eps, self.above, self.done = world, eps, above, set[str]()
        self.margins = SimpleNamespace(relaxed=None)
        self.ball = SimpleNamespace(contains=lambda image: eps >= 1.0)
        world.ladders.append(self)

    def meet(self, image: Any) -> None:
        pass

    def bound(self, name: str, deadline: Deadline) -> float:
        if name not in self.done:
            cost = self.world.costs[name]
            screened = self.above is not None and self.above.margins.relaxed is not None
            self.world.spend(cost / 20 if name == "crown" and screened else cost, deadline)
            self.done.add(name)
        if name == "crown":
            self.margins.relaxed = True
        return self.world.radii[name] - self.eps


@pytest.fixture(scope="module")
def question() -> Question:
    x = image(1, 8, 8, seed=4)
    net = co.from_torch(seeded(Pooled, 1), x)
    return asking.ask(net, x, k=2, class_idx=0, norm="inf", clip=(0.0, 1.0), tie_tol=None)


@pytest.fixture
def ask(question, monkeypatch) -> Callable[..., co.Radius]:
    """``ask(world, method, limit)``: the radius of a made-up network; the world's clock is the only one."""

    def asked(world: World, method: str, limit: float, search: RadiusSearch | None = None) -> co.Radius:
        module, clock = sys.modules["corgi_opt.answering.radius_search"], SimpleNamespace(monotonic=lambda: world.now)
        for name in ("corgi_opt.answering.radius_search", "corgi_opt._deadline"):
            monkeypatch.setattr(sys.modules[name], "time", clock)

        def ladder(question: Any, eps: float, device: Any, above: Any = None, report: Any = None) -> FakeLadder:
            return FakeLadder(world, eps, above)

        monkeypatch.setattr(module, "Ladder", ladder)
        monkeypatch.setattr(module, "climb", world.climb)
        monkeypatch.setattr(module, "rank_targets", lambda *_: SimpleNamespace(radii=torch.tensor([0.9])))
        monkeypatch.setattr(module, "attack_radius", world.attack_radius)
        monkeypatch.setattr(module, "shrink", lambda question, witness: witness)
        monkeypatch.setattr(module, "polish", lambda *_: None)
        return (search or new_search(question)).run(method, Deadline(limit))

    return asked


def new_search(question: Question) -> RadiusSearch:
    return RadiusSearch(question, torch.device("cpu"), co.PgdOptions(), RTOL, None)  # type: ignore[arg-type]


def quick() -> World:
    return World({"ibp": 1e-3, "corgi": 0.05, "crown": 0.1, "dual": 0.2, "lp": 0.5})


def deep(**changes: Any) -> World:
    """As the ResNet-8 on two cores: CORGI's pass takes 13 s, CROWN's 3, a tree more the nearer it is to the attack."""
    costs = {"ibp": 0.01, "corgi": 13.0, "crown": 3.0, "dual": 4.0, "lp": 8.0}
    return World(costs, tree=lambda eps: 1.0 * 2 ** ((eps - 0.7) / 0.04), **changes)


@pytest.mark.parametrize("method", ["crown", "dual", "lp", "milp", "bab", "auto"])
@pytest.mark.parametrize("limit", [30.0, 60.0, 120.0])
def test_corgi_has_a_tenth_of_the_time_and_says_so(ask, method, limit):
    world = deep()
    r = ask(world, method, limit)
    assert r.stats["seconds_corgi"] <= limit / 10 + 0.01
    assert r.corgi_cut_off and r.stats["corgi_cut_off"] == 1.0
    assert 0 < r.corgi < 0.2
    assert "corgi >= " in repr(r) and "&gt;= " in r._repr_html_()
    assert r.lower >= 0.7 / (1 + RTOL)


@pytest.mark.parametrize("method", ["crown", "lp", "bab", "auto"])
def test_a_dear_corgi_goes_on_when_the_others_have_ended(ask, method):
    """It has a fiftieth of the time before them. A tree that never ends leaves nothing for it, a cheap one does."""
    world = deep()
    world.tree = lambda eps: 0.5
    ask(world, method, 600.0)
    corgi, other = ([n for n, (name, *_) in enumerate(world.log) if name == which] for which in ("corgi", method))
    assert min(corgi) < min(other) and max(corgi) > max(other)
    busy = deep()
    busy.tree = lambda eps: 1e9
    r = ask(busy, "auto", 120.0)
    assert r.stats["seconds_corgi"] <= 120.0 / 50 + 0.01 and r.corgi_cut_off and r.corgi > 0


def test_an_exact_search_that_arrives_takes_crown_s_radius_roughly(ask, question):
    world, fine = deep(), 1e-3
    search = RadiusSearch(question, torch.device("cpu"), co.PgdOptions(), fine, None)  # type: ignore[arg-type]
    world.tree = lambda eps: 0.5
    r = ask(world, "auto", 120.0, search)
    rough = world.certified("crown")
    assert r.lower > 0.9 and rough >= 0.7 / ROUGH and "crown" not in search._certified
    # its own radius goes on from there
    assert ask(world, "crown", 120.0, search).lower >= max(rough, 0.7 / (1 + fine))


def test_corgi_s_own_radius_has_all_the_time(ask):
    r = ask(deep(), "corgi", 200.0)
    assert r.corgi == r.lower >= 0.2 / (1 + RTOL)
    assert not r.corgi_cut_off and "corgi_cut_off" not in r.stats
    assert ">=" not in repr(r)


def test_a_dear_bound_is_not_waited_for_at_every_probe(ask):
    """CORGI finishes in its tenth here, but each probe of CROWN would pay for it again."""
    world = deep()
    r = ask(world, "crown", 2000.0)
    assert not r.corgi_cut_off
    bounded = [ladder for ladder in world.ladders if "crown" in ladder.done]
    assert len(bounded) > 3 and not any("corgi" in ladder.done for ladder in bounded[1:])  # the first is at the attack
    quickly = quick()
    ask(quickly, "crown", 60.0)
    assert all("corgi" in ladder.done for ladder in quickly.ladders if "crown" in ladder.done)


@pytest.mark.parametrize("method", ["milp", "bab", "auto"])
def test_crown_s_radius_comes_first_where_its_pass_is_dear(ask, method):
    world = deep()
    ask(world, method, 60.0)
    names = [name for name, *_ in world.log]
    assert names.index(method) > max(n for n, name in enumerate(names) if name == "crown")
    # the attack is more than 1.25 times as far: in the middle
    low = world.certified("crown")
    assert world.probes(method)[0] == pytest.approx(low**0.5)


@pytest.mark.parametrize("method", ["milp", "bab", "auto"])
def test_a_tree_comes_first_where_a_pass_is_cheap(ask, method):
    """One pass of CROWN just below the attack, and there the tree, which closes the bracket."""
    world = quick()
    r = ask(world, method, 60.0)
    at = 1 / (1 + 0.9 * RTOL)
    assert world.probes("crown", "dual", "lp") == [at] and world.probes(method) == [at]
    assert r.lower == at and r.upper == 1.0 and "closed" in r.reason


@pytest.mark.parametrize("method", ["bab", "auto"])
def test_after_an_undecided_probe_crown_s_radius_and_the_middle(ask, method):
    world = quick()
    world.tree = lambda eps: 1e6 if eps > 0.9 else 0.5
    ask(world, method, 60.0)
    (first, second), crown = world.probes(method)[:2], world.certified("crown")
    assert first == pytest.approx(1 / (1 + 0.9 * RTOL)) and crown >= 0.7 / (1 + RTOL)
    assert second == pytest.approx((crown * first) ** 0.5)
    order = [name for name, *_ in world.log]
    one, two = [n for n, name in enumerate(order) if name == method][:2]
    assert one < max(n for n, name in enumerate(order) if name == "crown") < two


@pytest.mark.parametrize("limit", [60.0, 600.0])
def test_an_undecided_eps_is_asked_again_with_twice_the_seconds(ask, limit):
    world = quick()
    world.tree = lambda eps: 0.2 * 2 ** ((eps - 0.7) / 0.015)
    ask(world, "auto", limit)
    shares: dict[float, list[float]] = {}
    before = 0.0
    for name, eps, end, how in world.log:
        if name == "auto" and how == "unknown" and end < limit:
            shares.setdefault(eps, []).append(end - before)
        before = end
    again = [tries for tries in shares.values() if len(tries) > 1]
    assert again
    for tries in again:
        assert all(b >= 1.9 * a for a, b in itertools.pairwise(tries))


COSTS = {
    "quick": {"ibp": 1e-3, "corgi": 0.05, "crown": 0.1, "dual": 0.2, "lp": 0.5},
    "deep": {"ibp": 0.01, "corgi": 13.0, "crown": 3.0, "dual": 4.0, "lp": 8.0},
    "dear crown": {"ibp": 0.01, "corgi": 10.0, "crown": 20.0, "dual": 25.0, "lp": 30.0},
    "dear lp": {"ibp": 0.01, "corgi": 0.5, "crown": 0.3, "dual": 0.5, "lp": 40.0},
}
TREES: dict[str, Callable[[float], float]] = {
    "cheap": _cheap_tree,
    "steep": lambda eps: 0.5 * 2 ** ((eps - 0.7) / 0.03),
    "hopeless": lambda eps: 1e9,
}


LIMITS, ATTACKS = (8.0, 30.0, 60.0, 120.0, 600.0), (0.1, 5.0, 1e9)
WORLDS = [*itertools.product(COSTS, TREES, LIMITS, ATTACKS)]


@pytest.mark.parametrize(("costs", "tree", "limit", "attack"), mostly_slow(WORLDS, WORLDS[::7]))
def test_no_method_says_less_than_a_weaker_one_in_the_same_time(ask, costs, tree, limit, attack):
    """Down to rtol, the resolution of every radius. Intervals and CROWN: of the very same time; others: of half of it,
    as radii that are only stood on come after CORGI's share and after a few trees.
    """

    def radii(seconds: float) -> dict[str, float]:
        return {
            method: ask(World(COSTS[costs], tree=TREES[tree], attack=attack), method, seconds).lower for method in TABLE
        }

    found, less = radii(limit), radii(limit / 2)
    for method in TABLE:
        assert found[method] > 0
        for weaker in up_to(method)[:-1]:
            if weaker in ("ibp", "crown"):
                assert found[method] >= found[weaker] / (1 + RTOL), (method, weaker)
            elif "split" in (method, weaker) and weaker not in ("corgi", "dual"):
                continue  # it is for networks that the solved methods do not take
            elif weaker not in ("milp", "bab", "auto"):
                assert found[method] >= less[weaker] / (1 + RTOL), (method, weaker)


@pytest.mark.parametrize("method", TABLE)
def test_nothing_that_was_certified_is_lost_whenever_time_is_over(ask, method):
    """Limits from next to none to plenty: what any probe up to then certified is what is answered, or more."""
    limits = [0.3 * 1.3**n for n in range(28)]
    for limit in limits:
        world = deep()
        r = ask(world, method, limit)
        assert r.lower == world.certified(*up_to(method)) < r.upper
        assert world.now <= limit + 0.02
        assert r.lower > 0


@pytest.mark.parametrize("method", ["crown", "auto"])
def test_an_attack_that_does_not_end_leaves_three_quarters(ask, method):
    world = deep(attack=1e9)
    r = ask(world, method, 120.0)
    assert world.attack_calls[0] == 30.0
    assert r.lower >= 0.7 / (1 + RTOL)
    assert r.upper == float("inf") and r.counterexample is None


def test_an_attack_that_was_stopped_goes_on_when_time_is_left(ask):
    world = deep(attack=40.0)
    r = ask(world, "crown", 120.0)
    assert len(world.attack_calls) == 2
    assert r.upper == r.attack == 1.0
    assert r.lower >= 0.7 / (1 + RTOL)


def test_a_pass_that_is_too_dear_is_tried_at_a_smaller_eps(ask):
    """At the attack CROWN's pass takes longer than there is time; the less there is unstable the quicker it is."""
    world = deep()
    real = FakeLadder.bound

    def bound(self: FakeLadder, name: str, deadline: Deadline) -> float:
        world.costs["crown"] = 60.0 if self.eps > 0.3 else 3.0
        return real(self, name, deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeLadder, "bound", bound)
        r = ask(world, "crown", 40.0)
    assert 0.24 <= r.lower <= 0.3
    assert r.reason == "time limit"


def test_the_pass_at_the_top_is_kept_for_all_smaller_eps(ask, question):
    """However many probes follow: a ladder is thrown away from below, where nothing is asked any more."""
    world = deep()
    search = new_search(question)
    ask(world, "auto", 2000.0, search)
    assert len(search._ladders) <= MOST_LADDERS
    crown = [ladder for ladder in world.ladders if "crown" in ladder.done]
    assert len(crown) > MOST_LADDERS
    assert sum(ladder.above is None or not ladder.above.margins.relaxed for ladder in crown) == 1


def test_methods_in_order_share_what_was_found(ask, question):
    """As ``compare`` asks: each has the whole limit, and starts where the one before ended."""
    world, search, before = deep(), new_search(question), 0.0
    for method in ("corgi", "crown", "dual", "lp", "bab"):
        r = ask(world, method, 60.0 + world.now, search)
        assert r.lower >= before
        before = r.lower
    assert world.attack_calls == [pytest.approx(15.0)]
    assert before > 0.75
