"""Properties as atoms in groups: what a top-k set says, and what their margins are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nets import Plain, image, seeded
from torch import Tensor

import corgi_opt as co
from corgi_opt.problem.atoms import MEAN, Groups, Parts, alone, cam_pixels
from corgi_opt.problem.properties import PROPERTIES, Property, property_from, register
from corgi_opt.problem.scene import Scene
from corgi_opt.proof.statement import Statement


def scene_of(cam: Tensor) -> Any:
    """A scene whose CAM this is: what a property looks at."""
    weight, features = torch.ones(1, 1, dtype=torch.float64), cam[None]
    net = SimpleNamespace(classes=1, weight=weight, bias=torch.zeros(1, dtype=torch.float64))
    scene: Any = SimpleNamespace(net=net, cam=cam, class_idx=0, features=features)
    scene.scale_of = lambda parts: Scene.scale_of(scene, parts)
    return scene


def posed(cam: Tensor, k: int, within: int | None = None, tie_tol: float | None = 0.0) -> Groups:
    return co.TopK(k, within).pose(scene_of(cam), tie_tol)


def margins(groups: Groups, cams: Tensor) -> list[float]:
    return groups.margin(groups.atoms(cams.flatten(1))).tolist()


def test_topk_and_its_margin():
    cam = torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    top = posed(cam, 2)
    assert top.every and top.labels.tolist() == [[3, 2], [3, 1], [0, 2], [0, 1]]
    assert margins(top, cam[None]) == [1.0]
    moved = torch.tensor([[[3.0, 1.0], [3.5, 5.0]]], dtype=torch.float64)
    assert margins(top, moved) == [-0.5]
    assert top.worst(top.atoms(moved.flatten(1))[0]) == 2
    # the order inside the top-k set does not matter
    assert margins(top, torch.tensor([[[6.0, 1.0], [2.0, 5.0]]], dtype=torch.float64)) == [3.0]


@pytest.mark.parametrize("seed", range(20))
def test_within_counts_rivals(seed):
    """By counting: how many others may pass each top pixel, and by how much the last of them is behind."""
    rng = np.random.default_rng(seed)
    before, after = rng.normal(size=(2, 7))
    k = int(rng.integers(1, 4))
    within = int(rng.integers(k, 7))
    top = np.argsort(-before)[:k]
    gaps = [sorted(after[i] - np.delete(after, i))[within - 1] for i in top]
    groups = posed(torch.from_numpy(before)[None], k, within)
    (found,) = margins(groups, torch.from_numpy(after)[None, None])
    if within > k:
        assert found == pytest.approx(min(gaps), abs=1e-12)
        assert groups.need.tolist() == [7 - within] * k and groups.enough.tolist() == [within] * k
    assert (found > 0) == (min(gaps) > 0)


def test_properties_have_names_and_values():
    assert co.TopK(3, 3) == co.TopK(3) != co.TopK(3, 4) and hash(co.TopK(3)) == hash(co.TopK(3, 3))
    for what in (co.TopK(3), co.TopK(2, 7)):
        assert property_from(json.loads(json.dumps(what.to_dict()))) == what == property_from(what)
        assert property_from(json.dumps(what.to_dict())) == what
    for wrong, message in (
        ("Top", "there is no property 'Top'"),
        ({"k": 3}, "there is no property None"),
        ({"name": "TopK", "k": 3, "j": 1}, "has no 'j'"),
        ({"name": "TopK"}, "cannot be made"),
        ("{", "JSON object"),
        (3, "there is no property 3"),
    ):
        with pytest.raises(co.InputError, match=message):
            property_from(wrong)
    given: list[tuple[Any, Any]] = [(0, None), (1.5, None), (True, None), (3, 2), (3, "4")]
    for k, within in given:
        with pytest.raises(co.InputError, match="must be an int"):
            co.TopK(k, within)


def test_what_is_asked_is_said_once():
    x = image(1, 6, 6, seed=3)
    net = co.from_torch(seeded(Plain), x)
    for wrong, message in (
        ({}, "say what is asked"),
        ({"k": 1, "property": co.TopK(1)}, "one or the other"),
        ({"within": 3, "property": "TopK"}, "one or the other"),
        ({"property": "Nothing"}, "there is no property"),
    ):
        with pytest.raises(co.InputError, match=message):
            co.verify(net, x, eps=0.001, **wrong)
    short, long = (co.verify(net, x, eps=0.001, method="crown", **w) for w in ({"k": 1}, {"property": co.TopK(1)}))
    assert short.asked == long.asked and short.margin_lower == long.margin_lower
    assert co.verify(net, x, eps=0.001, property='{"name": "TopK", "k": 1}').asked == short.asked
    assert (short.asked.dtype, co.verify(net, x.double(), eps=0.001, k=1).asked.dtype) == ("float32", "float64")


def test_groups_of_unlike_sizes():
    """By hand: three parts; the first group needs both of its atoms, the second one of its three."""
    parts = cam_pixels(1, 0, 3)
    groups = Groups(
        parts,
        torch.tensor([[0, 1], [0, 2], [1, 2], [2, 0], [2, 1]]),
        torch.tensor([[1.0, -1.0], [1.0, 0.0], [2.0, -1.0], [1.0, -1.0], [1.0, -0.5]], dtype=torch.float64),
        torch.tensor([[0, 1, -1], [2, 3, 4]]),
        torch.tensor([2, 1]),
        torch.zeros(0, 2, dtype=torch.long),
        torch.tensor([[0, 1], [0, 2], [1, 2], [2, 0], [2, 1]]),
        ("pixel", "pixels"),
    )
    values = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    atoms = groups.atoms(values)
    assert atoms.tolist() == [2.0, 3.0, 0.0, -1.0, 1.5]
    assert groups.slack(atoms).tolist() == [2.0, 1.5] and float(groups.margin(atoms)) == 1.5
    assert groups.worst(atoms) == 4 and groups.enough.tolist() == [1, 3] and not groups.every
    low, _ = groups.least(values - 0.5, values + 0.5)
    assert low.tolist() == [1.0, 2.5, -1.5, -2.0, 0.75]
    below, above = groups.sides_of(torch.tensor([True, False, False, False, False]))
    assert below.tolist() == [True, False, False] and above.tolist() == [False, True, False]
    assert groups.among(torch.tensor([0, 1])).tolist() == [True, True, False, False, False]


def test_ties():
    cam = torch.tensor([[1.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    with pytest.raises(co.TieError, match="pixels 1 and 2"):
        posed(cam, 1)
    assert margins(posed(cam, 2), cam[None]) == [0.5]
    with pytest.raises(co.TieError, match=r"tie_tol 0\.6"):
        posed(cam, 2, tie_tol=0.6)


def test_what_would_round_unseen_is_refused():
    """Head vectors of more than two rows, and several parts at one place."""
    place, head = torch.tensor([0, 0, 1, MEAN]), torch.tensor([0, 1, 0, 0])
    for heads in ([[1.0, -0.5]], [[1.0, 1.0, -1.0]]):
        with pytest.raises(co.InputError, match="head vector"):
            Parts(torch.tensor(heads, dtype=torch.float64), head[:1] * 0, place[:1])
    parts = Parts(torch.eye(2, dtype=torch.float64), head, place)

    def groups(*terms: int) -> Groups:
        coefs = torch.ones(1, len(terms), dtype=torch.float64)
        return Groups(parts, torch.tensor([terms]), coefs, *alone(1), torch.zeros(1, 2), ("pixel", "pixels"))

    for terms in ((0, 1), (0, 3), (0, 0)):
        with pytest.raises(co.InputError, match="different pixels"):
            groups(*terms)
    assert len(groups(0, 2)) == len(groups(3)) == 1


@dataclass(frozen=True)
class Threshold(Property):
    """Pixels above half of the brightest stay so: ``CAM_i - share * CAM_j``, which are no differences of parts."""

    share: float
    name: ClassVar[str] = "Threshold"

    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        cam = scene.cam.flatten()
        top = int(cam.argmax())
        above = torch.nonzero(cam > self.share * cam[top]).flatten()
        pairs = torch.stack([above, torch.full_like(above, top)], dim=1)[above != top]
        coefs = torch.tensor([[1.0, -self.share]], dtype=torch.float64).expand(len(pairs), 2)
        parts = cam_pixels(scene.net.classes, scene.class_idx, len(cam))
        return Groups(parts, pairs, coefs, *alone(len(pairs)), pairs, ("pixel", "pixels"))


def test_atoms_of_any_coefficients_are_bounded_decided_and_proven(tmp_path):
    x = image(1, 6, 6, seed=3)
    net = co.from_torch(seeded(Plain, 1), x)
    wanted = register(Threshold)(0.1)
    asked: dict[str, Any] = {"property": wanted, "class_idx": 2, "clip": None}
    try:
        r = co.radius(net, x, rtol=0.01, **asked)
        assert r.counterexample is not None and r.ratio <= 1.01
        radii = co.compare(net, x, methods=["corgi", "crown", "lp", "milp"], rtol=0.01, **asked).radii
        assert radii["corgi"].lower <= radii["crown"].lower <= radii["lp"].lower <= radii["milp"].lower
        assert radii["milp"].lower == pytest.approx(r.lower, rel=0.02)
        groups = wanted.pose(Scene.of(net, x, class_idx=2, norm="inf", clip=None), None)
        assert len(groups) >= 2 and not groups.differences
        images = x.double() + r.lower * (2 * torch.rand(500, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 1)
        cams = net.cams(images, 2).flatten(1)
        assert float(groups.margin(groups.atoms(cams)).min()) > 0
        v = co.verify(net, x, eps=r.lower, proof="checked", **asked)
        says = v.certificate.claim.says
        assert v.proof == "checked" and isinstance(says, Statement) and says.coefs.tolist() == [[1.0, -0.1]]
        v.certificate.save(tmp_path / "a.cert")
        assert co.check_certificate(tmp_path / "a.cert", net).margin > 0
        with pytest.raises(co.InputError, match="says nothing about this image"):
            co.verify(net, x, eps=0.1, property=Threshold(0.99), class_idx=2)
    finally:
        del PROPERTIES["Threshold"]


def another_threshold() -> type[Property]:
    """Its class made anew, as by a notebook's cell that is run again."""

    @dataclass(frozen=True)
    class Above(Threshold):
        name: ClassVar[str] = "Above"

    return Above


def test_a_property_that_is_defined_again_takes_its_own_place_and_no_other_s():
    first, again = another_threshold(), another_threshold()
    try:
        assert register(first) is first and register(again) is again and register(again) is again
        assert type(property_from({"name": "Above", "share": 0.5})) is again

        @dataclass(frozen=True)
        class Other(Threshold):
            name: ClassVar[str] = "Above"

        with pytest.raises(co.InputError, match="there is a property of the name 'Above' already"):
            register(Other)
    finally:
        PROPERTIES.pop("Above", None)
