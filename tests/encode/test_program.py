"""Programs against the torch forward: their rows, units, cuts and outputs, and what they leave out."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from corgi_solvers import Highs, Problem, Status
from encoding import CASES, CUT_CASES, PATIENT, Setting
from patience import mostly_slow
from scipy import sparse

from corgi_opt._deadline import Deadline
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions, combined
from corgi_opt.encode.program import Program, TooLargeError, cleared, compile_program
from corgi_opt.encode.triangle import triangle
from corgi_opt.network.cone import reach_of

PROGRAM = sys.modules["corgi_opt.encode.program"]

setting = functools.cache(Setting.case)
cut_setting = functools.cache(lambda index: Setting.with_cuts(*CUT_CASES[index]))


def unstable_in_reach(at: Setting) -> dict[str, int]:
    """How many unstable units of each ReLU the pair's receptive fields hold."""
    height, width = at.net.map_shape
    mask = torch.zeros(1, height * width, dtype=torch.bool)
    mask[0, list(at.pair)] = True
    reach = reach_of(at.net.graph, at.net.features, mask.view(1, height, width))
    graph = at.net.graph
    return {n: int((at.known.intervals[graph[n].inputs[0]].unstable & reach[n][0]).sum()) for n in graph.relus}


@pytest.mark.parametrize("case", CASES)
def test_rows_and_outputs_are_those_of_the_network(case):
    at = setting(case)
    first, second = at.pixels(*at.pair)
    program = at.program(first - second, second, -first)
    assert program.units > 0
    np.testing.assert_allclose(abs(program.outputs).max(axis=1).toarray().ravel(), 1.0, rtol=1e-12)
    assert np.array_equal(program.units_at, np.unique(program.units_at))  # in the order of the network
    for x in at.points(20):
        point, (_, z) = at.point(program, x), at.scaled(program, x)
        np.testing.assert_allclose(program.rows @ point + program.constants, z, atol=1e-7)
        cam = at.net.cams(x[None], 0).flatten()[list(at.pair)].numpy()
        got = (program.outputs @ point + program.output_constants) * program.scales
        np.testing.assert_allclose(got, [cam[0] - cam[1], cam[1], -cam[0]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_bounds_are_in_units_of_the_width(case):
    at = setting(case)
    program = at.program()
    lower, upper = at.bounds(program)
    np.testing.assert_allclose(program.lower, lower / (upper - lower), rtol=1e-12)
    np.testing.assert_allclose(program.upper, upper / (upper - lower), rtol=1e-12)
    assert (program.lower < 0).all() and (program.upper > 0).all()
    # a row reads inputs and units before it
    units = program.rows[:, program.inputs :].tocoo()
    assert (units.coords[1] < units.coords[0]).all()


@pytest.mark.parametrize("case", CASES)
def test_a_unit_is_encoded_if_and_only_if_something_reads_it(case):
    at = setting(case)
    program = at.program()
    read = sum(abs(part).sum(axis=0) for part in (program.rows, program.cuts, program.outputs))
    assert (read > 0).all()  # inputs as well
    e, todo, units = at.difference, [at.difference], set()
    assert set(e.columns[e.columns >= at.expressions.inputs].tolist()) <= set(program.units_at.tolist())
    while todo:
        for name, columns in at.expressions.by_node(todo.pop().columns).items():
            fresh = np.array([c for c in columns.tolist() if c not in units], dtype=np.int64)
            if name != at.net.graph.input and len(fresh):
                units.update(fresh.tolist())
                todo += at.expressions.units(name, fresh, PATIENT)
    if not program.cuts.shape[0]:
        assert units == set(program.units_at.tolist())
    assert units <= set(program.units_at.tolist())


@pytest.mark.parametrize("case", CASES)
def test_units_that_cancel_or_die_are_not_encoded(case):
    """A candidate that is proven never to win its pooling window costs no binary."""
    at = setting(case)
    in_reach = unstable_in_reach(at)
    encoded = {n: len(c) for n, c in at.expressions.by_node(at.program().units_at).items()}
    assert all(encoded.get(n, 0) <= count for n, count in in_reach.items())
    if at.net.graph.relus[0].startswith("pool") or case == "everything":
        assert sum(encoded.values()) < 0.7 * sum(in_reach.values())


def test_what_rounding_left_of_a_cancellation_is_left_out():
    at = setting("plain")
    near, *others = at.pixels(at.pair[0], *range(at.net.map_shape[0] * at.net.map_shape[1]))
    far = next(e for e in others if len(e.columns) and not set(e.columns) & set(near.columns))
    only, with_residue = at.program(near), at.program(combined([(1.0, near), (1e-14, far)]))
    assert np.array_equal(with_residue.units_at, only.units_at)
    assert with_residue.inputs == only.inputs
    # what is left out counts as its middle, and half its range as an error
    low, high = at.expressions.ranges(far.columns, at.ball)
    worth = 1e-14 * float(np.abs(far.values) @ (high - low)) / 2
    without, residue = (p.residue[0] * p.scales[0] for p in (only, with_residue))
    assert 0 < worth <= 1.0001 * (residue - without) + 1e-20
    assert residue < without + 2 * worth
    middle = 1e-14 * (far.constant + float(far.values @ (low + high)) / 2)
    moved = (with_residue.output_constants - only.output_constants)[0] * only.scales[0]
    assert moved == pytest.approx(middle, abs=1e-15)
    assert at.program(combined([(1.0, near), (1e-6, far)])).inputs > only.inputs
    nothing = at.program(near - near)
    assert (nothing.inputs, nothing.units) == (0, 0)
    assert Highs().solve(triangle(nothing)).objective == 0.0


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_inputs_are_where_they_were_and_know_how_far_they_moved(norm):
    at = setting("everything", norm=norm, eps=0.02)
    program = at.program()
    center, (channel, row, column) = at.ball.center[0], program.places.T
    low, high = at.ball.lower[channel, row, column].numpy(), at.ball.upper[channel, row, column].numpy()
    np.testing.assert_allclose(program.middle - program.radius, low, atol=1e-15)
    np.testing.assert_allclose(program.middle + program.radius, high, atol=1e-15)
    assert (np.abs(program.shift) > 1e-3).any()  # some are cut off by the box of images
    background = torch.rand(at.ball.center.shape, dtype=torch.float64)
    for x in at.points(5):
        point = at.point(program, x)
        image = program.image(point, background)
        there = x[channel, row, column]
        torch.testing.assert_close(image[0, channel, row, column], there, rtol=0, atol=1e-15)
        elsewhere = torch.ones(x.shape, dtype=torch.bool)
        elsewhere[channel, row, column] = False
        assert torch.equal(image[0][elsewhere], background[0][elsewhere])
        moved = (there - center[channel, row, column]).abs().numpy() / at.ball.eps
        np.testing.assert_allclose(np.abs(program.reach * point[: program.inputs] + program.shift), moved, atol=1e-12)
        # a solver's point may be a little outside
        outside = program.image(point * 1.01, background)[0, channel, row, column].numpy()
        assert (outside >= low - 1e-15).all() and (outside <= high + 1e-15).all()


def test_inputs_that_cannot_move_are_constants():
    at = setting("pooled", eps=0.0)
    program = at.program()
    assert (program.inputs, program.units) == (0, 0)
    value_there = program.output_constants[0] * program.scales[0]
    assert value_there == pytest.approx(at.pair_at(at.ball.center)[0], abs=1e-12)


def test_clearing_tiny_coefficients_only_relaxes():
    rows = sparse.csr_array(np.array([[1.0, 1e-12, -3e-10], [0.0, 2.0, 1e-11]]))
    kept, upper = cleared(rows, np.array([0.5, 1.0]))
    assert np.array_equal(kept.toarray(), [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert kept.nnz == 2
    np.testing.assert_allclose(upper - [0.5, 1.0], [1e-12 + 3e-10, 1e-11], rtol=1e-3)
    assert rows.nnz == 5  # the caller's are as they were


@pytest.mark.parametrize("case", mostly_slow(["pooled", "deep"], ["pooled"]))
def test_what_is_cleared_is_made_up_for(case, monkeypatch):
    """With a coarse threshold: fewer coefficients, yet images satisfy every row, and optima only fall."""
    at = setting(case)
    fine = at.program()
    before = [Highs().solve(encoding(fine)).objective * fine.scales[0] for encoding in (triangle, big_m)]
    monkeypatch.setattr(PROGRAM, "TINY", 0.05)
    coarse = at.program()
    assert coarse.rows.nnz < fine.rows.nnz
    assert (coarse.slack > 0).any()
    for x in at.points(20):
        assert triangle(coarse).violation(at.point(coarse, x)) < 1e-7
        assert big_m(coarse).violation(at.binary_point(coarse, x)) < 1e-7
    after = [Highs().solve(encoding(coarse)).objective * coarse.scales[0] for encoding in (triangle, big_m)]
    assert after[0] < before[0] - 1e-5
    assert after[1] < before[1] - 1e-5


def test_narrow_units_are_widened_and_stay_true(monkeypatch):
    at = setting("deep")
    true, (low, high) = at.program(), at.bounds(at.program())
    monkeypatch.setattr(PROGRAM, "NARROW", 0.2)
    wide, (lower, upper) = at.program(), at.bounds(at.program())
    assert (lower <= low).all() and (upper >= high).all()
    assert (upper - lower > 1.01 * (high - low)).any()
    np.testing.assert_allclose(wide.lower, lower / (upper - lower), rtol=1e-12)
    np.testing.assert_allclose(wide.upper, upper / (upper - lower), rtol=1e-12)
    for x in at.points(20):
        assert triangle(wide).violation(at.point(wide, x)) < 1e-7
        assert big_m(wide).violation(at.binary_point(wide, x)) < 1e-7
    exact = [Highs().solve(big_m(p)).objective * p.scales[0] for p in (true, wide)]
    relaxed = [Highs().solve(triangle(p)).objective * p.scales[0] for p in (true, wide)]
    assert exact[1] == pytest.approx(exact[0], abs=1e-6)
    assert relaxed[1] < relaxed[0] - 1e-5


# --- cuts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(CUT_CASES)))
def test_images_satisfy_the_cuts(index):
    at = cut_setting(index)
    assert at.known.planes
    program = at.program()
    assert program.cuts.shape[0] > 0
    assert np.abs(program.cuts.toarray()).max() <= 1 + 1e-12  # of order one, as a solver's tolerances take them
    lp = triangle(program)
    tightest = np.inf
    for x in at.points(60):
        point = at.point(program, x)
        room = program.cut_upper - program.cuts @ point
        assert room.min() > -1e-7
        assert lp.violation(point) < 1e-7
        tightest = min(tightest, room.min())
    assert tightest < 0.5  # a row that no image comes near would say nothing


def test_without_planes_there_are_no_cuts():
    program = Setting.with_cuts(*CUT_CASES[0], planes=False).program()
    assert program.cuts.shape == (0, program.inputs + program.units)
    assert program.cut_upper.shape == (0,)


# --- errors --------------------------------------------------------------------------------------------------


def by_hand() -> Program:
    """Two inputs, two units, two outputs."""
    pair = np.zeros(2)
    return Program(
        norm="inf",
        places=np.array([[0, 0, 0], [0, 0, 1]]),
        middle=pair,
        radius=pair + 1,
        shift=pair,
        reach=pair + 1,
        rows=sparse.csr_array(np.array([[1.0, -2.0, 0.0, 0.0], [0.0, 3.0, 0.5, 0.0]])),
        constants=pair,
        slack=pair,
        lower=pair - 0.5,
        upper=pair + 0.5,
        cuts=sparse.csr_array((0, 4)),
        cut_upper=np.zeros(0),
        outputs=sparse.csr_array(np.array([[0.0, 0.0, 1.0, -1.0], [2.0, 0.0, 0.0, 4.0]])),
        output_constants=pair,
        scales=pair + 1,
        residue=pair,
        widths=pair + 1,
        grown=pair,
        units_at=np.array([2, 3]),
    )


def test_errors_by_hand():
    # t: e each; s0: e (its bound) + e (its row) + 3e; s1: 2e + 3e + 0.5 * 5e
    np.testing.assert_allclose(by_hand().errors(1e-3), [12.5e-3, 32e-3], rtol=1e-12)
    assert (by_hand().errors(0.0) == 0.0).all()
    assert replace(by_hand(), residue=np.array([1e-6, 0.0])).errors(0.0).tolist() == [1e-6, 0.0]


@pytest.mark.parametrize("case", CASES)
def test_errors_bound_what_tolerances_do_to_outputs(case):
    """Any point whose units miss their ReLUs by what big-M rows kept to a tolerance let them."""
    at, tolerance = setting(case), 1e-4
    first, second = at.pixels(*at.pair)
    program = at.program(first - second, second)
    errors, n = program.errors(tolerance), program.inputs
    generator, worst = np.random.default_rng(0), np.zeros(2)
    for x in at.points(40):
        t, _ = at.scaled(program, x)
        for sign in (*generator.choice([-1.0, 1.0], (3, n + program.units)), np.ones(n + program.units)):
            point = np.concatenate([t + sign[:n] * tolerance, np.zeros(program.units)])
            image = program.image(point, at.ball.center)  # in the box again
            for unit in range(program.units):
                z = (program.rows[[unit]] @ point)[0] + program.constants[unit]
                point[n + unit] = max(z, 0.0) + 2 * tolerance * sign[n + unit]
            cam = at.net.cams(image, 0).flatten()[list(at.pair)].numpy()
            true = np.array([cam[0] - cam[1], cam[1]]) / program.scales
            worst = np.maximum(worst, np.abs(program.outputs @ point + program.output_constants - true))
    assert (worst <= errors).all()
    assert (worst > 0.02 * errors).all()  # and not out of all proportion


MINIMA = [
    (case, *ball) for case in ("plain", "residual", "pooled", "everything") for ball in (("inf", 1.0), ("1", 6.0))
]


@pytest.mark.parametrize(("case", "norm", "times"), mostly_slow(MINIMA, [MINIMA[0], MINIMA[3], MINIMA[4], MINIMA[7]]))
def test_errors_bound_what_tolerances_do_to_a_minimum(case, norm, times):
    """The exact minimum, and the one over rows and bounds that are each relaxed by a tolerance."""
    at, tolerance = setting(case, norm=norm, eps=CASES[case][3] * times), 1e-4
    program = at.program()
    problem = big_m(program)
    by = np.where(problem.integrality, 0.0, tolerance)
    relaxed = Problem(
        problem.c,
        problem.offset,
        problem.A,
        problem.row_lower,
        problem.row_upper + tolerance,
        problem.col_lower - by,
        problem.col_upper + by,
        problem.integrality,
    )
    exact, loose = Highs().solve(problem), Highs().solve(relaxed)
    assert exact.status is loose.status is Status.OPTIMAL
    assert 0 < exact.objective - loose.objective <= program.errors(tolerance)[0]


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [False, True])
def test_a_program_may_be_just_as_large_as_allowed(cuts, monkeypatch):
    at = cut_setting(0) if cuts else setting("plain")
    program = at.program()
    assert bool(program.cuts.shape[0]) == cuts
    count = program.rows.nnz + program.outputs.nnz + program.cuts.nnz
    monkeypatch.setattr(PROGRAM, "MOST_NONZEROS", count)
    assert at.program().units == program.units
    monkeypatch.setattr(PROGRAM, "MOST_NONZEROS", count - 1)
    with pytest.raises(TooLargeError, match=f"more than {count - 1:,} coefficients"):
        at.program()


def test_a_deadline_that_has_passed_is_raised():
    at = setting("deep")
    fresh = Expressions(at.net.graph, at.known)
    with pytest.raises(TimeoutError, match="time limit"):
        compile_program(fresh, at.ball, [at.difference], Deadline(0.0))


def test_an_output_that_reads_nothing_is_a_constant():
    at = setting("plain")
    (pixel,) = at.pixels(at.pair[0])
    program = at.program(combined([(0.0, pixel)], 2.5))
    assert (program.inputs, program.units) == (0, 0)
    for encoding in (triangle, big_m):
        solution = Highs().solve(encoding(program))
        assert solution.bound * program.scales[0] == 2.5
