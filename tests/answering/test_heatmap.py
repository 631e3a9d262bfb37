"""Heat maps: no image of the region leaves an interval or a rank range; pixels called in or out are, whatever it is."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import matplotlib as mpl
import pytest
import torch
from nets import Plain, Pooled, image, seeded
from oracles import points_in
from patience import diagonal, mostly_slow

import corgi_opt as co

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt

METHODS = ("ibp", "corgi", "crown", "dual")


PROVEN: list[list[Any]] = [[*METHODS], [Plain, Pooled]]


@pytest.mark.parametrize(("method", "build"), mostly_slow(product(*PROVEN), diagonal(*PROVEN)))
def test_no_image_leaves_what_is_proven(method, build):
    x = image(1, 8, 8)
    net = co.from_torch(seeded(build, 3), x)
    for eps in (0.0, 0.003, 0.03):
        found = co.heat_map(net, x, eps=eps, k=3, method=method)
        ball = co.Ball(x, eps)
        images = torch.cat([points_in(ball.lower, ball.upper, 200, seed=1), ball.center])
        cams = net.cams(images.double(), found.asked.class_idx)
        assert bool((cams >= found.lower).all() and (cams <= found.upper).all())
        flat = cams.flatten(1)
        brighter = (flat[:, None, :] > flat[:, :, None]).sum(dim=2).view_as(cams)  # than each pixel
        equal = (flat[:, None, :] == flat[:, :, None]).sum(dim=2).view_as(cams) - 1
        assert bool((brighter + 1 >= found.best).all())
        assert bool((brighter + 1 + equal <= found.worst).all())
        assert int(found.inside.sum()) <= 3
        assert bool((found.inside | found.outside | found.undecided).all())


def test_at_eps_zero_every_pixel_is_decided():
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    found = co.heat_map(net, x, eps=0.0, k=2)
    top = set(found.cam.flatten().topk(2).indices.tolist())
    assert set(torch.nonzero(found.inside.flatten()).flatten().tolist()) == top
    assert int(found.undecided.sum()) == 0


def test_what_verify_certifies_with_pairs_is_in():
    """Where CROWN certifies the set pair by pair, the map shows all of it."""
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    r = co.radius(net, x, k=2, method="crown")
    found = co.heat_map(net, x, eps=0.99 * r.lower, k=2)
    assert int(found.inside.sum()) == 2 and int(found.undecided.sum()) == 0
    weaker = co.heat_map(net, x, eps=0.99 * r.lower, k=2, method="ibp")
    assert int(weaker.undecided.sum()) >= int(found.undecided.sum())


def test_a_tied_image_has_a_map_too():
    net = co.from_torch(seeded(Pooled), image(1, 8, 8))
    x = torch.zeros(1, 1, 8, 8)
    x[..., 0, 0] = 0.5
    found = co.heat_map(net, x, eps=0.01, k=5)
    assert bool((found.worst >= found.best).all())


def test_a_heat_map_goes_through_json_and_back():
    x = image(1, 8, 8)
    found = co.heat_map(co.from_torch(seeded(Plain, 3), x), x, eps=0.01, k=3)
    back = co.HeatMap.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.asked == found.asked == replace(found.asked, property=co.TopK(3)) and repr(back) == repr(found)
    for name in ("cam", "lower", "upper", "best", "worst", "undecided"):
        assert torch.equal(getattr(back, name), getattr(found, name))


def test_the_picture_shows_what_is_in_out_and_undecided():
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    found = co.heat_map(net, x, eps=0.01, k=3, method="corgi")
    figure = found.plot()
    assert f"(L-{found.asked.norm})" in figure.get_suptitle()
    kinds = figure.axes[3].images[0].get_array()
    assert ((kinds == 2) == found.inside.numpy()).all() and ((kinds == 0) == found.outside.numpy()).all()
    assert (figure.axes[1].images[0].get_array() == (found.upper - found.lower).numpy()).all()
    assert (figure.axes[2].images[0].get_array() == (found.worst - found.best).numpy()).all()
    (signs,) = figure.axes[3].lines
    assert len(signs.get_xdata()) == int(found.undecided.sum())
    labels = [t.get_text() for t in figure.axes[3].get_legend().get_texts()]
    assert labels == [
        f"certainly out ({int(found.outside.sum())})",
        f"undecided ({int(found.undecided.sum())})",
        f"certainly in ({int(found.inside.sum())})",
    ]
    assert repr(found).startswith("HeatMap(eps=0.01, k=3, class 0")
    plt.close("all")


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 99}, {"eps": -1.0}, {"method": "bab"}, {"clip": (1.0, 0.0)}])
def test_bad_input_is_refused(options):
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    with pytest.raises(co.InputError):
        co.heat_map(net, x, **{"eps": 0.01, "k": 2, **options})


def test_a_notebook_shows_counts_time_and_a_small_picture():
    x = image(1, 8, 8)
    found = co.heat_map(co.from_torch(seeded(Pooled), x), x, eps=0.01, k=3, method="corgi")
    page = found._repr_html_()
    for row in ("norm", "clip", "proof", "method", "seconds", "reason", "certainly in", "undecided"):
        assert f">{row}</th>" in page
    assert page.count("<img") == 1 and len(page) < 60_000 and found.seconds > 0
    assert found.image is not None and torch.equal(found.image, x.double())


def test_older_json_has_no_image_and_no_time():
    x = image(1, 8, 8)
    found = co.heat_map(co.from_torch(seeded(Pooled), x), x, eps=0.01, k=3, method="corgi")
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    whole = co.HeatMap.from_dict(said)
    assert whole.image is not None and torch.equal(whole.image, x.double()) and whole.seconds == found.seconds
    del said["image"], said["seconds"]
    old = co.HeatMap.from_dict(said)
    assert old.image is None and old.seconds != old.seconds  # NaN
    assert "<img" not in old._repr_html_() and "seconds" not in old._repr_html_()
    json.dumps(old.to_dict(), allow_nan=False)
