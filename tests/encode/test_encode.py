"""The encodings against the torch forward, scipy's solvers and brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corgi_solvers import Highs, Problem, Status
from nets import Everything, Plain, Pooled, Residual, image, seeded
from oracles import points_in
from relaxing import pairs, relaxed
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

import corgi_opt as co
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.program import Program, cleared, compile_cone
from corgi_opt.encode.triangle import triangle
from corgi_opt.network.cone import Cone
from corgi_opt.network.ops import ReLU, Window, crop

CASES = [
    (Plain, {}, (1, 6, 6), 0.05),
    (Residual, {}, (1, 7, 5), 0.02),
    (Pooled, {}, (1, 8, 8), 0.03),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9), 0.02),
    (Everything, {}, (3, 12, 11), 0.002),
]


def setting(model, kwargs, shape, eps, seed=0):
    net = co.from_torch(seeded(model, seed, **kwargs), image(*shape))
    ball = co.Ball(image(*shape, seed=seed + 7), eps)
    known = relaxed(net, ball).only(0)
    channels, height, width = net.graph[net.features].shape
    objective = torch.zeros(channels, height, width, dtype=torch.float64)
    objective[:, height // 2, width // 2] += net.weight[0]
    objective[:, height // 2 - 1, 0] -= net.weight[0]
    cone = Cone.of(net.graph, net.features, Window(0, 0, height, width), objective)
    return net, ball, known, cone


def variables_at(net, program: Program, cone: Cone, known, x: torch.Tensor) -> np.ndarray:
    """(t, s, d) of one image by running the whole network: the point an encoding must accept."""
    channel, row, column = program.places.T
    t = (x[0, channel, row, column].numpy() - program.middle) / program.radius
    values = net.graph.values(x, net.features)
    z = []
    for name in cone.order:
        node = net.graph[name]
        if isinstance(node.op, ReLU):
            window, source = cone.windows[name], node.inputs[0]
            lower, upper = (crop(b, window) for b in known.intervals[source])
            open_ = (lower < 0) & (upper > 0) & cone.reach[name]
            z.append((crop(values[source][0], window)[open_] / (upper - lower)[open_]).numpy())
    every = np.concatenate(z)
    return t, every


@pytest.mark.parametrize(("model", "kwargs", "shape", "eps"), CASES)
def test_fixed_inputs_satisfy_both_encodings_with_the_torch_objective(model, kwargs, shape, eps, monkeypatch):
    # keep every unit, so that the order of units is that of the network and nothing else
    monkeypatch.setattr("corgi_opt.encode.program._used", lambda coefs, costs, n: np.ones(len(coefs), dtype=bool))
    net, ball, known, cone = setting(model, kwargs, shape, eps)
    program = compile_cone(cone, ball, known)
    assert program.units > 0
    lp, mip = triangle(program), big_m(program)
    for x in points_in(ball.lower, ball.upper, 20, 3):
        t, z = variables_at(net, program, cone, known, x[None])
        s, d = np.maximum(z, 0), (z > 0).astype(float)
        expected = float(cone.forward(x[None])[0])
        assert lp.violation(np.concatenate([t, s])) < 1e-7
        assert mip.violation(np.concatenate([t, s, d])) < 1e-7
        assert lp.objective(np.concatenate([t, s])) == pytest.approx(expected, rel=1e-7, abs=1e-7)
        assert mip.objective(np.concatenate([t, s, d])) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("model", "kwargs", "shape", "eps"), CASES)
def test_pruned_encodings_keep_their_optima_and_order(model, kwargs, shape, eps, monkeypatch):
    net, ball, known, cone = setting(model, kwargs, shape, eps)
    program = compile_cone(cone, ball, known)
    solver = Highs()
    lp, exact = solver.solve(triangle(program)), solver.solve(big_m(program))
    assert lp.status is Status.OPTIMAL
    assert exact.status is Status.OPTIMAL
    height, width = net.map_shape
    pair = torch.tensor([[(height // 2) * width + width // 2, (height // 2 - 1) * width]])
    crown = float(pairs(net, relaxed(net, ball), 0, pair)[0])
    sampled = float(cone.forward(points_in(ball.lower, ball.upper, 500, 4)).min())
    assert crown - 1e-6 <= lp.bound <= exact.bound + 1e-6
    assert exact.objective <= sampled + 1e-6
    # the minimiser, run through the network, attains the optimum
    witness = program.image(exact.x, ball.center)
    assert ball.contains(ball.project(witness))
    assert float(cone.forward(witness)[0]) == pytest.approx(exact.objective, abs=1e-5)
    monkeypatch.setattr("corgi_opt.encode.program._used", lambda coefs, costs, n: np.ones(len(coefs), dtype=bool))
    whole = compile_cone(cone, ball, known)
    assert whole.units >= program.units
    assert solver.solve(big_m(whole)).objective == pytest.approx(exact.objective, abs=1e-6)


@pytest.mark.parametrize(("model", "kwargs", "shape", "eps"), CASES[:3])
def test_scipy_agrees(model, kwargs, shape, eps):
    _, ball, known, cone = setting(model, kwargs, shape, eps)
    program = compile_cone(cone, ball, known)
    lp, mip = triangle(program), big_m(program)
    ours = Highs()
    theirs = linprog(lp.c, lp.A, lp.row_upper, bounds=np.column_stack([lp.col_lower, lp.col_upper]), method="highs-ds")
    assert ours.solve(lp).objective == pytest.approx(theirs.fun + lp.offset, abs=1e-6)
    assert ours.solve(mip).objective == pytest.approx(scipy_minimum(mip), abs=1e-5)


def scipy_minimum(problem: Problem) -> float:
    answer = milp(
        problem.c,
        integrality=problem.integrality.astype(int),
        bounds=Bounds(problem.col_lower, problem.col_upper),
        constraints=LinearConstraint(problem.A, problem.row_lower, problem.row_upper),
        options={"mip_rel_gap": 0.0},
    )
    return float(answer.fun) + problem.offset


def test_clearing_tiny_coefficients_only_relaxes():
    from scipy import sparse

    rows = sparse.csr_array(np.array([[1.0, 1e-12, -3e-10], [0.0, 2.0, 1e-11]]))
    kept, upper = cleared(rows, np.array([0.5, 1.0]))
    assert np.array_equal(kept.toarray(), [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    np.testing.assert_allclose(upper - [0.5, 1.0], [1e-12 + 3e-10, 1e-11], rtol=1e-3)


def test_units_that_cancel_or_die_are_not_encoded():
    """A candidate that is proven never to win its pooling window costs no binary."""
    net, ball, known, cone = setting(Pooled, {}, (1, 8, 8), 0.01)
    program = compile_cone(cone, ball, known)
    unstable = sum(
        int(
            (
                (crop(known.intervals[net.graph[n].inputs[0]].lower, cone.windows[n]) < 0)
                & (crop(known.intervals[net.graph[n].inputs[0]].upper, cone.windows[n]) > 0)
                & cone.reach[n]
            ).sum()
        )
        for n in cone.order
        if isinstance(net.graph[n].op, ReLU)
    )
    assert program.units <= unstable


def test_eps_zero_gives_the_value_at_the_image():
    _, ball, _, cone = setting(Plain, {}, (1, 6, 6), 0.05)
    net = co.from_torch(seeded(Plain), image(1, 6, 6))
    point = ball.with_eps(0.0)
    known = relaxed(net, point).only(0)
    program = compile_cone(Cone.of(net.graph, cone.node, cone.windows[cone.node], cone.objective), point, known)
    assert program.units == 0
    value = Highs().solve(big_m(program)).objective
    assert value == pytest.approx(float(cone.forward(point.center)[0]), abs=1e-9)


CUT_CASES = [
    ({"kernel": 2}, (1, 8, 8), 0.04, 2),
    ({"kernel": 3, "stride": 2}, (1, 7, 7), 0.02, 3),
    ({"kernel": 3, "stride": 2, "padding": 1}, (1, 7, 7), 0.01, 3),
    ({"kernel": 3, "stride": 1}, (1, 6, 6), 0.02, 2),
    ({"kernel": 3, "stride": 3}, (1, 9, 9), 0.01, 3),
]
"""Smooth images and eps at which many candidates of a pooling window compete, so that direct planes are used, and
which a MILP still decides within a second."""


def cut_setting(kwargs, shape, eps, seed):
    """The network, ball, bounds and cone of one pair of CAM pixels, and the pair."""
    net = co.from_torch(seeded(Pooled, seed, channels=2, **kwargs), image(*shape))
    coarse = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    ball = co.Ball(F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True).clamp(0, 1), eps)
    whole = relaxed(net, ball)
    channels, height, width = net.graph[net.features].shape
    i, j = (height // 2) * width + width // 2, (height // 2 - 1) * width
    objective = torch.zeros(channels, height, width, dtype=torch.float64)
    objective.flatten(1)[:, i] += net.weight[0]
    objective.flatten(1)[:, j] -= net.weight[0]
    return net, ball, whole, Cone.of(net.graph, net.features, Window(0, 0, height, width), objective), (i, j)


@pytest.mark.parametrize(("kwargs", "shape", "eps", "seed"), CUT_CASES)
def test_images_satisfy_the_cuts(kwargs, shape, eps, seed, monkeypatch):
    # keep every unit, so that the order of units is that of the network and nothing else
    monkeypatch.setattr("corgi_opt.encode.program._used", lambda coefs, costs, n: np.ones(len(coefs), dtype=bool))
    net, ball, whole, cone, _ = cut_setting(kwargs, shape, eps, seed)
    known = whole.only(0)
    assert known.planes
    program = compile_cone(cone, ball, known)
    assert program.cuts.shape[0] > 0
    assert np.abs(program.cuts.toarray()).max() <= 1 + 1e-12  # of order one, as a solver's tolerances take them
    lp = triangle(program)
    tightest = np.inf
    for x in points_in(ball.lower, ball.upper, 60, 3):
        t, z = variables_at(net, program, cone, known, x[None])
        point = np.concatenate([t, np.maximum(z, 0)])
        room = program.cut_upper - program.cuts @ point
        assert room.min() > -1e-7
        assert lp.violation(point) < 1e-7
        tightest = min(tightest, room.min())
    assert tightest < 0.5  # a row that no image comes near would say nothing


@pytest.mark.parametrize(("kwargs", "shape", "eps", "seed"), CUT_CASES)
def test_cuts_put_the_lp_between_crown_and_the_milp(kwargs, shape, eps, seed):
    net, ball, whole, cone, pair = cut_setting(kwargs, shape, eps, seed)
    known = whole.only(0)
    with_cuts, bare = (compile_cone(cone, ball, k) for k in (known, replace(known, planes={})))
    assert with_cuts.cuts.shape[0] > 0
    assert bare.cuts.shape[0] == 0
    problem = triangle(with_cuts)
    lp, plain, exact = (Highs().solve(p) for p in (problem, triangle(bare), big_m(bare)))
    assert all(s.status is Status.OPTIMAL for s in (lp, plain, exact))
    crown = float(pairs(net, whole, 0, torch.tensor([pair]))[0])
    assert crown - 1e-6 <= lp.bound <= exact.bound + 1e-6
    assert lp.bound > plain.bound + 1e-5  # the planes say something that the triangles do not
    columns = np.column_stack([problem.col_lower, problem.col_upper])
    theirs = linprog(problem.c, problem.A, problem.row_upper, bounds=columns, method="highs-ds")
    assert lp.objective == pytest.approx(theirs.fun + problem.offset, abs=1e-6)


def test_without_cuts_an_lp_can_be_below_crown():
    """CROWN uses the direct planes. An LP that did not have them would break the order of the methods."""
    short = []
    for kwargs, shape, eps, seed in CUT_CASES:
        net, ball, whole, cone, pair = cut_setting(kwargs, shape, eps, seed)
        bare = Highs().solve(triangle(compile_cone(cone, ball, replace(whole.only(0), planes={}))))
        short.append(float(pairs(net, whole, 0, torch.tensor([pair]))[0]) - bare.bound)
    assert max(short) > 1e-4
