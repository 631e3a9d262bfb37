"""How long the paper's questions take: medians over repeated runs, in one process.

    python benchmarks/paper_times.py --root DIR [--runs 5]

DIR as for examples/reproduce_paper.py. Record the table in benchmarks/RESULTS.md with the date and the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import corgi_opt as co
from corgi_opt.data import gtsrb


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="How long the paper's questions take.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    paper = gtsrb.load_paper_image_496(args.root)
    x = gtsrb.load_split(args.root, "train").find(paper.image).image()
    net = co.from_torch(gtsrb.load_paper_model(args.root / paper.model), x)
    question: Any = {"k": 15, "class_idx": paper.class_idx}
    ball = co.Ball(x, 1e-3)

    def verify(eps: float, method: str) -> Callable[[], object]:
        return lambda: co.verify(net, x, eps=eps, method=method, **question)

    def radius(method: str) -> Callable[[], object]:
        return lambda: co.radius(net, x, method=method, **question)

    tasks = {
        "bounds ibp, eps 1e-3": lambda: co.bounds(net, ball, method="ibp"),
        "bounds crown, eps 1e-3": lambda: co.bounds(net, ball, method="crown"),
        "attack, eps 1.26e-3": lambda: co.attack(net, x, eps=1.26e-3, **question),
        "verify corgi, eps 8e-4": verify(8e-4, "corgi"),
        "verify crown, eps 1.05e-3": verify(1.05e-3, "crown"),
        "verify milp, eps 1.20e-3": verify(1.20e-3, "milp"),
        "verify milp, eps 1.24e-3": verify(1.24e-3, "milp"),
        "verify milp, eps 1.26e-3": verify(1.26e-3, "milp"),
        "radius corgi": radius("corgi"),
        "radius crown": radius("crown"),
        "radius milp": radius("milp"),
    }
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} "
        f"threads; image 496, k=15, clip [0, 1]; median (min .. max) of {args.runs}"
    )
    for name, run in tasks.items():
        run()  # not counted
        times = [seconds(run) for _ in range(args.runs)]
        print(f"{name:>28}  {statistics.median(times):7.2f} s  ({min(times):.2f} .. {max(times):.2f})")


if __name__ == "__main__":
    main()
