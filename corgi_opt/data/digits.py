"""The demo: scikit-learn's 8x8 handwritten digits, and a small CAM network whose weights are in this package.

``examples/train_digits.py`` makes the weights.
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from corgi_opt._ambient import pinned

N_IMAGES = 1797
N_TEST = 360


class DigitsCAM(nn.Module):
    """Two 3x3 convolutions with ReLU, global average pool, linear: (N, 1, 8, 8) in [0, 1] -> (N, 10) logits.

    The maps keep 8x8 positions, so the CAM of a digit has 64 pixels. Kept this small for the exact methods:
    one CAM pixel depends on 5x5 inputs and on 9*8 + 12 ReLUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classify = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.flatten(self.pool(self.features(images))))
        return logits


@pinned
def load_digits() -> tuple[Tensor, Tensor]:
    """All images, (1797, 1, 8, 8) float32 in [0, 1], and labels (1797,) int64.

    Grey levels 0..16 are divided by 16, which float32 holds exactly.
    """
    # scikit-learn's own file, read without scikit-learn, which takes a second to import
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations  # a dependency of this package
    table = np.loadtxt(Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=",")
    images = torch.from_numpy(table[:, :-1]).to(torch.float32).view(-1, 1, 8, 8) / 16
    return images, torch.from_numpy(table[:, -1]).to(torch.int64)


@pinned
def digits_split() -> tuple[Tensor, Tensor]:
    """Indices of the 1437 training and the 360 test images, (1437,) and (360,) int64.

    A fixed shuffle. A test accuracy on it speaks for the hands that the training images hold too: when five
    contiguous blocks of 360 images are left out in turn, the same training reaches 0.91 to 0.99, mean 0.95.
    """
    # RandomState, the legacy generator, is the one whose stream numpy promises never to change.
    indices = torch.from_numpy(np.random.RandomState(0).permutation(N_IMAGES))
    return indices[:-N_TEST], indices[-N_TEST:]


@pinned
def digits_model() -> DigitsCAM:
    """The trained network, float32 and in eval mode. Draws no random numbers."""
    data = resources.files("corgi_opt.data").joinpath("digits_cam.safetensors").read_bytes()
    with torch.device("meta"):
        model = DigitsCAM()
    model.load_state_dict(safetensors.torch.load(data), assign=True)
    return model.eval()
