"""What torch.export wrote down: with and without its second pass the same network is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Deep, Everything, Plain, Pooled, Residual, Small, image, seeded
from torch import nn

import corgi_opt as co
from corgi_opt.network.exported import export
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ingest import Ingested, ingest, known
from corgi_opt.network.standin import stand_in


class Normed(nn.Module):
    """Batch norm, dropout and flatten, nothing in place: torch has another name for each after its second pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()
        self.rest = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(3, 2))

    def forward(self, x):
        return self.rest(self.relu(self.norm(self.conv(x))))


class Erring(Plain):
    """The error function is no operation of the table."""

    def forward(self, x):
        return self.head(self.body(torch.erf(x)).mean((2, 3)))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...], bool]] = {
    "normed": (Normed, (2, 7, 6), False),
    "small": (Small, (1, 3, 4), False),
    "plain": (Plain, (1, 6, 6), False),
    "pooled": (Pooled, (1, 8, 8), False),
    "deep": (Deep, (1, 8, 6), False),
    "relu in place": (Residual, (1, 7, 5), True),
    "everything": (Everything, (3, 12, 11), True),
}


def read(model: nn.Module, x: torch.Tensor, known: Callable[[Any], bool]) -> LayerGraph:
    found = ingest(export(stand_in(model), x, known))
    assert isinstance(found, Ingested)
    return found.graph


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_pass_changes_no_value(name, monkeypatch):
    build, shape, needs_it = NETWORKS[name]
    model, x = seeded(build), image(*shape)
    passes, decompose = [], torch.export.ExportedProgram.run_decompositions

    def counted(*given: Any, **named: Any) -> Any:
        passes.append(1)
        return decompose(*given, **named)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    once = read(model, x, known)
    assert bool(passes) == needs_it
    twice = read(model, x, lambda target: False)
    assert passes
    for (name, a), (other, b) in zip(once.values(x.double()).items(), twice.values(x.double()).items(), strict=True):
        assert type(once[name].op) is type(twice[other].op)
        assert torch.equal(a, b)


def test_what_is_not_known_is_named():
    (problem,) = co.check_model(seeded(Erring), image(1, 7, 6))
    assert problem.op == "erf"


def test_a_batch_norm_that_trains_is_refused():
    class Training(Normed):
        def forward(self, x):
            y = nn.functional.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var, training=True)
            return self.rest(self.relu(y))

    with pytest.raises(co.UnsupportedOpError, match="eval mode with running statistics"):
        co.from_torch(seeded(Training), image(2, 7, 6))
