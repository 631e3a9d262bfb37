"""Well-known architectures, unedited: does each build, how long does it take, and what is proven of it?

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/models.py [--only NAME,NAME] [--limit 20] [--root DIR]

Prints the rows of the table in docs/models.md, which says how to install torchvision and timm; DIR is the folder of
trained networks that benchmarks/zoo.py reads. Weights are as each library draws them after seed 0, or trained ones
where the folder has them; of the graphs in ONNX that the package onnx brings they are what the graph makes. Every
network has a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import published
import torch
from handmade import HANDMADE
from nets import smooth_image
from torch import Tensor, nn

import corgi_opt as co

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

DEFAULT = Path(os.environ.get("CORGI_ZOO_DIR", Path(__file__).resolve().parents[2] / "shared" / "zoo"))
SMALL = 150_000
"""Most ReLUs (and values of curved functions) of a network whose radius is asked for; of larger ones it is a heat map
by intervals."""

TORCHVISION = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"), 64),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1", "densenet121", "googlenet"), 64),
    "inception_v3": 128,
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf"), 64),
    **dict.fromkeys(("vgg11_bn", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny"), 64),
}
"""Height and width of the image of each."""

TIMM = dict.fromkeys(
    ("resnet10t", "resnetblur18", "repvgg_a0", "dla34", "res2net50_14w_8s", "hrnet_w18_small", "efficientnet_lite0"), 64
)


class Subject(Protocol):
    """A model: the network that is built of it for images like x, and its own class scores (classes,) of an image in
    float64."""

    def network(self, x: Tensor) -> co.CamNetwork: ...

    def scores(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class OfTorch:
    model: nn.Module

    def network(self, x: Tensor) -> co.CamNetwork:
        return co.from_torch(self.model, x)

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = self.model.double()(x)[0]
        return scores


@dataclass(frozen=True, eq=False)
class Entry:
    """``make``: gives the model; ``shape`` (C, H, W) of its image."""

    name: str
    make: Callable[[], Subject]
    shape: tuple[int, int, int]


def entries(zoo: Zoo) -> Iterator[Entry]:
    for name in zoo.architectures():
        yield of_torch(f"zoo {name}", partial(zoo.model, name), (3, 32, 32), name in zoo.names)
    for name, (make, shape) in HANDMADE.items():
        yield of_torch(name, make, shape)
    for name, size in TORCHVISION.items():
        yield of_torch(f"torchvision {name}", partial(of_torchvision, name), (3, size, size))
    for name, size in TIMM.items():
        yield of_torch(f"timm {name}", partial(of_timm, name), (3, size, size))
    for name in published.names():
        yield Entry(f"onnx {name}", partial(published.Published, name), (3, 224, 224))


def of_torch(name: str, make: Callable[[], nn.Module], shape: tuple[int, int, int], trained: bool = False) -> Entry:
    """``trained``: its weights stay as they are."""

    def made() -> Subject:
        torch.manual_seed(0)
        model = make()
        if not trained:
            settle(model, shape)
        return OfTorch(model.eval())

    return Entry(name, made, shape)


def torchvision_models() -> Any:
    """``torchvision.models``. What pip finds is built for CUDA, and beside a CPU build of torch its operators do not
    load; importing it then fails for want of two names, which no classifier uses: they are declared here."""
    if not torch.cuda.is_available() and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)
    from torchvision import models

    return models


KEPT: list[torch.library.Library] = []
"""An operator lives as long as what declared it."""


def of_torchvision(name: str) -> nn.Module:
    models = torchvision_models()
    if name == "vgg11_bn":  # its dense layers have no CAM: its features with the usual head
        features = models.vgg11_bn(weights=None).features
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    # these two are drawn by scipy otherwise, which takes minutes; their second heads are for training alone
    drawn = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    made: nn.Module = getattr(models, name)(weights=None, **drawn)
    return made


def of_timm(name: str) -> nn.Module:
    torchvision_models()
    import timm

    made: nn.Module = timm.create_model(name, pretrained=False)
    return made


def row(entry: Entry, limit: float) -> str:
    """One line of the table."""
    model = entry.make()
    x = smooth_image(max(entry.shape[1:]))[:, : entry.shape[0], : entry.shape[1], : entry.shape[2]]
    start = time.process_time()
    try:
        net = model.network(x)
    except co.CorgiError as refusal:
        said = str(refusal).splitlines()[0].replace(f"{published.FOLDER}{os.sep}", "")[:240].replace("|", "/")
        size = "x".join(map(str, entry.shape))
        return f"| {entry.name} | {size} | refused | | | {time.process_time() - start:.1f} | | {said} |"
    built = time.process_time() - start
    relus, curved = (
        sum(torch.Size(net.graph[n].shape).numel() for n in ns) for ns in (net.graph.relus, net.graph.curved)
    )
    apart = parity(model, net, x.shape)
    said = proven(net, x, relus + curved, limit)
    bent = f"{relus:,}" + (f", {curved:,} curved" if curved else "")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    height, width = net.map_shape
    return (
        f"| {entry.name} | {'x'.join(map(str, entry.shape))} | {height}x{width} | {len(net.graph)}, {bent} | "
        f"{apart:.0e} | {built:.1f} | {memory:.1f} | {said} |"
    )


def settle(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Gives batch norms the statistics of one batch, without which the maps of deep networks vanish or explode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.rand(8, *shape))


def parity(model: Subject, net: co.CamNetwork, shape: torch.Size) -> float:
    """How far class scores and CAM are from the model's own in float64, relative to the largest, at other images."""
    worst = 0.0
    for seed in range(2):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for mine, own in ((net.logits(x), model.scores(x)), (net.cam(x, 0), net.model_cam(x, 0))):
            worst = max(worst, float((mine - own).abs().max() / own.abs().max()))
    return worst


def proven(net: co.CamNetwork, x: Tensor, bends: int, limit: float) -> str:
    """What was asked of it, and what came of it in how many CPU seconds."""
    pixels = net.map_shape[0] * net.map_shape[1]
    if pixels == 1:
        return "a CAM of one pixel has no order"
    k, start = max(1, pixels // 4), time.process_time()
    if bends <= SMALL:
        try:
            r = co.radius(net, x, k=k, rtol=0.05, time_limit=limit)
        except co.CorgiError as error:
            return str(error).splitlines()[0][:100]
        return f"radius, k={k}, {r.method}: [{r.lower:.2e}, {r.upper:.2e}] in {time.process_time() - start:.0f} s"
    seconds: float | None = None
    for exponent in range(2, 14):
        start = time.process_time()
        try:
            found = co.heat_map(net, x, eps=10.0**-exponent, k=k, method="ibp")
        except co.NumericalError:  # intervals of many layers overflow; less so in smaller regions
            continue
        decided, seconds = pixels - int(found.undecided.sum()), time.process_time() - start
        if decided:
            return (
                f"heat map, k={k}, ibp: at eps=1e-{exponent} {decided} of {pixels} pixels are decided, {seconds:.1f} s"
            )
    if seconds is None:
        return f"heat map, k={k}, ibp: intervals overflow float64 from eps=1e-2 down to 1e-{exponent}"
    return f"heat map, k={k}, ibp: no pixel is decided from eps=1e-2 down to 1e-{exponent}, {seconds:.1f} s a map"


def main() -> None:
    parser = argparse.ArgumentParser(description="Well-known architectures, unedited: what builds, and how fast.")
    parser.add_argument("--root", type=Path, default=DEFAULT)
    parser.add_argument("--only", default="", help="names, separated by commas; all by default")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for a radius")
    parser.add_argument("--patience", type=float, default=300.0, help="CPU seconds for a network, all together")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for a network")
    args = parser.parse_args()
    found = {entry.name: entry for entry in entries(Zoo(args.root))}
    # torch's first export is slow; its autograd must not have run before a fork
    torch.export.export(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(inplace=True)).eval(), (torch.rand(1, 1, 4, 4),))
    print("| model | image | CAM | nodes, ReLUs | parity | build (s) | memory (GiB) | what was asked |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.only.split(",") if args.only else found:
        print(alone(found[name], args.limit, args.patience, args.memory), flush=True)


def alone(entry: Entry, limit: float, patience: float, memory: float) -> str:
    """The row of a network from a process of its own; where that gives none, why."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_row, args=(theirs, entry, limit, patience, memory))
    process.start()
    theirs.close()
    size = "x".join(map(str, entry.shape))
    try:
        return str(ours.recv())
    except EOFError:
        process.join()
        late = process.exitcode == -signal.SIGXCPU
        why = f"stopped after {patience:.0f} CPU s" if late else f"exit code {process.exitcode}"
        return f"| {entry.name} | {size} | unfinished | | | | | {why} |"
    finally:
        process.kill()
        process.join()


def send_row(to: Connection, entry: Entry, limit: float, patience: float, memory: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(patience), int(patience) + 5))
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    try:
        to.send(row(entry, limit))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:160].replace("|", "/")
        to.send(f"| {entry.name} | {'x'.join(map(str, entry.shape))} | failed | | | | | {said} |")


if __name__ == "__main__":
    main()
