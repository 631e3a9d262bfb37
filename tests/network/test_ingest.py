"""A model read operation by operation: torch's values at every call, and all that cannot be read, each once."""

from __future__ import annotations

import torch
from nets import Plain, Residual, image, seeded
from torch import nn

from corgi_opt.errors import UnsupportedOpError
from corgi_opt.network.exported import export
from corgi_opt.network.ingest import Ingested, Unsupported, ingest, known, refuse
from corgi_opt.network.standin import stand_in


class Bent(nn.Module):
    """Two operations that are not known, one behind the other, and one beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3), nn.LayerNorm([4, 4]), nn.Linear(2, 2)

    def forward(self, x):
        h = self.conv(x)
        return self.head(self.norm(torch.erf(h).relu()).mean((2, 3)) + torch.expm1(h).mean((2, 3)))


def read(model: nn.Module, x: torch.Tensor):
    exported = export(stand_in(model, torch.float64), x.double(), known)
    return exported, ingest(exported)


def test_every_call_has_the_value_that_torch_gives():
    x = image(1, 7, 5, seed=3)
    exported, found = read(seeded(Residual, 2), x)
    assert isinstance(found, Ingested)
    other = image(1, 7, 5, seed=4).double()
    theirs, ours = exported.values(other), found.graph.values(other)
    compared = 0
    for call, (name, places) in found.held.items():
        if name in ours and isinstance(theirs[call], torch.Tensor) and theirs[call].ndim == 4:
            torch.testing.assert_close(ours[name].flatten()[places].view_as(theirs[call]), theirs[call])
            compared += 1
    assert compared >= 6
    logits = seeded(Residual, 2).double()(other)
    torch.testing.assert_close(found.graph.forward(other).flatten(1), logits)


def test_all_problems_are_found_and_what_depends_on_one_is_none():
    _, found = read(Bent().eval(), image(1, 6, 6))
    assert not isinstance(found, Ingested)
    ops = [problem.op.removeprefix("native_") for problem in found]  # torch before and after its second pass
    assert sorted(ops) == ["erf", "expm1", "layer_norm"]
    (norm,) = (p for p in found if "layer_norm" in p.op)
    assert norm.node.startswith("norm") and "batch norm" in norm.hint
    assert all("or with ReLU" in p.hint for p in found if p.op in ("erf", "expm1"))


def test_the_error_names_the_first_and_the_others():
    problems = tuple(Unsupported(f"layer{n}", op, f"Hint {n}.") for n, op in enumerate(("sigmoid", "tanh", "gelu")))
    error = refuse(problems)
    assert isinstance(error, UnsupportedOpError) and (error.node, error.op) == ("layer0", "sigmoid")
    assert "Hint 0." in str(error) and "layer1: tanh; layer2: gelu" in str(error) and "Hint 1." not in str(error)
    assert "Also" not in str(refuse(problems[:1]))
    assert str(problems[0]) == "layer0: sigmoid is not supported. Hint 0."


def test_what_is_known():
    assert known(torch.ops.aten.relu.default) and not known(torch.ops.aten.erf.default)


def test_pools_stay_whole_and_in_the_models_order():
    class Pool(Plain):
        def forward(self, x):
            return self.head(nn.functional.max_pool2d(self.body(x), 2).mean((2, 3)))

    _, found = read(seeded(Pool, 1), image(1, 6, 6))
    kinds = [type(found.graph[n].op).__name__ for n in found.graph.order]
    assert kinds.index("MaxPool2d") > max(i for i, k in enumerate(kinds) if k == "ReLU")
