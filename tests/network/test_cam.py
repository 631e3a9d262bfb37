"""Building the graph: parity with torch, the CAM against hooks, what is refused and how."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from nets import Everything, Plain, Pooled, Residual, Tiny, hooked_cam, image, seeded
from torch import nn

import corgi_opt as co

MODELS = [
    (Plain, {}, (1, 6, 6)),
    (Tiny, {"pool": 1}, (1, 3, 4)),
    (Everything, {}, (3, 20, 22)),
    (Residual, {}, (1, 7, 5)),
    (Pooled, {}, (1, 8, 8)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1}, (1, 9, 9)),
    (Pooled, {"kernel": 3, "stride": 1, "padding": 0}, (1, 8, 8)),
    (Pooled, {"kernel": 2, "stride": 3, "padding": 1}, (1, 8, 7)),
    (Pooled, {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 9, 8)),
]


@pytest.mark.parametrize(("build", "kwargs", "shape"), MODELS)
def test_graph_equals_the_torch_forward(build, kwargs, shape):
    model = seeded(build, **kwargs)
    net = co.from_torch(model, image(*shape))
    double = model.double()
    for seed in range(5):
        x = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = double(x)
        for graph in (net.graph, net.pooled):
            torch.testing.assert_close(graph.forward(x).flatten(1), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("build", "kwargs", "shape"), MODELS)
def test_normal_form_is_affine_and_relu_only(build, kwargs, shape):
    net = co.from_torch(seeded(build, **kwargs), image(*shape))
    kinds = {kind for _, kind in net.graph.to_networkx().nodes(data="op")}
    assert kinds <= {"Input", "Conv2d", "Tap", "Combine", "ReLU"}


def test_cam_equals_hooks_on_the_torch_model():
    class WithModules(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
            self.last = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
            self.pool, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.flat(self.pool(self.last(self.body(x)))))

    model = seeded(WithModules)
    net = co.from_torch(model, image(1, 10, 12))
    x = image(1, 10, 12, seed=5)
    for c in range(3):
        torch.testing.assert_close(net.cam(x, c).float(), hooked_cam(model, x, model.fc, c), rtol=1e-5, atol=1e-6)
    predicted = int(model(x).argmax())
    assert torch.equal(net.cam(x), net.cam(x, predicted))
    torch.testing.assert_close(net.model_cam(x, 1), net.cam(x, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "pool",
    [
        lambda y: y.mean((2, 3)),
        lambda y: y.mean([-1, -2], keepdim=True).squeeze(-1).squeeze(-1),
        lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1),
        lambda y: F.avg_pool2d(y, y.shape[-1]).view(y.shape[0], -1),
    ],
)
def test_every_spelling_of_the_global_average_is_found(pool):
    class Spelled(Plain):
        def forward(self, x):
            return self.head(pool(self.body(x)))

    model = seeded(Spelled)
    net = co.from_torch(model, image(1, 6, 6))
    x = image(1, 6, 6, seed=1)
    torch.testing.assert_close(net.cam(x, 0), net.model_cam(x, 0))
    assert net.map_shape == (6, 6)
    assert "6x6" in repr(net)


def test_head_is_described():
    net = co.from_torch(seeded(Plain), image(1, 6, 6))
    assert "body.3" in repr(net)
    assert "'head' linear, 3 classes" in repr(net)


def test_constants_batch_norm_and_scalars_fold():
    class Scaled(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([[[0.4]]]))
            self.bn = nn.BatchNorm2d(1)

        def forward(self, x):
            y = self.bn((x - self.mean) / 0.5)
            y = 1.5 - y * 2.0 + x
            return self.head(self.body(y).mean((2, 3)))

    model = seeded(Scaled)
    net = co.from_torch(model, image(1, 6, 6))
    x = image(1, 6, 6, seed=3).double()
    torch.testing.assert_close(net.logits(x), model.double()(x)[0], rtol=1e-12, atol=1e-12)


def test_average_pool_variants():
    for kwargs in (
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": (2, 3), "stride": 1, "divisor_override": 5},
    ):

        class Averaged(Plain):
            def __init__(self, kwargs=kwargs):
                super().__init__()
                self.avg = nn.AvgPool2d(**kwargs)

            def forward(self, x):
                return self.head(self.body(self.avg(x)).mean((2, 3)))

        model = seeded(Averaged)
        net = co.from_torch(model, image(1, 8, 9))
        x = image(1, 8, 9, seed=2).double()
        torch.testing.assert_close(net.logits(x), model.double()(x)[0], rtol=1e-12, atol=1e-12)


def test_training_mode_is_refused():
    with pytest.raises(co.ModelModeError, match=r"call model.eval\(\)"):
        co.from_torch(seeded(Plain).train(), image(1, 6, 6))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.rand(1, 6, 6), "batch dimension is missing"),
        (torch.rand(2, 1, 6, 6), r"must have shape \(1, C, H, W\)"),
        (torch.full((1, 1, 6, 6), float("nan")), "NaN"),
        (torch.zeros(1, 1, 6, 6, dtype=torch.int64), "floating-point"),
    ],
)
def test_bad_examples_are_refused(example, message):
    with pytest.raises(co.InputError, match=message):
        co.from_torch(seeded(Plain), example)


def test_no_cam_head():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(32, 3)

        def forward(self, x):
            return self.fc(F.relu(self.c(x)).flatten(1))

    with pytest.raises(co.NoCamHeadError, match="global average"):
        co.from_torch(seeded(Dense), image(1, 6, 6))
    with pytest.raises(co.NoCamHeadError, match="global average"):
        co.check_model(seeded(Dense), image(1, 6, 6))

    class NoLinear(Plain):
        def forward(self, x):
            return self.body(x).mean((2, 3))

    net = co.from_torch(seeded(NoLinear), image(1, 6, 6))  # the CAM of a class is its channel
    torch.testing.assert_close(
        net.cam(image(1, 6, 6), 1), seeded(NoLinear).double().body(image(1, 6, 6).double())[0, 1]
    )


def test_check_model_lists_every_unsupported_operation_with_its_place():
    class Bent(Plain):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(1, 1)

        def forward(self, x):
            y = torch.erf(self.body(self.norm(x)))
            return torch.softmax(self.head(torch.expm1(y).mean((2, 3))), dim=1)

    problems = co.check_model(seeded(Bent), image(1, 6, 6))
    assert any(p.op.endswith("group_norm") and p.node.startswith("norm") and p.hint for p in problems)
    # what depends on an unsupported result is looked at as well
    assert {p.op for p in problems} >= {"erf", "expm1"}
    assert not any("softmax" in p.op for p in problems)  # at the end it is left out
    with pytest.raises(co.UnsupportedOpError, match="check_model lists all") as raised:
        co.from_torch(seeded(Bent), image(1, 6, 6))
    assert raised.value.node.startswith("norm")
    assert isinstance(raised.value, NotImplementedError)


def test_check_model_is_empty_for_a_good_model():
    assert co.check_model(seeded(Everything), image(3, 20, 22)) == ()


def test_quotients_of_feature_maps_and_data_dependent_branches_are_refused():
    class Divided(Plain):
        def forward(self, x):
            y = self.body(x)
            return self.head((y / (1 + y)).mean((2, 3)))

    with pytest.raises(co.UnsupportedOpError, match="not piecewise linear"):
        co.from_torch(seeded(Divided), image(1, 6, 6))

    class Branch(Plain):
        def forward(self, x):
            return self.head(self.body(x if x.sum() > 0 else -x).mean((2, 3)))

    with pytest.raises(co.UnsupportedOpError, match=r"torch\.export"):
        co.from_torch(seeded(Branch), image(1, 6, 6))


def test_a_build_that_disagrees_with_torch_is_refused(monkeypatch):
    from corgi_opt.network import builders

    def wrong(t, fx, *, x):
        return t.value(x)

    monkeypatch.setitem(builders.BUILDERS, "relu.default", wrong)
    with pytest.raises(co.ParityError, match="differs"):
        co.from_torch(seeded(Plain), image(1, 6, 6))


def test_networkx_view_is_a_copy():
    net = co.from_torch(seeded(Plain), image(1, 6, 6))
    view = net.graph.to_networkx()
    assert view.nodes["body.0"]["shape"] == (2, 6, 6)
    assert view.nodes["body.0"]["module"] == "body.0"
    view.remove_node("body.0")
    assert "body.0" in net.graph


@pytest.mark.parametrize("build", [co.from_torch, co.check_model])
def test_a_model_that_draws_numbers_leaves_the_caller_s_as_they_were(build):
    class Dropping(Plain):
        def forward(self, x):
            return self.head(nn.functional.dropout(self.body(x), 0.5).mean((2, 3)))

    model, before = seeded(Dropping), torch.get_rng_state()
    with contextlib.suppress(co.UnsupportedOpError):
        build(model, image(1, 6, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_notebook_shows_sizes_names_and_what_is_exact():
    x = image(1, 6, 6)
    net = co.from_torch(seeded(Plain, 2), x)
    page = net._repr_html_()
    assert "1x6x6" in page and "their names" not in page and "bab, milp" in page
    units = sum(torch.Size(net.graph[name].shape).numel() for name in net.graph.relus)
    assert f">{units:,}<" in page
    named = co.from_torch(seeded(Plain, 2), x, classes=[f"<sign {i}>" for i in range(net.classes)])
    assert "&lt;sign 0&gt;, &lt;sign 1&gt;" in named._repr_html_()
