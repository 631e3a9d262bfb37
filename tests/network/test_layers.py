"""Convolutions, norms, pools and linear layers are read with all of their arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from patience import mostly_slow
from reading import ramp, require_read

CHANGES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    lambda y: F.avg_pool2d(y, (2, 3), divisor_override=5),
    lambda y: F.avg_pool2d(y, 2, ceil_mode=True),  # 6 / 2: nothing overhangs
    lambda y: F.max_pool2d(y, (3, 2), (2, 1), (1, 0), ceil_mode=True),
    lambda y: F.max_pool2d(y, 2, dilation=2),
    lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
    lambda y: F.avg_pool2d(y, (3, 4), (2, 3), (1, 1), ceil_mode=True, count_include_pad=False),
    lambda y: F.avg_pool2d(y, 5, 3, 2, ceil_mode=True, divisor_override=7),
    lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    lambda y: F.adaptive_avg_pool2d(y, (3, 2)),
    lambda y: F.adaptive_avg_pool2d(y, (4, 5)),
    lambda y: F.adaptive_max_pool2d(y, (3, 1)),
    lambda y: F.adaptive_max_pool2d(y, (4, 5)),
    lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    lambda y: F.interpolate(y, size=(11, 4), mode="bilinear", align_corners=True),
    lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear", recompute_scale_factor=False),
    lambda y: F.interpolate(y, size=(9, 4), mode="bicubic"),
    lambda y: F.interpolate(y, scale_factor=(1.3, 2), mode="bicubic", align_corners=True),
    lambda y: F.interpolate(y, size=(4, 5), mode="bilinear", antialias=True),
    lambda y: F.interpolate(y.flatten(2), scale_factor=1.5, mode="linear").unflatten(2, (9, 6)),
    lambda y: F.conv_transpose2d(y, ramp(y, 2, 3, 3, 3))[:, :2],
    lambda y: F.conv_transpose2d(y, ramp(y, 2, 2, 3, 3), ramp(y, 2), 2, 1, 1),
    lambda y: F.conv_transpose2d(y, ramp(y, 2, 1, 3, 4), None, (2, 3), (1, 4), 0, 2, (2, 1)),
    lambda y: F.conv2d(y, ramp(y, 2, 2, 2, 4), padding="same"),
    lambda y: F.conv2d(y, ramp(y, 2, 1, 4, 3), padding="same", dilation=(1, 2), groups=2),
    lambda y: F.linear(y.permute(0, 2, 3, 1), ramp(y, 2, 2), ramp(y, 2)).relu().permute(0, 3, 1, 2),
    lambda y: (y.flatten(2).transpose(1, 2) @ ramp(y, 2, 2)).transpose(1, 2).view_as(y),
    lambda y: (y.permute(0, 2, 3, 1).reshape(36, 2) @ ramp(y, 2, 2)).view(1, 6, 6, 2).permute(0, 3, 1, 2),
    lambda y: F.interpolate(F.relu(y, inplace=True), size=(9, 4), mode="bicubic"),
    lambda y: ramp(y, 6, 6) @ y + y @ ramp(y, 1, 6, 6),
    lambda y: torch.matmul(ramp(y, 2, 2), y.flatten(2)).view_as(y),
    lambda y: torch.einsum("nchw,cd->ndhw", y, ramp(y, 2, 2)),
    lambda y: F.linear(y.transpose(2, 3).flatten(1), ramp(y, 72, 72)).view(1, 2, 6, 6),
    lambda y: F.conv1d(y.flatten(2), ramp(y, 2, 2, 3), padding=1).unflatten(2, (6, 6)),
    lambda y: F.max_pool1d(y.flatten(2), 3, 2, 1)[..., None],
    lambda y: F.batch_norm(y.flatten(2), ramp(y, 2), ramp(y, 2) + 3, training=False).relu().view(1, 2, 6, 6),
    lambda y: (
        F.batch_norm(y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2), ramp(y, 2), ramp(y, 2) + 3)
        .relu()
        .unflatten(2, (6, 6))
    ),
]


@pytest.mark.parametrize("change", mostly_slow(CHANGES, CHANGES[::2]))
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own, of the caller's model
def test_it_is_read_with_its_arguments(change):
    require_read(change)
