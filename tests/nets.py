"""Small torch models that tests share: random, seeded, in eval mode."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import corgi_opt as co

M = TypeVar("M", bound=nn.Module)


def seeded(build: type[M], seed: int = 0, **kwargs: Any) -> M:
    """The module with random weights and, where it has batch norm, random running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(**kwargs)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


_NETWORKS: dict[Any, co.CamNetwork] = {}


def network(build: Any, shape: tuple[int, int, int], seed: int = 0, **kwargs: int) -> co.CamNetwork:
    """A seeded module as it is read, once in a process: reading is what small networks take longest for."""
    key = (build, shape, seed, *sorted(kwargs.items()))
    if key not in _NETWORKS:
        _NETWORKS[key] = co.from_torch(seeded(build, seed, **kwargs), image(*shape))
    return _NETWORKS[key]


class Plain(nn.Module):
    """conv-relu-conv-relu-GAP-linear on 1x6x6."""

    def __init__(self, channels: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Tiny(nn.Module):
    """Few enough ReLUs to enumerate every pattern: 1x3x4 -> conv2x2 -> relu -> (max pool) -> 1x1 conv -> relu."""

    def __init__(self, pool: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 2)
        self.pool = nn.MaxPool2d((1, 2), stride=1) if pool else nn.Identity()
        self.second = nn.Conv2d(1, 2, (2, 1))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.pool(F.relu(self.first(x))))).mean((2, 3)))


class Small(nn.Module):
    """Livelier than Tiny, still to be enumerated: 1x3x4 -> conv2x2 -> relu -> (max pool) -> second conv -> relu.

    The CAM has 2x2 pixels, or 2x3 where ``residual`` (then ``features`` is ``hidden``). Weights have mixed signs of
    order one and small biases, so that most units are alive; ``classes`` compete. ``channels``: of the image.
    """

    def __init__(
        self,
        hidden: int = 2,
        features: int = 2,
        classes: int = 3,
        residual: int = 0,
        pool: int = 0,
        inplace: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 2)
        self.pool = nn.MaxPool2d((1, 2), stride=1) if pool else nn.Identity()
        self.residual = bool(residual)
        features = hidden if residual else features
        self.second = nn.Conv2d(hidden, features, 1 if residual or pool else (1, 2))
        self.relu = nn.ReLU(inplace=bool(inplace))
        self.head = nn.Linear(features, classes)
        for module in (self.first, self.second, self.head):
            nn.init.normal_(module.weight, 0.2, 1.0)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.relu(self.first(x)))
        z = self.second(h)
        z = self.relu(z + h if self.residual else z)
        return self.head(z.mean((2, 3)))


class Everything(nn.Module):
    """Every operation the graph builder knows, strides, padding, dilation, groups, a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn1 = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.c2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.c3 = nn.Conv2d(8, 8, 1, bias=False)
        self.avg = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.c4, self.skip = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1, stride=2)
        self.bn2, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.gap, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(F.relu(self.bn1(self.c1(x))))
        z = self.c3(F.leaky_relu(self.c2(y), 0.1)) + y
        z = self.avg(F.relu_(F.max_pool2d(z, 2, 1, 1)))
        z = F.relu(self.bn2(self.c4(z) + self.skip(z)))
        return self.fc(self.drop(self.flat(self.gap(z))))


class Residual(nn.Module):
    """A ResNet-like block with an in-place ReLU on a tensor that the branch also reads."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.b(self.relu(self.bn(self.a(h)))) + h
        return self.fc(F.adaptive_avg_pool2d(self.relu(y), 1).flatten(1))


class Deep(nn.Module):
    """Residual blocks on a map smaller than their receptive field, with a strided one in the middle."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, s, 1) for s in (1, 2, 1))
        self.seconds = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in self.convs)
        self.skip = nn.Conv2d(channels, channels, 1, 2)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for conv, second in zip(self.convs, self.seconds, strict=True):
            h = F.relu(second(F.relu(conv(h))) + (h if conv.stride == (1, 1) else self.skip(h)))
        return self.fc(h.mean((2, 3)))


class Pooled(nn.Module):
    """conv-relu-maxpool-conv-relu, the paper's pattern, on 1x8x8."""

    def __init__(
        self, channels: int = 3, kernel: int = 2, stride: int = 2, padding: int = 0, dilation: int = 1
    ) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(kernel, stride, padding, dilation)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c2(self.pool(F.relu(self.c1(x))))).mean((2, 3)))


def conv_of(layer: nn.Module) -> nn.Conv2d:
    """A layer of a sequence, which only says of it that it is a module."""
    assert isinstance(layer, nn.Conv2d)
    return layer


def bias_of(layer: nn.Module) -> Tensor:
    """The bias of a convolution that has one."""
    bias = conv_of(layer).bias
    assert bias is not None
    return bias


def image(*shape: int, seed: int = 0) -> Tensor:
    """Uniform values in [0, 1], float32."""
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))


def hooked_cam(model: nn.Module, x: Tensor, head: nn.Linear, class_idx: int) -> Tensor:
    """The CAM (H, W) without this package: class weights times the last 4-D tensor a module puts out before it.

    Works for models whose last spatial tensor is a module's output or the input of a pooling module.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend(t.detach().clone() for t in (*inputs, output) if t.ndim == 4 and t.shape[-1] > 1)

    hooks = [m.register_forward_hook(keep) for m in model.modules() if not list(m.children())]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.einsum("c,chw->hw", head.weight[class_idx].detach(), seen[-1][0])
