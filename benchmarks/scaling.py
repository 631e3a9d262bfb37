"""How time and memory grow: passes and radii on a ladder of networks from a thousand to two million ReLUs.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/scaling.py [--zoo DIR] [--root DIR] [--limit 120]
        [--only passes,eps,k,radii,cluster] [--networks digits,paper,resnet8]

DIR as in benchmarks/zoo.py and benchmarks/exact.py; what is not there is left out. Every cell runs in a process of its
own on one thread, which may take ``--limit`` CPU seconds and 16 GiB; "-" is one that took more. Seconds are CPU
seconds, memory is what the peak grew by. ``passes``: bounds of all nodes at eps 1e-4, with the exponent of a fit
``seconds ~ ReLUs^b`` below. ``eps`` and ``k``: how a pass and a radius depend on them. ``radii``: what k=5 takes to its
end. ``cluster``: how long a study of a thousand radii would take on so many workers, simulated from the seconds of
``radii``: each worker takes the next one when it is free. docs/scaling.md says what follows.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from nets import CamNet, smooth_image
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.regions import Regions

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

HERE = Path(__file__).resolve()
ZOO, ROOT = (HERE.parents[2] / "shared" / name for name in ("zoo", "gtsrb"))
OF_THE_ZOO = ("strided", "plain", "mobile", "dense", "resnet8", "vgg")
RESNETS = (32, 64, 224)
MEMORY = 16 * 2**30


class Basic(nn.Module):
    """The basic block of ResNet-18, its batch norms folded."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, channels, 3, stride, 1), nn.Conv2d(channels, channels, 3, 1, 1)
        same = stride == 1 and inputs == channels
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, channels, 1, stride)
        nn.init.normal_(self.b.weight, 0.0, 0.01)  # as trained residual branches: small beside the skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


def resnet18() -> CamNet:
    """ResNet-18 with random weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [Basic(inputs, channels, stride), Basic(channels, channels, 1)]
            inputs = channels
        return CamNet(nn.Sequential(*layers), 512).eval()


def loaded(name: str, args: argparse.Namespace) -> tuple[co.CamNetwork, Tensor]:
    """A network of the ladder and its first image."""
    if name == "digits":
        from corgi_opt.data import digits

        images, _ = digits.load_digits()
        return co.from_torch(digits.digits_model(), images[:1]), images[7:8]
    if name == "paper":
        from corgi_opt.data import gtsrb

        paper = gtsrb.load_paper_image_496(args.root)
        x = gtsrb.load_split(args.root, "train").find(paper.image).image()
        return co.from_torch(gtsrb.load_paper_model(args.root / paper.model), x), x
    if name.startswith("resnet18-"):
        x = smooth_image(int(name.removeprefix("resnet18-")))
        return co.from_torch(resnet18(), x), x
    zoo = Zoo(args.zoo)
    return co.from_torch(zoo.model(name), zoo.image(0)), zoo.image(0)


def cell(args: argparse.Namespace) -> dict[str, Any]:
    """What one process measures: the network's size, or the seconds and the memory of a pass or a radius."""
    torch.set_num_threads(1)
    what, name, *rest = args.cell.split(",")
    net, x = loaded(name, args)
    if what == "size":
        return _size(net)
    before, start = _peak(), time.process_time()
    if what == "pass":
        method, eps = rest
        ball = co.Ball(x.double(), float(eps))
        if method == "corgi":
            cpu = torch.device("cpu")
            corgi_bounds(net.to(torch.float64, cpu), Regions.of([ball], torch.float64, cpu))
        else:
            co.bounds(net, ball, method=method, device="cpu")
        said = {}
    else:
        method, k = rest
        r = co.radius(net, x, k=int(k), method=method, rtol=0.01, time_limit=args.limit, device="cpu")
        said = {"lower": r.lower, "upper": r.upper}
    return {"seconds": time.process_time() - start, "bytes": max(0, _peak() - before), **said}


def _size(net: co.CamNetwork) -> dict[str, Any]:
    graph = net.graph
    relus = sum(math.prod(graph[n].shape) for n in graph.relus)
    return {"relus": relus, "inputs": math.prod(net.input_shape), "map": math.prod(net.map_shape)}


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(args: argparse.Namespace, *what: object) -> dict[str, Any] | None:
    """A cell, in a process of its own; None where it takes more than it may."""
    limit = int(3 * args.limit if what[0] == "radius" else args.limit) + 30  # loading counts too

    def held() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    command = [sys.executable, str(HERE), "--cell", ",".join(map(str, what)), "--limit", str(args.limit)]
    command += ["--zoo", str(args.zoo), "--root", str(args.root)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=held)
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """b of the least-squares line through ``log y = a + b log x``."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0.05]  # below, nothing but overheads
    if len(logs) < 2:
        return math.nan
    mean_x, mean_y = (sum(p[i] for p in logs) / len(logs) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else math.nan


def shown(found: dict[str, Any] | None) -> str:
    return f"{'-':>8} {'-':>6}" if found is None else f"{found['seconds']:8.2f} {found['bytes'] / 2**20:6.0f}"


def passes(args: argparse.Namespace, names: list[str]) -> None:
    methods = ("ibp", "corgi", "crown")
    print("\npasses at eps 1e-4: seconds and MiB")
    print(f"{'network':>13} {'ReLUs':>9} | " + " | ".join(f"{m:>15}" for m in methods))
    points: dict[str, list[tuple[float, float]]] = {m: [] for m in methods}
    for name in names:
        size = measured(args, "size", name)
        assert size is not None, f"{name} cannot be loaded"
        row = {m: measured(args, "pass", name, m, 1e-4) for m in methods}
        for m, found in row.items():
            if found is not None:
                points[m].append((size["relus"], found["seconds"]))
        print(f"{name:>13} {size['relus']:9,d} | " + " | ".join(shown(row[m]) for m in methods), flush=True)
    print("exponent of ReLUs: " + ", ".join(f"{m} {exponent(points[m]):.2f}" for m in methods))


def over_eps(args: argparse.Namespace, names: list[str]) -> None:
    epses = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    print("\na CROWN pass by eps: seconds")
    print(f"{'network':>13} | " + " ".join(f"{eps:8.0e}" for eps in epses) + " | exponent from 1e-4 on")
    for name in names:
        row = [measured(args, "pass", name, "crown", eps) for eps in epses]
        known = [(eps, r["seconds"]) for eps, r in zip(epses, row, strict=True) if r is not None and eps >= 1e-4]
        cells = " ".join(f"{'-':>8}" if r is None else f"{r['seconds']:8.2f}" for r in row)
        print(f"{name:>13} | {cells} | {exponent(known):.2f}", flush=True)


def over_k(args: argparse.Namespace, names: list[str]) -> None:
    ks = (1, 5, 15)
    print(f"\na radius by k (auto, at most {args.limit:g} s): seconds, falsified / certified")
    print(f"{'network':>13} | " + " | ".join(f"{f'k={k}':>15}" for k in ks))
    for name in names:
        row = [measured(args, "radius", name, "auto", k) for k in ks]
        print(f"{name:>13} | " + " | ".join(_radius(r) for r in row), flush=True)


def _radius(found: dict[str, Any] | None) -> str:
    if found is None:
        return f"{'-':>15}"
    ratio = found["upper"] / found["lower"] if found["lower"] else math.inf
    return f"{found['seconds']:7.1f} {ratio:7.3g}"


def radii(args: argparse.Namespace, names: list[str]) -> list[float]:
    methods = ("crown", "auto")
    print(f"\nradii, k=5, at most {args.limit:g} s: seconds, falsified / certified; MiB of auto")
    print(f"{'network':>13} | " + " | ".join(f"{m:>15}" for m in methods) + " |   MiB")
    seconds = []
    for name in names:
        row = [measured(args, "radius", name, m, 5) for m in methods]
        memory = "-" if row[1] is None else f"{row[1]['bytes'] / 2**20:.0f}"
        print(f"{name:>13} | " + " | ".join(_radius(r) for r in row) + f" | {memory:>5}", flush=True)
        if row[1] is not None:
            seconds.append(row[1]["seconds"])
    return seconds


def cluster(seconds: list[float], count: int = 1000, seed: int = 0) -> None:
    """Time of ``count`` radii, drawn from those measured, on several numbers of workers."""
    if not seconds:
        return
    draw = random.Random(seed)
    jobs = [draw.choice(seconds) for _ in range(count)]
    print(f"\n{count} radii on a cluster, simulated: workers, hours, share of the ideal")
    for workers in (1, 2, 8, 32, 128, 512):
        free = [0.0] * workers
        for job in jobs:
            heapq.heappush(free, heapq.heappop(free) + job)
        longest = max(free)
        print(f"{workers:8d} {longest / 3600:8.2f} {sum(jobs) / workers / longest:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="How time and memory grow with the network, eps and k.")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--limit", type=float, default=120.0, help="CPU seconds of a pass, seconds of a radius")
    parser.add_argument("--only", default="passes,eps,k,radii,cluster")
    parser.add_argument("--networks", default="")
    parser.add_argument("--cell", help="what one process measures (the script calls itself)")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cell(args)))
        return
    there = ["digits", *(["paper"] if args.root.is_dir() else []), *(OF_THE_ZOO if args.zoo.is_dir() else [])]
    ladder = args.networks.split(",") if args.networks else [*there, *(f"resnet18-{size}" for size in RESNETS)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a cell")
    small = [name for name in ladder if not name.startswith("resnet18")]
    sections: dict[str, Callable[[], object]] = {
        "passes": lambda: passes(args, ladder),
        "eps": lambda: over_eps(args, small),
        "k": lambda: over_k(args, [n for n in small if n in ("digits", "paper", "strided", "plain")]),
        "radii": lambda: seconds.extend(radii(args, small)),
        "cluster": lambda: cluster(seconds),
    }
    seconds: list[float] = []
    for name in args.only.split(","):
        sections[name]()


if __name__ == "__main__":
    main()
