"""CROWN's radius and an exact method's, side by side, on small trained networks: who certifies more in the same time?

    OMP_WAIT_POLICY=PASSIVE python benchmarks/zoo.py [--root DIR] [--networks plain,resnet8] [--images 2]
        [--limits 30,120] [--k 5] [--method auto]

DIR (default: CORGI_ZOO_DIR, or ../shared/zoo) holds architectures.py (``make(name)``), a state dict NAME.safetensors
for each network and images.npz. A network that is refused is named with the reason. ``over crown`` below 1 is a fault:
an exact method never says less than a weak one. Record tables in benchmarks/RESULTS.md with the date and the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import corgi_opt as co

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

DEFAULT = Path(os.environ.get("CORGI_ZOO_DIR", Path(__file__).resolve().parents[2] / "shared" / "zoo"))


def radii(net: co.CamNetwork, x: Tensor, name: str, index: int, limit: float, args: argparse.Namespace) -> float:
    """One line of the table; returns what the exact method certifies over what CROWN does."""
    found, seconds = {}, {}
    for method in ("crown", args.method):
        start = time.perf_counter()
        found[method] = co.radius(net, x, k=args.k, method=method, rtol=args.rtol, time_limit=limit, device=args.device)
        seconds[method] = time.perf_counter() - start
    crown, exact = found["crown"], found[args.method]
    over = exact.lower / crown.lower if crown.lower > 0 else float("inf")
    least = ">=" if exact.corgi_cut_off else "  "
    print(
        f"{name:>12} {index:5d} {limit:6g} | {least}{exact.corgi:9.3e} {crown.lower:9.3e} "
        f"{exact.lower:9.3e} {over:10.4f} | [{exact.lower:.4e}, {exact.upper:.4e}] {exact.ratio:8.4f} | "
        f"{seconds['crown']:7.1f} {seconds[args.method]:7.1f} | {exact.reason}",
        flush=True,
    )
    return over


def main() -> None:
    parser = argparse.ArgumentParser(description="CROWN's radius and an exact method's on small trained networks.")
    parser.add_argument("--root", type=Path, default=DEFAULT)
    parser.add_argument("--networks", default="", help="names, separated by commas; all by default")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--limits", default="30,120", help="seconds a radius, separated by commas")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--method", default="auto", help="auto, bab or milp")
    parser.add_argument("--rtol", type=float, default=0.01)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    zoo, threads = Zoo(args.root), torch.get_num_threads()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {threads} threads")
    print(
        f"{'network':>12} {'image':>5} {'limit':>6} |   {'corgi':>9} {'crown':>9} {args.method:>9} "
        f"{'over crown':>10} | [certified, falsified]      ratio | seconds: crown, {args.method} | reason"
    )
    worst = float("inf")
    for name in args.networks.split(",") if args.networks else zoo.names:
        try:
            net = co.from_torch(zoo.model(name), zoo.image(0))
        except co.CorgiError as refusal:
            print(f"{name:>12} refused: {str(refusal).splitlines()[0]}", flush=True)
            continue
        for index in range(args.images):
            for limit in map(float, args.limits.split(",")):
                worst = min(worst, radii(net, zoo.image(index), name, index, limit, args))
    print(f"certified by {args.method} / by crown, worst: {worst:.4f}")


if __name__ == "__main__":
    main()
