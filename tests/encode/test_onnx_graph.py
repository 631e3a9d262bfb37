"""Every window of every convolution, as a convolution with one group, no dilation and equal pads."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import Deep, Pooled, image, seeded

import corgi_opt as co
from corgi_opt.encode.onnx_graph import OnnxWriter, Value
from corgi_opt.encode.square_pools import with_square_pools
from corgi_opt.network.ops import Tap, Window, crop


def run(writer: OnnxWriter, source: Value, length: int, x: torch.Tensor) -> np.ndarray:
    model = writer.model(source.channels, source.window, length, "")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"X": x.numpy()})[0]


def test_a_convolution_reads_any_window_of_any_window():
    """Against torch on the whole padded map: any stride, offset and g, operands that are a part of their map."""
    r, generator, padded = random.Random(0), torch.Generator().manual_seed(0), 0
    for _ in range(300):
        height, width = r.randint(3, 12), r.randint(3, 12)
        stride, kernel = (r.randint(1, 3), r.randint(1, 3)), (r.randint(1, 4), r.randint(1, 4))
        offset = (r.randint(-3, 1), r.randint(-3, 1))
        whole = torch.randn(1, 2, height, width, generator=generator)
        weight = torch.randn(3, 2, *kernel, generator=generator)
        bias = torch.randn(3, generator=generator) if r.random() < 0.5 else None
        out = Window(r.randint(0, 2), r.randint(0, 2), r.randint(1, 4), r.randint(1, 4))
        # the least window of the operand that will do, or a larger one
        ends = []
        for axis in (0, 1):
            first = stride[axis] * out[axis] + offset[axis]
            last = first + stride[axis] * (out[2 + axis] - 1) + kernel[axis] - 1
            size = (height, width)[axis]
            low = min(max(first, 0), size - 1) - r.randint(0, 2)
            high = max(min(last, size - 1), 0) + r.randint(0, 2)
            ends.append((max(low, 0), min(high, size - 1)))
        (y, bottom), (x, right) = ends
        source = Value("X", 2, Window(y, x, bottom - y + 1, right - x + 1))
        writer = OnnxWriter(torch.float32)
        fits = (r.randint(1, stride[0]), r.randint(1, stride[1]))
        found = writer.conv("a", source, weight, bias, out, stride, offset, fits)
        assert found.window == out and found.channels == 3
        writer.flatten("row", found)
        mine = run(writer, source, 3 * out.h * out.w, crop(whole, source.window))
        read = Window(
            stride[0] * out.y + offset[0],
            stride[1] * out.x + offset[1],
            stride[0] * (out.h - 1) + kernel[0],
            stride[1] * (out.w - 1) + kernel[1],
        )
        true = F.conv2d(crop(whole, read), weight, bias, stride)
        np.testing.assert_allclose(mine.reshape(true.shape), true, atol=1e-5)
        padded += read.y < 0 or read.x < 0
    assert 100 < padded < 290


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(2, 2, 0, 1), (3, 2, 1, 1), (2, 3, 1, 2), (3, 3, 0, 1), (3, 1, 1, 1)]
)
def test_pools_have_one_stride(kernel, stride, padding, dilation):
    """The same values, taps of one stride along both axes, and as many ReLUs where windows do not overlap."""
    model = seeded(Pooled, 1, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    x = image(1, 9, 9, seed=1).double()
    graph = co.from_torch(model, x).graph
    square = with_square_pools(graph)
    assert {op.stride for n in square.order if isinstance(op := square[n].op, Tap)} <= {
        (stride, stride),
        (1, 1),
        (1,) * 2,
    }
    assert any(isinstance(square[n].op, Tap) for n in square.order)
    for seed in range(5):
        z = 4 * torch.randn(1, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(square.forward(z), graph.forward(z), rtol=1e-12, atol=1e-12)

    def units(g) -> int:
        return sum(torch.Size(g[n].shape).numel() for n in g.relus)

    if (kernel, stride) == (2, 2):
        assert units(square) == units(graph) - 3 * 4  # the ninth row, which no window has


def test_a_network_without_pools_stays_as_it_is():
    graph = co.from_torch(seeded(Deep, 1), image(1, 9, 9)).graph
    square = with_square_pools(graph)
    assert [square[n] for n in square.order] == [graph[n] for n in graph.order]


def test_a_network_of_more_than_two_gibibytes(monkeypatch):
    monkeypatch.setattr("corgi_opt.encode.onnx_graph.MOST_BYTES", 100)
    writer, source = OnnxWriter(torch.float64), Value("X", 1, Window(0, 0, 3, 3))
    writer.conv("a", source, torch.ones(1, 1, 3, 3), None, Window(0, 0, 1, 1))
    with pytest.raises(co.InputError, match="more than 2 GiB of weights"):
        writer.conv("b", source, torch.ones(1, 1, 3, 3), None, Window(0, 0, 1, 1))
