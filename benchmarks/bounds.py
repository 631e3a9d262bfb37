"""How fast and how tight the bounds are, side by side in one process; medians over repeated runs.

    python benchmarks/bounds.py --root DIR [--runs 5] [--only passes resnet pools queries radii deep batch]

DIR as for examples/reproduce_paper.py. Sections:

* passes, resnet: all CAM pixels of the paper's network and of a small ResNet bounded by intervals, CORGI, CROWN
  (screened and not, float32 and float64) and dual ascent, and by auto_LiRPA where it is installed (peer_autolirpa.py).
  Time, ratio to the screened float32 pass, mean width of a CAM interval, radius certified pixel by pixel.
* pools: what pooling windows relaxed by the tree, by the direct plane and by the tighter of both come to.
* queries: pairs that CROWN leaves, by dual ascent and by the triangle LP.
* radii: whole radius searches, to 1 % and to 15 bisections of the bracket.
* deep: a 20-layer residual network with 655,360 ReLUs; time and peak memory.
* batch: 256 images in one pass, on the CPU and on a CUDA device where there is one.

Record the tables in benchmarks/RESULTS.md with the date and the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import nets
import peer_autolirpa as peer
import torch
from corgi_solvers import Highs
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.bounding.ascent import ascend
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import Bounded, Relaxed, crown_pass, refine, settle
from corgi_opt.bounding.dual import Interval, Relaxation, Rows, lower_bounds
from corgi_opt.bounding.interval import interval_bounds
from corgi_opt.bounding.margins import Margins
from corgi_opt.bounding.objective import Bound, interval_parts, objectives, part_bounds, share_in_atoms
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.relaxation import PoolPlanes, direct_planes
from corgi_opt.data import gtsrb
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.triangle import triangle
from corgi_opt.network.graph import LayerGraph
from corgi_opt.problem.atoms import Parts, cam_pixels
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene
from corgi_opt.search.atom import AtomAnswer, AtomSolver, PartExpressions
from corgi_opt.search.decide import SolvedProgram

CPU = torch.device("cpu")
Bounds = Callable[[float], tuple[Tensor, Tensor]]
"""CAM pixels' bounds (P,) at an eps."""


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], runs: int) -> float:
    run()  # not counted
    return statistics.median(seconds(run) for _ in range(runs))


# --- all pixels ----------------------------------------------------------------------------------------------------


def ours(net: co.CamNetwork, x: Tensor, class_idx: int) -> dict[str, Bounds]:
    """Each of our bounds, by name."""

    def setting(eps: float, dtype: torch.dtype) -> tuple[co.CamNetwork, Regions]:
        return net.to(dtype, CPU), Regions.of([co.Ball(x, eps)], dtype, CPU)

    def one(interval: Interval) -> tuple[Tensor, Tensor]:
        return interval.lower[0].double(), interval.upper[0].double()

    def unscreened(
        graph: LayerGraph, name: str, interval: Interval, matter: Tensor, bound: Callable[[Rows], Tensor]
    ) -> Interval:
        """Bounds every neuron from both sides, whatever its interval says."""
        return refine(graph, name, interval, matter.expand_as(interval.lower), bound)

    def ibp(eps: float) -> tuple[Tensor, Tensor]:
        here, regions = setting(eps, torch.float32)
        features = interval_bounds(here.graph, regions)[here.features]
        return one(interval_parts(here, pixels(here, class_idx), features))

    def corgi(eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        here, regions = setting(eps, dtype)
        return one(interval_parts(here, pixels(here, class_idx), corgi_bounds(here, regions)))

    def crown(eps: float, dtype: torch.dtype, screened: bool = True) -> tuple[Tensor, Tensor]:
        here, regions = setting(eps, dtype)
        relaxed = crown_pass(here.graph, regions, refiner=settle if screened else unscreened)
        return one(cam_bounds(here, class_idx, relaxed.bound))

    def dual(eps: float) -> tuple[Tensor, Tensor]:
        here, regions = setting(eps, torch.float64)
        return one(cam_bounds(here, class_idx, partial(ascend, crown_pass(here.graph, regions))))

    return {
        "ours: crown, float32": partial(crown, dtype=torch.float32),
        "ours: crown, float32, unscreened": partial(crown, dtype=torch.float32, screened=False),
        "ours: crown, float64": partial(crown, dtype=torch.float64),
        "ours: crown, float64, unscreened": partial(crown, dtype=torch.float64, screened=False),
        "ours: intervals, float32": ibp,
        "ours: corgi, float32": partial(corgi, dtype=torch.float32),
        "ours: corgi, float64": partial(corgi, dtype=torch.float64),
        "ours: dual, float64": dual,
    }


def pixels(net: co.CamNetwork, class_idx: int) -> Parts:
    return cam_pixels(net.classes, class_idx, net.map_shape[0] * net.map_shape[1])


def cam_bounds(net: co.CamNetwork, class_idx: int, bound: Bound, images: int = 1) -> Interval:
    """Of every CAM pixel (N, P)."""
    parts = pixels(net, class_idx)
    every = torch.ones(images, len(parts), dtype=torch.bool)
    return part_bounds(net, parts, bound, every, every)


def theirs(features: nn.Module, weight: Tensor, x: Tensor) -> dict[str, Bounds]:
    """auto_LiRPA's CROWN of the network as it is and with its pools written as ours are, by name."""
    if peer.available():
        print(peer.available())
        return {}
    forms = {"MaxPool2d": features, "differences": peer.difference_pool(features)}
    found: dict[str, Bounds] = {}
    for form, module in forms.items():
        for sparse in (True, False):
            bounded = peer.build(peer.cam_model(module, weight), x, sparse=sparse)

            def bounds(eps: float, bounded: object = bounded) -> tuple[Tensor, Tensor]:
                low, high = peer.crown_bounds(bounded, x, eps, (0.0, 1.0))
                return low[0].double(), high[0].double()

            found[f"auto_LiRPA: {form}, sparse {'on' if sparse else 'off'}"] = bounds
    return found


def passes(
    net: co.CamNetwork, x: Tensor, class_idx: int, eps: float, k: int, peers: dict[str, Bounds], runs: int
) -> None:
    """One line for each way to bound all CAM pixels."""
    order = net.cam(x, class_idx).flatten().argsort(descending=True)
    limit = co.radius(net, x, k=k, method="corgi", class_idx=class_idx).upper
    base = 0.0
    for name, bounds in {**ours(net, x, class_idx), **peers}.items():
        try:
            low, high = bounds(eps)
        except RuntimeError as error:
            print(f"{name:>36}  fails: {str(error).splitlines()[0][:60]}")
            continue
        taken = median_seconds(partial(bounds, eps), runs)
        base = base or taken
        radius = bisected(bounds, order[:k], order[k:], limit)
        width = float((high - low).mean())
        print(f"{name:>36}  {taken:7.3f} s  {taken / base:6.1f} x  width {width:10.4f}  radius {radius:.4g}")


def bisected(bounds: Bounds, top: Tensor, rest: Tensor, limit: float) -> float:
    """The radius that pixels' bounds alone certify, by 7 bisections below a broken eps."""
    low, high = 0.0, limit
    for _ in range(7):
        middle = (low + high) / 2
        lower, upper = bounds(middle)
        if float(lower[top].min()) > float(upper[rest].max()):
            low = middle
        else:
            high = middle
    return low


# --- pools ---------------------------------------------------------------------------------------------------------


def pools(cases: dict[str, tuple[co.CamNetwork, Tensor, int, Sequence[float]]]) -> None:
    """Mean CAM width by how pooling windows are relaxed, with the same bounds of ReLU inputs."""
    for name, (net, x, class_idx, epses) in cases.items():
        for eps in epses:
            here = net.to(torch.float64, CPU)
            relaxed = crown_pass(here.graph, Regions.of([co.Ball(x, eps)], torch.float64, CPU))
            widths = {}
            for how, relaxations in ways_to_pool(relaxed).items():
                bound = partial(lower_bounds, here.graph, regions=relaxed.regions, relaxations=relaxations)
                low, high = cam_bounds(here, class_idx, bound)
                widths[how] = float((high - low).mean())
            used = [p.direct.used for p in relaxed.pools.values() if p.direct is not None and p.direct.used is not None]
            windows = sum(int(map_.sum()) for pair in used for map_ in pair)
            print(f"{name:>20} eps {eps:<7g} " + "  ".join(f"{n} {w:10.4f}" for n, w in widths.items()), end="")
            print(f"  direct planes taken {windows}")


def ways_to_pool(relaxed: Relaxed) -> dict[str, Mapping[str, Relaxation]]:
    direct = {}
    for name in relaxed.pools:
        pooled = relaxed.graph[name].pooled
        assert pooled is not None
        planes = direct_planes(pooled.pool, relaxed.intervals[pooled.source])
        direct[name] = PoolPlanes(pooled.source, pooled.pool, planes)
    return {
        "tree": dict(relaxed.lines),
        "direct": {**relaxed.lines, **direct},
        "tighter of both": dict(relaxed.relaxations),
    }


# --- queries -------------------------------------------------------------------------------------------------------


def most_doubtful(margins: Margins) -> list[int]:
    """Open atoms of the first region whose parts share an input, the most doubtful first."""
    atoms = torch.nonzero(margins.open[0]).flatten()
    atoms = atoms[share_in_atoms(margins.question.net, margins.question.groups, atoms)]
    found: list[int] = atoms[margins.lower[0, atoms].argsort(stable=True)].tolist()
    return found


def queries(net: co.CamNetwork, x: Tensor, class_idx: int, k: int, epses: Sequence[float], runs: int) -> None:
    """Pairs that CROWN leaves at some eps: how much of the LP's improvement dual ascent finds, and in what time."""
    question = Question.ask(Scene.of(net, x, class_idx=class_idx, norm="inf", clip=(0.0, 1.0)), co.TopK(k))
    here = net.to(torch.float64, CPU)
    recovered, ratios = [], []
    for eps in epses:
        margins = Margins(question, [eps], torch.float64, CPU)
        margins.corgi()
        margins.crown()
        relaxed = margins.relaxed
        assert relaxed is not None
        ball, known = question.ball(eps), relaxed.only(0)

        def solve(atom: int, ball: co.Ball = ball, known: Bounded = known) -> AtomAnswer:
            """Encodes from nothing and solves."""
            parts = PartExpressions(question, Expressions(here.graph, known))
            return AtomSolver(question, ball, parts, SolvedProgram(triangle, Highs())).solve(atom, Deadline(600))

        groups = question.groups
        for atom in most_doubtful(margins)[:6]:
            pair, one = groups.labels[atom].tolist(), torch.tensor([atom])
            (objective,) = objectives(here, groups.parts, groups.terms[one], groups.coefs[one], torch.zeros_like(one))
            rows = objective.rows
            crown, dual = (float(b(here.features, rows)) for b in (relaxed.bound, partial(ascend, relaxed)))
            lp = solve(atom).lower
            taken = median_seconds(partial(ascend, relaxed, here.features, rows), runs)
            by_lp = median_seconds(partial(solve, atom), runs)
            ratios.append(taken / by_lp)
            recovered.append((dual - crown) / (lp - crown) if lp - crown > 1e-6 else 1.0)
            print(
                f"  eps {eps:<7g} pair {pair!s:>10}  crown {crown:9.4f}  dual {dual:9.4f}  lp {lp:9.4f}  recovered "
                f"{recovered[-1]:.2f}  dual {taken * 1e3:4.0f} ms  lp {by_lp * 1e3:4.0f} ms  ratio {ratios[-1]:.2f}"
            )
    print(
        f"{len(ratios)} queries: recovered, median {statistics.median(recovered):.2f} (min {min(recovered):.2f}); "
        f"dual / lp time, median {statistics.median(ratios):.2f} (max {max(ratios):.2f})"
    )


# --- radii, deep, batch --------------------------------------------------------------------------------------------


def radii(net: co.CamNetwork, x: Tensor, class_idx: int, k: int, runs: int) -> None:
    for method in ("corgi", "crown", "dual", "lp"):
        for rtol, what in ((0.01, "to 1 %"), (2.0**-14, "to 2^-14")):
            run = partial(co.radius, net, x, k=k, method=method, class_idx=class_idx, rtol=rtol)
            found = run()
            taken = median_seconds(run, runs)
            attack = found.stats["seconds_attack"]
            print(f"{method:>8} {what:>9}  {taken:6.2f} s, of it attack {attack:.2f} s; radius {found.lower:.5g}")


def deep(eps: float) -> None:
    x = nets.smooth_image(64)
    net = co.from_torch(nets.deep_resnet(), x)
    start = time.perf_counter()
    found = co.bounds(net, co.Ball(x, eps), dtype=torch.float32, device="cpu")
    taken = time.perf_counter() - start
    open_ = sum(int(found[n].unstable.sum()) for n in net.graph.preactivations)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{net.graph!r}\n  eps {eps:g}, float32: {taken:.0f} s, {open_} unstable, peak {peak:.2f} GiB so far")


def batch(net: co.CamNetwork, images: Sequence[Tensor], class_idx: int, eps: float, count: int, runs: int) -> None:
    """CROWN intervals of all CAM pixels, float32: one image at a time on the CPU, and ``count`` at once."""
    balls = [co.Ball(images[i % len(images)], eps) for i in range(count)]

    def run(device: torch.device, part: Sequence[co.Ball]) -> None:
        here = net.to(torch.float32, device)
        relaxed = crown_pass(here.graph, Regions.of(part, torch.float32, device))
        cam_bounds(here, class_idx, relaxed.bound, len(part)).lower.sum().item()

    single = statistics.median(seconds(partial(run, CPU, [b])) for b in balls[:16])
    print(f"  CPU, one at a time: {1 / single:.1f} images/s")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        where = torch.device(device)
        taken = median_seconds(partial(run, where, balls), runs if device == "cuda" else 1)
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        print(f"  {name}, {count} at once: {count / taken:.1f} images/s, {count / taken * single:.1f} x")


SECTIONS = ("passes", "resnet", "pools", "queries", "radii", "deep", "batch")


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast and how tight the bounds are.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    args = parser.parse_args()
    paper = gtsrb.load_paper_image_496(args.root)
    train = gtsrb.load_split(args.root, "train")
    x = train.find(paper.image).image()
    model = gtsrb.load_paper_model(args.root / paper.model)
    net, class_idx = co.from_torch(model, x), paper.class_idx
    small, smooth = nets.small_resnet(), nets.smooth_image(32)
    resnet = co.from_torch(small, smooth)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} "
        f"threads; medians of {args.runs}; clip [0, 1]"
    )
    if "passes" in args.only:
        print("passes: the paper's network, image 496, k 15, eps 1e-3")
        last = model[-1].weight
        assert isinstance(last, torch.Tensor)
        peers = theirs(model[:-3], last[class_idx], x)
        passes(net, x, class_idx, 1e-3, 15, peers, args.runs)
    if "resnet" in args.only:
        print(f"resnet: {resnet.graph!r}, k 5, eps 3e-4")
        peers = theirs(small.features, small.classify.weight[0], smooth)
        passes(resnet, smooth, 0, 3e-4, 5, peers, args.runs)
    if "pools" in args.only:
        print("pools: mean width of a CAM interval")
        pools(
            {
                "paper, image 496": (net, x, class_idx, (1e-3, 3e-3, 1e-2)),
                "small ResNet": (resnet, smooth, 0, (1e-3, 1e-2, 3e-2)),
            }
        )
    if "queries" in args.only:
        print("queries: pairs of the paper's network that CROWN leaves, image 496, k 15")
        queries(net, x, class_idx, 15, (1.2e-3, 1.6e-3, 2e-3, 2.5e-3, 3e-3), args.runs)
    if "radii" in args.only:
        print("radii: the paper's network, image 496, k 15")
        radii(net, x, class_idx, 15, args.runs)
    if "deep" in args.only:
        print("deep: 20 convolutions of 8 channels on 64x64, residual")
        deep(1e-4)
    if "batch" in args.only:
        print("batch: the paper's network on training images, eps 1e-3, float32")
        batch(net, [train[i].image() for i in range(64)], class_idx, 1e-3, 256, args.runs)


if __name__ == "__main__":
    main()
