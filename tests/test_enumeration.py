"""The oracle (linear_regions.py, enumeration.py) against torch, sampling, closed forms, grids and textbook MILPs."""

from __future__ import annotations

import copy
import functools
import itertools
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from enumeration import Answer, exact_margin, exact_margin_keep_class, exact_within_margin
from linear_regions import Affine, Ball, regions
from nets import Pooled, Residual, Small, Tiny, bias_of, hooked_cam, image, seeded
from oracles import PlainMilp, brute_force_margin, conv_matrix, plain_milp_margin
from patience import diagonal, mostly_slow
from scipy.optimize import linprog, minimize
from small_questions import SmallQuestion, questions
from torch import Tensor, nn

NORMS = ("inf", "2", "1")
ORDER = {"inf": np.inf, "2": 2, "1": 1}
SMALL: tuple[dict[str, int], ...] = (
    {},
    {"features": 3, "classes": 4},
    {"residual": 1},
    {"hidden": 3, "residual": 1, "inplace": 1},
    {"pool": 1},
)
M = TypeVar("M", bound=nn.Module)


@functools.cache
def some_questions() -> list[tuple[SmallQuestion, Answer]]:
    return [(q, q.answer()) for q in questions(90, seed=1)]


def double(model: M) -> M:
    return copy.deepcopy(model).double()


def value(cam: np.ndarray, center: np.ndarray, k: int, within: int | None) -> np.ndarray:
    """The definition, pixel by pixel, for CAMs (count, pixels); sorts what the oracle never looks at."""
    order = np.argsort(-center, kind="stable")
    if within is None:
        return cam[:, order[:k]].min(axis=1) - cam[:, order[k:]].max(axis=1)
    best = np.full(len(cam), np.inf)
    for i in order[:k]:
        others = np.sort(np.delete(cam, i, axis=1), axis=1)[:, ::-1]
        best = np.minimum(best, cam[:, i] - others[:, within - 1])
    return best


def by_torch(q: SmallQuestion, images: Tensor) -> np.ndarray:
    """The question's margin at images (N, 1, 3, 4), infinite where the class changes, by running the model."""
    model = double(q.model)
    head = model.head
    seen: list[Tensor] = []
    hook = model.relu.register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        center, logits = model(q.x)[0], model(images)
    hook.remove()
    maps = (seen[1], seen[3])  # a forward runs two ReLUs
    at_center, cam = (torch.einsum("c,nchw->nhw", head.weight[q.class_idx].detach(), m).flatten(1) for m in maps)
    found = value(cam.numpy(), at_center[0].numpy(), q.k, q.within)
    if q.keep_class:
        found[(logits.max(dim=1).values > logits[:, center.argmax()] + 1e-9).numpy()] = np.inf
    return found


def points(q: SmallQuestion, count: int) -> Tensor:
    """Random images of X: extreme ones, on the surface, inside."""
    rng = np.random.default_rng(7)
    n = q.x.numel()
    d = rng.uniform(-1, 1, (count, n))
    if q.norm == "inf":
        d[::2] = np.sign(d[::2])
    else:
        d[::2] *= rng.random((len(d[::2]), n)) < 0.3  # few inputs move
        d /= np.maximum(np.linalg.norm(d, ORDER[q.norm], axis=1, keepdims=True), 1e-9)
        d[::5] *= rng.random((len(d[::5]), 1))
    images = q.x + q.eps * torch.tensor(d).reshape(-1, *q.x.shape[1:])
    return images if q.clip is None else images.clamp(*q.clip)


# --- the network as affine maps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "kwargs", "shape"),
    [(Tiny, {"pool": 1}, (1, 3, 4)), (Residual, {"channels": 2}, (1, 4, 5))]
    + [
        (Pooled, {"channels": 2, "kernel": 3, "stride": s, "padding": p}, (1, 6, 5))
        for s, p in ((1, 0), (2, 1), (3, 1))
    ]
    + [(Pooled, {"channels": 2, "stride": 1, "dilation": 2}, (1, 5, 4))]
    + [(Small, kwargs, (1, 3, 4)) for kwargs in SMALL],
)
def test_layers_of_maxima_equal_the_model(build, kwargs, shape):
    model = seeded(build, 3, **kwargs)
    x, others = image(*shape, seed=3), [image(*shape, seed=s).double() * 3 - 1 for s in range(4, 14)]
    net = Affine.of(model, x, 1)
    moved = np.array([(other - x.double()).numpy().ravel() for other in others])
    v = net.values(moved)
    with torch.no_grad():
        expected = double(model)(torch.cat(others)).numpy()
    np.testing.assert_allclose((net.logits @ v).T, expected, atol=1e-12)
    head = next(m for m in model.modules() if isinstance(m, nn.Linear))
    cam = net.cam @ v
    np.testing.assert_allclose(cam.mean(axis=0) + head.bias[1].item(), expected[:, 1], atol=1e-12)
    if build is Pooled:
        # the hook sees the input of the last ReLU there, which is not a module
        return
    reference = hooked_cam(double(model), others[0], double(head), 1) if build is not Tiny else None
    if reference is not None:
        np.testing.assert_allclose(cam[:, 0], reference.numpy().ravel(), atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kwargs", SMALL)
def test_regions_cover_the_ball_and_are_right_there(kwargs, norm):
    model, x = seeded(Small, 5, **kwargs), image(1, 3, 4, seed=5).double()
    eps = {"inf": 0.1, "2": 0.3, "1": 0.5}[norm]
    q = SmallQuestion(model, x, eps, 1, None, False, norm, (0.0, 1.0), 0, "")
    found = regions(model, x, eps=eps, norm=norm, clip=q.clip, class_idx=0)
    assert len(found) > 1
    images = points(q, 200)
    with torch.no_grad():
        expected = double(model)(images).numpy()
    for one, logits in zip(images, expected, strict=True):
        d = np.append(1, (one - x[0]).numpy().ravel())
        there = [r for r in found if (r.rows @ d <= 1e-12).all()]
        assert there
        for region in there:
            np.testing.assert_allclose(region.logits @ d, logits, atol=1e-10)


# --- answers against sampling and descent ---------------------------------------------------------------------


@pytest.mark.parametrize("index", mostly_slow(range(90), range(0, 90, 4)))
def test_an_answer_is_attained_and_no_image_is_below(index):
    q, answer = some_questions()[index]
    assert answer.lower <= answer.upper <= answer.lower + 1e-9
    moved = (answer.point - q.x).numpy().ravel()
    assert np.linalg.norm(moved, ORDER[q.norm]) <= q.eps * (1 + 1e-12)
    if q.clip is not None:
        assert float(answer.point.min()) >= -1e-15
        assert float(answer.point.max()) <= 1 + 1e-15
    assert by_torch(q, answer.point)[0] == pytest.approx(answer.upper, abs=1e-11)
    assert by_torch(q, points(q, 500)).min() >= answer.lower
    toward = q.x + torch.linspace(0, 1, 50, dtype=torch.float64)[:, None, None, None] * (answer.point - q.x)
    assert by_torch(q, toward).min() >= answer.lower


def test_descent_comes_close():
    """Random search that keeps its best image and shortens its steps, without gradients."""
    shares = []
    for q, answer in some_questions():
        if q.norm != "inf" or q.keep_class:
            continue
        rng, best, at = np.random.default_rng(0), points(q, 300), q.x
        start = float(by_torch(q, q.x)[0])
        for step in np.geomspace(1, 0.01, 40):
            values = by_torch(q, best)
            at = best[[int(values.argmin())]]
            noise = torch.tensor(rng.choice([-2.0, 0.0, 2.0], (300, *q.x.shape[1:]), p=[0.15, 0.7, 0.15]))
            best = torch.minimum(torch.maximum(at + step * q.eps * noise, q.x - q.eps), q.x + q.eps)
            best = torch.cat([at, best if q.clip is None else best.clamp(*q.clip)])
        shares.append((start - by_torch(q, at)[0]) / (start - answer.upper))
    assert len(shares) > 10
    assert max(shares) <= 1 + 1e-9
    assert min(shares) > 0.9
    assert np.median(shares) > 0.999


# --- closed forms ---------------------------------------------------------------------------------------------


def linear(seed: int, classes: int = 2) -> tuple[Small, Tensor]:
    """A network all of whose ReLUs are active near its image."""
    model, x = seeded(Small, seed, classes=classes), image(1, 3, 4, seed=seed).double()
    with torch.no_grad():
        bias_of(model.first).fill_(20.0)
        model.second.weight.abs_()
    return model, x


def jacobian(model: Small, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """CAM of class 0 at x and its derivative, by autograd."""
    model = double(model)

    def cam(one: Tensor) -> Tensor:
        h = torch.relu(model.second(torch.relu(model.first(one))))
        return torch.einsum("c,nchw->hw", model.head.weight[0], h).flatten()

    return cam(x).detach().numpy(), torch.autograd.functional.jacobian(cam, x).reshape(-1, x.numel()).numpy()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_linear_networks_have_a_closed_form(seed, norm):
    model, x = linear(seed)
    cam, slope = jacobian(model, x)
    order = np.argsort(-cam)
    dual = {"inf": 1, "2": 2, "1": np.inf}[norm]
    for eps, k in ((0.05, 1), (0.3, 2)):
        pairs = list(itertools.product(order[:k], order[k:]))
        expected = min(cam[i] - cam[j] - eps * np.linalg.norm(slope[i] - slope[j], dual) for i, j in pairs)
        answer = exact_margin(model, x, eps=eps, norm=norm, clip=None, k=k, class_idx=0)
        assert answer.regions == 1
        assert answer.lower == pytest.approx(expected, abs=1e-9)
        assert answer.upper == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_an_l2_ball_cut_by_the_box_agrees_with_slsqp(seed):
    model, x = linear(seed)
    x = (1.6 * x - 0.3).clamp(0, 1)
    cam, slope = jacobian(model, x)
    order, eps, center = np.argsort(-cam), 0.7, x.numpy().ravel()
    expected = np.inf
    for i, j in itertools.product(order[:1], order[1:]):
        c = slope[i] - slope[j]
        inside = {"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d}
        found = minimize(
            lambda d, c=c: c @ d,
            np.zeros(len(c)),
            jac=lambda d, c=c: c,
            bounds=list(zip(-center, 1 - center, strict=True)),
            constraints=[inside],
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )
        assert found.success
        expected = min(expected, cam[i] - cam[j] + found.fun)
    plain, cut = (exact_margin(model, x, eps=eps, norm="2", clip=clip, k=1, class_idx=0) for clip in (None, (0.0, 1.0)))
    assert cut.lower == pytest.approx(expected, abs=1e-6)
    assert cut.upper == pytest.approx(expected, abs=1e-6)
    assert cut.lower > plain.lower + 1e-3


@pytest.mark.parametrize("seed", mostly_slow(range(3), [1]))
def test_l1_agrees_with_another_linear_program_on_every_region(seed):
    """Variables d and a >= |d|, no pruning at all."""
    model, x = seeded(Small, seed), image(1, 3, 4, seed=seed).double()
    eps, center, n = 0.6, x.numpy().ravel(), x.numel()
    found = regions(model, x, eps=eps, norm="1", clip=(0.0, 1.0), class_idx=0)
    at_center = Affine.of(model, x, 0)
    order = np.argsort(-(at_center.cam @ at_center.values(np.zeros((1, n))))[:, 0], kind="stable")
    eye = np.eye(n)
    ball = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, -eye]), np.append(np.zeros(n), np.ones(n))])
    rhs, least = np.append(np.zeros(2 * n), eps), np.inf
    bounds = [*zip(-center, 1 - center, strict=True), *[(0, eps)] * n]
    for region in found:
        table = np.vstack([ball, np.hstack([region.rows[:, 1:], 0 * region.rows[:, 1:]])])
        for i, j in itertools.product(order[:2], order[2:]):
            form = region.cam[i] - region.cam[j]
            cost = np.append(form[1:], np.zeros(n))
            answer = linprog(cost, table, np.append(rhs, -region.rows[:, 0]), bounds=bounds)
            if answer.status == 0:
                least = min(least, form[0] + answer.fun)
    answer = exact_margin(model, x, eps=eps, norm="1", clip=(0.0, 1.0), k=2, class_idx=0)
    assert len(found) > 1
    assert answer.lower == pytest.approx(least, abs=1e-9)


class FewInputs(nn.Module):
    """1x1x``n`` inputs spread over a 2x(n+1) map: small enough to look at every input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 2, padding=1), nn.Conv2d(4, 3, 1), nn.Linear(3, 3)
        for module in (self.first, self.second, self.head):
            nn.init.normal_(module.weight)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


FEW = [(seed, *inputs, norm) for seed in range(2) for inputs in ((1, 1e-4), (2, 0.04)) for norm in NORMS]


@pytest.mark.parametrize(("seed", "inputs", "tolerance", "norm"), mostly_slow(FEW, FEW[::5]))
def test_few_inputs_agree_with_a_grid(seed, inputs, tolerance, norm):
    model, x = seeded(FewInputs, seed), image(1, 1, inputs, seed=seed).double()
    eps = 0.5
    axis = np.linspace(-eps, eps, 40001 if inputs == 1 else 301)
    d = np.array(list(itertools.product(axis, repeat=inputs)))
    d = d[np.linalg.norm(d, ORDER[norm], axis=1) <= eps * (1 + 1e-9)]
    wide = double(model)
    with torch.no_grad():
        images = x + torch.tensor(d).reshape(-1, *x.shape[1:])
        features = torch.relu(wide.second(torch.relu(wide.first(images))))
        cam = torch.einsum("c,nchw->nhw", wide.head.weight[0], features).flatten(1).numpy()
        logits, center = wide(images).numpy(), int(wide(x).argmax())
        at_center = cam[len(d) // 2] if inputs == 1 else cam[np.abs(d).sum(axis=1).argmin()]
    keeps = logits.max(axis=1) <= logits[:, center] + 1e-12
    for k, within in ((1, None), (2, None), (1, 2), (2, 3)):
        values = value(cam, at_center, k, within)
        given = {"eps": eps, "norm": norm, "clip": None, "class_idx": 0}
        if within is None:
            answer = exact_margin(model, x, k=k, **given)
        else:
            answer = exact_within_margin(model, x, k1=k, k2=within, **given)
        kept = exact_margin_keep_class(model, x, k=k, within=within, **given)
        for found, grid in ((answer, values.min()), (kept, values[keeps].min())):
            assert found.upper <= grid + 1e-9
            assert found.lower >= grid - tolerance


# --- other oracles --------------------------------------------------------------------------------------------


BRUTE: list[list[Any]] = [[5, 9, 14, 24], [None, (0.0, 1.0)]]


@pytest.mark.parametrize(("seed", "clip"), mostly_slow(itertools.product(*BRUTE), diagonal(*BRUTE)[:2]))
def test_brute_force_agrees(seed, clip):
    model, x = seeded(Tiny, seed), image(1, 3, 4, seed=seed).double()
    for eps in (0.02, 0.1):
        expected = brute_force_margin(model.first, model.second, model.head.weight[1], x, eps, 1, clip)
        answer = exact_margin(model, x, eps=eps, norm="inf", clip=clip, k=1, class_idx=1)
        assert answer.lower == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_textbook_milp_of_pooled_networks_agrees(seed):
    model, x = seeded(Pooled, seed, channels=2), image(1, 4, 4, seed=seed)
    for eps in (0.02, 0.06):
        expected = plain_milp_margin(model, x, eps, 1, 0)
        answer = exact_margin(model, x, eps=eps, norm="inf", clip=None, k=1, class_idx=0)
        assert answer.lower == pytest.approx(expected, abs=1e-6)


def milp_minimum(q: SmallQuestion) -> float:
    """The question as one textbook MILP per top pixel, for L-infinity and networks without pooling or skip."""
    model = double(q.model)
    center = q.x.numpy().ravel()
    low, high = center - q.eps, center + q.eps
    if q.clip is not None:
        low, high = low.clip(*q.clip), high.clip(*q.clip)
    with torch.no_grad():
        hidden = torch.relu(model.first(q.x))
        features = torch.relu(model.second(hidden))[0].flatten(1)
        weight, bias = model.head.weight.numpy(), model.head.bias.numpy()
        predicted = int(model(q.x).argmax())
    cam = weight[q.class_idx] @ features.numpy()
    order, pixels = np.argsort(-cam, kind="stable"), cam.size
    best = np.inf
    for i in order[: q.k]:
        problem = PlainMilp(low, high)
        a = list(range(len(center)))
        for conv, shape in ((model.first, q.x.shape[1:]), (model.second, hidden.shape[1:])):
            a = [problem.relu(z) for z in problem.affine(*conv_matrix(conv, tuple(shape)), a)]
        units = np.array(a).reshape(-1, pixels)
        if q.keep_class:
            for other in set(range(len(bias))) - {predicted}:
                drop = np.repeat((weight[predicted] - weight[other]) / pixels, pixels)
                row = dict(zip(units.ravel().tolist(), drop.tolist(), strict=True))
                problem.rows.append((row, bias[other] - bias[predicted], np.inf))
        others = list(order[q.k :]) if q.within is None else [j for j in order if j != i]
        least = problem.variable(-100.0, 100.0)
        passed = [problem.variable(0, 1, 1) for _ in others]
        problem.rows.append((dict.fromkeys(passed, 1.0), 1.0 if q.within is None else float(q.within), np.inf))
        for j, there in zip(others, passed, strict=True):  # CAM_i - CAM_j <= least where there
            row = dict(zip(units[:, i].tolist(), weight[q.class_idx].tolist(), strict=True))
            row.update(zip(units[:, j].tolist(), (-weight[q.class_idx]).tolist(), strict=True))
            problem.rows.append(({**row, least: -1.0, there: 200.0}, -np.inf, 200.0))
        best = min(best, problem.minimum({least: 1.0}))
    return best


def test_one_textbook_milp_agrees_on_every_kind_of_question():
    asked = [
        (q, q.answer())
        for q in questions(40, seed=2, norms=("inf",))
        if not q.model.residual and isinstance(q.model.pool, nn.Identity)
    ]
    assert {(q.within is None, q.keep_class) for q, _ in asked} == set(itertools.product((True, False), repeat=2))
    for q, answer in asked:
        assert milp_minimum(q) == pytest.approx(answer.lower, abs=2e-4), q.label  # big-M of 200 times 1e-6


# --- what must hold between answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kwargs", SMALL)
def test_eps_zero_is_the_center_and_more_is_never_better(kwargs, norm):
    model, x = seeded(Small, 7, **kwargs), image(1, 3, 4, seed=8).double()
    for keep, within in itertools.product((False, True), (None, 3)):
        q = SmallQuestion(model, x, 0.0, 2, within, keep, norm, (0.0, 1.0), 0, "")
        center = float(by_torch(q, x)[0])
        answers = [
            SmallQuestion(model, x, eps, 2, within, keep, norm, (0.0, 1.0), 0, "").answer()
            for eps in (0.0, 1e-6, 0.02, 0.06, 0.12)
        ]
        assert answers[0].lower == answers[0].upper == pytest.approx(center, abs=1e-12)
        assert answers[1].lower == pytest.approx(center, abs=1e-3)
        assert all(b.lower <= a.upper + 1e-9 for a, b in pairwise(answers))


def test_related_answers_are_ordered():
    """Norms nest; a class to keep only takes images away; ``within`` gets easier with k2 and harder with k1."""
    for q, _ in itertools.islice(some_questions(), 0, None, 4):
        given: dict[str, Any] = {
            "eps": q.eps if q.norm == "inf" else 0.3 * q.eps,
            "clip": q.clip,
            "class_idx": q.class_idx,
        }
        by_norm = [exact_margin(q.model, q.x, k=q.k, norm=n, **given) for n in NORMS]
        assert all(a.lower <= b.upper + 1e-9 for a, b in pairwise(by_norm))
        pixels = 6 if q.model.residual else 4
        kept = exact_margin_keep_class(q.model, q.x, k=q.k, norm="inf", **given)
        assert kept.lower >= by_norm[0].lower - 1e-9
        wider = [exact_within_margin(q.model, q.x, k1=q.k, k2=k2, norm="inf", **given) for k2 in range(q.k, pixels)]
        assert all(a.lower <= b.upper + 1e-9 for a, b in pairwise(wider))
        if None not in (by_norm[0].stable, wider[0].stable):
            assert wider[0].stable == by_norm[0].stable
        fewer = [exact_within_margin(q.model, q.x, k1=k1, k2=q.k, norm="inf", **given) for k1 in range(1, q.k + 1)]
        assert all(a.upper >= b.lower - 1e-9 for a, b in pairwise(fewer))
        kept_wide = exact_margin_keep_class(q.model, q.x, k=q.k, within=pixels - 1, norm="inf", **given)
        assert kept_wide.lower >= wider[-1].lower - 1e-9


def test_in_place_relus_change_nothing():
    x = image(1, 3, 4, seed=2).double()
    first, second = (
        exact_margin(seeded(Small, 4, residual=1, inplace=p), x, eps=0.1, norm="inf", clip=None, k=2) for p in (0, 1)
    )
    assert (first.lower, first.upper, first.regions) == (second.lower, second.upper, second.regions)


def test_bounds_of_a_ball_hold_at_its_points():
    rng = np.random.default_rng(0)
    x = (1.6 * image(1, 3, 4, seed=1).double() - 0.3).clamp(0, 1)
    for norm, clip in itertools.product(NORMS, (None, (0.0, 1.0))):
        ball = Ball.around(x, 0.3, norm, clip)
        forms = rng.normal(size=(20, 13))
        d = ball.sample(3000, rng)
        assert (np.linalg.norm(d, ORDER[norm], axis=1) <= 0.3 * (1 + 1e-12)).all()
        values = forms[:, :1] + forms[:, 1:] @ d.T
        assert (values >= ball.least(forms)[:, None] - 1e-12).all()


# --- the generator --------------------------------------------------------------------------------------------


def test_questions_are_the_same_each_time_and_differ_by_seed():
    def plain(seed: int) -> list[tuple[object, ...]]:
        return [(q.label, *q.arguments.values()) for q in questions(20, seed=seed)]

    assert plain(3) == plain(3)
    assert plain(3) != plain(4)
    assert {q.norm for q in questions(10, norms=("inf",))} == {"inf"}


def test_questions_are_spread():
    asked = some_questions()
    every: dict[str, set[Any]] = {
        "norm": set(NORMS),
        "clip": {None, (0.0, 1.0)},
        "keep_class": {True, False},
        "k": {1, 2, 3},
    }
    for attribute, expected in every.items():
        assert expected <= {getattr(q, attribute) for q, _ in asked}
    assert {q.within is None for q, _ in asked} == {True, False}
    for keep, relaxed in itertools.product((True, False), repeat=2):
        verdicts = [a.stable for q, a in asked if (q.keep_class, q.within is None) == (keep, relaxed)]
        assert verdicts.count(True) >= 3
        assert verdicts.count(False) >= 3
    differs = [a.lower > replace(q, keep_class=False).answer().upper + 1e-6 for q, a in asked if q.keep_class]
    assert sum(differs) > 0.2 * len(differs)
    stable = [a.stable for _, a in asked]
    assert 0.3 < stable.count(True) / len(stable) < 0.7
    assert any(abs(a.lower) < 1e-3 for _, a in asked)
    assert stable.count(None) < 0.1 * len(stable)
