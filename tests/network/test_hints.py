"""Every refusal says a way out, and the way out works: each is followed here, as a reader of the words would.

Where the words promise the same function the network that follows them is held against it, else it has only to build.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from nets import Plain, image, seeded
from torch import Tensor, nn

import corgi_opt as co

X = image(1, 6, 6)


class Changed(Plain):
    """Plain, with a change of its last map; and what changes may want."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.matrix = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
        self.group, self.batch = nn.GroupNorm(1, 2), nn.BatchNorm2d(2)
        self.drop, self.random = nn.Dropout(), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(self, self.body(x)).mean((2, 3)))


Change = Callable[[Changed, Tensor], Tensor]


@dataclass(frozen=True)
class Refusal:
    """``refused``: a step that is refused with ``words``. Who follows them has ``same``, or at least ``other``."""

    refused: Change
    words: str
    same: Change | None = None
    other: Change | None = None


def error_function(m: Changed, y: Tensor) -> Tensor:
    return torch.erf(y)


def dropped(m: Changed, y: Tensor) -> Tensor:
    return F.dropout(y, 0.5)


REFUSALS = {
    "group norm": Refusal(lambda m, y: m.group(y), "use batch norm instead", other=lambda m, y: m.batch(y)),
    "layer norm": Refusal(
        lambda m, y: F.layer_norm(y, y.shape[1:]), "use batch norm instead", other=lambda m, y: m.batch(y)
    ),
    "dropout": Refusal(
        dropped, "pass training=self.training", other=lambda m, y: F.dropout(y, 0.5, training=m.training)
    ),
    "dropout as a module": Refusal(dropped, "or use nn.Dropout", other=lambda m, y: m.drop(y)),
    "curved": Refusal(error_function, "retrain with one of them", other=lambda m, y: torch.tanh(y)),
    "curved, with ReLU": Refusal(error_function, "or with ReLU", other=lambda m, y: torch.relu(y)),
    "unknown": Refusal(
        lambda m, y: torch.cummax(y, 3).values,
        "Rewrite this step with those",
        same=lambda m, y: torch.stack([y[..., : n + 1].amax(3) for n in range(6)], 3),
    ),
    "rounded quotient": Refusal(
        lambda m, y: torch.div(y, 2.0, rounding_mode="floor"), "leave it out", other=lambda m, y: torch.div(y, 2.0)
    ),
    "scaled product": Refusal(
        lambda m, y: torch.addcmul(m.matrix.expand(1, 2, 6, 6), y, m.matrix, value=0.5),
        "write x + value * y",
        same=lambda m, y: m.matrix + 0.5 * y * m.matrix,
    ),
    "statistics of the image": Refusal(
        lambda m, y: F.batch_norm(y, None, None, training=True),
        "in eval mode with running statistics",
        other=lambda m, y: m.batch(y),
    ),
    "a way between maps": Refusal(
        lambda m, y: torch.lerp(y, y.flip(3), y.flip(2)),
        "write x + weight * (end - x)",
        same=lambda m, y: y + y.flip(2) * (y.flip(3) - y),
    ),
    "added in place": Refusal(
        lambda m, y: y.index_put((torch.tensor([0]), torch.tensor([1])), y[:, 0], accumulate=True),
        "write a sum",
        same=lambda m, y: torch.stack([y[:, 0], y[:, 1] + y[:, 0]], 1),
    ),
    "random slopes": Refusal(
        lambda m, y: F.rrelu(y, training=True), "nn.RReLU in eval mode", other=lambda m, y: m.random(y)
    ),
    "a jump": Refusal(
        lambda m, y: F.threshold(y, 0.1, 0.5), "use one value for both", other=lambda m, y: F.threshold(y, 0.5, 0.5)
    ),
    "limits that depend on the image": Refusal(
        lambda m, y: torch.clamp(y, y.mean((2, 3), keepdim=True)),
        "write torch.maximum and torch.minimum",
        same=lambda m, y: torch.maximum(y, y.mean((2, 3), keepdim=True)),
    ),
    "a power": Refusal(lambda m, y: y**3, "only the square is covered", same=lambda m, y: y**2 * y),
    "a negative slope": Refusal(
        lambda m, y: F.elu(y, -0.5), "positive numbers only", other=lambda m, y: F.elu(y, 0.5)
    ),
    "the second output": Refusal(
        lambda m, y: F.max_pool2d(y, 2, return_indices=True)[1].to(y.dtype),
        "Only its first output is known",
        other=lambda m, y: F.max_pool2d(y, 2, return_indices=True)[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_words_say_works(name):
    case = REFUSALS[name]
    followed = case.same or case.other
    assert followed is not None
    refused = seeded(Changed, 1, change=case.refused)
    with pytest.raises(co.UnsupportedOpError) as raised:
        co.from_torch(refused, X)
    assert case.words in str(raised.value)
    net = co.from_torch(seeded(Changed, 1, change=followed), X)
    assert co.bounds(net, co.Ball(X, 1e-3), method="ibp", device="cpu")[net.features].lower.isfinite().all()
    if case.same is not None:
        for seed in range(3):
            x = image(1, 6, 6, seed=seed).double()
            torch.testing.assert_close(net.logits(x), refused.double()(x)[0])
