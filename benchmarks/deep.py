"""Radii of deep and strided networks, their proofs, and how far both ends are apart.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/deep.py [--zoo DIR] [--networks plain,resnet8] [--images 10 | 6,7,8]
        [--k 5] [--limit 120] [--prove 120] [--rtol 0.002] [--threads 2]

DIR as in benchmarks/zoo.py. For each network: the median and the worst of falsified / certified, how many certified
ends the checker proves again in as many seconds as the search had (``--prove 0``: none is asked for), the size of these
certificates and the seconds of their check. Record the tables in benchmarks/RESULTS.md with the date and the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import corgi_opt as co

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

DEFAULT = Path(os.environ.get("CORGI_ZOO_DIR", Path(__file__).resolve().parents[2] / "shared" / "zoo"))


@dataclass(frozen=True)
class Proven:
    """The certificate of one certified end: its bytes, and seconds to make and to check it; or why there is none."""

    size: int = 0
    made: float = 0.0
    checked: float = 0.0
    why: str = ""


def proven(found: co.Radius, model: nn.Module, limit: float) -> Proven:
    """What the checker says of the certified end."""
    start = time.perf_counter()
    try:
        certificate = found.prove(time_limit=limit)
    except co.CorgiError as error:
        return Proven(why=str(error).splitlines()[0][:60])
    made = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "radius.npz"
        certificate.save(path)
        start = time.perf_counter()
        co.check_certificate(path, model)
        return Proven(path.stat().st_size, made, time.perf_counter() - start)


def network(zoo: Zoo, name: str, args: argparse.Namespace) -> None:
    model = zoo.model(name)
    net = co.from_torch(model, zoo.image(0))
    ratios, proofs = [], []
    for index in args.images:
        start = time.perf_counter()
        try:
            found = co.radius(net, zoo.image(index), k=args.k, rtol=args.rtol, time_limit=args.limit)
        except co.TieError:
            continue
        seconds = time.perf_counter() - start
        proof = proven(found, model, args.prove) if args.prove and found.lower > 0 else Proven(why="not asked for")
        ratios.append(found.ratio)
        proofs.append(proof)
        said = proof.why or f"{proof.size / 1e6:.2f} MB, made {proof.made:.1f} s, checked {proof.checked:.1f} s"
        print(
            f"{name:>12} {index:5d} | [{found.lower:.4e}, {found.upper:.4e}] {found.ratio:8.4f} | {seconds:6.1f} s by "
            f"{found.method} | {said}",
            flush=True,
        )
    held = [p for p in proofs if not p.why]
    print(
        f"{name:>12}: falsified / certified median {statistics.median(ratios):.4f}, worst "
        f"{max(ratios, default=math.nan):.4f}; proven again {len(held)} of {len(proofs)}",
        flush=True,
    )


def numbers(text: str) -> range | list[int]:
    return [int(part) for part in text.split(",")] if "," in text else range(int(text))


def main() -> None:
    parser = argparse.ArgumentParser(description="Radii of deep networks and their proofs.")
    parser.add_argument("--zoo", type=Path, default=DEFAULT)
    parser.add_argument("--networks", default="", help="names, separated by commas; all by default")
    parser.add_argument("--images", type=numbers, default=range(10), help="so many, or their numbers: 6,7,8")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a radius")
    parser.add_argument("--prove", type=float, default=120.0, help="seconds of the search for a proof; 0: none")
    parser.add_argument("--rtol", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    zoo = Zoo(args.zoo)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {args.threads} threads"
    print(f"{machine}; k={args.k}, {args.limit:g} s an image, {args.prove:g} s a proof")
    for name in args.networks.split(",") if args.networks else zoo.names:
        network(zoo, name, args)


if __name__ == "__main__":
    main()
