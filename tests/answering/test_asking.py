"""What stands behind every question: its property, the means to answer it, and what stands beside the answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from asking import ask
from clock import Clock
from curved_nets import read
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt import _deadline
from corgi_opt.answering.asking import Means, asked, chosen_property
from corgi_opt.errors import InputError, UnknownMethodError

MEANS: dict[str, Any] = {"method": "milp", "norm": "inf", "solver": None, "device": "cpu", "time_limit": 60.0}


def net_of(seed: int = 0, bias: float = 0.0) -> co.CamNetwork:
    model = seeded(Plain, seed)
    with torch.no_grad():
        model.head.bias.add_(bias)
    return co.from_torch(model, image(1, 6, 6))


def test_k_and_within_are_short_for_a_property():
    assert chosen_property(None, 3, None) == co.TopK(3)
    assert chosen_property(None, 3, 5) == co.TopK(3, 5)
    assert chosen_property(co.TopK(4), None, None) == co.TopK(4)
    assert chosen_property('{"name": "TopK", "k": 4}', None, None) == co.TopK(4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, None, None), "say what is asked"),
        ((None, None, 5), "say what is asked"),
        ((co.TopK(3), 3, None), "one or the other"),
        ((co.TopK(3), None, 5), "one or the other"),
    ],
)
def test_nothing_and_both_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        chosen_property(*given)


def test_where_the_network_is_known_k_leaves_a_pixel_outside():
    net = net_of()
    assert chosen_property(None, 35, None, net) == co.TopK(35)
    with pytest.raises(InputError, match=r"k must be an int in 1..35 \(the CAM has 36 pixels\)"):
        chosen_property(None, 36, None, net)


def test_the_hash_beside_an_answer_is_that_of_weights_and_bias():
    x = image(1, 6, 6, seed=3)
    first, again, other, moved = (
        asked(ask(net, x, k=2)).network for net in (net_of(), net_of(), net_of(1), net_of(bias=1e-3))
    )
    assert first == again
    assert len({first, other, moved}) == 3
    assert int(first, 16) > 0 and len(first) == 64


def test_what_stands_beside_an_answer_is_what_was_asked():
    net, x = net_of(), image(1, 6, 6, seed=3)
    found = asked(ask(net, x, k=2, within=4, class_idx=2, norm="2", clip=None))
    cam = net.cam(x, 2).flatten().sort(descending=True).values
    assert (found.property, found.class_idx, found.norm, found.clip) == (co.TopK(2, 4), 2, "2", None)
    # the brightest two stay among four: the second brightest is ahead of the fifth by this much
    assert found.gap == pytest.approx(float(cam[1] - cam[4]), abs=1e-12)
    assert found.kept is None
    predicted = int(seeded(Plain, 0)(x).argmax())
    assert asked(ask(net, x, k=2, keep_class=True)).kept == predicted


@pytest.mark.parametrize(("norm", "method", "solver"), [("inf", "milp", "highs"), (2, "lp", "cvxpy")])
def test_means_name_the_solver_that_a_norm_needs(norm, method, solver):
    found = Means.of(net_of(), **{**MEANS, "method": method, "norm": norm})
    assert found.method.name == method
    assert found.solver.name == solver
    assert found.device == torch.device("cpu")


def test_the_time_of_means_counts_from_when_they_are_made(monkeypatch):
    clock = Clock()
    clock.stand_in(monkeypatch, _deadline)
    clock.now = 100.0
    found = Means.of(net_of(), **MEANS)
    clock.now += 45.0
    assert found.seconds == 60.0 and found.deadline.left == 15.0
    assert Means.of(net_of(), **{**MEANS, "time_limit": math.inf}).deadline.left == math.inf


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": "magic"}, UnknownMethodError),
        ({"norm": 3}, InputError),
        ({"solver": "magic"}, InputError),
        ({"device": "magic"}, InputError),
        ({"time_limit": 0}, InputError),
        ({"method": "milp", "norm": "2"}, InputError),
    ],
)
def test_means_that_are_none_are_refused(changes, error):
    with pytest.raises(error):
        Means.of(net_of(), **{**MEANS, **changes})


def test_another_method_answers_where_a_layer_is_curved_and_says_so():
    net = read("silu")
    found = Means.of(net, **{**MEANS, "method": "auto"})
    assert found.method.name == "split"
    assert (
        found.said("no time") == f"no time; method 'auto' is 'split' here: no exact one takes {', '.join(net.curved)}"
    )
    asked_for = Means.of(net, **{**MEANS, "method": "crown"})
    assert (asked_for.method.name, asked_for.said("no time")) == ("crown", "no time")
    with pytest.raises(InputError, match=r"'milp' takes affine and piecewise-linear layers only"):
        Means.of(net, **MEANS)
