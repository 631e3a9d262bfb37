"""Seeded random questions about tiny networks, each with its exact answer at hand."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import numpy as np
import torch
from enumeration import Answer, exact_margin, exact_margin_keep_class, exact_within_margin
from linear_regions import Affine, Array, Ball
from nets import Small, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.network import exported

KINDS: tuple[dict[str, int], ...] = (
    {"features": 1},
    {},
    {"features": 3, "classes": 4},
    {"hidden": 1, "features": 3},
    {"residual": 1},
    {"hidden": 3, "residual": 1, "inplace": 1},
    {"pool": 1},
    {"pool": 1, "inplace": 1, "classes": 2},
)
FACTORS = (0.5, 0.7, 0.9, 0.99, 0.9999, 1.0001, 1.01, 1.1, 1.3, 1.5)
MOST_OPEN = 14
DUAL = {"inf": 1, "2": 2, "1": np.inf}
MOST_EPS = {"inf": 0.25, "2": 0.6, "1": 1.2}


@dataclass(frozen=True, eq=False)
class SmallQuestion:
    """``co.verify(net, question.x, **question.arguments)`` is to be compared with ``question.answer()``.

    ``k`` pixels must stay among the brightest ``within`` (None: among the brightest k). ``label`` says what the
    model was built from; with ``keep_class`` the bias of its head was moved afterwards.
    """

    model: Small
    x: Tensor
    eps: float
    k: int
    within: int | None
    keep_class: bool
    norm: str
    clip: tuple[float, float] | None
    class_idx: int
    label: str

    @property
    def network(self) -> co.CamNetwork:
        """The model as it is read, once for all questions about it."""
        if self.model not in _NETWORKS:
            _NETWORKS[self.model] = read(self.model, self.x)
        return _NETWORKS[self.model]

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("eps", "k", "within", "keep_class", "norm", "clip", "class_idx")
        return {name: getattr(self, name) for name in names}

    def answer(self) -> Answer:
        given: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "clip": self.clip, "class_idx": self.class_idx}
        if self.keep_class:
            return exact_margin_keep_class(self.model, self.x, k=self.k, within=self.within, **given)
        if self.within is not None:
            return exact_within_margin(self.model, self.x, k1=self.k, k2=self.within, **given)
        return exact_margin(self.model, self.x, k=self.k, **given)


_NETWORKS: WeakKeyDictionary[nn.Module, co.CamNetwork] = WeakKeyDictionary()

_PROGRAMS: dict[tuple[str, bool], Any] = {}


def read(model: Small, x: Tensor) -> co.CamNetwork:
    """``co.from_torch(model, x)`` for an image of 1x3x4, for which torch exports the first network of a kind alone.

    That takes longest. The others of its kind are the same operations with weights of their own, and are read and
    compared with their model as ever.
    """
    program = exported._program

    def with_its_weights(stand_in: nn.Module, example: Tensor, known: Callable[[Any], bool]) -> Any:
        kind = (str(model), model.residual)
        if kind not in _PROGRAMS:
            _PROGRAMS[kind] = program(stand_in, example, known)
        made = _PROGRAMS[kind]
        weights = {f"model.{name}": weight for name, weight in stand_in.state_dict().items()}
        assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in made.state_dict.items()}
        return SimpleNamespace(
            graph=made.graph, graph_signature=made.graph_signature, state_dict=weights, constants=made.constants
        )

    with patch.object(exported, "_program", with_its_weights):
        return co.from_torch(model, x)


_KNOWN: dict[tuple[int, tuple[str, ...]], tuple[list[SmallQuestion], Iterator[SmallQuestion]]] = {}


def known_questions(count: int, seed: int = 0, norms: tuple[str, ...] = ("inf", "2", "1")) -> Iterator[SmallQuestion]:
    """As :func:`questions`, each drawn once in a process: several tests ask them, by several methods."""
    found, rest = _KNOWN.setdefault((seed, norms), ([], questions(sys.maxsize, seed, norms)))
    for at in range(count):
        if at == len(found):
            found.append(next(rest))
        yield found[at]


def questions(count: int, seed: int = 0, norms: tuple[str, ...] = ("inf", "2", "1")) -> Iterator[SmallQuestion]:
    """``count`` questions; eps is near the radius at which the linearised network would change."""
    rng = np.random.default_rng(seed)
    found = 0
    while found < count:
        question = _draw(rng, norms)
        if question is not None:
            found += 1
            yield question


def _draw(rng: np.random.Generator, norms: tuple[str, ...]) -> SmallQuestion | None:
    """A random question; None for a network that is dead, tied or linear too far at the image drawn."""
    kind, number = KINDS[rng.integers(len(KINDS))], int(rng.integers(2**31))
    model = seeded(Small, number, **kind)
    x = (1.4 * image(1, 3, 4, seed=number).double() - 0.2).clamp(0, 1)  # some inputs at the ends of the box
    norm, clip = norms[rng.integers(len(norms))], (None, (0.0, 1.0))[rng.integers(2)]
    with torch.no_grad():
        predicted = int(copy.deepcopy(model).double()(x).argmax())
    classes = model.head.out_features
    class_idx = predicted if rng.random() < 0.6 else int(rng.integers(classes))
    pixels = 6 if "residual" in kind else 4
    k = int(rng.integers(1, pixels))
    within = int(rng.integers(k, pixels)) if rng.random() < 0.5 else None
    net = Affine.of(model, x, class_idx)
    here = at_center(net)
    radius, slope = linearised_radius(net.cam @ here, k, within, norm)
    if not 1e-3 < radius < MOST_EPS[norm]:
        return None
    eps = radius * float(rng.choice(FACTORS))
    if open_units(net, Ball.around(x, eps, norm, clip)) > MOST_OPEN:
        return None
    keep_class = bool(rng.random() < 0.4)
    if keep_class:
        near_boundary(model.head, net.logits @ here, steepest(slope, eps, norm), float(rng.uniform(0.02, 0.9)))
    return SmallQuestion(model, x, eps, k, within, keep_class, norm, clip, class_idx, f"{kind} seed {number}")


def near_boundary(head: nn.Linear, logits: Array, toward: Array, share: float) -> None:
    """Raises the bias of a class so that it becomes the predicted one after this share of a displacement, as the
    gradients say; of the classes that gain on the predicted one there, the one that gains most.
    """
    top = int(logits[:, 0].argmax())
    gaps = logits[top] - logits
    gains = -gaps[:, 1:] @ toward
    rival = int(gains.argmax())
    if gains[rival] > 0:
        with torch.no_grad():
            head.bias[rival] += max(gaps[rival, 0] - share * gains[rival], 0.0)


def steepest(slope: Array, eps: float, norm: str) -> Array:
    """Where a linear form is least in a ball."""
    if norm == "inf":
        return -eps * np.sign(slope)
    if norm == "2":
        return -eps * slope / max(float(np.linalg.norm(slope)), 1e-12)
    largest = np.abs(slope).argmax()
    return -eps * np.sign(slope) * (np.arange(len(slope)) == largest)


def at_center(net: Affine) -> Array:
    """The affine forms of all values in the region of x: of every unit, its largest candidate at x."""
    v = np.eye(1 + net.inputs)
    for layer in net.layers:
        z = layer.matrix @ v
        v = np.vstack([v, *(z[max(unit, key=z[:, 0].__getitem__)] for unit in layer.units)])
    return v


def linearised_radius(cam: Array, k: int, within: int | None, norm: str) -> tuple[float, Array]:
    """Where the gradient at x says that the first pair changes its order, and that pair's gradient; 0 for ties. With
    ``within``: where a top pixel has been passed by enough others, each taken alone.
    """
    order = np.argsort(-cam[:, 0], kind="stable")
    tied = cam[order[k - 1], 0] - cam[order[k], 0] < 1e-3
    radius, slope = np.inf, cam[0, 1:]
    for i in order[:k]:
        forms = cam[i] - cam[order[k:] if within is None else order[order != i]]
        reach = np.maximum(forms[:, 0], 0) / np.maximum(np.linalg.norm(forms[:, 1:], DUAL[norm], axis=1), 1e-12)
        last = np.argsort(reach)[0 if within is None else within - 1]
        if reach[last] < radius:
            radius, slope = float(reach[last]), forms[last, 1:]
    return (0.0 if tied else radius), slope


def open_units(net: Affine, ball: Ball) -> int:
    """How many ReLUs and pooling windows interval arithmetic leaves open."""
    count, low, high = 0, np.zeros(0), np.zeros(0)
    for layer in net.layers:
        inputs, others = np.split(layer.matrix, [1 + net.inputs], axis=1)
        plus, minus = np.maximum(others, 0), np.minimum(others, 0)
        least = ball.least(inputs) + plus @ low + minus @ high
        most = -ball.least(-inputs) + plus @ high + minus @ low
        for unit in layer.units:
            count += not any(least[c] >= max((most[o] for o in unit if o != c), default=-np.inf) for c in unit)
        low = np.append(low, [least[unit].max() for unit in layer.units])
        high = np.append(high, [most[unit].max() for unit in layer.units])
    return count
