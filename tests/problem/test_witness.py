"""A counterexample shows itself: what changed, beside the image that it is one to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.plots import plot_counterexample

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

K = 4
X = image(1, 6, 6)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 2), X)


@pytest.fixture(scope="module")
def witness(net):
    found = co.attack(net, X, eps=0.3, k=K)
    assert found is not None
    return found


def test_it_carries_the_image_and_the_map_that_it_is_about(net, witness):
    assert torch.equal(witness.center, X.double())
    torch.testing.assert_close(witness.cam_before, net.cam(X))
    for answer in (co.verify(net, X, eps=0.3, k=K), co.radius(net, X, k=K, method="corgi", rtol=0.1)):
        found = answer.counterexample
        assert found is not None and found.original is answer.original and found.center is not None
        assert torch.equal(found.center, X.double())


def test_it_goes_through_json_and_older_json_is_read(witness):
    said = json.loads(json.dumps(witness.to_dict(), allow_nan=False))
    back = co.Witness.from_dict(said)
    assert back.center is not None
    assert back.to_dict() == witness.to_dict() and torch.equal(back.center, witness.center)
    del said["original"]
    old = co.Witness.from_dict(said)
    assert old.center is None and old.cam_before is None and repr(old) == repr(witness)


def test_the_plot_shows_both_images_the_difference_and_both_maps(witness):
    figure = witness.plot()
    first, change, second, before, after = figure.axes[:5]
    np.testing.assert_allclose(first.images[0].get_array(), X[0, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(second.images[0].get_array(), witness.image[0, 0].numpy())
    most = float((witness.image - witness.center).abs().max())
    assert f"most {most:.3g}" in change.get_xlabel() and change.get_title() == "difference, 1x"
    assert before.images[0].get_array().shape == (6, 6, 3) == after.images[0].get_array().shape  # maps over images
    assert f"class {witness.original.class_idx}" in before.get_title()
    assert witness.what_changed in figure.get_suptitle() and "(L-inf)" in figure.get_suptitle()
    assert {line.get_label() for line in after.lines} == {"came in", "pushed out"}


def test_a_given_figure_is_drawn_into(witness):
    whole = plt.figure(figsize=(6, 8), layout="constrained")
    both: Any = whole.subfigures(2, 1)
    top = both[0]
    assert witness.plot(top) is top and len(top.axes) >= 5


def test_one_that_lacks_its_image_says_what_to_do(net, witness):
    lost = replace(witness, original=None)
    with pytest.raises(co.InputError, match=r"plot_counterexample\(net, x, k, witness\)"):
        lost.plot()
    assert plot_counterexample(net, X, K, lost).axes  # as the message says
    assert "<img" not in lost._repr_html_() and "what changed" in lost._repr_html_()


def test_a_changed_class_has_no_set_to_outline():
    other = co.from_torch(seeded(Plain, 4), X)
    found = co.attack(other, X, eps=5.0, property=co.KeepsClass(), clip=None)
    assert found is not None
    assert not found.plot().axes[3].collections and "class" in found.what_changed


def test_a_notebook_shows_what_changed(witness):
    page = witness._repr_html_()
    for words in (witness.what_changed, f"{witness.margin:.6g}", "L-inf", ">[0, 1]<", "replayed in float64"):
        assert words in page
    assert page.count("<img") == 1 and len(page) < 60_000
