"""Whatever operation the package reads is in some network that the fuzzer draws."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from fuzz_nets import DRAWN, Head, logits_of
from fuzz_stages import Shape, unknown
from torch import Tensor, nn

from corgi_opt.network.builders import BUILDERS, known, overload
from corgi_opt.network.exported import export
from corgi_opt.network.moves import MOVES

SHAPE = (4, 4, 6)
DRAWS = 900
"""Of each kind of stage; the same spelling is drawn again and again."""

AT_ONCE = 50
"""Stages that are exported together; torch's second pass takes more than twice as long for twice as many."""

IN_NO_NETWORK = {
    "_batch_norm_with_update_functional.default": "torch's second pass made it of batch norms once; nobody writes it",
}
"""Operations that are read, and why no network of the fuzzer has them."""


def spellings(module: nn.Module) -> set[str]:
    """What tells its layers from others: their kinds and how they are called, without sizes and numbers."""
    names = ("how", "kind", "pool", "padding", "padding_mode")
    return {
        type(m).__name__ + "".join(f" {v}" for name in names if isinstance(v := getattr(m, name, None), str))
        for m in module.modules()
    }


def stages() -> list[nn.Module]:
    """Stages that are drawn and fit a map of ``SHAPE``, heads too, until every spelling of a layer is in one."""
    r, x, found, seen = random.Random(0), torch.rand(1, *SHAPE), list[nn.Module](), set[str]()
    for draw in [draw for _, draw in DRAWN if draw is not unknown] + [head]:
        for _ in range(DRAWS):
            made = draw(r, SHAPE).eval()
            if not spellings(made) <= seen and runs(made, x):
                found.append(made)
                seen |= spellings(made)
    return found


def head(r: random.Random, shape: Shape) -> nn.Module:
    made = Head(r, shape, 3)
    made.output = "plain"  # what comes after the scores is left out, not read
    return made


def runs(made: nn.Module, x: Tensor) -> bool:
    try:
        return bool(torch.isfinite(logits_of(made(x.clone()))).all())
    except (RuntimeError, ValueError, AssertionError):
        return False


class Beside(nn.Module):
    """The sums of what many stages make of one image."""

    def __init__(self, made: list[nn.Module]) -> None:
        super().__init__()
        self.made = nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([logits_of(stage(x.clone())).double().sum() for stage in self.made])[None]


@pytest.fixture(scope="module")
def read() -> set[str]:
    """Operations of all stages, some side by side: as torch exports them, and after its second pass."""
    found, x = list[Any](), torch.rand(1, *SHAPE)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = stages()
        for at in range(0, len(made), AT_ONCE):
            model = Beside(made[at : at + AT_ONCE]).eval().requires_grad_(False)
            found += [fx.target for fx in torch.export.export(model, (x,)).graph.nodes if fx.op == "call_function"]
            found += [fx.target for fx in export(model, x, known).calls]
    return {overload(target) for target in found}


def test_every_operation_that_is_read_is_fuzzed(read):
    unread = {*BUILDERS, *MOVES} - read
    assert {name: IN_NO_NETWORK.get(name, "") for name in sorted(unread)} == dict(sorted(IN_NO_NETWORK.items()))


def test_what_is_missing_would_be_seen(read):
    assert "relu.default" in read and "sort.default" not in read


def test_stages_take_several_images_at_once():
    """The fuzzer's attack hands them over together, and an image's map is its own."""
    batch, wrong = torch.rand(3, *SHAPE), list[str]()
    for made in stages():
        one_by_one = torch.cat([logits_of(made(x[None].clone())) for x in batch])
        try:
            if not torch.allclose(logits_of(made(batch.clone())), one_by_one, rtol=1e-4, atol=1e-4):
                wrong.append(str(made))
        except RuntimeError:
            wrong.append(str(made))
    assert wrong == []
