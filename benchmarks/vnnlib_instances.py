"""Questions as ONNX and VNN-LIB files for other verifiers, with our own two-sided answer beside each.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/vnnlib_instances.py FOLDER [--root DIR] [--zoo DIR] [--digits 6]
        [--paper 3] [--networks plain,strided] [--zoo-images 2] [--timeout 300] [--limit 120] [--dtype float32]

For every image the bracket of its radius is found first, of the top-k set and of the pair of pixels that breaks it.
Then the question is written at 0.9 and 1.0 of what is certified, between the ends of the bracket (hard), and at 1.05 of
what is broken: 76 instances by default. DIR as for examples/reproduce_paper.py; the zoo's as for zoo.py. What is absent
is left out, and said.

FOLDER/instances.csv has a line ``onnx,vnnlib,timeout`` for each, as VNN-COMP has it; FOLDER/answers.csv says what each
is and what we answer: ``unsat`` (the property is proven), ``sat`` (a counterexample was replayed) or ``unknown``. The
folder is no part of the project.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import corgi_opt as co
from corgi_opt.data import digits, gtsrb
from corgi_opt.problem.atoms import Groups, alone, cam_pixels
from corgi_opt.problem.properties import Property, register
from corgi_opt.problem.scene import Scene

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

SHARED = Path(__file__).resolve().parents[2] / "shared"
COLUMNS = (
    "name",
    "network",
    "image",
    "what",
    "class_idx",
    "k",
    "pair",
    "eps",
    "answer",
    "certified_eps",
    "falsified_eps",
    "proof",
    "seconds",
)


@register
@dataclass(frozen=True)
class Ahead(Property):
    """One pixel of the CAM stays ahead of another one."""

    first: int
    second: int
    name: ClassVar[str] = "Ahead"

    def pose(self, scene: Scene, tie_tol: float | None) -> Groups:
        pair = torch.tensor([[self.first, self.second]])
        coefs = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        parts = cam_pixels(scene.net.classes, scene.class_idx, scene.cam.numel())
        return Groups(parts, pair, coefs, *alone(1), pair, ("pixel", "pixels"))


@dataclass(frozen=True)
class Asked:
    """An image of a network. ``whole``: its top-k set is asked about too, not the pair that breaks it alone."""

    network: str
    net: co.CamNetwork
    image: str
    x: Tensor
    k: int
    class_idx: int
    whole: bool


class Folder:
    """Where instances and answers go, as they come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.path, self.rows = args, Path(args.folder), 0
        self.path.mkdir(parents=True, exist_ok=True)
        for name, header in (("instances.csv", ()), ("answers.csv", COLUMNS)):
            with (self.path / name).open("w", newline="") as file:
                csv.writer(file).writerows([header] if header else [])

    def ask(self, asked: Asked) -> None:
        top = co.TopK(asked.k)
        broken = self.bracket(asked, top)
        if asked.whole:
            self.write(asked, top, None, broken)
        if broken.counterexample is None:
            print(f"{asked.network} {asked.image}: nothing breaks it, so it has no pair", flush=True)
            return
        pair = worst_pair(asked, broken.counterexample.image)
        self.write(asked, Ahead(*pair), pair, self.bracket(asked, Ahead(*pair)))

    def bracket(self, asked: Asked, what: Property) -> co.Radius:
        about: dict[str, Any] = {"property": what, "class_idx": asked.class_idx}
        return co.radius(asked.net, asked.x, rtol=self.args.rtol, time_limit=self.args.limit, **about)

    def write(self, asked: Asked, what: Property, pair: tuple[int, int] | None, found: co.Radius) -> None:
        low, high = found.lower, found.upper
        at = {"0.9": 0.9 * low, "1.0": low, "between": math.sqrt(low * high), "1.05": 1.05 * high}
        about: dict[str, Any] = {"property": what, "class_idx": asked.class_idx}
        for share, eps in at.items():
            if not 0 < eps < math.inf:
                continue
            start = time.perf_counter()
            answer, proof = self.answer(asked, about, eps, found)
            seconds = time.perf_counter() - start
            name = f"{asked.network}-{asked.image}-{'set' if pair is None else 'pair'}-{share}"
            dtype = getattr(torch, self.args.dtype)
            done = co.export_vnnlib(asked.net, asked.x, self.path / name, eps=eps, pair=pair, dtype=dtype, **about)
            about_it = (name, asked.network, asked.image, what.name, asked.class_idx, asked.k, pair, repr(eps))
            row = (*about_it, answer, repr(low), repr(high), proof, f"{seconds:.1f}")
            files = [str(path.relative_to(self.path)) for path in (done.network, done.vnnlib)]
            self.add("answers.csv", row)
            self.add("instances.csv", (*files, self.args.timeout))
            self.rows += 1
            print(f"{name}: eps {eps:.6g}, {answer}", flush=True)

    def answer(self, asked: Asked, about: dict[str, Any], eps: float, found: co.Radius) -> tuple[str, str]:
        """What we say at eps, and what it rests on."""
        if eps <= found.lower:
            return "unsat", str(found.proof)
        if eps >= found.upper:
            return "sat", "replayed"
        v = co.verify(asked.net, asked.x, eps=eps, time_limit=self.args.limit, **about)
        said = {"certified": ("unsat", str(v.proof)), "falsified": ("sat", "replayed")}
        return said.get(v.status, ("unknown", v.reason))

    def add(self, name: str, row: tuple[Any, ...]) -> None:
        with (self.path / name).open("a", newline="") as file:
            csv.writer(file).writerow(row)


def worst_pair(asked: Asked, z: Tensor) -> tuple[int, int]:
    """The pixel of the top-k set and the one outside that differ least (or are in the wrong order most) at an image."""
    order = asked.net.cam(asked.x, asked.class_idx).flatten().argsort(descending=True)
    top, rest = order[: asked.k], order[asked.k :]
    cam = asked.net.model_cam(z, asked.class_idx).flatten()
    return int(top[cam[top].argmin()]), int(rest[cam[rest].argmax()])


def questions(args: argparse.Namespace) -> Iterator[Asked]:
    if args.digits:
        images, _ = digits.load_digits()
        net = co.from_torch(digits.digits_model(), images[:1])
        for index in range(args.digits):
            x = images[index : index + 1]
            yield Asked("digits", net, str(index), x, 3, net.class_index(x, None), True)
    if args.paper and not (args.root / "models").is_dir():
        print(f"the paper's network is not at {args.root}: left out")
    elif args.paper:
        paper, split = gtsrb.load_paper_image_496(args.root), gtsrb.load_split(args.root, "test")
        rows = gtsrb.load_paper_test_images(args.root).images[: args.paper]
        net = co.from_torch(gtsrb.load_paper_model(args.root / paper.model), split[rows[0].index].image())
        for row in rows:
            sample = split[row.index]
            assert sample.label is not None
            yield Asked("paper", net, str(row.index), sample.image(), 15, sample.label, False)
    if args.networks and not (args.zoo / "architectures.py").is_file():
        print(f"the zoo's networks are not at {args.zoo}: left out")
        return
    for name in args.networks.split(",") if args.networks else ():
        zoo = Zoo(args.zoo)
        net = co.from_torch(zoo.model(name), zoo.image(0))
        for index in range(args.zoo_images):
            x = zoo.image(index)
            yield Asked(name, net, str(index), x, 5, net.class_index(x, None), False)


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX and VNN-LIB files for other verifiers, and our answers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("CORGI_GTSRB_DIR", SHARED / "gtsrb")))
    parser.add_argument("--zoo", type=Path, default=Path(os.environ.get("CORGI_ZOO_DIR", SHARED / "zoo")))
    parser.add_argument("--digits", type=int, default=6, help="images")
    parser.add_argument("--paper", type=int, default=3, help="test images")
    parser.add_argument("--networks", default="plain,strided", help="of the zoo, separated by commas; '' for none")
    parser.add_argument("--zoo-images", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300, help="seconds that instances.csv gives a verifier")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each bracket and answer of ours")
    parser.add_argument("--rtol", type=float, default=0.01)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    folder = Folder(args)
    for asked in questions(args):
        folder.ask(asked)
    print(f"{folder.rows} instances in {folder.path}")


if __name__ == "__main__":
    main()
