"""Statements: what is malformed is refused, margins are counted, parts are what the network says at an image."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Exact, Float64
from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.certificate import Certificate, Claim
from corgi_opt.proof.checker import check
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Conv, Input, Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import MEAN, MOST_ATOMS, Objective, Statement, TopPixels

SIDE, CHANNELS, CLASSES = 3, 2, 3


def network(seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    conv = Conv(rng.normal(size=(CHANNELS, 1, 3, 3)), rng.normal(size=CHANNELS), (1, 1), (1, 1), (1, 1), 1)
    shape = (CHANNELS, SIDE, SIDE)
    nodes = (Node(Input(), (), (1, SIDE, SIDE)), Node(conv, (0,), shape), Node(Relu(), (1,), shape))
    return Network(nodes, 2, rng.normal(size=(CLASSES, CHANNELS)), rng.normal(size=CLASSES))


def statement() -> Statement:
    """Parts: two pixels by class 0, one by the difference of classes 1 and 2, a logit, the difference of two logits."""
    return Statement(
        heads=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]),
        head=np.array([0, 0, 1, 0, 1]),
        place=np.array([0, 4, 8, MEAN, MEAN]),
        terms=np.array([[0, 1], [1, 2], [3, 3], [4, 0]]),
        coefs=np.array([[1.0, -1.0], [0.5, 2.0], [1.0, 0.0], [-1.0, 0.0]]),
        members=np.array([[0, 1, 2], [3, -1, -1]]),
        need=np.array([2, 1]),
        anchors=np.array([[0, 1]]),
    )


def parts_at(bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """What the parts are between, where bounds are those of one image."""
    return Objective(bounds, statement()).values(*(s[2].reshape(CHANNELS, -1) for s in (bounds.lower, bounds.upper)))


def test_what_is_malformed_is_refused():
    good = statement()
    assert good.of(network()) is good and good.logits
    inf = np.array([[np.inf, 0.0, 0.0], [0.0, 1.0, -1.0]])
    for changes, why in (
        ({"heads": good.heads[:, :2]}, "number of classes"),
        ({"heads": inf}, "not finite"),
        ({"coefs": good.coefs * np.nan}, "not finite"),
        ({"head": good.head[:4]}, "unlike lengths"),
        ({"head": good.head + 1}, "head vectors"),
        ({"place": good.place + 1}, "pixels that do not exist"),
        ({"place": good.place - 1}, "pixels that do not exist"),
        ({"terms": good.terms[:0], "coefs": good.coefs[:1]}, "no atoms"),
        ({"terms": np.zeros((MOST_ATOMS + 1, 1), dtype=np.int64), "coefs": good.coefs[:1, :1]}, "no atoms, or more"),
        ({"coefs": good.coefs[:3]}, "another shape"),
        ({"terms": good.terms + 3}, "parts that do not exist"),
        ({"terms": np.array([[0, 0], [1, 2], [3, 3], [4, 0]])}, "one place"),
        ({"coefs": np.abs(good.coefs) + 1}, "one place"),
        ({"coefs": good.coefs * np.array([[1.0], [0.0], [1.0], [1.0]])}, "an atom of no parts"),
        ({"terms": good.terms[:, :0], "coefs": good.coefs[:, :0]}, "an atom of no parts"),
        ({"members": good.members[:0], "need": good.need[:0]}, "no groups"),
        ({"members": good.members + 2}, "atoms that do not exist"),
        ({"members": np.array([[0, 1, 2], [2, -1, -1]])}, "in two groups"),
        ({"need": np.array([0, 1])}, "need nothing"),
        ({"need": np.array([2, 2])}, "more than they have"),
        ({"need": good.need[:1]}, "need nothing"),
        ({"anchors": np.array([0, 1])}, "no pairs"),
        ({"anchors": np.array([[0, 9]])}, "anchors that do not exist"),
    ):
        with pytest.raises(ProofError, match=why):
            replace(good, **changes).of(network())


@pytest.mark.parametrize("seed", range(30))
def test_margins_are_counted(seed):
    """By fractions: the need-th largest of each group's atoms, for parts anywhere between their bounds."""
    rng, made = np.random.default_rng(seed), statement()
    low = rng.normal(size=5)
    high = low + rng.random(5) * rng.choice([0.0, 1.0], size=5)
    values = [low + (high - low) * rng.random(5) for _ in range(50)]
    least, most = made.least(low, high), made.most(low, high)
    for value in values:
        parts = [Fraction(v) for v in value.tolist()]
        atoms = [parts[0] - parts[1], parts[1] / 2 + 2 * parts[2], parts[3], -parts[4]]
        slack = sorted(atoms[:3], reverse=True)[1], atoms[3]
        for below, above, exact in zip(least, most, atoms, strict=True):
            assert Fraction(below) <= exact + Fraction(1, 10**12) and exact <= Fraction(above) + Fraction(1, 10**12)
        for below, above, exact in zip(made.slack(least), made.slack(most), slack, strict=True):
            assert below <= float(exact) + 1e-12 and float(exact) <= above + 1e-12
    assert made.anchored(low, high) == (low[0] > high[1])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_parts_at_an_image_are_what_the_network_says_there(seed, exact):
    net, rng = network(seed), np.random.default_rng(seed)
    image = rng.normal(size=(1, SIDE, SIDE))
    bounds = Bounds(net, Region(image, 0.0, "inf", None), Exact() if exact else Float64())
    for node in range(3):
        bounds.reach(node)
    low, high = Objective(bounds, statement()).values(
        *(s[2].reshape(CHANNELS, -1) for s in (bounds.lower, bounds.upper))
    )
    conv = net.nodes[1].op
    assert isinstance(conv, Conv)
    padded = np.pad(image[0], 1)
    features = np.zeros((CHANNELS, SIDE, SIDE))
    for y in range(SIDE):
        for x in range(SIDE):
            features[:, y, x] = (conv.weight[:, 0] * padded[y : y + 3, x : x + 3]).sum(axis=(1, 2)) + conv.bias
    cams = np.einsum("kc,chw->khw", net.weight, np.maximum(features, 0)).reshape(CLASSES, -1)
    logits = cams.mean(axis=1) + net.bias
    expected = [cams[0, 0], cams[0, 4], cams[1, 8] - cams[2, 8], logits[0], logits[1] - logits[2]]
    assert (low <= np.array(expected) + 1e-12).all() and (high >= np.array(expected) - 1e-12).all()
    assert (high - low < 1e-11).all()


def test_bounds_of_combinations_contain_what_is_sampled():
    net, made, rng = network(), statement(), np.random.default_rng(1)
    center = rng.normal(size=(1, SIDE, SIDE))
    bounds = Bounds(net, Region(center, 0.3, "inf", None), Float64())
    for node in range(3):
        bounds.reach(node)
    found = np.zeros(4)
    for objectives in Objective(bounds, made).rows(made.terms, made.coefs):
        found[objectives.which] = objectives.lower(bounds.bound(2, objectives.rows), Float64())
    least = np.full(4, np.inf)
    for _ in range(300):
        image = center + 0.3 * (2 * rng.random(center.shape) - 1)
        at = Bounds(net, Region(image, 0.0, "inf", None), Float64())
        for node in range(3):
            at.reach(node)
        low, high = parts_at(at)
        least = np.minimum(least, made.most(low, high))
    assert (found <= least).all() and (found > least - 10).all()


@pytest.mark.parametrize("within", [2, 4])
def test_top_pixels_are_the_pairs_they_stand_for(within):
    net, says = network(), TopPixels(1, (3, 7), within)
    made = says.of(net)
    assert not made.logits and made.heads.tolist() == [[0.0, 1.0, 0.0]]
    pairs = {tuple(row) for row in made.terms.tolist()}
    rest = [p for p in range(9) if p not in (3, 7)]
    others = rest if within == 2 else range(9)
    assert pairs == {(i, j) for i in (3, 7) for j in others if i != j}
    sizes = (made.members >= 0).sum(axis=1)
    assert (sizes - made.need + 1).tolist() == ([1] * 14 if within == 2 else [4, 4])
    anchors = {tuple(row) for row in made.anchors.tolist()}
    assert anchors == (set() if within == 2 else {(i, j) for i in (3, 7) for j in rest})


def test_a_statement_on_logits_is_about_the_bias_too():
    net, made = network(), statement()
    region = Region(np.zeros((1, SIDE, SIDE)), 0.1, "inf", None)
    biased = replace(net, bias=net.bias + np.array([0.0, 1e-300, 0.0]))
    assert net.sha256 == replace(net, bias=net.bias + 1).sha256 and net.sha256_of_logits != net.sha256
    for sha256, there in ((net.sha256, net), (net.sha256_of_logits, replace(net, bias=np.nextafter(net.bias, 9.0)))):
        with pytest.raises(ProofError, match="another network"):
            check(Certificate(Claim("certified", sha256, region, made)), there)
    for says, why in (
        (made, "anchors are not proven"),
        (replace(made, anchors=made.anchors[:0]), "margin is only proven"),
    ):
        with pytest.raises(ProofError, match=why):
            check(Certificate(Claim("certified", net.sha256_of_logits, region, says)), net)
    assert biased.sha256_of_logits == net.sha256_of_logits  # as floats the two are one
    pixels = replace(made, place=np.array([0, 4, 8, 1, 2]))
    with pytest.raises(ProofError, match="another network"):
        check(Certificate(Claim("certified", net.sha256_of_logits, region, pixels)), net)
