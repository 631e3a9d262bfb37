"""Radii and verdicts in L2 and L1 balls: what is certified, what is broken, and how the norms order each other."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from nets import Deep, Plain, Pooled, Tiny, bias_of, image, seeded
from oracles import conv_matrix
from patience import mostly_slow
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import corgi_opt as co
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.region import Norm

BOUNDS = ("ibp", "corgi", "crown", "dual")
HARD = co.PgdOptions(rows=64, steps=40, restarts=2, seed=5)
RTOL = 0.03
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (functools.partial(seeded, Plain, 2, channels=4), (1, 6, 6)),
    "deep": (functools.partial(seeded, Deep, 1), (1, 8, 6)),
    "pooled": (functools.partial(seeded, Pooled, 1), (1, 8, 8)),
}
ORDER = {"inf": np.inf, "2": 2, "1": 1}


ASKED = [*itertools.product(CASES, ("2", "1"))]
OFTEN = mostly_slow(ASKED, [("plain", "1"), ("pooled", "2")])


@functools.cache
def question(case: str) -> tuple[nn.Module, co.CamNetwork, Tensor]:
    build, shape = CASES[case]
    model, x = build(), image(*shape, seed=4)
    return model, co.from_torch(model, x), x


@functools.cache
def radii(case: str, norm: Norm, clip: Clip = (0.0, 1.0)) -> co.Comparison:
    _, net, x = question(case)
    methods = [*BOUNDS, "lp", "milp"] if norm == "inf" else BOUNDS
    return co.compare(net, x, k=2, class_idx=0, norm=norm, clip=clip, methods=methods, rtol=RTOL, device="cpu")


def length(norm: str, image: Tensor, x: Tensor) -> float:
    """By numpy, in the plainest way."""
    return float(np.linalg.norm((image.double() - x.double()).numpy().ravel(), ORDER[norm]))


class GlobalPoolInput(TorchFunctionMode):
    """Keeps what the global average pool of a running model reads."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.mean, torch.nn.functional.adaptive_avg_pool2d):
            self.map = args[0]
        return func(*args, **(kwargs or {}))


def cam_of(model: nn.Module, x: Tensor, class_idx: int) -> np.ndarray:
    """The CAM (pixels,) by the user's own model in float64, without this package."""
    double = copy.deepcopy(model).double()
    (head,) = (m for m in double.modules() if isinstance(m, nn.Linear))
    with torch.no_grad(), GlobalPoolInput() as seen:
        logits = double(x.double())
        # the map is the right one: its mean gives the logits
        torch.testing.assert_close(head(seen.map.mean((2, 3))), logits)
    return torch.einsum("c,chw->hw", head.weight[class_idx].detach(), seen.map[0]).flatten().numpy()


def changes_the_top(model: nn.Module, x: Tensor, broken: Tensor, k: int, class_idx: int) -> bool:
    before, after = cam_of(model, x, class_idx), cam_of(model, broken, class_idx)
    order = np.argsort(-before, kind="stable")
    return bool(after[order[:k]].min() <= after[order[k:]].max())


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_bounds_are_ordered_and_below_the_attack(case, norm):
    found = radii(case, norm).radii
    assert list(found) == list(BOUNDS)
    certified = [found[m].lower for m in ("corgi", "crown", "dual")]
    assert all(a <= b for a, b in pairwise(certified))
    assert found["ibp"].lower <= found["dual"].lower
    for method, radius in found.items():
        assert 0 < radius.lower < radius.upper == radius.attack < math.inf
        assert radius.proof == "float64"
        assert radius.method == method
    assert found["dual"].upper / found["dual"].lower < 4  # bounds that are of use


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_the_nearest_witness_is_in_the_ball_and_breaks_the_model(case, norm):
    model, _, x = question(case)
    found = radii(case, norm).radii["dual"]
    witness = found.counterexample
    assert witness is not None
    assert witness.distance == found.upper
    assert length(norm, witness.image, x) == pytest.approx(witness.distance, rel=1e-12)
    assert 0 <= float(witness.image.min()) <= float(witness.image.max()) <= 1
    assert changes_the_top(model, x, witness.image, 2, 0)


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_verdicts_agree_with_radii(case, norm):
    model, net, x = question(case)
    ask = functools.partial(co.verify, net, x, k=2, class_idx=0, norm=norm, device="cpu")
    found = radii(case, norm).radii
    for method in BOUNDS:
        v = ask(eps=found[method].lower, method=method)
        assert v.status == "certified" and v.margin_lower > 0 and v.proof == "float64"
        above = ask(eps=found[method].lower * (1 + 1.05 * RTOL), method=method)
        assert above.status != "certified" or above.method != method
    broken = ask(eps=found["dual"].upper, method="dual")
    assert broken.status != "certified"
    far = ask(eps=1.5 * found["dual"].upper, method="dual")
    assert far.status == "falsified"
    w = far.counterexample
    assert w is not None
    assert length(norm, w.image, x) <= 1.5 * found["dual"].upper * (1 + 1e-12)
    assert changes_the_top(model, x, w.image, 2, 0)
    assert far.margin_upper == pytest.approx(w.margin)


@pytest.mark.parametrize(("case", "norm"), OFTEN)
def test_a_hard_attack_does_not_break_what_is_certified(case, norm):
    _, net, x = question(case)
    certified = radii(case, norm).radii["dual"].lower
    assert co.attack(net, x, eps=certified, k=2, class_idx=0, norm=norm, options=HARD, device="cpu") is None


ATTACKED = [*itertools.product(("pooled",), ("2", "1"), range(3))]


@pytest.mark.parametrize(
    ("case", "norm", "seed"), mostly_slow([("plain", "1", 0), *ATTACKED], [("plain", "1", 0), ATTACKED[1]])
)
def test_the_public_attack_finds_images_in_its_ball(case, norm, seed):
    model, net, x = question(case)
    eps = (1.3 + 0.5 * seed) * radii(case, norm).radii["dual"].upper
    w = co.attack(net, x, eps=eps, k=2, class_idx=0, norm=norm, options=co.PgdOptions(seed=seed), device="cpu")
    assert w is not None
    assert length(norm, w.image, x) <= eps * (1 + 1e-12)
    assert w.distance == pytest.approx(length(norm, w.image, x), rel=1e-12)
    assert changes_the_top(model, x, w.image, 2, 0)


@pytest.mark.parametrize(
    ("case", "clip"), mostly_slow(itertools.product(("plain", "deep"), ((0.0, 1.0), None)), [("plain", (0.0, 1.0))])
)
def test_balls_inside_balls(case, clip):
    """The L1 ball of eps lies in the L2 ball of eps, and that in the Linf ball; the other way round they grow."""
    _, net, x = question(case)
    norms: tuple[Norm, ...] = ("inf", "2", "1")
    certified = {n: radii(case, n, clip).radii["milp" if n == "inf" else "dual"].lower for n in norms}
    broken = {n: radii(case, n, clip).radii["dual"].attack for n in norms}
    size = x.numel()
    # how many times larger a ball of the second norm must be to hold one of the first
    growth = {("inf", "2"): math.sqrt(size), ("inf", "1"): size, ("2", "1"): math.sqrt(size)}
    for small, large in itertools.combinations(norms, 2):  # small: the norm whose radius is the smaller
        assert certified[small] <= broken[large]
        assert certified[large] <= growth[small, large] * broken[small]
        inner = co.attack(
            net, x, eps=certified[small], k=2, class_idx=0, norm=large, clip=clip, options=HARD, device="cpu"
        )
        assert inner is None
    # for the same method the bounds order as the radii do, up to their looseness
    for method in ("crown", "dual"):
        at = [radii(case, n, clip).radii[method].lower for n in norms]
        assert at[0] <= (1 + RTOL) * at[1] <= (1 + RTOL) ** 2 * at[2]


CLIPPED = [("plain", "1"), ("deep", "2"), ("deep", "1")]


@pytest.mark.parametrize(("case", "norm"), mostly_slow(CLIPPED, CLIPPED[:1]))
def test_clipping_only_helps(case, norm):
    """A box takes images away from a ball: what is broken in the box is broken without it."""
    boxed, free = (radii(case, norm, clip).radii["dual"] for clip in ((0.0, 1.0), None))
    assert free.lower <= boxed.upper
    assert free.lower <= (1 + RTOL) * boxed.lower


@pytest.mark.parametrize("norm", ["2", 2, 2.0])
def test_no_milp_answers_l2(norm):
    _, net, x = question("plain")
    for call in (
        lambda: co.verify(net, x, eps=0.1, k=2, norm=norm, method="milp"),
        lambda: co.radius(net, x, k=2, norm=norm, method="milp"),
        lambda: co.compare(net, x, k=2, norm=norm, methods=["crown", "milp"]),
    ):
        with pytest.raises(co.InputError, match=r"'milp' answers norm 'inf' and '1', not '2'.*'bab' is exact"):
            call()


@pytest.mark.parametrize(
    ("norm", "method", "solver", "says"),
    [
        ("2", "lp", "highs", "second-order cones"),
        ("inf", "milp", "cvxpy:clarabel", "does not take MILPs"),
        ("1", "milp", "glpk", "there is no solver 'glpk'; there are highs"),
        ("inf", "milp", 3, "must be the name of a backend"),
    ],
)
def test_solvers_that_cannot_are_refused(norm, method, solver, says):
    _, net, x = question("plain")
    for call in (co.verify, co.radius):
        more: dict[str, Any] = {"eps": 0.1} if call is co.verify else {}
        with pytest.raises(co.InputError, match=says):
            call(net, x, k=2, norm=norm, method=method, solver=solver, **more)


@pytest.mark.parametrize("norm", ["3", 0, None, True])
def test_unknown_norms_are_refused_everywhere(norm):
    _, net, x = question("plain")
    for call in (
        lambda: co.verify(net, x, eps=0.1, k=2, norm=norm),
        lambda: co.radius(net, x, k=2, norm=norm),
        lambda: co.compare(net, x, k=2, norm=norm),
        lambda: co.attack(net, x, eps=0.1, k=2, norm=norm),
    ):
        with pytest.raises(co.InputError, match="norm must be"):
            call()


@pytest.mark.parametrize("norm", mostly_slow([1, 2], [1]))
def test_auto_closes_brackets(norm):
    """By branch and bound, which needs no more of a norm than its least value of a linear function."""
    _, net, x = question("plain")
    r = co.radius(net, x, k=2, class_idx=0, norm=norm, rtol=RTOL, device="cpu")
    assert (r.method, r.proof) == ("bab", "float64")
    assert r.ratio <= 1 + RTOL
    assert r.lower >= radii("plain", str(norm)).radii["dual"].lower
    found = co.compare(net, x, k=2, class_idx=0, norm=norm, rtol=0.3, device="cpu").radii
    assert list(found) == ["corgi", "crown", "dual", "lp", "bab"]
    for eps, status in ((r.lower, "certified"), (r.upper, "falsified")):
        assert co.verify(net, x, eps=eps, k=2, class_idx=0, norm=norm, device="cpu").status == status


@pytest.mark.parametrize(
    ("norm", "clip"), mostly_slow(itertools.product(("1", "2"), ((0.0, 1.0), None)), [("1", (0.0, 1.0)), ("2", None)])
)
def test_programs_are_between_the_bounds_and_the_attack(norm, clip):
    """LPs and, for L1, MILPs on balls: no lower than dual ascent, never past a witness; the MILP closes the bracket."""
    _, net, x = question("plain")
    methods = ["dual", "lp", "milp"] if norm == "1" else ["dual", "lp"]
    found = co.compare(net, x, k=2, class_idx=0, norm=norm, clip=clip, methods=methods, rtol=0.01, device="cpu").radii
    assert found["dual"].lower <= 1.01 * found["lp"].lower
    for r in found.values():
        assert 0 < r.lower < r.upper == found["dual"].upper or r.method == "milp"
        assert r.counterexample is not None and r.counterexample.distance == r.upper
    if norm == "1":
        assert found["lp"].lower <= found["milp"].lower * 1.01
        assert found["milp"].ratio <= 1.011


@pytest.mark.parametrize("spelling", mostly_slow([math.inf, "inf"], [math.inf]))
def test_infinity_is_the_default(spelling):
    _, net, x = question("plain")
    plain, spelled = (co.radius(net, x, k=2, class_idx=0, device="cpu", **kw) for kw in ({}, {"norm": spelling}))
    assert (plain.lower, plain.upper, plain.corgi, plain.attack) == (
        spelled.lower,
        spelled.upper,
        spelled.corgi,
        spelled.attack,
    )
    first, second = (
        co.verify(net, x, eps=0.9 * plain.lower, k=2, class_idx=0, device="cpu", **kw)
        for kw in ({}, {"norm": spelling})
    )
    assert (first.status, first.margin_lower, first.method) == (second.status, second.margin_lower, second.method)


@pytest.mark.parametrize("norm", ["2", "1"])
def test_eps_zero_is_certified(norm):
    _, net, x = question("plain")
    for method in BOUNDS:
        assert co.verify(net, x, eps=0.0, k=2, class_idx=0, norm=norm, method=method).status == "certified"


def sparse_network(seed: int) -> tuple[nn.Module, co.CamNetwork, Tensor]:
    """Every neuron of the first layer reads one input: a minimum over a ball with a single coefficient."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 2)
            with torch.no_grad():
                keep = torch.zeros_like(self.c.weight)
                keep[:, :, 1, 1] = 1.0
                self.c.weight.mul_(keep)
                bias_of(self.c).zero_()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.d(torch.relu(self.c(x)))).mean((2, 3)))

    model, x = seeded(Sparse, seed), image(1, 5, 5, seed=seed)
    return model, co.from_torch(model, x), x


SPARSE = [*itertools.product((3, 10, 16, 27, 31), ("2", "1"))]


@pytest.mark.parametrize(("seed", "norm"), mostly_slow(SPARSE, [(10, "2")]))
def test_neurons_that_read_one_input(seed, norm):
    """The nearest witness must stay above everything certified, and no larger eps may be certified either."""
    _, net, x = sparse_network(seed)
    for method in ("corgi", "crown", "dual"):
        r = co.radius(net, x, k=2, class_idx=0, norm=norm, method=method, rtol=0.05, device="cpu")
        assert 0 < r.lower < r.upper < math.inf
        for eps in (r.upper, 1.05 * r.upper, 1.5 * r.upper):
            v = co.verify(net, x, eps=eps, k=2, class_idx=0, norm=norm, method=method, device="cpu")
            assert v.status != "certified"


# --- an exact reference in L1 --------------------------------------------------------------------------------


def exact_l1_margin(model: Tiny, x: Tensor, eps: float, weight: Tensor) -> float:
    """The exact margin at k=1 of a ``Tiny`` network: a linear program for every pattern of its ReLUs.

    Variables x and the distances a >= |x - x0| with sum a <= eps.
    """
    first, second = (copy.deepcopy(c).double() for c in (model.first, model.second))
    weight = weight.detach().double()
    with torch.no_grad():
        hidden = torch.relu(first(x.double()))
        features = torch.relu(second(hidden))
    (w1, b1), (w2, b2) = conv_matrix(first, tuple(x.shape[1:])), conv_matrix(second, tuple(hidden.shape[1:]))
    cam = torch.einsum("c,nchw->hw", weight, features).flatten().numpy()
    center, n = x.double().flatten().numpy(), x.numel()
    eye, ones = np.eye(n), np.ones(n)
    ball = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, -eye]), np.hstack([0 * ones, ones])[None]])
    ball_rhs = np.concatenate([center, -center, [eps]])
    bounds = [(0.0, 1.0)] * n + [(0.0, eps)] * n

    def least(rows: np.ndarray, rhs: np.ndarray, cost: np.ndarray) -> float:
        table = np.vstack([ball, np.hstack([rows, np.zeros_like(rows)])])
        answer = linprog(np.concatenate([cost, 0 * ones]), table, np.concatenate([ball_rhs, rhs]), bounds=bounds)
        assert answer.status in (0, 2), answer.message
        return float(answer.fun) if answer.status == 0 else np.inf

    low, high = w1 @ center + b1 - eps * np.abs(w1).max(axis=1), w1 @ center + b1 + eps * np.abs(w1).max(axis=1)
    free = [(0, 1) if l < 0 < u else (int(l >= 0),) for l, u in zip(low, high, strict=True)]
    best, top = np.inf, int(cam.argmax())
    for pattern in itertools.product(*free):
        on = np.array(pattern)
        rows, rhs = (1 - 2 * on)[:, None] * w1, -(1 - 2 * on) * b1
        if least(rows, rhs, 0 * ones) == np.inf:
            continue
        w, b = w2 @ (on[:, None] * w1), w2 @ (on * b1) + b2
        for other in range(cam.size):
            if other == top:
                continue
            objective = np.zeros((features.shape[1], cam.size))
            objective[:, top] += weight.numpy()
            objective[:, other] -= weight.numpy()
            read = np.flatnonzero(objective.flatten())
            for second_on in itertools.product((0, 1), repeat=len(read)):
                sign = 1 - 2 * np.array(second_on)
                cost = (objective.flatten()[read] * second_on) @ w[read]
                constant = float((objective.flatten()[read] * second_on) @ b[read])
                found = least(np.vstack([rows, sign[:, None] * w[read]]), np.concatenate([rhs, -sign * b[read]]), cost)
                best = min(best, found + constant)
    return best


def live_tiny(index: int) -> tuple[Tiny, co.CamNetwork, Tensor, int]:
    """The first tiny networks whose top pixel stands out, and the predicted class."""
    for seed in range(200):
        model, x = seeded(Tiny, seed), image(1, 3, 4, seed=seed).double()
        net = co.from_torch(model, x)
        cam = net.cam(x).flatten().sort(descending=True).values
        if float(cam[0] - cam[1]) > 1e-3:
            if index == 0:
                return model, net, x, int(net.logits(x).argmax())
            index -= 1
    raise AssertionError("too few live networks")


@pytest.mark.parametrize("index", mostly_slow(range(2), [0]))
def test_l1_radii_bracket_the_exact_radius(index):
    model, net, x, chosen = live_tiny(index)
    r = co.radius(net, x, k=1, class_idx=chosen, norm="1", rtol=0.02, device="cpu")
    weight = model.head.weight[chosen]
    assert 0 < r.lower < r.upper < math.inf
    assert exact_l1_margin(model, x, r.lower, weight) > 0
    assert exact_l1_margin(model, x, r.upper, weight) <= 1e-9
    middle = math.sqrt(r.lower * r.upper)
    exact = exact_l1_margin(model, x, middle, weight)
    for method in BOUNDS:
        v = co.verify(net, x, eps=middle, k=1, class_idx=chosen, norm=1, method=method, device="cpu")  # type: ignore[arg-type]
        assert v.margin_lower <= exact + 1e-7
        assert v.margin_upper >= exact - 1e-7
