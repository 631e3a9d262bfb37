"""Random networks of one input, and their exact minima by breakpoints in rational arithmetic.

Along one input a network is piecewise linear. Between neighbours of a list of points that holds every zero of every
pre-activation it is linear, so its least value is at one of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Combine, Conv, Input, Relu

ONE = (1, 1)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Layers ``z = W a + b``; from the second on, ``skip``: the activations before are added (same width)."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    skip: list[bool]
    objective: np.ndarray

    def network(self) -> Network:
        nodes, last = [Node(Input(), (), (1, 1, 1))], 0
        before: int | None = None
        for w, b, skip in zip(self.weights, self.biases, self.skip, strict=True):
            conv = Conv(w[:, :, None, None], b, ONE, (0, 0), ONE, 1)
            nodes.append(Node(conv, (last,), (len(b), 1, 1)))
            if skip:
                assert before is not None, "the first layer has nothing to add"
                one = np.ones((1, 1, 1))
                nodes.append(Node(Combine((one, one), np.zeros((1, 1, 1))), (len(nodes) - 1, before), (len(b), 1, 1)))
            nodes.append(Node(Relu(), (len(nodes) - 1,), (len(b), 1, 1)))
            last = before = len(nodes) - 1
        return Network(tuple(nodes), last, self.objective[None])

    def at(self, x: Fraction) -> tuple[list[list[Fraction]], Fraction]:
        """Every layer's pre-activations, and the objective."""
        a, zs = [x], []
        for w, b, skip in zip(self.weights, self.biases, self.skip, strict=True):
            z = [
                sum((Fraction(c) * v for c, v in zip(row, a, strict=True)), Fraction(t))
                for row, t in zip(w.tolist(), b.tolist(), strict=True)
            ]
            z = [v + old for v, old in zip(z, a, strict=True)] if skip else z
            zs.append(z)
            a = [max(v, Fraction(0)) for v in z]
        return zs, sum((Fraction(q) * v for q, v in zip(self.objective.tolist(), a, strict=True)), Fraction(0))

    def points(self, low: Fraction, high: Fraction) -> list[Fraction]:
        """The ends, and every zero of every pre-activation between."""
        points = [low, high] if low < high else [low]
        for layer in range(len(self.weights)):
            values = [self.at(x)[0][layer] for x in points]
            found = set(points)
            for a, b, left, right in zip(points, points[1:], values, values[1:], strict=False):
                for p, q in zip(left, right, strict=True):
                    if p * q < 0:
                        found.add(a + (b - a) * p / (p - q))
            points = sorted(found)
        return points


def draw(rng: np.random.Generator, decades: float) -> Drawn:
    """Up to three layers of up to four units; sizes over so many decades to either side of one."""

    def number(*shape: int) -> np.ndarray:
        size = (
            10.0 ** rng.uniform(-decades, decades, shape) if rng.random() < 0.5 else 10.0 ** rng.uniform(-1, 1, shape)
        )
        return rng.choice([-1.0, 1.0], shape) * size * (rng.random(shape) < 0.9)

    widths = [1, *(int(n) for n in rng.integers(1, 5, size=rng.integers(1, 4)))]
    weights = [number(b, a) for a, b in itertools.pairwise(widths)]
    skip = [False, *(a == b and rng.random() < 0.5 for a, b in itertools.pairwise(widths[1:]))]
    biases = [number(n) if rng.random() < 0.8 else np.zeros(n) for n in widths[1:]]
    return Drawn(weights, biases, skip, number(widths[-1]))
