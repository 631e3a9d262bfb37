"""The user's model as it runs: its scores, the maps that go by, their derivatives, whatever it does inside."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, image, seeded
from torch import nn

from corgi_opt.errors import ParityError, UnsupportedOpError
from corgi_opt.network import replay
from corgi_opt.network.replay import Replay, alone, logits_of, scores, slopes, watch

X = image(1, 6, 6, seed=3)
SHAPE = (2, 6, 6)


def model() -> Plain:
    return seeded(Plain, 2).double()


def hooked(model: Plain, x: torch.Tensor) -> list[torch.Tensor]:
    """What the modules of the body give."""
    seen: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda _, __, out: seen.append(out.detach().clone())) for m in model.body]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_scores_and_maps_are_those_of_the_model():
    logits, maps = watch(model(), X, SHAPE)
    torch.testing.assert_close(logits, model()(X.double())[0])
    for expected in hooked(model(), X.double()):
        assert any(torch.equal(m, expected) for m in maps)
    torch.testing.assert_close(scores(model(), X), model()(X.double()))


def test_a_map_that_is_overwritten_is_seen_as_it_was_and_as_it_is():
    class InPlace(Plain):
        def forward(self, x):
            h = self.body[0](x)
            F.relu_(h)
            h.mul_(2.0)
            h[:, 0] = 3.0  # gives nothing: it is seen by whoever reads the map next
            return self.head(h.mean((2, 3)))

    first = model().body[0](X.double()).detach()
    found = watch(seeded(InPlace, 2).double(), X, SHAPE)[1]
    last = 2 * first.relu()
    last[:, 0] = 3.0
    for expected in (first, first.relu(), 2 * first.relu(), last):
        assert any(torch.equal(m, expected) for m in found)


def test_derivatives_are_autograds():
    place = len(watch(model(), X, SHAPE)[1]) - 1
    found = slopes(model(), X, SHAPE, place)
    features = watch(model(), X, SHAPE)[1][place].requires_grad_(True)
    logits = model().head(features.mean((2, 3)))[0]
    for row, logit in zip(found, logits, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(logit, features, retain_graph=True)[0][0])


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_derivatives_of_several_scores_at_once_are_those_of_each(monkeypatch, at_once):
    monkeypatch.setattr(replay, "SLOPES_AT_ONCE", at_once * torch.Size(SHAPE).numel())
    many = seeded(Plain, 2)
    many.head = nn.Linear(2, 5)
    place = len(watch(many.double(), X, SHAPE)[1]) - 1
    found = torch.stack(list(slopes(many, X, SHAPE, place)))
    torch.testing.assert_close(found, (many.head.weight.detach() / 36)[:, :, None, None].expand(5, *SHAPE))


def test_derivatives_that_torch_takes_one_by_one_only():
    class Alone(torch.autograd.Function):
        """Knows nothing of several rows at once."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
            return slope.new_tensor(2 * slope.numpy())

    twice: Any = Alone.apply

    class Odd(Plain):
        def forward(self, x):
            return self.head(twice(self.body(x).mean((2, 3))))

    odd = seeded(Odd, 2).double()
    place = len(watch(odd, X, SHAPE)[1]) - 1
    places = range(place + 1)
    expected = (odd.head.weight.detach() / 18)[:, :, None, None].expand(len(odd.head.weight), *SHAPE)
    found = [torch.stack(list(slopes(odd, X, SHAPE, at))) for at in places]
    assert any(torch.allclose(one, expected) for one in found)


def test_scores_that_do_not_depend_on_a_map_have_no_slope():
    class Constant(Plain):
        def forward(self, x):
            self.body(x)
            return self.head(torch.ones(1, 2, dtype=x.dtype))

    assert not torch.stack(list(slopes(seeded(Constant, 2).double(), X, SHAPE, 0))).any()


def test_casts_inside_change_nothing():
    class Casts(Plain):
        def forward(self, x):
            return self.head(self.body(x.float().to(self.head.weight.dtype)).float().mean((2, 3)))

    exact = model()(X.double() + 1e-12)
    assert not torch.equal(exact, model()(X.double()))
    torch.testing.assert_close(scores(seeded(Casts, 2).double(), X.double() + 1e-12), exact, rtol=1e-15, atol=1e-15)


@dataclass
class Named:
    logits: torch.Tensor
    hidden: torch.Tensor


T, U = torch.ones(1, 3), torch.zeros(1, 2)
Pair = namedtuple("Pair", "logits rest")


@pytest.mark.parametrize("returned", [T, (T,), [T, None], {"out": T}, {"logits": T, "x": U}, Named(T, U), Pair(T, U)])
def test_scores_are_found_in_what_a_model_returns(returned):
    assert logits_of(returned) is T


@pytest.mark.parametrize("returned", [(T, U), {"a": T, "b": U}, None, 3.0, [], "logits"])
def test_what_could_be_something_else_is_refused(returned):
    with pytest.raises(UnsupportedOpError, match="returns the logits alone"):
        logits_of(returned)


def test_a_model_that_does_not_run_in_float64_says_what_python_said():
    class Single(Plain):
        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)) @ torch.ones(2, 2, dtype=torch.float32).float().numpy())

    with pytest.raises(UnsupportedOpError, match="Python said: "):
        scores(seeded(Single, 2).double(), X)


def test_another_path_is_no_replay():
    maps = watch(model(), X, SHAPE)[1]
    found = Replay(model(), SHAPE, len(maps) - 1, len(maps), lambda *_: None)
    assert torch.equal(found.run(X)[1], maps[-1])
    with pytest.raises(ParityError, match="another path"):
        Replay(model(), SHAPE, 0, len(maps) + 1, lambda *_: None).run(X)


def test_hooks_on_all_modules_are_set_aside_and_come_back():
    calls = []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        with alone():
            model()(X.double())
        assert calls == []
        model()(X.double())
        assert calls
    finally:
        hook.remove()
