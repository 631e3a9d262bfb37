"""One CROWN pass and one of CORGI's, with generators and without, in turn in one process: CPU seconds and tightness.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/passes.py [--root DIR] [--rounds 2]
        [--cases resnet8:9.58e-4,vgg:5.2e-4]

DIR (default: CORGI_ZOO_DIR, or ../shared/zoo) is that of benchmarks/zoo.py; image 0, clip [0, 1], float64, one thread.
``rows`` went backwards (of CROWN); ``width``: the sum of all ReLU inputs' intervals, with over without; ``loose``: how
much looser an unstable neuron's bound is at most, as a share of its interval. Of CORGI, width and loose are those of
the last feature map. Ratios within one run count, not seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

import corgi_opt as co
from corgi_opt.bounding.corgi import corgi_bounds
from corgi_opt.bounding.crown import Relaxed, crown_pass
from corgi_opt.bounding.dual import Interval, Rows
from corgi_opt.bounding.regions import Regions
from corgi_opt.bounding.screening import Screen

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

DEFAULT = Path(os.environ.get("CORGI_ZOO_DIR", Path(__file__).resolve().parents[2] / "shared" / "zoo"))
CASES = "resnet8:9.58e-4,vgg:5.2e-4,mobile:5e-4,dense:5e-4,strided:1e-3,plain:1e-3"

Bounds = dict[str, Interval]


def crown(net: co.CamNetwork, regions: Regions) -> tuple[Bounds, int]:
    """Bounds of all ReLU inputs, and how many rows went backwards."""
    rows = 0

    def counting(relaxed: Relaxed, node: str, some: Rows) -> torch.Tensor:
        nonlocal rows
        rows += len(some)
        return Relaxed.bound(relaxed, node, some)

    found = crown_pass(net.graph, regions, bounder=counting).intervals
    return {name: found[name] for name in net.graph.preactivations}, rows


def corgi(net: co.CamNetwork, regions: Regions) -> tuple[Bounds, int]:
    """Bounds of the last feature map."""
    return {net.features: corgi_bounds(net, regions)}, 0


def compared(found: Bounds, without: Bounds) -> tuple[float, float]:
    """Width over width, and the largest loss of an interval that holds zero."""
    widths = [sum(float((b.upper - b.lower).sum()) for b in bounds.values()) for bounds in (found, without)]
    losses = [0.0]
    for name, was in without.items():
        now, open_ = found[name], was.unstable if len(without) > 1 else was.upper > was.lower
        loss = torch.maximum(was.lower - now.lower, now.upper - was.upper) / (was.upper - was.lower)
        losses += [float(loss[open_].max())] if bool(open_.any()) else []
    return widths[0] / widths[1], max(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description="Passes with generators and without, side by side.")
    parser.add_argument("--root", type=Path, default=DEFAULT)
    parser.add_argument("--cases", default=CASES, help="NETWORK:EPS, separated by commas")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    zoo = Zoo(args.root)
    columns = "seconds: without   with  ratio | rows: without  with |  width     loose"
    print(f"{'network':>8} {'eps':>8} {'pass':>6} | {columns}")
    for case in args.cases.split(","):
        name, eps = case.split(":")
        net = co.from_torch(zoo.model(name), zoo.image(0)).to(torch.float64)
        regions = Regions.of([co.Ball(zoo.image(0), float(eps))], torch.float64, torch.device("cpu"))
        passes: dict[str, Callable[[co.CamNetwork, Regions], tuple[Bounds, int]]] = {"crown": crown, "corgi": corgi}
        for kind, run in passes.items():
            for _ in range(args.rounds):
                took, bounds, rows = [], [], []
                for chosen in (False, True):
                    never = mock.patch.object(Screen, "cheaper", return_value=False)
                    with mock.MagicMock() if chosen else never:
                        start = time.process_time()
                        found, count = run(net, regions)
                        took.append(time.process_time() - start)
                    bounds.append(found)
                    rows.append(count)
                width, loss = compared(bounds[1], bounds[0])
                print(
                    f"{name:>8} {eps:>8} {kind:>6} | {took[0]:16.2f} {took[1]:6.2f} {took[0] / took[1]:6.2f} | "
                    f"{rows[0]:13d} {rows[1]:5d} | {width:6.3f} {loss:9.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
