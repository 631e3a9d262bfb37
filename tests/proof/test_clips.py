"""Intervals that are clipped hold wherever the functional is at most the goal, whatever a file's hints say."""

from __future__ import annotations

import functools
import io
import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from checked_networks import built, crowned
from checked_trees import CASES, at_images, descent, images, open_units, pair_rows, tree_of
from nets import Deep, image, network, seeded
from patience import mostly_slow
from torch import nn

import corgi_opt as co
from corgi_opt.answering.plain import plain_network
from corgi_opt.encode.hull import hull_planes
from corgi_opt.proof.archive import TEXT
from corgi_opt.proof.certificate import MOST_CLIPS, Certificate
from corgi_opt.proof.checker import check
from corgi_opt.proof.clips import Below, Ends, Narrowing, clipped
from corgi_opt.proof.leaves import Leaves
from corgi_opt.proof.program import Lines
from corgi_opt.proof.region import Norm
from corgi_opt.proof.tree import Clips, Tree
from corgi_opt.search import branch as branch_module
from corgi_opt.search import clipping as clipping_module


def hints(units: int, goal: float, seed: int, times: int = 6) -> Clips:
    """Of all sizes, some of them none that a search would find."""
    rng = np.random.default_rng(seed)
    shares = 10.0 ** rng.uniform(-4, 4, (times, 2, units))
    return Clips(
        goal,
        rng.uniform(-0.5, 1.5, (times, units)).astype(np.float32),
        rng.uniform(-0.5, 1.5, (times, units)).astype(np.float32),
        np.where(rng.random(shares.shape) < 0.2, -1.0, shares),
    )


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("case", CASES)
def test_images_at_or_below_the_goal_are_within(case, norm, planes):
    _, checked, x = built(case)
    bounds, rng = crowned(case, norm), np.random.default_rng(3)
    units = open_units(bounds)[:120]
    values, z = at_images(case, norm, 300, units)
    rows, whole = pair_rows(bounds)
    objective = values[checked.features] @ whole.flatten()
    tree = tree_of(units, np.zeros((1, len(units)), dtype=np.int8), rng, x[0].numel(), planes)
    whole_region = Leaves(bounds, tree, checked.features, rows)
    root, narrower = float(whole_region.lower()[0]), 0
    quantiles = [float(np.quantile(objective, share)) for share in (0.02, 0.3, 1.0)]
    for seed, goal in enumerate((*quantiles, root + 0.01 * (objective.min() - root))):
        program = Leaves(bounds, replace(tree, clips=hints(len(units), goal, seed)), checked.features, rows)
        assert not program.crossed or goal < objective.min()
        held = objective <= goal
        tolerance = 1e-12 * (1 + np.abs(z).max())
        assert (z[held] >= program.program.low - tolerance).all() and (
            z[held] <= program.program.high + tolerance
        ).all()
        assert program.lower()[0] <= min(goal, objective.min() + 1e-12 * np.abs(objective).max())
        narrower += int((program.program.low > whole_region.program.low).sum()) + program.crossed
    assert narrower > 0
    moved = replace(tree, clips=hints(len(units), goal + 7.0, seed))
    shifted = Leaves(bounds, moved, checked.features, rows, shift=7.0)
    np.testing.assert_allclose(shifted.program.low, program.program.low, atol=1e-9)
    assert shifted.goal == pytest.approx(goal)


def test_where_intervals_cross_the_goal_is_proven_and_no_more():
    """Every goal that random hints prove is below the least value of the functional."""
    net, checked, x = built("plain")
    bounds, rng = crowned("plain"), np.random.default_rng(5)
    units = open_units(bounds)
    rows, whole = pair_rows(bounds)
    points = images("plain", "inf", 400)
    least = float((net.graph.values(points)[net.features].flatten(1).numpy() @ whole.flatten()).min())
    tree = tree_of(units, np.zeros((1, len(units)), dtype=np.int8), rng, x[0].numel(), False)
    root = float(Leaves(bounds, replace(tree, slopes=tree.slopes * 0 + 1), checked.features, rows).lower()[0])
    crossed = 0
    for seed, goal in enumerate(np.linspace(root - 0.2, least + 0.5, 40)):
        clips = replace(
            hints(len(units), float(goal), seed, times=2), slopes=np.ones((2, len(units)), dtype=np.float32)
        )
        clips = replace(clips, shares=10.0 ** np.random.default_rng(seed).uniform(-2, 3, clips.shares.shape))
        # leaves' own multipliers prove nothing here
        pushed = replace(tree, clips=clips, pushes=tree.pushes + 100.0)
        program = Leaves(bounds, pushed, checked.features, rows)
        assert program.lower()[0] <= min(goal, least)
        if program.crossed:
            assert goal < least and program.lower()[0] == goal
            crossed += 1
    assert crossed > 0


def test_each_row_clips_what_it_says_and_no_other_does():
    """Narrowed together with others, in any order, is narrowed alone; by the formula, entry by entry."""
    net, checked, x = built("plain")
    bounds, rng = crowned("plain"), np.random.default_rng(7)
    units = open_units(bounds)
    rows, whole = pair_rows(bounds)
    values = net.graph.values(images("plain", "inf", 200))[net.features].flatten(1).numpy() @ whole.flatten()
    phases, narrowed = descent(rng, rng.choice([-1, 1], (2, len(units))), 6)
    none = np.zeros((1, len(units)), dtype=np.float32)
    clips = Clips(float(values.min() - 1.0 * np.ptp(values)), none, none, np.full((1, 2, len(units)), -1.0))
    tree = tree_of(units, phases, rng, x[0].numel(), planes=False)
    leaves = Leaves(bounds, replace(tree, clips=clips, descent=narrowed), checked.features, rows)
    program, narrowing = leaves.program, Narrowing(leaves.program, narrowed, leaves.goal)
    lines = Lines(program.crown[0][None], program.crown[1][None], None, np.zeros((1, len(units))))
    lam, tally = program.descend(program.functional(len(phases)), lines, program.low, program.high)
    output, root = Below.of(program, lam, tally), Ends(program.low[None], program.high[None])
    order = rng.permutation(len(phases))
    together = narrowing.narrowed(order, output[order], root.repeated(len(order)))
    moved = 0
    for place, row in enumerate(order.tolist()):
        alone = narrowing.narrowed(np.array([row]), output[row : row + 1], root)
        first = int(narrowed.counts[:row].sum())
        entries = slice(first, first + int(narrowed.counts[row]))
        own = Below.units(program, narrowed.sides[entries].astype(np.int64))
        low, high = program.low.copy(), program.high.copy()
        found = clipped(program, own, output[:1], narrowed.shares[entries].astype(np.float64), leaves.goal)
        for side, value in zip(narrowed.sides[entries].tolist(), found.tolist(), strict=True):
            if side < len(units):
                low[side] = max(low[side], value)
            else:
                high[side - len(units)] = min(high[side - len(units)], -value)
        for ends in (alone[0:1], together[place : place + 1]):
            np.testing.assert_allclose(ends.low[0], low, atol=1e-12)
            np.testing.assert_allclose(ends.high[0], high, atol=1e-12)
        moved += int((low > program.low).sum() + (high < program.high).sum())
    assert moved > 50


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def weak(monkeypatch):
    """Planes that are hardly searched for and a root that is hardly ascended, so that small networks need clipping."""
    monkeypatch.setattr(branch_module, "FIRST_NODES", 1)
    monkeypatch.setattr(branch_module, "hull_planes", lambda p, enough, end: hull_planes(p, enough, end, 1))
    monkeypatch.setattr(
        clipping_module, "hull_planes", lambda p, enough, end, _, start: hull_planes(p, enough, end, 1, start)
    )
    monkeypatch.setattr(clipping_module, "ROOT_STEPS", 2)


def clipped_verdict(build: type[nn.Module], seed: int, norm: Norm) -> co.Verdict | None:
    """Just below a radius; None where no tree of its certificate is clipped."""
    net, x = network(build, (1, 8, 8), seed), image(1, 8, 8, seed=seed)
    radius = co.radius(net, x, k=2, class_idx=seed % 2, norm=norm, rtol=0.01, time_limit=30)
    if not radius.lower > 0:
        return None
    eps = 0.999 * radius.lower
    verdict = co.verify(net, x, k=2, class_idx=seed % 2, eps=eps, norm=norm, method="bab", proof="checked")
    assert (verdict.status, verdict.proof) == ("certified", "checked")
    return verdict if any(t.tree.clips is not None for t in verdict.certificate.trees) else None


@functools.cache
def clipped_certificate() -> Certificate:
    """Made once, in a test that is ``weak``."""
    verdict = clipped_verdict(Deep, 9, "inf")
    assert verdict is not None
    assert any(narrowed(t.tree) for t in verdict.certificate.trees)
    return verdict.certificate


def narrowed(tree: Tree) -> bool:
    return tree.descent is not None and len(tree.descent.sides) > 0


@pytest.mark.parametrize(
    ("norm", "seeds", "in_fractions"),
    mostly_slow(
        [
            ("inf", (9,), False),
            ("inf", (3,), True),
            ("1", (7,), False),
            ("inf", (1, 5, 9), True),
            ("1", (3, 7), True),
        ],
        [("inf", (9,), False), ("inf", (3,), True), ("1", (7,), False)],
    ),
)
def test_a_clipped_tree_is_proven_in_floats_and_in_fractions(weak, norm, seeds, in_fractions, tmp_path):
    found = 0
    for seed in seeds:
        verdict = clipped_verdict(Deep, seed, norm)
        if verdict is None:
            continue
        certificate = verdict.certificate
        path = tmp_path / "clipped.npz"
        certificate.save(path)
        assert Certificate.load(path).to_bytes() == certificate.to_bytes() == path.read_bytes()
        model = seeded(Deep, seed)
        floats = co.check_certificate(path, model)
        with zipfile.ZipFile(path) as file:
            version = json.loads(file.read(TEXT))["version"]
        rows = any(t.tree.descent is not None for t in certificate.trees)
        assert version == (5 if rows else 4) and rows == (norm == "inf" and seed in (1, 9))
        goals = [t.tree.clips.goal for t in certificate.trees if t.tree.clips is not None]
        assert 0 < floats.margin == verdict.margin_lower <= max(goals)
        if in_fractions and not found:
            assert co.check_certificate(path, model, exact=True).margin >= floats.margin
        found += 1
    assert found


def test_a_larger_region_is_not_proven_by_clips_of_a_smaller_one(weak):
    """Nor is anything at an eps where a counterexample is known, whatever the goal is said to be."""
    certificate = clipped_certificate()
    net = network(Deep, (1, 8, 8), 9)
    assert check(certificate, plain_network(net)).margin > 0
    for eps, goal in ((1.05, None), (2.0, None), (2.0, 1e3), (2.0, -1e3), (1.05, 1e-3)):
        region = replace(certificate.claim.region, eps=eps * certificate.claim.region.eps)
        trees = tuple(replace(t, tree=_with_goal(t.tree, goal)) for t in certificate.trees)
        forged = replace(certificate, claim=replace(certificate.claim, region=region), claims={}, trees=trees)
        with pytest.raises(co.ProofError):
            check(forged, plain_network(net))


def _with_goal(tree: Tree, goal: float | None) -> Tree:
    return tree if goal is None or tree.clips is None else replace(tree, clips=replace(tree.clips, goal=goal))


DAMAGE = {
    "a part left out": ("clip_mixes", None),
    "no number": ("clip_shares", lambda m: np.full_like(m, math.nan)),
    "another shape": ("clip_slopes", lambda m: m[:, 1:]),
    "too many": ("clip_shares", lambda m: np.repeat(m[:1], MOST_CLIPS + 1, axis=0)),
    "no goal": ("clip_goal", lambda m: np.zeros(2)),
    "an endless goal": ("clip_goal", lambda m: np.array([math.inf])),
    "another type": ("clip_goal", lambda m: m.astype(np.float32)),
    "rows in part": ("row_sides", None),
    "rows without parents": ("row_parents", None),
    "a parent too few": ("row_parents", lambda m: m[1:]),
    "a count too few": ("row_counts", lambda m: m[1:]),
    "less than nothing": ("row_counts", lambda m: np.where(m == m.max(), m + 1, m - 1)),
    "more than there are": ("row_counts", lambda m: m + 1),
    "a unit that is none": ("row_sides", lambda m: m + 10**6),
    "a negative unit": ("row_sides", lambda m: m - 10**6),
    "a negative share": ("row_shares", lambda m: -m - 1),
    "an endless share": ("row_shares", lambda m: m + np.float32(np.inf)),
    "a share too many": ("row_shares", lambda m: np.append(m, m[:1])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_malformed_is_refused(weak, damage):
    content, (name, change) = clipped_certificate().to_bytes(), DAMAGE[damage]
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            data = old.read(part)
            if part.endswith(f"/{name}.npy"):
                if change is None:
                    continue
                changed = io.BytesIO()
                np.save(changed, change(np.load(io.BytesIO(data))))
                data = changed.getvalue()
            new.writestr(part, data)
    with pytest.raises(co.CertificateError):
        Certificate.from_bytes(written.getvalue())
    assert Certificate.from_bytes(content).to_bytes() == content
