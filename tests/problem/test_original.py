"""The image beside an answer: what it keeps of the question, and what a picture of it outlines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from asking import ask
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.problem.original import Original, scale_of, shown

X = image(1, 6, 6)


@pytest.fixture(scope="module")
def net():
    plain = co.from_torch(seeded(Plain, 2), X)
    return co.from_torch(seeded(Plain, 2), X, classes=[f"sign {i}" for i in range(plain.classes)])


def test_it_keeps_image_map_class_and_region(net):
    question = ask(net, X, k=4, within=6, class_idx=1, norm="2", clip=(-1.0, 2.0))
    found = question.original
    assert torch.equal(found.image, X.double()) and torch.equal(found.cam, net.model_cam(X, 1))
    assert (found.class_idx, found.class_name, found.outlined) == (1, "sign 1", (4, 6))
    assert (found.norm, found.clip, found.class_in_words) == ("2", (-1.0, 2.0), "1 (sign 1)")
    found.image.zero_()
    assert torch.equal(question.x, X.double())  # an answer's tensors are its own


@pytest.mark.parametrize("given", [{"k": 2}, {"k": 2, "clip": None}, {"k": 1, "within": 3, "norm": "1"}])
def test_it_goes_through_json(net, given):
    found = ask(net, X, **given).original
    back = Original.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.to_dict() == found.to_dict() and torch.equal(back.image, found.image)
    assert (back.outlined, back.clip, back.norm) == (found.outlined, found.clip, found.norm)


def test_outlined_are_the_brightest_then_those_among_which_they_were_to_stay(net):
    found = ask(net, X, k=2, within=5).original
    order = found.cam.flatten().argsort(descending=True).tolist()
    assert found.shown().top == order[:2] and found.shown_then(found.image, found.cam).top == order[:5]
    np.testing.assert_array_equal(found.shown().image, X[0].double().numpy())


def test_a_property_that_is_about_no_set_outlines_nothing(net):
    v = co.verify(net, X, eps=0.001, property=co.KeepsClass(), method="corgi")
    assert v.original is not None and v.original.outlined is None
    assert v.original.shown().top == [] == v.original.shown_then(v.original.image, v.original.cam).top


def test_the_scale_is_the_clip_box_or_what_images_hold():
    images = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 3.0)
    free, boxed = scale_of(None, *images), scale_of((0.0, 1.0), *images)
    assert (free.low, free.high) == (-1.0, 3.0) and (float(boxed.low[0]), float(boxed.high[0])) == (0.0, 1.0)
    assert shown(images[0], torch.tensor([[1.0, 3.0]]), 1).top == [1]
