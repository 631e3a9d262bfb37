"""Rewrites into affine and ReLU, on graphs made by hand: the same values as torch, before and after."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from corgi_opt.network.graph import GraphBuilder, LayerGraph
from corgi_opt.network.lowering import average_pool, batch_norm, fold_affine, normal_form, scalar
from corgi_opt.network.ops import Combine, Conv2d, Input, MaxPool2d, ReLU

SHAPE = (2, 7, 6)
POOLS = [
    ((2, 2), (2, 2), (0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (1, 3), (1, 0), (2, 1)),
    ((1, 3), (1, 1), (0, 1), (1, 2)),
    ((1, 1), (2, 1), (0, 0), (1, 1)),
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(6, *SHAPE, seed=9)


def shape_of(x: torch.Tensor) -> tuple[int, int, int]:
    _, channels, height, width = x.shape
    return channels, height, width


def out_shape(kernel, stride, padding, dilation=(1, 1)) -> tuple[int, int, int]:
    return shape_of(F.max_pool2d(X, kernel, stride, padding, dilation))


def pooled_graph(pool, rectified: bool, also_read: bool = False) -> LayerGraph:
    builder = GraphBuilder()
    name = builder.add("x", Input(), (), SHAPE)
    if rectified:
        name = builder.add("relu", ReLU(), (name,), SHAPE)
    shape = out_shape(*pool)
    top = builder.add("pool", MaxPool2d(*pool), (name,), shape)
    if also_read:  # the ReLU's own value, beside the pool's
        back = builder.add(
            "mean", Conv2d(torch.ones(2, 1, *SHAPE[1:]).double(), None, (1, 1), (0, 0), (1, 1), 2), (name,), (2, 1, 1)
        )
        top = builder.add("both", Combine((scalar(1.0), scalar(-0.5))), (top, back), shape)
    return builder.build(top)


def expected(pool, rectified: bool, also_read: bool = False) -> torch.Tensor:
    h = X.relu() if rectified else X
    found = F.max_pool2d(h, *pool)
    return found - 0.5 * h.sum(dim=(2, 3), keepdim=True) if also_read else found


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_is_differences_and_relus(pool, rectified):
    graph = pooled_graph(pool, rectified)
    torch.testing.assert_close(graph.forward(X), expected(pool, rectified))
    lowered, _ = normal_form(graph)
    assert {type(lowered[n].op).__name__ for n in lowered.order} <= {"Input", "ReLU", "Tap", "Combine"}
    torch.testing.assert_close(lowered.forward(X), expected(pool, rectified))


@pytest.mark.parametrize("pool", POOLS[:3])
def test_a_relu_that_others_read_is_still_there(pool):
    lowered, _ = normal_form(pooled_graph(pool, True, also_read=True))
    torch.testing.assert_close(lowered.forward(X), expected(pool, True, also_read=True))


@pytest.mark.parametrize("pool", POOLS[:4])
def test_behind_a_pool_there_is_one_relu_a_window(pool):
    """It is taken after the maximum; before it are only those of the differences."""
    lowered, bare = (normal_form(pooled_graph(pool, rectified))[0] for rectified in (True, False))
    assert len(lowered.relus) == len(bare.relus) + 1
    assert isinstance(lowered[lowered.output].op, ReLU) and lowered[lowered.output].shape == out_shape(*pool)


@pytest.mark.parametrize("pool", POOLS[:4])
def test_the_maximum_says_what_it_is_the_maximum_of(pool):
    lowered, _ = normal_form(pooled_graph(pool, False))
    (marked,) = (lowered[n] for n in lowered.order if lowered[n].pooled is not None)
    values = lowered.values(X)
    assert marked.pooled is not None
    torch.testing.assert_close(values[marked.name], F.max_pool2d(values[marked.pooled.source], *pool))


@pytest.mark.parametrize("weights", [False, True])
def test_batch_norm_is_torchs(weights):
    mean, var = drawn(2, seed=1), drawn(2, seed=2).abs() + 0.1
    weight, bias = (drawn(2, seed=3), drawn(2, seed=4)) if weights else (None, None)
    scale, shift = (v.view(2, 1, 1) for v in batch_norm(weight, bias, mean, var, 1e-3))
    torch.testing.assert_close(scale * X + shift, F.batch_norm(X, mean, var, weight, bias, eps=1e-3))


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 1), (1, 1)), ((2, 5), (1, 2), (1, 2))]
)
def test_average_pooling_is_torchs(kernel, stride, padding, divisor, include):
    expected = F.avg_pool2d(X, kernel, stride, padding, False, include, divisor)
    conv, scale = average_pool(SHAPE, shape_of(expected), kernel, stride, padding, include, divisor)
    found = conv.apply([X])
    torch.testing.assert_close(found if scale is None else scale.apply([found]), expected)
    varies = divisor is None and not include and padding != (0, 0)
    assert (scale is not None) == varies


def test_average_pooling_whose_last_window_overhangs_its_padding_is_torchs():
    expected = F.avg_pool2d(X, 3, 2, 1, True, True)
    conv, scale = average_pool(SHAPE, shape_of(expected), (3, 3), (2, 2), (1, 1), True, None)
    y, x = (conv.stride[a] * (expected.shape[2 + a] - 1) + 3 - 1 - SHAPE[1 + a] for a in (0, 1))
    if y <= 1 and x <= 1:  # what the convolution's own padding reaches
        torch.testing.assert_close(scale.apply([conv.apply([X])]) if scale else conv.apply([X]), expected)


def affine_graph(*, read_twice: bool = False, per_position: bool = False) -> LayerGraph:
    builder = GraphBuilder()
    image = builder.add("x", Input(), (), SHAPE)
    conv = Conv2d(drawn(2, 2, 3, 3, seed=5), drawn(2, seed=8), (1, 1), (1, 1), (1, 1), 1)
    one = builder.add("conv", conv, (image,), SHAPE)
    coef = drawn(1, *SHAPE[1:], seed=6) if per_position else drawn(2, 1, 1, seed=6)
    norm = builder.add("norm", Combine((coef,), drawn(2, 1, 1, seed=7)), (one,), SHAPE)
    if read_twice:
        norm = builder.add("sum", Combine((scalar(1.0), scalar(1.0))), (norm, one), SHAPE)
    return builder.build(norm)


@pytest.mark.parametrize(("case", "left"), [({}, 2), ({"read_twice": True}, 4), ({"per_position": True}, 3)])
def test_folding_changes_nothing_and_is_done_where_it_may_be(case, left):
    graph = affine_graph(**case)
    folded, _ = fold_affine(graph)
    torch.testing.assert_close(folded.forward(X), graph.forward(X))
    assert len(folded) == left
