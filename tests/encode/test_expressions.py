"""Expressions against the torch forward: what they are worth at an image, what they read, and that they stay so."""

from __future__ import annotations

import functools
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from encoding import CASES, CUT_CASES, PATIENT, Setting, close, value
from patience import mostly_slow

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.relaxation import window_taps
from corgi_opt.encode.expressions import Expression, Expressions, combined
from corgi_opt.network.cone import reach_of

setting = functools.cache(Setting.case)
cut_setting = functools.cache(lambda index: Setting.with_cuts(*CUT_CASES[index]))


def relu_columns(at: Setting, relu: str) -> np.ndarray:
    start = at.first_column(relu)
    return np.arange(start, start + np.prod(at.net.graph[relu].shape))


def every_unit(at: Setting, expressions: Expressions, order: int = 1) -> dict[int, Expression]:
    """Pre-activations of every unit of the network, by column, asked for from the image up or (-1) down."""
    found: dict[int, Expression] = {}
    for relu in at.net.graph.relus[::order]:
        columns = relu_columns(at, relu)
        found.update(zip(columns.tolist(), expressions.units(relu, columns, PATIENT), strict=True))
    return found


def well_formed(at: Setting, e: Expression) -> bool:
    """Sorted columns of inputs and unstable ReLUs, without zeros, and windows of pools with direct planes."""
    forbidden = np.isnan(at.variables(at.ball.center[0]))
    return (
        bool((np.diff(e.columns) > 0).all() and (np.diff(e.windows) > 0).all())
        and bool((e.values != 0).all() and not forbidden[e.columns].any())
        and set(at.expressions.by_node(e.windows)) <= set(at.known.planes)
    )


@pytest.mark.parametrize("case", mostly_slow(CASES, CASES.keys() - {"everything"}))
def test_every_unit_at_images_is_its_preactivation(case):
    at = setting(case)
    units = every_unit(at, at.expressions)
    assert len(units) == sum(np.prod(at.net.graph[n].shape) for n in at.net.graph.relus)
    assert all(well_formed(at, e) for e in units.values())
    deepest = list(units.values())[-np.prod(at.net.graph[at.net.graph.relus[-1]].shape) :]
    assert any((e.columns >= at.expressions.inputs).any() for e in deepest)  # it reads units as well
    for x in at.points(6):
        variables, expected = at.variables(x), at.preactivations(x)
        got = np.array([value(e, variables) for e in units.values()])
        np.testing.assert_allclose(got, expected[list(units)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_cam_pixels_and_what_is_made_of_them(case):
    at = setting(case)
    count = at.net.map_shape[0] * at.net.map_shape[1]
    pixels = at.pixels(*range(count))
    assert all(well_formed(at, e) for e in pixels)
    made = [first - second for first, second in pairwise(pixels)] + [-pixels[0], pixels[0] - pixels[0]]
    made.append(combined([(0.5, pixels[0]), (-2.0, pixels[-1]), (3.0, pixels[1])], 0.25))
    assert all(well_formed(at, e) for e in made)
    assert len(made[-2].columns) == 0  # what cancels is not there
    for x in at.points(6):
        cam, variables = at.net.cams(x[None], 0).flatten().numpy(), at.variables(x)
        np.testing.assert_allclose([value(e, variables) for e in pixels], cam, rtol=1e-9, atol=1e-9)
        expected = [*(cam[:-1] - cam[1:]), -cam[0], 0.0, 0.5 * cam[0] - 2 * cam[-1] + 3 * cam[1] + 0.25]
        np.testing.assert_allclose([value(e, variables) for e in made], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_where_nothing_is_unstable_it_is_the_gradient(case):
    at = setting(case, eps=0.0)
    (e,) = at.pixels(at.pair[0])
    assert not (e.columns >= at.expressions.inputs).any()
    x = at.ball.center.clone().requires_grad_(True)
    pixel = at.net.cams(x, 0).flatten()[at.pair[0]]
    (gradient,) = torch.autograd.grad(pixel, x)
    dense = np.zeros(at.expressions.inputs)
    dense[e.columns] = e.values
    np.testing.assert_allclose(dense, gradient.flatten().numpy(), atol=1e-12)
    assert value(e, at.ball.center.flatten().numpy()) == pytest.approx(float(pixel.detach()), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_it_reads_what_it_can_reach_and_all_that_has_a_gradient(case):
    at = setting(case)
    graph, positions = at.net.graph, at.net.map_shape[0] * at.net.map_shape[1]
    for pixel in (0, positions // 2, positions - 1):
        (e,) = at.pixels(pixel)
        mask = torch.zeros(1, positions, dtype=torch.bool)
        mask[0, pixel] = True
        reach = reach_of(graph, at.net.features, mask.view(1, *at.net.map_shape))
        for name, columns in at.expressions.by_node(e.columns).items():
            flat = columns - at.first_column(name)
            assert bool(reach[name][0].expand(graph[name].shape).flatten()[flat].all())
        for name, windows in at.expressions.by_node(e.windows).items():
            assert len(windows) <= graph[name].shape[0] * int(reach[name].sum())
        # inputs of the pixel, and of the units it reads, and of those that they read
        read, todo = set(), [e]
        while todo:
            for name, columns in at.expressions.by_node(todo.pop().columns).items():
                fresh = np.array([c for c in columns.tolist() if c not in read], dtype=np.int64)
                read.update(fresh.tolist())
                if name != graph.input and len(fresh):
                    todo += at.expressions.units(name, fresh, PATIENT)
        for x in at.points(4):
            x = x[None].requires_grad_(True)
            (gradient,) = torch.autograd.grad(at.net.cams(x, 0).flatten()[pixel], x)
            moved = torch.nonzero(gradient.flatten().abs() > 1e-12).flatten()  # the rest is what cancels
            assert set(moved.tolist()) <= read
        assert len(read) < at.expressions.columns / 2


@pytest.mark.parametrize("case", CASES)
def test_remembered_units_are_as_fresh_ones(case):
    at = setting(case)
    first, second = (Expressions(at.net.graph, at.known) for _ in range(2))
    up, down = every_unit(at, first), every_unit(at, second, order=-1)
    for relu in at.net.graph.relus:
        columns = relu_columns(at, relu)
        third = Expressions(at.net.graph, at.known)
        odd, all_ = third.units(relu, columns[1::2], PATIENT), third.units(relu, columns, PATIENT)
        assert all(a is b for a, b in zip(odd, all_[1::2], strict=True))
        backwards = third.units(relu, columns[::-1], PATIENT)
        assert all(a is b for a, b in zip(all_, backwards[::-1], strict=True))
        for column, e in zip(columns.tolist(), all_, strict=True):
            assert close(e, up[column])
            assert close(e, down[column])


def test_what_is_remembered_takes_no_pass(monkeypatch):
    at = setting("deep")
    expressions = Expressions(at.net.graph, at.known)
    module = sys.modules["corgi_opt.encode.expressions"]
    passed: list[int] = []
    backward = module.backward

    def counting(graph, node, rows, *rest):
        passed.append(len(rows))
        return backward(graph, node, rows, *rest)

    monkeypatch.setattr(module, "backward", counting)
    columns = relu_columns(at, at.net.graph.relus[-1])
    expressions.units(at.net.graph.relus[-1], columns[:7], PATIENT)
    expressions.units(at.net.graph.relus[-1], columns[:10], PATIENT)
    assert passed == [7, 3]
    expressions.units(at.net.graph.relus[-1], columns[:10], Deadline(0.0))  # nor any time
    assert passed == [7, 3]


@pytest.mark.parametrize("case", ["everything", "overlapping pool", "deep"])
def test_chunks_change_nothing(case, monkeypatch):
    at = setting(case)
    count = at.net.map_shape[0] * at.net.map_shape[1]
    whole = at.pixels(*range(count))
    monkeypatch.setenv("CORGI_CHUNK_BYTES", "1")
    assert all(close(one, e) for one, e in zip(at.pixels(*range(count)), whole, strict=True))


def test_bounds_are_those_proven():
    at = setting("everything")
    for relu in at.net.graph.relus:
        columns = relu_columns(at, relu)[::3]
        lower, upper = at.known.intervals[at.net.graph[relu].inputs[0]]
        expected = torch.stack([lower.flatten()[::3], upper.flatten()[::3]]).numpy()
        assert np.array_equal(at.expressions.bounds(relu, columns), expected)


def test_columns_by_their_node():
    at = cut_setting(2)
    graph, pools = at.net.graph, list(at.known.planes)
    names = [graph.input, *graph.relus, *pools]
    sizes = [int(np.prod(graph[n].shape)) for n in names]
    assert at.expressions.columns == sum(sizes)
    starts = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    last, first = starts[names[1]] - 1, starts[names[2]]
    found = at.expressions.by_node({starts[pools[0]] + 1, last, 0, first})
    assert {n: c.tolist() for n, c in found.items()} == {
        graph.input: [0, last],
        names[2]: [first],
        pools[0]: [starts[pools[0]] + 1],
    }
    whole = at.expressions.by_node(range(at.expressions.columns))
    assert {n: len(c) for n, c in whole.items()} == dict(zip(names, sizes, strict=True))
    assert at.expressions.by_node([]) == {}


@pytest.mark.parametrize("index", range(len(CUT_CASES)))
def test_cuts_are_planes_and_maxima(index):
    """``plane below - maximum`` and ``maximum - plane above`` at images, where the planes are used, and at most 0."""
    at = cut_setting(index)
    ((name, planes),) = at.known.planes.items()
    start = at.expressions.columns - int(np.prod(at.net.graph[name].shape))
    windows = np.arange(start, at.expressions.columns)
    cuts = at.expressions.cuts(name, windows, PATIENT)
    assert planes.used is not None
    below, above = (used[0].flatten().numpy() for used in planes.used)
    assert len(cuts) == below.sum() + above.sum() > 0
    for x in at.points(40):
        values, variables = at.net.graph.values(x[None]), at.variables(x)
        taps = window_taps(planes.pool, values[planes.source], 0.0)
        maximum = values[name].flatten().numpy()
        lowest, highest = (side.at(taps).flatten().numpy() for side in (planes.planes.lower, planes.planes.upper))
        expected = np.concatenate([(lowest - maximum)[below], (maximum - highest)[above]])
        got = np.array([value(c, variables) for c in cuts])
        np.testing.assert_allclose(got, expected, atol=1e-9)
        assert got.max() <= 1e-9
    half = at.expressions.cuts(name, windows[::2], PATIENT)
    assert len(half) == below[::2].sum() + above[::2].sum()
    assert all(any(close(h, c) for c in cuts) for h in half)
    assert at.expressions.cuts(name, windows[~below & ~above], PATIENT) == []


@pytest.mark.parametrize("index", range(len(CUT_CASES)))
def test_windows_that_pixels_pass_through_are_taken_down(index):
    """All of them: those from which a pixel has a gradient."""
    at = cut_setting(index)
    (name,) = at.known.planes
    start = at.expressions.columns - int(np.prod(at.net.graph[name].shape))
    (e,) = at.pixels(at.pair[0])
    assert len(e.windows)
    (other,) = at.pixels(0)
    assert not np.array_equal(other.windows, e.windows)
    for difference in (e - other, other - e):
        assert np.array_equal(difference.windows, np.union1d(e.windows, other.windows))
    assert np.array_equal((-e).windows, e.windows)
    for x in at.points(5):
        values = dict(at.net.graph.values(x[None].requires_grad_(True), at.net.features))
        pixel = (values[at.net.features][0] * at.net.weight[0][:, None, None]).sum(dim=0).flatten()[at.pair[0]]
        (gradient,) = torch.autograd.grad(pixel, values[name])
        # an unstable unit between them ends the expression: its own passes on
        units = at.expressions.by_node(e.columns[e.columns >= at.expressions.inputs])
        further = [u for n, c in units.items() for u in at.expressions.units(n, c, PATIENT)]
        passed = {w for f in (e, *further) for w in f.windows.tolist()}
        assert set((torch.nonzero(gradient.flatten()).flatten() + start).tolist()) <= passed


def test_a_deadline_that_has_passed_is_raised():
    at = setting("plain")
    expressions = Expressions(at.net.graph, at.known)
    relu = at.net.graph.relus[0]
    with pytest.raises(TimeoutError, match="time limit"):
        expressions.units(relu, relu_columns(at, relu)[:1], Deadline(0.0))
    assert len(expressions.units(relu, relu_columns(at, relu)[:1], PATIENT)) == 1
