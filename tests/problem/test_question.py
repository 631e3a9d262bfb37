"""A question about a small network: its atoms, margin and premises as the user's own model has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from asking import ask, atom_of
from nets import Plain, hooked_cam, image, seeded

import corgi_opt as co
from corgi_opt.errors import InputError, TieError
from corgi_opt.problem.atoms import Groups, alone, cam_pixels
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene

X = image(1, 6, 6, seed=3)
CLASS, K = 1, 3


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 5, channels=4), X)


@pytest.fixture(scope="module")
def question(net):
    return ask(net, X, k=K, class_idx=CLASS, keep_class=True)


def model() -> Plain:
    return seeded(Plain, 5, channels=4).double()


def cam(x) -> torch.Tensor:
    return hooked_cam(model(), x.double(), model().head, CLASS).flatten()


def images(count: int):
    generator = torch.Generator().manual_seed(1)
    return [(X + 0.2 * torch.randn(X.shape, generator=generator)).clamp(0, 1).double() for _ in range(count)]


def test_the_margin_is_of_the_set_at_the_image_wherever_it_is_asked(question):
    top = cam(X).topk(K).indices.tolist()
    rest = [p for p in range(36) if p not in top]
    for x in [X.double(), *images(6)]:
        seen = cam(x)
        assert question.margin(x) == pytest.approx(float(seen[top].min() - seen[rest].max()), abs=1e-9)
    assert question.gap == pytest.approx(question.margin(X.double()), abs=1e-12)
    assert not question.ahead.any()


def test_what_an_image_shows_is_its_cam_its_atoms_and_its_class(question):
    top = cam(X).topk(K).indices.tolist()
    outside = next(p for p in range(36) if p not in top)
    atom = atom_of(question, (top[0], outside))
    kept = int(model()(X.double()).argmax())
    assert question.kept == kept
    for x in images(5):
        seen = question.see(x)
        torch.testing.assert_close(seen.cam.flatten(), cam(x))
        assert float(seen.atoms[atom]) == pytest.approx(float(cam(x)[top[0]] - cam(x)[outside]), abs=1e-9)
        logits = model()(x)[0].detach()
        others = torch.cat([logits[:kept], logits[kept + 1 :]])
        assert seen.premise == pytest.approx(float(logits[kept] - others.max()), abs=1e-9)


def test_parts_of_many_images_are_differentiable(question):
    x = torch.cat(images(3)).requires_grad_(True)
    atoms = question.groups.atoms(question.values(x))
    for row, one in zip(atoms, images(3), strict=True):
        torch.testing.assert_close(row, question.see(one).atoms)
    (gradient,) = torch.autograd.grad(atoms.sum(), x)
    assert gradient.shape == x.shape and bool(gradient.any())


def test_without_a_class_to_keep_every_image_counts(net):
    question = ask(net, X, k=K, class_idx=CLASS)
    assert question.premises is None and question.kept is None
    assert question.see(X.double()).premise == float("inf")


def test_tolerances_are_relative_to_magnitudes(question):
    """The largest sum of absolute terms of a pixel."""
    features = model().body(X.double())[0].detach().flatten(1)
    expected = (model().head.weight[CLASS].abs() @ features.abs()).max()
    assert question.scale == pytest.approx(float(expected.detach()), rel=1e-9)


def test_what_is_no_question_is_refused(net):
    scene = Scene.of(net, X, class_idx=CLASS, norm="inf", clip=(0.0, 1.0))
    for given in ({"tie_tol": -1.0}, {"tie_tol": "0"}, {"keep_class": 1}):
        with pytest.raises(InputError):
            Question.ask(scene, co.TopK(K), **given)
    with pytest.raises(TieError):
        Question.ask(scene, co.TopK(K), tie_tol=1e9)


@dataclass(frozen=True)
class Darkest(Property):
    """That the darkest pixel is the brightest."""

    name: ClassVar[str] = "Darkest"

    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        cam = scene.cam.flatten()
        pair = torch.tensor([[int(cam.argmin()), int(cam.argmax())]])
        parts = cam_pixels(scene.net.classes, scene.class_idx, len(cam))
        return Groups(parts, pair, torch.tensor([[1.0, -1.0]]).double(), *alone(1), pair, ("pixel", "pixels"))


def test_what_does_not_hold_at_the_image_is_no_question(net):
    spread = float(cam(X).max() - cam(X).min())
    why = f"does not hold at the image itself (its margin there is {-spread:.3g})"
    with pytest.raises(TieError) as raised:
        co.verify(net, X, eps=0.01, property=Darkest(), class_idx=CLASS)
    assert why in str(raised.value)
    with pytest.raises(TieError):
        co.compare(net, X, property=Darkest(), class_idx=CLASS)
    r = co.radius(net, X, property=Darkest(), class_idx=CLASS)
    assert (r.lower, r.upper) == (0.0, 0.0) and why in r.reason
