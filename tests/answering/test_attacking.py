"""The public attack: what it hands over breaks the property in the user's own model, and it is silent elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import Plain, hooked_cam, image, seeded

import corgi_opt as co
from corgi_opt.errors import InputError

X = image(1, 6, 6, seed=3)


@pytest.fixture(scope="module")
def model():
    return seeded(Plain, 5, channels=4).double()


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 5, channels=4), X)


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_its_image_is_in_the_ball_and_has_another_top_set(norm, net, model):
    eps = {"inf": 0.1, "2": 0.6, "1": 3.0}[norm]
    found = co.attack(net, X, eps=eps, k=3, class_idx=1, norm=norm, device="cpu")
    assert found is not None
    moved = (found.image - X.double()).flatten()
    assert float(torch.linalg.vector_norm(moved, float(norm))) <= eps * (1 + 1e-12)
    assert float(found.image.min()) >= 0.0 and float(found.image.max()) <= 1.0
    before, after = (hooked_cam(model, x.double(), model.head, 1).flatten() for x in (X, found.image))
    top = before.topk(3).indices
    rest = torch.ones_like(before, dtype=torch.bool).index_fill(0, top, False)
    assert float(after[top].min() - after[rest].max()) == pytest.approx(found.margin, abs=1e-9)
    assert found.margin <= 0


def test_of_the_image_alone_there_is_nothing_to_find(net):
    assert co.attack(net, X, eps=0.0, k=3, device="cpu") is None


def test_a_class_that_is_kept_is_kept(net, model):
    found = co.attack(net, X, eps=0.3, k=3, keep_class=True, device="cpu")
    assert found is not None
    assert int(model(found.image).argmax()) == int(model(X.double()).argmax())


def test_options_are_those_of_pgd_and_nothing_else(net):
    one = co.attack(net, X, eps=0.1, k=3, device="cpu", options=co.PgdOptions(seed=4))
    other = co.attack(net, X, eps=0.1, k=3, device="cpu", options=co.PgdOptions(seed=4))
    assert one is not None and other is not None
    assert torch.equal(one.image, other.image)
    wrong: Any = {"seed": 4}
    with pytest.raises(InputError, match=r"options must be a co\.PgdOptions or None"):
        co.attack(net, X, eps=0.1, k=3, options=wrong)
