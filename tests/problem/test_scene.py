"""Where a question is asked: the image, its class, its CAM by the user's model, and the region around it."""

from __future__ import annotations

import pytest
import torch
from nets import Plain, hooked_cam, image, seeded

import corgi_opt as co
from corgi_opt.errors import InputError
from corgi_opt.problem.atoms import MEAN, Parts
from corgi_opt.problem.scene import Scene, corners

X = image(1, 6, 6, seed=3)


@pytest.fixture(scope="module")
def net():
    return co.from_torch(seeded(Plain, 5, channels=4), X)


def scene(net, **given) -> Scene:
    return Scene.of(net, X, **({"class_idx": None, "norm": "inf", "clip": (0.0, 1.0)} | given))


def model() -> Plain:
    return seeded(Plain, 5, channels=4).double()


def test_cam_class_and_features_are_the_models(net):
    found, predicted = scene(net), int(model()(X.double()).argmax())
    assert (found.class_idx, found.predicted, found.dtype) == (predicted, predicted, "float32")
    assert found.x.dtype == torch.float64 and torch.equal(found.x, X.double())
    for class_idx in range(3):
        chosen = scene(net, class_idx=class_idx)
        assert chosen.predicted == predicted
        torch.testing.assert_close(chosen.cam, hooked_cam(model(), X.double(), model().head, class_idx))
    torch.testing.assert_close(found.features, model().body(X.double()).detach())
    torch.testing.assert_close(found.logits, model()(X.double())[0].detach())


def test_parts_have_the_size_of_their_absolute_terms(net):
    heads = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    features = model().body(X.double())[0].detach().flatten(1).abs()
    weight, bias = model().head.weight.detach(), model().head.bias.detach()
    sizes = {
        (h, p): float(v.abs() @ features[:, p])
        for h, v in enumerate((weight[1], weight[0] - weight[2]))
        for p in (0, 5)
    }
    whole = float(weight[1].abs() @ features.mean(dim=1) + bias[1].abs())
    for (head, place), expected in [*sizes.items(), ((0, MEAN), whole)]:
        one = Parts(heads, torch.tensor([head]), torch.tensor([place]))
        assert scene(net).scale_of(one) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("clip", [(0.0, 1.0), (-1.0, 3.0)])
def test_beyond_the_whole_range_a_region_grows_no_further(norm, clip, net):
    found = scene(net, norm=norm, clip=clip)
    low, high = clip
    farthest = torch.where(X.double() - low > high - X.double(), low, high)
    expected = float(torch.linalg.vector_norm((farthest - X.double()).flatten(), float(norm)))
    assert found.whole_range == pytest.approx(expected, rel=1e-12)
    assert found.ball(found.whole_range * (1 + 1e-12)).contains(farthest)
    assert not found.ball(found.whole_range * 0.99).contains(farthest)


def test_without_a_box_there_is_no_end(net):
    assert scene(net, clip=None).whole_range == float("inf")


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_corners_are_in_the_region_and_at_its_end(norm, net):
    ball = scene(net, norm=norm).ball(0.3)
    found = list(corners(ball))
    assert len(found) == 3 and all(ball.contains(x) for x in found)
    moved = [float(torch.linalg.vector_norm((x - X.double()).flatten(), float(norm))) for x in found]
    assert min(moved) > 0.2
    assert torch.equal(scene(net, norm=norm).checked_ball(0.3).center, ball.center)


@pytest.mark.parametrize("given", [{"class_idx": 3}, {"norm": "3"}, {"clip": (1.0, 0.0)}, {"clip": (0.4, 0.6)}])
def test_what_is_no_scene_is_refused(given, net):
    with pytest.raises(InputError):
        scene(net, **given)
    with pytest.raises(InputError, match="net must be a CamNetwork"):
        scene(model())
