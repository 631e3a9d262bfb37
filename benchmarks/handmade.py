"""Networks of well-known papers, written as their authors' code has them, with random weights.

Network in Network (Lin et al. 2014), All-CNN-C (Springenberg et al. 2015), ResNet-20 with shortcuts of option A (He et
al. 2016), DS-CNN for keyword spotting (Zhang et al. 2017), ShuffleNet v1 with three groups (Zhang et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nin(classes: int = 10) -> nn.Module:
    """Three blocks of a convolution and two of 1x1; pools that overhang; the average is the last layer. 3x32x32."""

    def block(inputs: int, wide: tuple[int, int, int], kernel: int) -> list[nn.Module]:
        sizes = zip((inputs, *wide), wide, (kernel, 1, 1), strict=False)
        return [m for i, o, k in sizes for m in (nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU(inplace=True))]

    return nn.Sequential(
        *block(3, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5, inplace=True),
        *block(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5, inplace=True),
        *block(192, (192, 192, classes), 3),
        nn.AvgPool2d(8),
        nn.Flatten(),
    )


def all_cnn(classes: int = 10) -> nn.Module:
    """Convolutions alone, strided ones in place of pools; the average is the last layer. 3x32x32."""
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    plan = [(96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1), (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1)]
    inputs = 3
    for outputs, kernel, stride, padding in [*plan, (192, 3, 1, 0), (192, 1, 1, 0), (classes, 1, 1, 0)]:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class BlockA(nn.Module):
    """A residual block whose shortcut, where the shape changes, takes every second pixel and adds channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.more = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more), "constant", 0) if self.more else x
        return F.relu(y + short)


class ResNetA(nn.Module):
    """Three stages of blocks, 16, 32 and 64 channels. 3x32x32."""

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        made, inputs = list[nn.Module](), 16
        for stage, outputs in enumerate((16, 32, 64)):
            for at in range(blocks):
                made.append(BlockA(inputs, outputs, 2 if stage and not at else 1))
                inputs = outputs
        self.blocks, self.linear = nn.Sequential(*made), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(F.avg_pool2d(y, y.size()[3]).view(y.size(0), -1))
        return logits


def ds_cnn(classes: int = 12, width: int = 64) -> nn.Module:
    """Depthwise separable convolutions on 49 frames of 10 MFCCs; uneven explicit pads. 1x49x10."""

    def separable() -> list[nn.Module]:
        return [
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]

    first = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, width, (10, 4), 2), nn.BatchNorm2d(width), nn.ReLU()]
    body = [layer for _ in range(4) for layer in separable()]
    return nn.Sequential(*first, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffled channels, depthwise, grouped 1x1; a strided unit is concatenated to its pooled input."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        outputs = outputs - inputs if stride == 2 else outputs
        middle = outputs // 4 // groups * groups
        first = 1 if inputs == 24 else groups
        self.compress = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=first, bias=False), nn.BatchNorm2d(middle), nn.ReLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle)
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.compress(x)
        n, channels, height, width = y.shape
        y = y.view(n, self.groups, channels // self.groups, height, width).transpose(1, 2).contiguous()
        y = self.expand(self.depthwise(y.view(n, channels, height, width)))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    """ShuffleNet v1, three groups, at a quarter of its width. 3x64x64."""

    def __init__(self, classes: int = 1000, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        units, inputs = list[nn.Module](), 24
        for outputs, repeats in ((60, 4), (120, 8), (240, 4)):
            for at in range(repeats):
                units.append(ShuffleUnit(inputs, outputs, groups, 1 if at else 2))
                inputs = outputs
        self.units, self.fc = nn.Sequential(*units), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.units(self.stem(x)).mean([2, 3]))
        return logits


HANDMADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "NIN": (nin, (3, 32, 32)),
    "All-CNN-C": (all_cnn, (3, 32, 32)),
    "ResNet-20 (option A)": (ResNetA, (3, 32, 32)),
    "DS-CNN": (ds_cnn, (1, 49, 10)),
    "ShuffleNet v1 0.25x g3": (ShuffleNet, (3, 64, 64)),
}
"""What makes each, and the shape of its image."""
