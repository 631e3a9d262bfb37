"""``check_model`` says what is not supported, how large a network is, and which methods answer questions about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curved_nets import BUILT
from nets import Everything, Plain, image, seeded
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.answering.model_check import FEW, NetworkSize
from corgi_opt.methods import TABLE


class Bent(Plain):
    """Three operations that are not known, the last two one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.erf(self.body(self.norm(x)))
        return self.head(torch.expm1(y).mean((2, 3)))


def size_of(model: nn.Module, x: Tensor) -> NetworkSize:
    size = co.check_model(model, x, show=False).size
    assert size is not None
    return size


def test_what_is_not_supported_is_printed_and_returned(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = co.check_model(seeded(Bent), image(1, 6, 6))
    assert [p.op for p in found] == ["group_norm", "erf", "expm1"] and found.size is None
    assert [p.call for p in found] == ["group_norm", "erf", "expm1"]
    assert found[0].node.startswith("norm") and repr(found) == "ModelCheck(3 unsupported: group_norm, erf, expm1)"
    printed = capsys.readouterr().out
    for problem in found:
        assert problem.node in printed and problem.op in printed and problem.hint[:40] in printed


def test_a_model_that_builds_has_sizes():
    """Counted by hand: a pixel in the middle of Plain's map reads its own 2 ReLUs and 3x3 of the 2 maps before."""
    found = co.check_model(seeded(Plain), image(1, 6, 6), show=False)
    size = found.size
    assert tuple(found) == () and not found
    assert size is not None
    assert (size.image, size.map, size.classes) == ((1, 6, 6), (6, 6), 3)
    assert (size.relus, size.cone) == (2 * 2 * 36, 2 + 9 * 2)
    assert size.nodes == len(co.from_torch(seeded(Plain), image(1, 6, 6)).graph)
    assert size.values == 36 + 4 * 72 + 2 + 3  # the image, two convolutions with their ReLUs, averages, scores
    assert size.memory > 8 * size.values and repr(found) == f"ModelCheck(builds: {size.nodes} nodes, 144 ReLUs)"


def test_a_quiet_check_prints_nothing(capsys):
    co.check_model(seeded(Plain), image(1, 6, 6), show=False)
    assert capsys.readouterr().out == ""


def test_every_method_is_within_reach_or_says_when(capsys):
    x = image(3, 20, 22)
    large = co.check_model(seeded(Everything), x).size
    assert large is not None and list(large.reach) == list(TABLE) and 2 * large.cone > FEW
    printed = capsys.readouterr().out
    assert "10,400" in printed and all(f"method {name!r}" in printed for name in TABLE)
    assert large.reach["bab"].startswith("where eps leaves at most")
    assert large.reach["milp"].endswith("(norms 'inf' and '1')")
    assert size_of(seeded(Plain), image(1, 6, 6)).reach["bab"] == "yes"


def test_what_is_said_of_curved_layers_is_what_happens():
    x, model = image(1, 6, 6), BUILT["squeezed"](0)
    size, net = size_of(model, x), co.from_torch(model, x)
    assert size.curved == net.curved != ()
    for name, said in size.reach.items():
        if said.startswith("no"):
            with pytest.raises(co.InputError, match="affine and piecewise-linear"):
                co.verify(net, x, eps=1e-3, k=2, method=name)
        else:
            assert co.verify(net, x, eps=1e-3, k=2, method=name, time_limit=30).asked.property == co.TopK(2)
    assert "'split'" in size.reach["auto"]


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet8", "vgg"])
def test_a_pass_takes_the_memory_that_is_said(zoo, name):
    """Within a factor of two; in a process of its own, whose peak is read before and after."""
    script = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
torch.set_num_threads(1)
import corgi_opt as co
from zoos import Zoo
from pathlib import Path
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.rand(1, 3, 32, 32)
model = Zoo(Path({str(zoo.root)!r})).model({name!r})
said, before = co.check_model(model, x, show=False).size.memory, peak()
co.bounds(co.from_torch(model, x), co.Ball(x.double(), 1e-3), method="crown", device="cpu")
print(said, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    said, taken = map(int, done.stdout.split())
    assert said / 2 <= taken <= 2 * said
