"""Whatever operation the package reads is in some network that the fuzzer draws."""

from __future__ import annotations

import random
import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from fuzz_nets import DRAWN, Head, logits_of
from fuzz_stages import Shape, unknown
from torch import Tensor, nn

from corgi_opt.network.builders import BUILDERS, known, overload
from corgi_opt.network.exported import Exported, export
from corgi_opt.network.ingest import Ingested, ingest
from corgi_opt.network.moves import MOVES

SHAPE = (4, 4, 6)
X = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DRAWS = 900
"""Of each kind of stage; the same spelling is drawn again and again."""

AT_ONCE = 25
"""Stages that are exported together; torch takes more than twice as long for twice as many."""

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
    """Whether it gives numbers, and not the same ones for every image."""
    try:
        y, other = logits_of(made(x.clone())), logits_of(made(1 - x))
        return bool(torch.isfinite(y).all()) and not torch.equal(y, other)
    except (RuntimeError, ValueError, AssertionError):
        return False


class Beside(nn.Module):
    """What many stages make of one image, each a number that no two entries could be swapped in."""

    def __init__(self, made: list[nn.Module]) -> None:
        super().__init__()
        self.made = nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([weighed(logits_of(stage(x.clone())).double()) for stage in self.made], 1)


def weighed(y: Tensor) -> Tensor:
    """A sum (1, 1) in which every entry counts by a number of its own."""
    return F.linear(y.flatten(1), torch.linspace(0.5, 1.5, y[0].numel(), dtype=torch.float64)[None])


@pytest.fixture(scope="module")
def groups() -> list[Beside]:
    """All stages, some side by side, in float64."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = stages()
    parts = [made[at : at + AT_ONCE] for at in range(0, len(made), AT_ONCE)]
    return [Beside(part).eval().double().requires_grad_(False) for part in parts]


@pytest.fixture(scope="module")
def exports(groups: list[Beside]) -> list[tuple[set[str], Exported]]:
    """Of every group the operations as torch exports them, and what is left after its second pass."""
    by_torch, called = torch.export.export, list[set[str]]()

    def noted(*given: Any) -> Any:
        program = by_torch(*given)
        called.append({overload(fx.target) for fx in program.graph.nodes if fx.op == "call_function"})
        return program

    with warnings.catch_warnings(), patch.object(torch.export, "export", noted):
        warnings.simplefilter("ignore")
        second = [export(group, X, known) for group in groups]
    return list(zip(called, second, strict=True))


@pytest.fixture(scope="module")
def read(exports: list[tuple[set[str], Exported]]) -> set[str]:
    return {name for first, second in exports for name in first | {overload(fx.target) for fx in second.calls}}


def test_every_operation_that_is_read_is_fuzzed(read):
    unread = {*BUILDERS, *MOVES} - read
    assert {name: IN_NO_NETWORK.get(name, "") for name in sorted(unread)} == dict(sorted(IN_NO_NETWORK.items()))


def test_what_is_missing_would_be_seen(read):
    assert "relu.default" in read and "sort.default" not in read


def test_every_spelling_is_read_as_it_is(groups, exports):
    """None is refused, and every value is torch's own."""
    for group, (_, exported) in zip(groups, exports, strict=True):
        found = ingest(exported)
        assert isinstance(found, Ingested), [str(problem) for problem in found]
        ours, theirs = found.graph.forward(X).flatten(), group(X)[0]
        off = (ours - theirs).abs() > 1e-9 * (1 + theirs.abs())
        assert [made for made, is_off in zip(group.made, off, strict=True) if is_off] == []


def test_stages_take_several_images_at_once(groups):
    """The fuzzer's attack hands them over together, and an image's map is its own."""
    batch, wrong = torch.rand(3, *SHAPE, dtype=torch.float64), list[str]()
    for made in (stage for group in groups for stage in group.made):
        one_by_one = torch.cat([logits_of(made(x[None].clone())) for x in batch])
        try:
            if not torch.allclose(logits_of(made(batch.clone())), one_by_one, rtol=1e-9, atol=1e-9):
                wrong.append(str(made))
        except RuntimeError:
            wrong.append(str(made))
    assert wrong == []
