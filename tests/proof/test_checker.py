"""The checker on small questions: what is true is proven, and no other claim, tree or counterexample passes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from certificates import cases, of_kind, rejected, with_claim, with_region

import corgi_opt as co
from corgi_opt.answering.prover import plain_network
from corgi_opt.errors import ProofError
from corgi_opt.proof.certificate import Certificate, Claim
from corgi_opt.proof.checker import check
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Conv, Input, Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import TopPixels


def test_what_is_checked_is_true_and_most_that_is_true_is_checked():
    refuted = {"certified": False, "falsified": True, "unknown": "never"}
    wrong = [c.asked.label for c in cases() if c.stable == refuted[c.verdict.status]]
    assert wrong == []
    # an exact tie is no stable set, but too close to tell for the oracle
    assert all(c.verdict.status != "certified" for c in cases() if c.stable is None and c.asked.answer().upper <= 0)
    counted = [c for c in cases() if c.asked.within is None]
    # rivals that have to be counted leave no proof
    assert sum(c.verdict.proof == "checked" for c in counted) >= 0.97 * sum(c.stable is not None for c in counted)
    assert min(len(of_kind("certified")), len(of_kind("falsified")), len(of_kind("certified", trees=True))) >= 12


def test_fractions_prove_the_same():
    for case in [*of_kind("certified", trees=True)[:4], *of_kind("certified")[:4], *of_kind("falsified")[:4]]:
        by_float, exact = check(case.certificate, case.network), check(case.certificate, case.network, exact=True)
        assert exact.exact and exact.kind == by_float.kind
        assert exact.margin == pytest.approx(by_float.margin, rel=1e-9, abs=1e-9)


def test_nothing_is_checked_where_denormals_are_flushed():
    case = of_kind("certified")[0]
    torch.set_flush_denormal(True)
    try:
        assert "denormal" in rejected(case.certificate, case.network)
        assert check(case.certificate, case.network, exact=True).kind == "certified"
    finally:
        torch.set_flush_denormal(False)
    assert check(case.certificate, case.network).kind == "certified"


def test_a_margin_is_no_more_than_the_exact_one():
    for case in of_kind("certified"):
        assert check(case.certificate, case.network).margin <= case.asked.answer().upper + 1e-12
    for case in of_kind("falsified"):
        # within=k is the set itself, whose margin is that of a pair
        asked = replace(case.asked, within=None) if case.asked.within == case.asked.k else case.asked
        assert check(case.certificate, case.network).margin >= asked.answer().lower - 1e-12


def test_another_network_is_refused():
    for case in of_kind("certified")[:8]:
        model = replace(case.asked).model
        with torch.no_grad():
            moved = model.head.weight
            moved[0, 0] = torch.nextafter(moved[0, 0], moved[0, 0] + 1)
            other = plain_network(co.from_torch(model, case.asked.x.float()))
            moved[0, 0] = torch.nextafter(moved[0, 0], moved[0, 0] - 1)
        assert "another network" in rejected(case.certificate, other)


def test_a_larger_region_than_is_stable_is_not_proven():
    """Certificates just inside the radius, widened to just outside it."""
    tried = 0
    for case in of_kind("certified"):
        for factor in (1.0005, 1.3):
            wider = replace(case.asked, eps=case.asked.eps * factor)
            if wider.answer().stable is not True:
                tried += 1
                rejected(with_region(case.certificate, eps=wider.eps), case.network)
    assert tried >= 10


def test_another_question_is_not_proven():
    tried = 0
    for case in of_kind("certified"):
        claim, pixels = case.top, case.net.map_shape[0] * case.net.map_shape[1]
        others = [p for p in range(pixels) if p not in claim.top]
        rejected(case.claiming(top=(*claim.top[1:], others[0])), case.network)
        if claim.within > len(claim.top):
            tighter = replace(case.asked, within=None if claim.within - 1 == case.asked.k else claim.within - 1)
            if tighter.answer().stable is not True:
                tried += 1
                rejected(case.claiming(within=claim.within - 1), case.network)
        for class_idx in range(case.net.classes):
            here = replace(case.asked, class_idx=class_idx)
            cam = case.net.cam(case.asked.x, class_idx).flatten()
            if set(cam.topk(case.asked.k).indices.tolist()) != set(claim.top) or here.answer().stable is not True:
                tried += 1
                rejected(case.claiming(class_idx=class_idx), case.network)
    assert tried >= 30


def test_nonsense_is_refused():
    case = of_kind("certified")[0]
    claim, region = case.top, case.certificate.claim.region
    pixels = case.net.map_shape[0] * case.net.map_shape[1]
    for changes, why in (
        ({"top": ()}, "distinct"),
        ({"top": (0, 0)}, "distinct"),
        ({"top": (pixels,)}, "distinct"),
        ({"top": (-1,)}, "distinct"),
        ({"within": pixels}, "within"),
        ({"within": len(claim.top) - 1}, "within"),
        ({"class_idx": case.net.classes}, "does not exist"),
        ({"class_idx": -1}, "does not exist"),
    ):
        assert why in rejected(case.claiming(**changes), case.network)
    for other, why in (
        ({"region": replace(region, center=region.center[:, :1])}, "shape"),
        ({"region": replace(region, clip=(2.0, 3.0))}, "outside its box"),
    ):
        assert why in rejected(with_claim(case.certificate, **other), case.network)
    extra = {**case.certificate.claims, 99: next(iter(case.certificate.claims.values()))}
    assert "do not exist" in rejected(replace(case.certificate, claims=extra), case.network)


@pytest.mark.parametrize("exact", [False, True])
def test_numbers_without_bound_prove_nothing(exact):
    case = of_kind("certified", trees=True)[0]
    huge = with_region(case.certificate, eps=1.7e308, clip=None)
    with pytest.raises(ProofError):
        check(huge, case.network, exact=exact)


def test_every_leaf_is_needed():
    tried = 0
    for case in of_kind("certified", trees=True):
        (first, *others) = case.certificate.trees
        for leaf in range(len(first.tree.phases)):
            kept = np.arange(len(first.tree.phases)) != leaf
            parts = {n: getattr(first.tree, n)[kept] for n in ("phases", "slopes", "mixes", "pushes")}
            broken = replace(first, tree=replace(first.tree, **parts))
            tried += 1
            why = rejected(replace(case.certificate, trees=(broken, *others)), case.network)
            assert "leave some sign pattern out" in why
    assert tried >= 30


def test_trees_are_about_parts_and_units_of_the_network():
    case = of_kind("certified", trees=True)[0]
    proof = next(t for t in case.certificate.trees if len(t.tree.node))
    tree = proof.tree
    for wrong, why in (
        (replace(proof, parts=(proof.parts[0],) * 2, signs=(1.0, -1.0)), "no atom"),
        (replace(proof, parts=(10**6, proof.parts[-1]), signs=(1.0, -1.0)), "do not exist"),
        (replace(proof, parts=(0, 1), signs=(1.0, 1.0)), "no atom"),
        (replace(proof, parts=(0,), signs=(2.0,)), "no atom"),
        (replace(proof, parts=(0,), signs=(1.0, 1.0)), "signs"),
        (replace(proof, parts=(), signs=()), "signs"),
        (replace(proof, parts=(0,), signs=(np.inf,)), "signs"),
        (replace(proof, tree=replace(tree, node=tree.node * 0)), "no ReLU"),
        (replace(proof, tree=replace(tree, flat=tree.flat + 10**6)), "no ReLU"),
        (replace(proof, tree=replace(tree, flat=tree.flat - 10**6)), "no ReLU"),
        (replace(proof, tree=replace(tree, inputs=tree.inputs + 10**6)), "out of order, or not"),
    ):
        trees = tuple(wrong if t is proof else t for t in case.certificate.trees)
        assert why in rejected(replace(case.certificate, trees=trees), case.network)
    others = [c for c in of_kind("certified", trees=True) if len(c.certificate.trees[0].tree.node) > 1]
    for case in others[:5]:
        (first, *rest) = case.certificate.trees
        for order in (np.arange(len(first.tree.node))[::-1], np.zeros(len(first.tree.node), dtype=np.int64)):
            mixed = replace(first.tree, node=first.tree.node[order], flat=first.tree.flat[order])
            broken = replace(case.certificate, trees=(replace(first, tree=mixed), *rest))
            assert "out of order" in (why := rejected(broken, case.network)) or "twice" in why


def test_a_counterexample_is_one_or_is_refused():
    for case in of_kind("falsified")[:15]:
        certificate, region = case.certificate, case.certificate.claim.region
        assert certificate.witness is not None
        at_center = replace(certificate, witness=region.center)
        assert "at its image no" in rejected(at_center, case.network)
        with pytest.raises(ProofError, match="at its image no"):
            check(at_center, case.network, exact=True)
        assert "no image" in rejected(replace(certificate, witness=None), case.network)
        assert "no image" in rejected(replace(certificate, witness=certificate.witness[:, :-1]), case.network)
        assert case.verdict.counterexample is not None
        nearer = with_region(certificate, eps=case.verdict.counterexample.distance * (1 - 1e-12))
        assert "farther than eps" in rejected(nearer, case.network)
        outside = np.array(certificate.witness)
        outside.flat[0] = 50.0
        assert (
            "outside the box" in (why := rejected(replace(certificate, witness=outside), case.network)) or "far" in why
        )
        rivals = [p for p in range(case.net.map_shape[0] * case.net.map_shape[1]) if p not in case.top.top]
        why = rejected(case.claiming(top=(*case.top.top[1:], rivals[0])), case.network)
        assert "not proven to hold at its centre" in why or "anchors are not proven" in why


def test_what_only_looks_like_a_tie_is_no_counterexample():
    """Pixels of 0.1 x + 0.2 x and of 0.3 x - relu(x - 1): at x = 1 the first is the brighter by 2.8e-17."""

    def map_of(rows: list[list[float]]) -> np.ndarray:
        return np.array(rows)[:, :, None, None]

    plain = ((1, 1), (0, 0), (1, 1), 1)
    nodes = (
        Node(Input(), (), (1, 1, 1)),
        Node(Conv(map_of([[1.0], [1.0], [1.0]]), np.array([0.0, 0.0, -1.0]), *plain), (0,), (3, 1, 1)),
        Node(Relu(), (1,), (3, 1, 1)),
        # a row of two pixels: the kernel's second column is read by the first pixel
        Node(
            Conv(np.array([[[[0.3, 0.1]], [[0.0, 0.2]], [[-1.0, 0.0]]]]), np.zeros(1), (1, 1), (0, 1), (1, 1), 1),
            (2,),
            (1, 1, 2),
        ),
        Node(Relu(), (3,), (1, 1, 2)),
    )
    network = Network(nodes, 4, np.ones((1, 1)))
    region = Region(np.full((1, 1, 1), 2.0), 1.0, "inf", None)
    claim = Claim("falsified", network.sha256, region, TopPixels(0, (0,), 1))
    for exact in (False, True):
        with pytest.raises(ProofError, match="no group"):
            check(Certificate(claim, witness=np.ones((1, 1, 1))), network, exact=exact)
    other = replace(claim, region=replace(region, center=np.full((1, 1, 1), 1.5)))
    assert 0.1 + 0.2 > 0.3 and Fraction(0.1) + Fraction(0.2) > Fraction(0.3)
    with pytest.raises(ProofError):
        check(Certificate(other, witness=np.ones((1, 1, 1))), network)


def test_one_pixel_that_comes_in_changes_the_set_however_those_inside_tie():
    """Two top pixels are equal at the image, which rounding does not prove; the third is brighter than both."""
    plain = ((1, 1), (0, 0), (1, 1), 1)
    nodes = (
        Node(Input(), (), (1, 1, 3)),
        Node(Conv(np.array([0.1, 0.2])[:, None, None, None], np.zeros(2), *plain), (0,), (2, 1, 3)),
        Node(Conv(np.array([0.7, 1 / 3])[None, :, None, None], np.zeros(1), *plain), (1,), (1, 1, 3)),
    )
    network = Network(nodes, 2, np.ones((1, 1)))
    region = Region(np.array([[[2.0, 1.9, 1.0]]]), 2.0, "inf", None)
    claim = Claim("falsified", network.sha256, region, TopPixels(0, (0, 1), 2))
    image = np.array([[[1.0, 1.0, 1.5]]])
    assert check(Certificate(claim, witness=image), network).margin < -0.06
    # with one rival allowed, the tie is what it takes
    allowed = Certificate(replace(claim, says=TopPixels(0, (0,), 2)), witness=image)
    with pytest.raises(ProofError, match="no group"):
        check(allowed, network)
