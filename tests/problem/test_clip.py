"""Clip boxes that differ from channel to channel: how they are said, what is refused, and what every method says."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import asking
import numpy as np
import pytest
import torch
from enumeration import exact_margin
from nets import Small, image, seeded
from patience import mostly_slow
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.answering.prover import plain_network
from corgi_opt.errors import CertificateError, ProofError
from corgi_opt.problem.clip import checked_clip, clip_from_text, clip_in_words
from corgi_opt.proof.certificate import Certificate
from corgi_opt.proof.checker import check
from corgi_opt.proof.region import Norm, Region

LOW, HIGH = (-2.0, -1.5, 0.25), (2.0, 1.0, 0.75)
BOX = (LOW, HIGH)
SHAPE = (3, 3, 3)
MEAN, STD = torch.tensor([0.5, 0.25, 0.75]).view(1, 3, 1, 1), torch.tensor([0.25, 0.125, 0.5]).view(1, 3, 1, 1)


def column(values: object, *shape: int) -> Tensor:
    return torch.tensor(values).view(*shape)


SPELLINGS = {
    "tuples": BOX,
    "lists": [list(LOW), list(HIGH)],
    "tensors (C,)": (column(LOW, 3), column(HIGH, 3)),
    "tensors (C, 1, 1)": (column(LOW, 3, 1, 1), column(HIGH, 3, 1, 1)),
    "tensors (1, C, 1, 1)": (column(LOW, 1, 3, 1, 1), column(HIGH, 1, 3, 1, 1)),
    "whole images": (column(LOW, 1, 3, 1, 1).expand(1, *SHAPE), column(HIGH, 3, 1, 1).expand(*SHAPE)),
    "arrays": (np.array(LOW), np.array(HIGH)[:, None, None]),
    "float32 arrays": (np.array(LOW, dtype=np.float32), np.array(HIGH, dtype=">f4")),
    "one tensor": torch.stack([column(LOW, 3), column(HIGH, 3)]),
    "one array": np.array(BOX),
    "with gradient": (column(LOW, 3).requires_grad_(), column(HIGH, 3)),
    "numbers as tensors": ([torch.tensor(v) for v in LOW], [np.float64(v) for v in HIGH]),
    "pairs": list(zip(LOW, HIGH, strict=True)),
    "pairs in a tensor": torch.tensor(list(zip(LOW, HIGH, strict=True))),
}


@pytest.mark.parametrize("said", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_the_same_box(said):
    assert checked_clip(said) == checked_clip(said, SHAPE) == BOX
    ball = co.Ball(image(*SHAPE) * 0.5 + 0.25, 0.1, clip=said)
    assert ball.clip == BOX and hash(ball.clip) == hash(BOX)
    assert replace(ball, eps=0.2).clip == BOX


@pytest.mark.parametrize(
    ("said", "box"),
    [
        ((0, 1), (0.0, 1.0)),
        ([0.0, 255], (0.0, 255.0)),
        ((torch.tensor(0.0), np.float32(1)), (0.0, 1.0)),
        ((torch.zeros(1), torch.ones(1, 1, 1, 1)), (0.0, 1.0)),
        (torch.tensor([0.0, 1.0]), (0.0, 1.0)),
        ((0, [1, 2, 3]), ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))),
        ((torch.tensor([-1, 0, 0]), 1), ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ((torch.tensor([0, 0, 1], dtype=torch.uint8), 255), ((0.0, 0.0, 1.0), (255.0, 255.0, 255.0))),
        (((0, 1), (2, 3)), ((0.0, 1.0), (2.0, 3.0))),  # two are the low and the high end
        (None, None),
    ],
)
def test_numbers_stand_for_all_channels(said, box):
    assert checked_clip(said) == box
    assert all(isinstance(v, float) for end in box or () for v in (end if isinstance(end, tuple) else (end,)))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((LOW, (2.0, -1.5, 0.75)), ["(-1.5, -1.5) in channel 1"]),
        ((LOW, (2.0, 1.0, 0.0)), ["(0.25, 0.0) in channel 2"]),
        (((float("nan"), 0, 0), 1), ["(nan, 1.0) in channel 0"]),
        ((0, (1, float("inf"), 1)), ["(0.0, inf) in channel 1"]),
        (((-float("inf"), 0.0, 0.0), HIGH), ["channel 0"]),
        (((0, 0), (1, 1)), ["ends of 2 channels for an image of 3"]),
        (([0, 0, 0, 0], 1), ["ends of 4 channels for an image of 3"]),
        (((0, 0, 0), (1, 1)), ["low end of 3 numbers", "high end of 2"]),
        ((torch.zeros(3, 1, 1, 1), 1), ["shape (3, 1, 1, 1)"]),
        ((torch.zeros(3, 3), 1), ["shape (3, 3)"]),
        ((torch.zeros(3, 4, 4), 1), ["shape (3, 4, 4)", "image"]),
        ((torch.zeros(0), 1), ["shape (0,)"]),
        ((torch.arange(27.0).view(SHAPE), 100), ["channel 0 has different ends at different pixels"]),
        ((torch.zeros(3, dtype=torch.complex64), 1), ["clip must be"]),
        ((torch.zeros(3, dtype=torch.bool), 1), ["clip must be"]),
        ((True, 2), ["clip must be"]),
        ((torch.zeros(3, device="meta"), 1), ["clip must be"]),
        (([0, [1]], 1), ["clip must be"]),
        ((None, 1), ["clip must be"]),
        (("0", "1"), ["clip must be"]),
        ("01", ["clip must be"]),
        ({"low": 0, "high": 1}, ["clip must be"]),
        ((), ["clip must be"]),
        ((0,), ["clip must be"]),
        ((0, 1, 2), ["clip must be"]),
        (1.0, ["clip must be"]),
        (torch.tensor(1.0), ["clip must be"]),
        ((10**400, 1), ["clip must be"]),
    ],
)
def test_no_box(said, words):
    x = image(*SHAPE) * 0.5 + 0.25
    for ask in (
        lambda: checked_clip(said, SHAPE),
        lambda: co.Ball(x, 0.1, clip=said),
        lambda: co.verify(small(), x, eps=0.01, k=1, clip=said),
    ):
        with pytest.raises(co.InputError) as caught:
            ask()
        assert all(word in str(caught.value) for word in words), caught.value


@functools.cache
def small() -> co.CamNetwork:
    return co.from_torch(seeded(Small, 3, channels=3), image(*SHAPE))


def inside(seed: int, box: tuple[tuple[float, ...], tuple[float, ...]] = BOX) -> Tensor:
    """An image in the box; some of its inputs at an end of it."""
    low, high = (torch.tensor(end, dtype=torch.float64).view(1, -1, 1, 1) for end in box)
    x = low + (high - low) * (1.4 * image(*SHAPE, seed=seed).double() - 0.2)
    return torch.minimum(torch.maximum(x, low), high)


def test_the_centre_outside_names_its_channel_and_the_hints_work():
    x = inside(0)
    x[0, 2, 1, 1] = 0.76
    with pytest.raises(co.InputError, match=r"in channel 2, outside the clip box \[0.25, 0.75\]; pass clip=None"):
        co.Ball(x, 0.1, clip=BOX)
    assert co.Ball(x, 0.1, clip=None).clip is None
    x[0, 2, 1, 1] = 0.75 + 1e-9
    with pytest.raises(co.InputError, match=r"0\.7500000009999.* in channel 2.*just outside.*torch.minimum"):
        co.Ball(x, 0.1, clip=BOX)
    low, high = column(LOW, 1, 3, 1, 1), column(HIGH, 1, 3, 1, 1)
    assert co.Ball(torch.minimum(torch.maximum(x, low), high), 0.1, clip=BOX).clip == BOX


def test_the_callers_tensors_are_not_held():
    low, high = column(LOW, 1, 3, 1, 1), column(HIGH, 1, 3, 1, 1)
    ball = co.Ball(inside(0), 0.1, clip=(low, high))
    low.fill_(99.0), high.fill_(100.0)
    assert ball.clip == BOX and float(ball.lower.max()) < 3


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_region_is_the_ball_within_each_channels_interval(norm):
    x = inside(1)
    ball = co.Ball(x, 0.4, norm, BOX)
    for channel, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        assert torch.equal(ball.lower[channel], (x[0, channel] - 0.4).clamp(min=low))
        assert torch.equal(ball.upper[channel], (x[0, channel] + 0.4).clamp(max=high))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        near = ball.project(x + 2 * torch.randn(x.shape, generator=generator, dtype=torch.float64))
        assert ball.contains(near)
        assert all(LOW[c] <= near[0, c].min() and near[0, c].max() <= HIGH[c] for c in range(3))
    edge = ball.center.clone()
    edge[0, 2, 0, 0] = 0.7500001
    assert not ball.contains(edge)


def test_the_whole_box_is_reached():
    x = torch.zeros(1, *SHAPE, dtype=torch.float64) + 0.5
    x[0, 0, 0, 0] = 0.25
    about: dict[str, Any] = {"k": 1, "class_idx": 0, "tie_tol": None}
    asked = {n: asking.ask(small(), x, norm=n, clip=BOX, **about).whole_range for n in ("inf", "1", "2")}
    far = (2.5, 2.0, 0.25)
    assert asked["inf"] == max(far)
    assert asked["1"] == pytest.approx(9 * sum(far) - 0.25)
    assert asked["2"] == pytest.approx((9 * sum(f * f for f in far) - 2.5**2 + 2.25**2) ** 0.5)


# --- the answers ----------------------------------------------------------------------------------------------


@functools.cache
def drawn(number: int) -> tuple[nn.Module, Tensor, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The number-th random network and image in a random box whose brightest CAM pixel is well ahead."""
    seed = -1
    for _ in range(number + 1):
        gap = 0.0
        while gap < 0.02:
            seed += 1
            rng = np.random.default_rng(seed)
            low = rng.uniform(-1.0, 0.0, 3)
            box = tuple(low.tolist()), tuple((low + rng.uniform(0.05, 1.0, 3)).tolist())
            model, x = seeded(Small, seed, channels=3, features=1), inside(seed, box)
            cam = co.from_torch(model, x.float()).cam(x, 0).flatten().sort(descending=True).values
            gap = float(cam[0] - cam[1])
    return model, x, box


def spread(box: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """For the oracle: the box of every input."""
    low, high = (np.repeat(np.array(end), 9) for end in box)
    return low, high


@pytest.mark.parametrize("norm", mostly_slow(["inf", "1", "2"], ["1", "2"]))
def test_every_method_agrees_with_enumeration(norm):
    methods = ["ibp", "corgi", "crown", "dual", "auto", "bab", *(["lp", "milp"] if norm != "2" else [])]
    settled, cut = set(), 0
    for seed in range(4):
        model, x, box = drawn(seed)
        net = co.from_torch(model, x.float())
        eps = {"inf": 0.03, "2": 0.1, "1": 0.2}[norm] * (1, 4)[seed % 2]
        answer = exact_margin(model, x, eps=eps, norm=norm, clip=spread(box), k=1, class_idx=0)
        free = exact_margin(model, x, eps=eps, norm=norm, clip=None, k=1, class_idx=0)
        cut += free.upper < answer.lower - 1e-6
        for method in methods:
            v = co.verify(net, x, eps=eps, k=1, class_idx=0, norm=norm, clip=box, method=method, device="cpu")
            assert v.status != "certified" or answer.lower > 0
            assert v.margin_lower <= answer.upper + 1e-9 and v.margin_upper >= answer.lower - 1e-9
            if v.counterexample is not None:
                assert co.Ball(x, eps, norm, box).contains(v.counterexample.image)
                low, high = (torch.tensor(end, dtype=torch.float64).view(1, -1, 1, 1) for end in box)
                assert bool(((v.counterexample.image >= low) & (v.counterexample.image <= high)).all())
            if method in ("auto", "bab", "milp") and answer.stable is not None and abs(answer.upper) > 1e-6:
                assert v.status == ("certified" if answer.stable else "falsified")
                settled.add(v.status)
    assert settled == {"certified", "falsified"} and cut >= 1  # the box matters


class Normalised(nn.Module):
    """Takes images of [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, seed: int, std: Tensor) -> None:
        super().__init__()
        self.body = seeded(Small, seed, channels=3)
        self.register_buffer("mean", MEAN)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


@pytest.mark.parametrize("norm", mostly_slow(["inf", "1", "2"], ["inf"]))
def test_a_normalisation_outside_is_one_inside(norm):
    """Where all channels have the same std, balls outside are balls inside, in other units."""

    model, x = Normalised(5, torch.full_like(STD, 0.25)).eval(), image(*SHAPE, seed=2).double()
    z = (x - MEAN) / 0.25
    box = ((0 - MEAN) / 0.25, (1 - MEAN) / 0.25)
    within, outside = co.from_torch(model, x.float()), co.from_torch(model.body, z.float())
    for method in ("corgi", "crown", "dual"):
        a = co.verify(within, x, eps=0.05, k=1, class_idx=1, norm=norm, method=method, device="cpu")
        b = co.verify(outside, z, eps=0.2, k=1, class_idx=1, norm=norm, clip=box, method=method, device="cpu")
        assert a.corgi_margin == pytest.approx(b.corgi_margin, rel=1e-6)
        assert a.margin_lower == pytest.approx(b.margin_lower, rel=1e-4, abs=1e-6)
    r = co.radius(within, x, k=1, class_idx=1, norm=norm, rtol=0.002, device="cpu")
    s = co.radius(outside, z, k=1, class_idx=1, norm=norm, clip=box, rtol=0.002, device="cpu")
    assert r.lower <= s.upper * 0.25 and s.lower * 0.25 <= r.upper
    assert r.ratio < 1.003 and s.ratio < 1.003


def test_with_another_std_in_each_channel_regions_contain_each_other():
    model, x = Normalised(6, STD).eval(), image(*SHAPE, seed=4).double()
    z, box = (x - MEAN) / STD, ((0 - MEAN) / STD, (1 - MEAN) / STD)
    a = co.radius(co.from_torch(model, x.float()), x, k=1, class_idx=1, rtol=0.005, device="cpu")
    b = co.radius(co.from_torch(model.body, z.float()), z, k=1, class_idx=1, clip=box, rtol=0.005, device="cpu")
    assert 0 < b.lower * float(STD.min()) <= a.upper and a.lower <= b.upper * float(STD.max())
    # the counterexample of each is one of the other's, in the other's units
    assert b.counterexample is not None
    broken = b.counterexample.image * STD + MEAN
    assert float(broken.min()) >= -1e-12 and float(broken.max()) <= 1 + 1e-12


def test_all_public_functions_take_it_in_any_spelling(tmp_path):
    net, x = small(), inside(7)
    tensors = SPELLINGS["tensors (1, C, 1, 1)"]
    about: dict[str, Any] = {"k": 1, "class_idx": 0, "device": "cpu"}

    def answers(clip: Any) -> list[object]:
        found = co.attack(net, x, eps=0.9, clip=clip, **about)
        compared = co.compare(net, x, clip=clip, methods=["crown", "bab"], **about)
        margins = co.compare(net, x, eps=0.05, clip=clip, methods=["crown"], **about)
        assert compared.only.asked.clip == margins.only.asked.clip == BOX
        heat = co.heat_map(net, x, eps=0.05, clip=clip, **about)
        exported = co.export_mps(net, x, path=tmp_path / "a.mps", eps=0.3, clip=clip, pair=None, method="lp", **about)
        return [
            None if found is None else found.image.tolist(),
            [(r.lower, r.upper) for r in compared.radii.values()],
            [margins.only.lower("crown")],
            heat.lower.tolist(),
            exported.pair,
            (tmp_path / "a.mps").read_text(),
            co.export_vnnlib(net, x, tmp_path, eps=0.3, clip=clip, k=1, class_idx=0).vnnlib.read_text(),
            co.bounds(net, co.Ball(x, 0.1, clip=clip))[net.features].lower.tolist(),
        ]

    assert answers(BOX) == answers(tensors)


def test_figures_say_the_box():
    assert clip_in_words(None) == "no clip box" and clip_in_words((0.0, 1.0)) == "clip box [0, 1]"
    assert clip_in_words(BOX) == "clip box [-2, 2] x [-1.5, 1] x [0.25, 0.75]"
    assert clip_in_words(((0.0,) * 9, (1.0,) * 9)) == "clip box [0, 1] x [0, 1] x [0, 1] x [0, 1] x ..."


# --- certificates ---------------------------------------------------------------------------------------------


def ends(region: Region) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of a box that has an interval for each channel."""
    assert region.clip is not None
    low, high = region.clip
    assert isinstance(low, tuple) and isinstance(high, tuple)
    return low, high


def proven(seed: int, norm: Norm) -> tuple[co.CamNetwork, Certificate]:
    model, x, box = drawn(seed)
    net = co.from_torch(model, x.float())
    r = co.radius(net, x, k=1, class_idx=0, norm=norm, clip=box, rtol=0.05, device="cpu")
    return net, r.prove()


@pytest.mark.parametrize("norm", mostly_slow(["inf", "1", "2"], ["inf", "2"]))
def test_certificates_hold_the_box_and_are_checked_in_it(norm, tmp_path):
    for seed in range(2):
        net, certificate = proven(seed, norm)
        path = tmp_path / "a.cert"
        certificate.save(path)
        again = Certificate.load(path)
        assert again.to_bytes() == certificate.to_bytes() and again.claim.region.clip == drawn(seed)[2]
        assert co.check_certificate(path, net).margin > 0
        assert check(again, plain_network(net), exact=True).margin > 0
        region = again.claim.region
        far = replace(region, eps=1e6)  # the box alone, then: larger boxes hold what smaller ones do not
        low, high = ends(region)
        wide = replace(far, clip=(tuple(v - 50 for v in low), tuple(v + 50 for v in high)))
        with pytest.raises(ProofError):
            check(replace(again, claim=replace(again.claim, region=wide)), plain_network(net))


def test_a_falsified_certificates_image_is_in_its_channels_box():
    model, x, box = drawn(1)
    net = co.from_torch(model, x.float())
    v = co.verify(net, x, eps=1.0, k=1, class_idx=0, clip=box, device="cpu")
    assert v.status == "falsified"
    certificate = v.prove()
    assert check(certificate, plain_network(net)).kind == "falsified"
    image = certificate.witness
    assert image is not None
    for channel in range(3):
        moved = image.copy()
        moved[channel, 0, 0] = np.nextafter(box[1][channel], np.inf)
        with pytest.raises(ProofError, match="outside the box"):
            check(replace(certificate, witness=moved), plain_network(net))


def test_a_box_of_other_channels_is_refused():
    net, certificate = proven(0, "inf")
    region = certificate.claim.region
    few = replace(region, clip=((-9.0, -9.0), (9.0, 9.0)))
    with pytest.raises(ProofError, match="another number of channels"):
        check(replace(certificate, claim=replace(certificate.claim, region=few)), plain_network(net))
    with pytest.raises(CertificateError, match="a box"):
        Certificate.from_bytes(replace(certificate, claim=replace(certificate.claim, region=few)).to_bytes())
    low, high = ends(region)
    outside = replace(region, clip=(tuple(v + 5 for v in low), tuple(v + 5 for v in high)))
    with pytest.raises(ProofError, match="outside its box"):
        check(replace(certificate, claim=replace(certificate.claim, region=outside)), plain_network(net))


def test_one_box_for_all_channels_is_written_as_two_numbers():
    net, x = small(), inside(3)
    certificate = co.radius(net, x, k=1, class_idx=0, clip=(-2, 2), rtol=0.1, device="cpu").prove()
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(certificate.to_bytes())) as archive:
        text = json.loads(archive.read("claim.json"))
    assert text["version"] == 3 and text["clip"] == [(-2.0).hex(), (2.0).hex()]


# --- text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("0,1", (0.0, 1.0)),
        (" None ", None),
        ("-2,2; -1.5,1 ;0.25,0.75", BOX),
        ("0,1;2,3", ((0.0, 2.0), (1.0, 3.0))),  # pairs, here too
    ],
)
def test_a_box_from_text(text, box):
    assert clip_from_text(text) == box


@pytest.mark.parametrize("text", ["", "0", "0,1,2", "0,1;2", "0,1;2,3,4", "a,b", "0,1;", ";"])
def test_no_box_from_text(text):
    with pytest.raises(co.InputError, match="--clip must be 'low,high' or 'none'"):
        clip_from_text(text)
