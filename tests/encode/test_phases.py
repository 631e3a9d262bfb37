"""Bounds of phase patterns: below every image that a pattern allows, and after ascent near what an LP can prove."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from corgi_solvers import Cvxpy
from encoding import CASES, Setting, scipy_lp
from encoding import exact_setting as setting
from torch import Tensor

from corgi_opt.encode import phases as phases_module
from corgi_opt.encode.hull import HullPlanes, hull_planes
from corgi_opt.encode.nodes import Nodes
from corgi_opt.encode.phases import FASTEST, SLOWEST, Bound, PhaseBounds
from corgi_opt.encode.program import Program
from corgi_opt.encode.triangle import triangle

CPU = torch.device("cpu")

PROGRAMS = [(case, "inf") for case in CASES]
PROGRAMS += [
    ("residual", "2"),
    ("overlapping pool", "2"),
    ("deep", "2"),
    ("plain", "1"),
    ("pooled", "1"),
    ("deep", "1"),
]
every_program = pytest.mark.parametrize(("case", "norm"), PROGRAMS)
every_case = pytest.mark.parametrize("case", CASES)
either = pytest.mark.parametrize("planes", [False, True], ids=["chords", "planes"])


@functools.cache
def hull(case: str, norm: str = "inf") -> HullPlanes:
    return hull_planes(setting(case, norm)[1], steps=40)


def bounds_of(case: str, norm: str = "inf", planes: bool = False) -> PhaseBounds:
    return PhaseBounds(setting(case, norm)[1], hull(case, norm) if planes else None, torch.float64, CPU)


def images(at: Setting, count: int) -> Tensor:
    """Images (N, C, H, W) of the region: half of them move all inputs, half a few."""
    moved = at.points(count) - at.ball.center
    moved[::2] *= torch.rand(moved[::2].shape, generator=torch.Generator().manual_seed(5)) < 0.1
    return torch.cat([at.ball.project(at.ball.center + d[None]) for d in moved])


def scaled(at: Setting, program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    """(t (n, N), z (U, N)) of images by running the whole network."""
    t, z = zip(*(at.scaled(program, image) for image in x), strict=True)
    return torch.from_numpy(np.stack(t, axis=1)), torch.from_numpy(np.stack(z, axis=1))


def random_nodes(z: Tensor, count: int, goals: int = 1) -> Nodes:
    """Patterns that images with pre-activations z (U, M) have, more or less of them fixed; random multipliers."""
    generator = torch.Generator().manual_seed(0)

    def uniform() -> Tensor:
        return torch.rand(len(z), count, generator=generator, dtype=torch.float64)

    like = z[:, torch.arange(count) % z.shape[1]]
    fixed = uniform() < torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)[torch.arange(count) % 4]
    signs = (torch.where(like > 0, 1, -1) * fixed).to(torch.int8)
    goal, pace, recorded = torch.arange(count) % goals, torch.full((count,), FASTEST), torch.full((count,), -1)
    return Nodes(signs, uniform(), uniform() ** 4, uniform(), goal, pace, recorded)


def least_allowed(nodes: Nodes, z: Tensor, values: Tensor) -> Tensor:
    """The least value (N,) of the images, with pre-activations z (U, M), that each node's pattern allows."""
    broken = (nodes.phases[:, :, None] * z[:, None, :] < 0).any(dim=0)
    return torch.where(broken, torch.inf, values).amin(dim=1)


def lam_of(bounds: PhaseBounds, nodes: Nodes) -> tuple[Bound, Tensor]:
    """The bound at the nodes' own multipliers, and the coefficients that reach the units (U, N)."""
    _, bound, _ = bounds.ascend(nodes, 0)
    return bound, bound.lam[bounds.inputs :]


@every_program
def test_values_and_preactivations_are_those_of_the_network(case, norm):
    at, program = setting(case, norm)
    x = images(at, 8)
    t, z = scaled(at, program, x)
    bounds = bounds_of(case, norm)
    expected = at.pair_at(x) / program.scales[0]
    np.testing.assert_allclose(bounds.values(t, torch.zeros(8, dtype=torch.long)), expected, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(bounds.before(torch.cat([t, z.relu()])), z, atol=1e-7)
    single = PhaseBounds(program, hull(case, norm), torch.float32, CPU)
    found = single.values(t.float(), torch.zeros(8, dtype=torch.long))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@every_program
def test_images_that_fall_stay_in_the_region_and_get_no_higher(case, norm):
    """Their values are those of the network; most of what was drawn at random gets lower."""
    at, program = setting(case, norm)
    bounds = bounds_of(case, norm)
    t, _ = scaled(at, program, images(at, 60))
    goal = torch.zeros(60, dtype=torch.long)
    before = bounds.values(t, goal)
    fallen, values = bounds.fall(t, goal)
    torch.testing.assert_close(values, bounds.values(fallen, goal))
    assert bool((values <= before).all()) and float((values < before - 1e-6).double().mean()) > 0.8
    reach, shift = torch.from_numpy(program.reach)[:, None], torch.from_numpy(program.shift)[:, None]
    offset, p = reach * fallen + shift, float(norm)
    assert float(fallen.abs().max()) <= 1 + 1e-12 and float(offset.norm(p=p, dim=0).max()) <= 1 + 1e-9
    assert torch.equal(bounds.fall(t, goal)[0], fallen)


def test_of_a_linear_output_the_lowest_image_is_found_at_once():
    program = setting("plain", "inf")[1]
    alone = replace(program, outputs=program.outputs * (np.arange(program.outputs.shape[1]) < program.inputs))
    bounds = PhaseBounds(alone, None, torch.float64, CPU)
    start = torch.zeros(program.inputs, 1, dtype=torch.float64)
    fallen, (value,) = bounds.fall(start, torch.zeros(1, dtype=torch.long))
    coefs = torch.from_numpy(alone.outputs.toarray()[0, : program.inputs])
    assert float(value) == pytest.approx(float(alone.output_constants[0] - coefs.abs().sum()), abs=1e-12)
    assert torch.equal(fallen[coefs != 0, 0], -coefs.sign()[coefs != 0])


@either
@every_program
def test_no_image_that_a_pattern_allows_is_below_its_bound(case, norm, planes):
    at, program = setting(case, norm)
    bounds, x = bounds_of(case, norm, planes), images(at, 24)
    nodes = random_nodes(scaled(at, program, x)[1], 48)
    better, _, point = bounds.ascend(nodes, 25)
    # the images that bounds believe in are where one that is too high would show
    x = torch.cat([x, *(at.ball.project(program.image(t.numpy(), at.ball.center)) for t in point.variables.T)])
    _, z = scaled(at, program, x)
    least = least_allowed(nodes, z, torch.from_numpy(at.pair_at(x) / program.scales[0]))
    assert bool(least.isfinite().all())
    for tried in (nodes, better):
        assert float((bounds.descend(tried) - least).max()) <= 1e-9 * max(1.0, float(least.abs().max()))


@either
@every_program
def test_ascent_keeps_the_best_it_meets(case, norm, planes):
    at, program = setting(case, norm)
    bounds = bounds_of(case, norm, planes)
    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 24)
    start = bounds.descend(nodes)
    for steps in (0, 1, 8):
        best, bound, point = bounds.ascend(nodes, steps)
        assert bool((bound.value >= start - 1e-10 * start.abs().clamp(min=1)).all())
        torch.testing.assert_close(bounds.descend(best), bound.value)
        assert torch.equal(best.phases, nodes.phases)
        assert all(bool(((m >= 0) & (m <= 1)).all()) for m in (best.slopes, best.mixes))
        assert bool((best.pulls >= 0).all())
        for t in point.variables[:, :5].T:
            assert at.ball.distance(program.image(t.numpy(), at.ball.center)) <= at.ball.eps * (1 + 1e-9)
    assert float((bound.value - start).min()) > 0


@pytest.mark.parametrize("case", ["residual", "pooled"])
@either
def test_steps_that_lose_are_not_kept(case, planes):
    """Where there is little left to gain."""
    at, program = setting(case)
    bounds = bounds_of(case, planes=planes)
    best = random_nodes(scaled(at, program, images(at, 12))[1], 24)
    for _ in range(5):
        best, bound, _ = bounds.ascend(best, 30)
    again, found, _ = bounds.ascend(best, 1)
    assert bool((found.value >= bound.value - 1e-10 * bound.value.abs().clamp(min=1)).all())
    assert bool((again.slopes == best.slopes).all(dim=0).any())


@pytest.mark.parametrize("case", ["residual", "pooled"])
@either
def test_steps_go_no_farther_than_the_goal_asks_for(case, planes):
    """Multipliers that are asked for next to nothing are moved by next to nothing, and most of them get it."""
    at, program = setting(case)
    bounds = bounds_of(case, planes=planes)

    def farthest(before: Nodes, after: Nodes) -> float:
        pairs = zip(before.multipliers, after.multipliers, strict=True)
        return max(float((new - old).abs().max()) for old, new in pairs)

    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 24)
    start = bounds.descend(nodes)
    for little in (0.0, 1e-9):
        best, bound, _ = bounds.ascend(nodes, 4, float(start.min()) + little)
        assert farthest(nodes, best) < 1e-4
        lowest = int(start.argmin())
        assert float(bound.value[lowest]) >= float(start.min()) + 0.9 * little
    assert farthest(nodes, bounds.ascend(nodes, 4)[0]) > 0.01


@either
def test_who_gains_nothing_goes_on_more_carefully(planes):
    at, program = setting("pooled")
    bounds = bounds_of("pooled", planes=planes)
    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 24)
    nodes = replace(nodes, pace=torch.full_like(nodes.pace, 0.25))
    start = bounds.descend(nodes)
    best, bound, _ = bounds.ascend(nodes, 1, float(start.median()) + 1e-3)
    gained = bound.value > start
    assert bool(gained.any()) and not bool(gained.all())
    torch.testing.assert_close(best.pace, torch.where(gained, 0.5, 0.125).to(best.pace))
    for pace, steps, then in ((SLOWEST, 0, SLOWEST), (FASTEST, 1, FASTEST)):
        again = bounds.ascend(replace(nodes, pace=torch.full_like(nodes.pace, pace)), steps, float(start.max()) + 1.0)
        assert float(again[0].pace[int(start.argmin())]) == then


@every_program
def test_ascent_at_the_root_approaches_the_lp(case, norm):
    _, program = setting(case, norm)
    lp = Cvxpy().solve(triangle(program)).bound if norm == "2" else scipy_lp(triangle(program))
    bounds = bounds_of(case, norm)
    crown = float(bounds.descend(bounds.root()))
    found = float(bounds.ascend(bounds.root(), 200)[1].value)
    assert crown - 1e-9 <= found <= lp + 1e-6
    assert lp - found <= 0.1 * (lp - crown) + 1e-4 * abs(lp)


def test_there_is_something_to_ascend_to():
    """Else the last test says nothing."""
    gaps = []
    for case in CASES:
        _, program = setting(case)
        bounds = bounds_of(case)
        gaps.append(scipy_lp(triangle(program)) - float(bounds.descend(bounds.root())))
    assert sum(gap > 0.03 for gap in gaps) >= 3


@either
@every_program
def test_children_differ_in_their_unit_and_start_from_their_parent(case, norm, planes):
    at, program = setting(case, norm)
    bounds = bounds_of(case, norm, planes)
    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 36)
    nodes = nodes[(nodes.phases == 0).any(dim=0)]
    bound, lam = lam_of(bounds, nodes)
    units = lam.masked_fill(nodes.phases != 0, -torch.inf).argmax(dim=0)
    count, lam = len(nodes), lam.gather(0, units[None])[0]
    both = nodes.split(units, lam)
    assert len(both) == 2 * count
    for k in range(2 * count):
        changed = nodes.phases[:, k % count].clone()
        changed[units[k % count]] = 1 if k < count else -1
        assert torch.equal(both.phases[:, k], changed)
    assert torch.equal(both.goal, nodes.goal.repeat(2))
    pulled = (lam > 0).repeat(2)
    assert bool(pulled.any())
    gained = bounds.descend(both) - bound.value.repeat(2)
    assert float(gained[pulled].min()) >= -1e-10 * max(1.0, float(bound.value.abs().max()))


def test_a_split_by_a_unit_that_lowers_the_objective_pulls_nothing():
    at, program = setting("deep")
    nodes = random_nodes(scaled(at, program, images(at, 4))[1], 4)
    nodes = replace(nodes, phases=torch.zeros_like(nodes.phases))
    units = torch.tensor([0, 3, 5, 7])
    both = nodes.split(units, torch.tensor([-1.0, -0.1, 0.0, -2.0], dtype=torch.float64))
    assert bool((both.pulls[units.repeat(2), torch.arange(8)] == 0).all())


@either
@every_case
def test_fixed_units_are_not_in_doubt(case, planes):
    at, program = setting(case)
    bounds = bounds_of(case, planes=planes)
    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 24)
    doubt = bounds.doubt(*bounds.ascend(nodes, 3))
    assert bool((doubt[nodes.phases != 0] == 0).all())
    assert bool((doubt >= 0).all())
    assert float(doubt.max()) > 1e-3


@either
@every_case
def test_where_nothing_is_in_doubt_the_bound_is_attained(case, planes):
    """All units fixed as at an image, all pulls zero: a linear function, least at the image that is believed in."""
    at, program = setting(case)
    _, z = scaled(at, program, images(at, 6))
    nodes = random_nodes(z, 6)
    nodes = replace(nodes, phases=torch.where(z > 0, 1, -1).to(torch.int8), pulls=torch.zeros_like(nodes.pulls))
    bounds = bounds_of(case, planes=planes)
    _, bound, point = bounds.ascend(nodes, 0)
    on = (z > 0).double()
    s = torch.zeros_like(z)
    rows, constants = torch.from_numpy(program.rows.toarray()), torch.from_numpy(program.constants)
    t = point.variables[: program.inputs]
    for unit in range(program.units):
        s[unit] = on[unit] * (rows[unit] @ torch.cat([t, s]) + constants[unit])
    costs = torch.from_numpy(program.outputs.toarray()[0])
    expected = costs @ torch.cat([t, s]) + float(program.output_constants[0])
    slack = float(program.slack.sum() + program.residue[0])
    np.testing.assert_allclose(bound.value, expected, atol=1e-9 + 100 * slack)


@pytest.mark.parametrize("case", ["residual", "pooled"])
@either
def test_what_clearing_may_have_moved_is_allowed_for(case, planes):
    """Bounds are linear in the constants of rows: each is taken where it is worst, as far off as ``slack`` says."""
    at, program = setting(case)
    nodes = random_nodes(scaled(at, program, images(at, 12))[1], 24)

    def bound(**changed: Any) -> Tensor:
        planes_ = hull(case) if planes else None
        return PhaseBounds(replace(program, **changed), planes_, torch.float64, CPU).descend(nodes)

    exact, moved = bound(slack=np.zeros(program.units)), np.eye(program.units)
    each = torch.stack([bound(slack=np.zeros(program.units), constants=program.constants + m) for m in moved]) - exact
    assert float(each.abs().max()) > 0.1
    slack = np.linspace(0.01, 0.02, program.units)
    torch.testing.assert_close(bound(slack=slack), exact - (torch.from_numpy(slack)[:, None] * each.abs()).sum(dim=0))


@pytest.mark.parametrize("case", ["plain", "pooled", "everything"])
@either
def test_sparse_and_dense_rows_say_the_same(case, planes, monkeypatch):
    at, program = setting(case)
    t, z = scaled(at, program, images(at, 12))
    nodes, found, layouts = random_nodes(z, 24), [], []
    for share in (0, 2):
        monkeypatch.setattr(phases_module, "SPARSE", share)
        bounds = bounds_of(case, planes=planes)
        layouts.append({block.rows.layout for block in bounds._blocks})
        best, bound, point = bounds.ascend(nodes, 4)
        numbers = (bound.value, bound.lam, point.variables, best.slopes, bounds.doubt(best, bound, point))
        found.append((*numbers, bounds.values(t, nodes.goal[:12]), bounds.before(torch.cat([t, z.relu()]))))
    assert layouts[0] == {torch.strided}
    assert layouts[1] == {torch.sparse_csr if phases_module.MKL else torch.strided}
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "norm"), [("residual", "inf"), ("pooled", "inf"), ("deep", "2")])
@either
def test_several_outputs_at_once_are_as_one_at_a_time(case, norm, planes):
    at, _ = setting(case, norm)
    chosen = [p for p in range(0, at.net.map_shape[0] * at.net.map_shape[1], 5) if len(at.pixels(p)[0].columns)][:2]
    program = at.program(at.difference, *at.pixels(*chosen))
    hull = hull_planes(program, steps=10) if planes else None
    bounds = PhaseBounds(program, hull, torch.float64, CPU)
    goals, x = 1 + len(chosen), images(at, 30)
    t, z = scaled(at, program, x)
    values = torch.stack([bounds.values(t, torch.full((30,), goal)) for goal in range(goals)])
    expected = [at.pair_at(x), *at.net.cams(x, 0).flatten(1).T[chosen].numpy()]
    np.testing.assert_allclose(values.numpy() * program.scales[:, None], expected, rtol=1e-7, atol=1e-7)
    nodes = random_nodes(z, 150, goals)  # more than are bounded in one pass
    together, ascended = bounds.descend(nodes), bounds.ascend(nodes, 3)[1].value
    for k in range(0, 150, 7):
        goal, alone = slice(k % goals, k % goals + 1), nodes[torch.tensor([k])]
        names = ("outputs", "output_constants", "scales", "residue")
        single = replace(program, **{name: getattr(program, name)[goal] for name in names})
        one = PhaseBounds(single, hull, torch.float64, CPU)
        alone = replace(alone, goal=torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(one.descend(alone), together[[k]])
        torch.testing.assert_close(one.ascend(alone, 3)[1].value, ascended[[k]])
    assert bool((ascended <= least_allowed(nodes, z, values[nodes.goal]) + 1e-9).all())
    roots = bounds.ascend(bounds.root(goals), 5)[1].value
    assert bool((roots <= values.amin(dim=1) + 1e-9).all())


@pytest.mark.parametrize(
    "said",
    [
        "Sparse CSR tensor support is in beta state. If you miss a functionality in the sparse tensor support, ...",
        "Sparse invariant checks are implicitly disabled. Memory errors (e.g. SEGFAULT) will occur when ...",
    ],
)
def test_what_torch_says_of_sparse_tensors_reaches_nobody(said, monkeypatch):
    """torch 2.11 warns of checks that are off where they are asked for; other warnings do get through."""
    make, checked = torch.sparse_csr_tensor, []

    def warning(*args, **kwargs):
        checked.append(kwargs["check_invariants"])
        warnings.warn(said, UserWarning, stacklevel=2)
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "sparse_csr_tensor", warning)
    monkeypatch.setattr(phases_module, "SPARSE", 1.0)
    monkeypatch.setattr(phases_module, "MKL", True)
    PhaseBounds(setting("residual", "inf")[1], None, torch.float64, CPU)
    assert checked and all(checked)
    said = "something else"
    with pytest.warns(UserWarning, match="something else"):
        PhaseBounds(setting("residual", "inf")[1], None, torch.float64, CPU)
