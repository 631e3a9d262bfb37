"""Questions about networks with smooth activations and products: bounds, attacks, and what exact methods say."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from curved_nets import BUILT, Line, read
from nets import image
from patience import mostly_slow
from torch import Tensor

import corgi_opt as co

network = functools.cache(read)

X = image(1, 6, 6, seed=3)


def on_the_grid(net: co.CamNetwork, x: float, eps: float, k: int, class_idx: int) -> float:
    """The smallest margin over a fine grid of the region."""
    points = torch.linspace(x - eps, x + eps, 4001, dtype=torch.float64).view(-1, 1, 1, 1)
    cams = net.cams(points, class_idx).flatten(1)
    top = net.cams(torch.full((1, 1, 1, 1), x, dtype=torch.float64), class_idx).flatten().topk(k).indices
    inside = torch.zeros(cams.shape[1], dtype=torch.bool).index_fill(0, top, True)
    return float((cams[:, inside].amin(dim=1) - cams[:, ~inside].amax(dim=1)).min())


@pytest.mark.parametrize(("seeds", "ks"), mostly_slow([(range(1), (1,)), (range(6), (1, 2))], [(range(1), (1,))]))
def test_margins_of_one_input_are_those_of_a_grid(seeds, ks):
    """Never above, and close to it where the region is small."""
    near = 0
    for seed in seeds:
        torch.manual_seed(seed)
        model = Line().eval()
        net = co.from_torch(model, torch.rand(1, 1, 1, 1))
        x = torch.tensor([[[[0.3 + 0.1 * seed]]]], dtype=torch.float64)
        for eps in (0.001, 0.05, 0.5):
            for k in ks:
                c = co.compare(net, x, k=k, eps=eps, class_idx=0, clip=None)
                least = on_the_grid(net, float(x), eps, k, 0)
                assert list(c.only.answers) == ["corgi", "crown", "dual", "split"]
                for method, found in c.only.answers.items():
                    assert isinstance(found, co.Verdict)
                    assert found.margin_lower <= least, (method, seed, eps)
                    best = found.margin_lower  # the last, split's
                near += eps == 0.001 and best > least - 0.02 * abs(least) - 1e-6
    assert near == len(ks) * len(seeds)


@pytest.mark.parametrize("name", BUILT)
def test_auto_does_what_can_be_done_and_says_so(name):
    net, statuses = network(name), set()
    for eps in (1e-4, 0.3):
        v = co.verify(net, X, eps=eps, k=4, class_idx=1, time_limit=60)
        statuses.add(v.status)
        assert v.margin_lower <= v.margin_upper
        if v.status == "certified":
            assert (v.proof, v.margin_lower > 0) == ("float64", True)
        elif v.status == "falsified":
            assert v.counterexample is not None
            moved = v.counterexample.image
            assert float((moved - X.double()).abs().max()) <= eps * (1 + 1e-12)
            assert top(net.model_cam(moved, 1), 4) != top(net.model_cam(X, 1), 4)
        else:
            assert "method 'auto' is 'split' here" in v.reason and net.curved[0] in v.reason
    assert "falsified" in statuses and "certified" in statuses


def top(cam: Tensor, k: int) -> set[int]:
    return set(cam.flatten().topk(k).indices.tolist())


def test_files_for_other_verifiers_are_refused_with_the_layers(tmp_path):
    net = network("mixed")
    with pytest.raises(co.InputError, match=r"affine and piecewise-linear layers only.*gelu \(GELU\).*more"):
        co.export_vnnlib(net, X, tmp_path / "new", eps=0.01, k=3)
    assert not (tmp_path / "new").exists()


def test_the_reason_says_what_no_exact_method_takes():
    net = network("mixed")
    r = co.radius(net, X, k=3, class_idx=1, rtol=0.05)
    v = co.verify(net, X, eps=(r.lower * r.upper) ** 0.5, k=3, class_idx=1)
    assert v.status == "unknown"
    for said in (r.reason, v.reason):
        assert "method 'auto' is 'split' here: no exact one takes" in said
        assert "gelu (GELU)" in said and "more" in said


@pytest.mark.parametrize("name", mostly_slow(["silu", "hardswish", "squeezed"], ["silu", "squeezed"]))
def test_radii_are_brackets_in_order(name):
    net = network(name)
    c = co.compare(net, X, k=4, class_idx=1, rtol=0.05)
    assert list(c.radii) == ["corgi", "crown", "dual", "split"]
    radii = [r.lower for r in c.radii.values()]
    assert (
        0 < radii[0] <= radii[2]
        and radii[1] <= radii[2] <= radii[3] < min(r.upper for r in c.radii.values()) < math.inf
    )
    r = c.radii["dual"]
    again = co.verify(net, X, eps=r.lower, k=4, class_idx=1, method="dual")
    assert again.status == "certified"
    assert r.counterexample is not None
    moved = r.counterexample.image
    assert top(net.model_cam(moved, 1), 4) != top(net.model_cam(X, 1), 4)


@pytest.mark.parametrize("norm", ["2", "1"])
def test_other_norms(norm):
    net = network("squeezed")
    r = co.radius(net, X, k=4, class_idx=1, norm=norm, method="crown", rtol=0.1)
    assert 0 < r.lower < r.upper < math.inf


@pytest.mark.parametrize("method", ["ibp", "corgi", "crown", "dual"])
def test_heat_maps_hold(method):
    net = network("squeezed", 1)
    found = co.heat_map(net, X, eps=0.01, k=4, class_idx=1, method=method)
    draw = torch.Generator().manual_seed(0)
    moved = X.double() + 0.02 * torch.rand(2000, 1, 6, 6, generator=draw, dtype=torch.float64) - 0.01
    cams = net.cams(moved.clamp(0, 1), 1)
    assert bool((cams >= found.lower - 1e-9).all()) and bool((cams <= found.upper + 1e-9).all())
    ranks = 1 + (cams.flatten(1)[:, None] > cams.flatten(1)[:, :, None]).sum(dim=2)
    assert bool((ranks >= found.best.flatten()).all()) and bool((ranks <= found.worst.flatten()).all())


@pytest.mark.parametrize("method", ["bab", "auto"])
def test_branch_and_bound_splits_intervals_and_names_the_layers(method):
    net = network("squeezed")
    r = co.radius(net, X, k=4, class_idx=1, method=method, rtol=0.05)
    assert (
        r.method == "split" and f"method '{method}' is 'split' here: no exact one takes sigmoid (sigmoid)" in r.reason
    )
    assert r.lower >= co.radius(net, X, k=4, class_idx=1, method="dual", rtol=0.05).lower


@pytest.mark.parametrize("method", ["lp", "milp"])
def test_exact_methods_name_the_layers_they_do_not_take(method):
    net = network("squeezed")
    words = (
        f"method '{method}' takes affine and piecewise-linear layers only, and this network has sigmoid \\(sigmoid\\)"
    )
    for asked in (
        lambda: co.verify(net, X, eps=0.01, k=3, method=method),
        lambda: co.radius(net, X, k=3, method=method),
        lambda: co.compare(net, X, k=3, methods=["crown", method]),
    ):
        with pytest.raises(co.InputError, match=words):
            asked()


def test_what_the_refusal_says_works():
    net = network("squeezed")
    with pytest.raises(co.InputError, match="'ibp', 'corgi', 'crown', 'dual' and 'split' bound it, and method='auto'"):
        co.verify(net, X, eps=1e-4, k=3, class_idx=1, method="milp")
    for method in ("ibp", "corgi", "crown", "dual", "split", "auto"):
        assert co.verify(net, X, eps=1e-9, k=3, class_idx=1, method=method).status == "certified"


def test_certificates_and_programs_are_refused_by_name(tmp_path):
    net = network("silu")
    with pytest.raises(co.InputError, match=r"certificates are of affine and piecewise-linear layers only.*SiLU"):
        co.verify(net, X, eps=1e-4, k=3, proof="checked")
    for eps in (1e-4, 0.5):
        v = co.verify(net, X, eps=eps, k=4, class_idx=1)
        assert v.status in ("certified", "falsified")
        with pytest.raises(co.CertificateError, match="SiLU"):
            v.prove(time_limit=10)
    with pytest.raises(co.InputError, match="SiLU"):
        co.export_mps(net, X, tmp_path / "a.mps", eps=0.01, k=3)


def test_other_properties_and_premises_are_bounded_too():
    net = network("gelu")
    assert co.verify(net, X, eps=1e-5, property=co.KeepsClass()).status == "certified"
    v = co.verify(net, X, eps=1e-4, k=3, within=6, keep_class=True)
    assert v.status == "certified"
    assert co.attack(net, X, eps=0.5, k=4) is not None


@pytest.mark.zoo
def test_the_network_of_the_zoo(zoo):
    x = zoo.image(0)
    net = co.from_torch(zoo.model("silu"), x)
    v = co.verify(net, x, eps=1e-3, k=5, time_limit=200.0)
    assert (v.status, v.method) == ("certified", "crown")
    assert co.attack(net, x, eps=0.05, k=5) is not None
