"""What an image that is found counts for: by the caller's own model, run here by hand."""

from __future__ import annotations

import pytest
import torch
from asking import ask
from nets import Plain, image, seeded
from torch import Tensor

import corgi_opt as co
from corgi_opt.problem.question import Question
from corgi_opt.search.replay import meet, replay, witness_of

X = image(1, 6, 6, seed=1)


@pytest.fixture(scope="module")
def question() -> Question:
    return ask(co.from_torch(seeded(Plain, 2), X), X, k=2, class_idx=1, norm="inf", clip=(0.0, 1.0), tie_tol=None)


def margin_by_hand(x: Tensor) -> float:
    model = seeded(Plain, 2).double()
    cam = torch.einsum("c,nchw->nhw", model.head.weight[1], model.body(x.double())).flatten()
    top = torch.einsum("c,nchw->nhw", model.head.weight[1], model.body(X.double())).flatten().topk(2).indices
    rest = torch.ones(36, dtype=torch.bool).index_fill(0, top, False)
    return float((cam[top].min() - cam[rest].max()).detach())


def test_an_image_is_moved_inside_and_has_the_margin_of_the_model(question):
    ball = question.ball(0.05)
    outside = X.double() + 0.2 * torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    met = meet(question, ball, outside)
    assert met is not None and ball.contains(met.x) and not ball.contains(outside)
    assert met.margin == pytest.approx(margin_by_hand(met.x), abs=1e-12)
    assert met.margin == pytest.approx(float(question.groups.margin(met.atoms)), abs=0.0)


def test_only_what_breaks_is_a_witness(question):
    kept = meet(question, question.ball(0.05), X.double())
    assert kept is not None and kept.margin > 0 and witness_of(question, question.ball(0.05), kept) is None
    assert replay(question, question.ball(0.05), X.double()) is None
    broken = co.attack(question.net, X, eps=0.5, k=2, class_idx=1)
    assert broken is not None
    again = replay(question, question.ball(0.5), broken.image)
    assert again is not None and again.margin == broken.margin <= 0
    assert margin_by_hand(again.image) == pytest.approx(again.margin, abs=1e-12)


def test_what_misses_a_premise_or_overflows_is_nothing(question):
    near = seeded(Plain, 2)
    with torch.no_grad():
        first, second = near(X)[0].topk(2).indices
        near.head.bias[second] += near(X)[0, first] - near(X)[0, second] - 1e-4
    kept = ask(co.from_torch(near, X), X, k=2, class_idx=1, norm="inf", clip=None, tie_tol=None, keep_class=True)
    ball, model = kept.ball(0.5), near.double()
    noise = torch.randn(400, *X.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classes = {bool(model(ball.project(X + n[None])).argmax() == kept.kept) for n in noise}
    assert classes == {True, False}
    for n in noise:
        inside = ball.project(X + n[None])
        assert (meet(kept, ball, inside) is None) == (int(model(inside).argmax()) != kept.kept)
    far = kept.ball(1e308)
    assert meet(kept, far, torch.full_like(X.double(), 1e308)) is None
