"""Networks of one input, whose exact radius is a rational number: nothing is certified beyond it, by any method."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from nets import bias_of
from one_input import Drawn
from patience import mostly_slow
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ops import Conv2d

PIXELS, HIDDEN, FEATURES = 3, 4, 2
METHODS = ("ibp", "corgi", "crown", "dual", "lp", "milp", "bab")
SOLVERS = {
    "lp": ("pulp:cbc", "cvxpy:clarabel"),
    "milp": ("pulp:cbc", "pulp:highs"),
    "bab": ("cvxpy:clarabel", "pulp:cbc"),
}


class OneInput(nn.Module):
    """One number -> 4 units -> 2 x 3 units on a row of 3 pixels, each with weights of its own -> mean -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, HIDDEN, 1)
        self.second = nn.Conv2d(HIDDEN, FEATURES, (1, PIXELS), padding=(0, PIXELS - 1))
        self.head = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@dataclass(frozen=True, eq=False)
class Exact:
    """The network in rational arithmetic, its image and its brightest pixel; ``scale`` as the package states it."""

    net: co.CamNetwork
    x: float
    drawn: Drawn
    weight: list[float]
    top: int
    scale: float

    def cam(self, x: Fraction) -> list[Fraction]:
        z = self.drawn.at(x)[0][-1]
        features = [max(v, Fraction(0)) for v in z]
        return [
            sum((Fraction(w) * features[c * PIXELS + p] for c, w in enumerate(self.weight)), Fraction(0))
            for p in range(PIXELS)
        ]

    def gaps(self, x: Fraction) -> list[Fraction]:
        cam = self.cam(x)
        return [cam[self.top] - v for p, v in enumerate(cam) if p != self.top]

    def margin(self, eps: float) -> Fraction:
        """The least gap within eps."""
        center = Fraction(self.x)
        points = self.drawn.points(center - Fraction(eps), center + Fraction(eps))
        return min(gap for point in points for gap in self.gaps(point))

    def radius(self, at: Fraction, most: float) -> Fraction | None:
        """The least distance at which a gap is ``at`` or less; None if there is none up to ``most``."""
        center = Fraction(self.x)
        points = self.drawn.points(center - Fraction(most), center + Fraction(most))
        values, found = [self.gaps(p) for p in points], []
        for a, b, left, right in zip(points, points[1:], values, values[1:], strict=False):
            for p, q in zip(left, right, strict=True):
                if (p - at) * (q - at) < 0:
                    found.append(abs(a + (b - a) * (p - at) / (p - q) - center))
        found += [abs(p - center) for p, gaps in zip(points, values, strict=True) if min(gaps) <= at]
        return min(found, default=None)


TEMPLATE = co.from_torch(OneInput().eval(), torch.zeros(1, 1, 1, 1))


def reweighted(model: OneInput) -> co.CamNetwork:
    """What ``from_torch(model)`` gives, without another export: the template with this model's weights."""
    reference = copy.deepcopy(model).double().eval().requires_grad_(False)
    convolutions = [reference.first, reference.second]

    def graph(old: LayerGraph) -> LayerGraph:
        left, nodes = list(convolutions), []
        for name in old.order:
            node = old[name]
            if isinstance(node.op, Conv2d) and left:
                conv = left.pop(0)
                node = replace(node, op=replace(node.op, weight=conv.weight, bias=conv.bias))
            elif isinstance(node.op, Conv2d) and name == old.output:
                head = reference.head
                node = replace(node, op=replace(node.op, weight=head.weight[:, :, None, None], bias=head.bias))
            nodes.append(node)
        return LayerGraph(nodes, old.output)

    replay = replace(TEMPLATE.replay, model=reference, require=lambda logits, features: None)
    return co.CamNetwork(
        graph(TEMPLATE.graph), graph(TEMPLATE.pooled), TEMPLATE.features, reference.head.weight, replay
    )


def draw(rng: np.random.Generator, decades: float, spike: bool) -> Exact | None:
    """A random network and image; None where its brightest pixel is tied or dead.

    ``spike``: pixel 1 passes only on an interval a thousandth as wide as what is looked at, elsewhere it is dark.
    """
    model = OneInput().eval()
    with torch.no_grad():
        for p in model.parameters():
            size = 10.0 ** rng.uniform(-decades, decades, p.shape)
            p.copy_(torch.from_numpy(rng.normal(0, 1, p.shape) * size))
        x = float(rng.normal(0, 1))
        if spike:
            at = x + float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.9))
            width = 1e-3
            model.first.weight[:, 0, 0, 0] = torch.tensor([1.0, 1.0, 1.0, 0.0])
            bias_of(model.first).copy_(torch.tensor([width - at, -at, -width - at, 1.0]))
            model.second.weight.zero_()
            bias_of(model.second).zero_()
            # a tent of height 3 over [at - width, at + width] in pixel 1; everywhere a half in pixel 0
            model.second.weight[0, :, 0, PIXELS - 1 - 1] = torch.tensor([3.0, -6.0, 3.0, 0.0]) / width
            model.second.weight[1, 3, 0, PIXELS - 1 - 0] = 0.5
            model.head.weight[:] = 1.0
    net = reweighted(model)
    second = model.second.weight.detach().double().numpy()[:, :, 0, ::-1]  # pixel p reads tap PIXELS - 1 - p
    dense = second.transpose(0, 2, 1).reshape(FEATURES * PIXELS, HIDDEN)
    drawn = Drawn(
        weights=[model.first.weight.detach().double().numpy()[:, :, 0, 0], dense],
        biases=[
            bias_of(model.first).detach().double().numpy(),
            np.repeat(bias_of(model.second).detach().double().numpy(), PIXELS),
        ],
        skip=[False, False],
        objective=np.zeros(FEATURES * PIXELS),
    )
    weight = model.head.weight[0].detach().double().tolist()
    plain = Exact(net, x, drawn, weight, 0, 0.0)
    cam = plain.cam(Fraction(x))
    top = max(range(PIXELS), key=cam.__getitem__)
    features = [max(v, Fraction(0)) for v in drawn.at(Fraction(x))[0][-1]]
    sizes = [sum(abs(Fraction(w)) * features[c * PIXELS + p] for c, w in enumerate(weight)) for p in range(PIXELS)]
    scale = float(max(sizes))
    exact = replace(plain, top=top, scale=scale)
    return exact if scale > 0 and min(exact.gaps(Fraction(x))) > Fraction(1e-4 * scale) else None


def ask(exact: Exact, eps: float, method: str, **options: Any) -> co.Verdict:
    x = torch.full((1, 1, 1, 1), exact.x, dtype=torch.float64)
    return co.verify(exact.net, x, eps=eps, k=1, method=method, class_idx=0, clip=None, time_limit=600, **options)


def test_the_rational_network_is_the_torch_model():
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        exact = draw(rng, 1.0, spike=bool(rng.random() < 0.3))
        if exact is None:
            continue
        seen += 1
        for point in (exact.x, exact.x + 0.3, exact.x - 2.0):
            x = torch.full((1, 1, 1, 1), point, dtype=torch.float64)
            theirs = exact.net.model_cam(x, 0).flatten().tolist()
            ours = [float(v) for v in exact.cam(Fraction(point))]
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9 * exact.scale)
            assert exact.net.cam(x, 0).flatten().tolist() == pytest.approx(theirs, rel=1e-9, abs=1e-9 * exact.scale)
    assert seen > 10


def beyond_the_radius(rng: np.random.Generator, count: int, asked: int, sizes: int) -> tuple[int, int]:
    """Asks about ``count`` networks: at and just beyond their exact radius, ``asked`` methods each; and where the exact
    margin is next to nothing, to either side of zero, ``sizes`` of them each.

    Returns at how many the margin was at least 1e-6 of the scale, and how many of those an exact method certified.
    """
    clear = certified = n = 0
    most = 4.0
    while n < count:
        exact = draw(rng, float(rng.choice([0.3, 1.0, 2.3])), spike=rng.random() < 0.1)
        radius = None if exact is None else exact.radius(Fraction(0), most)
        if exact is None or radius is None or not 0 < float(radius) < most:
            continue
        n += 1
        eps = float(radius)
        # at the radius itself the set is no longer stable
        eps = eps if Fraction(eps) >= radius else float(np.nextafter(eps, np.inf))
        for method in rng.permutation(METHODS)[:asked].tolist():
            solver = rng.choice(SOLVERS[method]) if method in SOLVERS and rng.random() < 0.1 else None
            wider = float(rng.choice([1.0, 1.0 + 1e-9, 1.001]))
            proof = "checked" if rng.random() < 0.3 else "float64"
            verdict = ask(exact, eps * wider, method, solver=solver, proof=proof)
            assert verdict.status != "certified", (n, method, wider, solver)
        for size in rng.permutation([1e-12, 1e-10, 1e-8, 1e-6, 1e-5])[:sizes].tolist():
            found = exact.radius(Fraction(int(rng.choice([-1, 1])) * size * exact.scale), most)
            if found is None or not float(found) > 0:
                continue
            margin = exact.margin(float(found))
            method, proof = ("bab", "milp")[int(rng.integers(2))], ("float64", "checked")[int(rng.integers(2))]
            verdict = ask(exact, float(found), method, proof=proof)
            assert margin > 0 or verdict.status != "certified", (n, method, size)
            if margin >= Fraction(1e-6 * exact.scale):
                clear, certified = clear + 1, certified + (verdict.status == "certified")
    return clear, certified


@pytest.mark.parametrize(("seed", "count"), mostly_slow([(12, 4), (12, 8), (1, 30)], [(12, 4)]))
def test_nothing_is_certified_beyond_the_exact_radius(seed, count):
    clear, certified = beyond_the_radius(np.random.default_rng(seed), count, asked=len(METHODS), sizes=5)
    assert certified >= 0.95 * clear and clear >= 2 / 3 * count


@pytest.mark.slow
def test_nothing_is_certified_beyond_the_exact_radius_at_length():
    found = [beyond_the_radius(np.random.default_rng(seed), 1_000, asked=2, sizes=2) for seed in range(2, 12)]
    clear, certified = (sum(column) for column in zip(*found, strict=True))
    print(f"{certified} of {clear} margins of at least 1e-6 of the scale certified")
    assert certified >= 0.99 * clear and clear >= 2_000


@pytest.mark.parametrize("count", mostly_slow([7, 20], [7]))
def test_counterexamples_that_an_attack_misses_are_found_or_nothing_is_certified(count):
    rng, missed = np.random.default_rng(3), 0
    for _ in range(count):
        exact = draw(rng, 0.3, spike=True)
        if exact is None:
            continue
        radius = exact.radius(Fraction(0), 1.5)
        assert radius is not None
        x = torch.full((1, 1, 1, 1), exact.x, dtype=torch.float64)
        eps = float(radius) + 0.05
        missed += co.attack(exact.net, x, eps=eps, k=1, class_idx=0, clip=None) is None
        for method in METHODS:
            verdict = ask(exact, eps, method)
            assert verdict.status != "certified"
            if method in ("milp", "bab"):
                assert verdict.status == "falsified"
    assert missed >= 4
