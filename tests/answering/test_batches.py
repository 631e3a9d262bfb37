"""Several images, or several classes, in one call: each answer is the one it has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import Plain, image, seeded

import corgi_opt

co: Any = corgi_opt  # of several images its functions give lists, which their types do not say

X = torch.cat([image(1, 6, 6, seed=s) for s in (1, 2, 3)])
TIED = torch.zeros(1, 1, 6, 6)
RTOL = 0.3
"""Of radii, which need not be sharp to be the same."""


@pytest.fixture(scope="module")
def net() -> Any:
    return co.from_torch(seeded(Plain, 2), X[:1])


def of_verdict(v: Any) -> tuple[object, ...]:
    return v.status, v.margin_lower, v.asked


@pytest.fixture(scope="module")
def alone(net: Any) -> list[tuple[Any, ...]]:
    """The verdict, the radius and the heat map of each image, asked for one by one."""
    return [
        (co.verify(net, x, eps=0.004, k=2), co.radius(net, x, k=2, rtol=RTOL), co.heat_map(net, x, eps=0.004, k=2))
        for x in (X[at : at + 1] for at in range(3))
    ]


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(X, id="tensor", marks=pytest.mark.slow),
        pytest.param([X[at : at + 1] for at in range(3)], id="list"),
    ],
)
def test_every_image_has_the_answer_that_it_has_alone(net, batch, alone):
    found = co.verify(net, batch, eps=0.004, k=2)
    assert [of_verdict(v) for v in found] == [of_verdict(v) for v, _, _ in alone]
    radii = co.radius(net, batch, k=2, rtol=RTOL)
    assert [(r.lower, r.upper) for r in radii] == [(r.lower, r.upper) for _, r, _ in alone]
    maps = co.heat_map(net, batch, eps=0.004, k=2)
    assert all(torch.equal(m.lower, one.lower) for m, (_, _, one) in zip(maps, alone, strict=True))
    hit = co.attack(net, batch, eps=2.0, k=2, clip=None)
    assert len(hit) == 3 and all(w is not None for w in hit)


def test_one_image_has_an_answer_for_every_class(net):
    found = co.radius(net, X[:1], k=2, class_idx=[0, 1, 2], rtol=RTOL)
    assert [r.asked.class_idx for r in found] == [0, 1, 2]
    paired = co.radius(net, X, k=2, class_idx=torch.tensor([0, 1, 2]), rtol=RTOL)
    assert [r.asked.class_idx for r in paired] == [0, 1, 2] and paired[0].lower == found[0].lower
    one = co.heat_map(net, X, eps=0.001, k=2, class_idx=[1])
    assert [m.asked.class_idx for m in one] == [1, 1, 1]
    assert isinstance(co.radius(net, [X[:1]], k=2, rtol=RTOL), list)


def test_a_tied_image_loses_nothing_of_the_others(net):
    dark = co.from_torch(seeded(Plain, 2), X[:1])
    batch = torch.cat([X[:1], TIED])
    found = co.verify(dark, batch, eps=0.001, k=1, keep_class=True, class_idx=0)
    assert found[1].status == "unknown" and "differ by" in found[1].reason
    assert found[1].asked.property == co.TopK(1)
    assert co.attack(dark, batch, eps=0.001, k=1, class_idx=0)[1] is None
    assert co.radius(dark, batch, k=1, class_idx=0, rtol=0.1)[1].upper == 0
    with pytest.raises(co.TieError):
        co.verify(dark, TIED, eps=0.001, k=1, class_idx=0)


def test_what_does_not_go_together_is_refused(net):
    with pytest.raises(co.InputError, match="3 images and 2 classes"):
        co.verify(net, X, eps=0.001, k=2, class_idx=[0, 1])
    with pytest.raises(co.InputError, match="empty list"):
        co.verify(net, [], eps=0.001, k=2)
    with pytest.raises(co.InputError, match="empty list"):
        co.radius(net, X, k=2, class_idx=[])
    with pytest.raises(co.InputError, match="class_idx"):
        co.radius(net, X, k=2, class_idx="1")


def test_ctrl_c_hands_over_the_answers_so_far(net, monkeypatch):
    import sys

    module = sys.modules["corgi_opt.answering.verdict"]
    real, calls = module.climb, []

    def climb(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(module, "climb", climb)
    with pytest.raises(co.Interrupted) as stop:
        co.verify(net, X, eps=0.004, k=2)
    first, second = stop.value.partial
    assert first.status in ("certified", "falsified") and second.reason == "interrupted"
