"""The paper's case study beside ours: CORGI (arXiv 2301.11324), figure 4's image and the authors' test images.

    python examples/reproduce_paper.py --root DIR [--ks 1,5,15] [--images 10] [--methods corgi,crown,bab]

DIR holds the GTSRB data and the authors' results (``models/``, ``Final_Training/``, ``Final_Test/``, ``paper/``);
they come from the authors' public repository, GitHub ``minimario/CORGI``. Needs ``pip install 'corgi_opt[gtsrb]'``.

The paper's certificate ignores the box [0, 1], its attack clips to it. ``corgi`` is therefore compared without the
box; the other columns answer for images inside it, where every real image lies. Use --no-clip to switch it off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

import corgi_opt as co
from corgi_opt.data import gtsrb


@dataclass(frozen=True)
class Case:
    """One line: an image, k, and what the paper published for it (a search cap instead of a bound if ``capped``)."""

    name: str
    image: Tensor
    class_idx: int
    k: int
    corgi: float
    attack: float
    capped: bool = False


def training_image(root: Path, ks: Iterable[int]) -> list[Case]:
    """Training image 496 for several k."""
    paper = gtsrb.load_paper_image_496(root)
    image = gtsrb.load_split(root, "train").find(paper.image).image()
    # k=13's published certificate, 0.000999, is where that search ended
    return [
        Case(
            f"train 496, k={k}",
            image,
            paper.class_idx,
            k,
            paper.corgi_radius_by_k[k],
            paper.attack_radius_by_k[k],
            k == 13,
        )
        for k in ks
    ]


def test_images(root: Path, count: int) -> list[Case]:
    """The first ``count`` of the authors' test images, k = 15."""
    paper, split = gtsrb.load_paper_test_images(root), gtsrb.load_split(root, "test")
    cases = []
    for row in paper.images[:count]:
        sample = split[row.index]
        assert sample.label is not None  # the authors list correctly classified images only
        cases.append(
            Case(f"test {row.index}", sample.image(), sample.label, paper.k, row.corgi_radius, row.attack_radius)
        )
    return cases


def report(console: Console, net: co.CamNetwork, title: str, cases: list[Case], args: argparse.Namespace) -> None:
    """Prints one row per case as it is done, then the medians."""
    clip = None if args.no_clip else (0.0, 1.0)
    console.rule(f"{title} (clip {clip or 'off'})")
    header = f"{'case':>16} | {'paper: corgi':>12} {'attack':>10} {'gap':>5} | {'ours: corgi':>11} {'/paper':>6}"
    console.print(header + "".join(f" {m:>10}" for m in args.methods) + f" {'attack':>10} {'gap':>6} {'s':>6}")
    ratios: list[tuple[float, float, float]] = []
    start = time.monotonic()
    for case in cases:
        begun = time.monotonic()
        question = {"k": case.k, "class_idx": case.class_idx}
        corgi = co.radius(net, case.image, method="corgi", clip=None, **question)
        radii = co.compare(
            net, case.image, methods=args.methods, rtol=args.rtol, clip=clip, time_limit=args.time_limit, **question
        ).radii
        best, upper = max(r.lower for r in radii.values()), min(r.upper for r in radii.values())
        own = corgi.lower / case.corgi
        ratios.append((own, case.attack / case.corgi, upper / best))
        published = f"{case.corgi:.3e}{'*' if case.capped else ' '}"
        console.print(
            f"{case.name:>16} | {published:>12} {case.attack:10.3e} {case.attack / case.corgi:5.1f} | "
            f"{corgi.lower:11.3e} {own:6.2f}"
            + "".join(f" {radii[m].lower:10.3e}" for m in args.methods)
            + f" {upper:10.3e} {upper / best:6.3f} {time.monotonic() - begun:6.1f}",
            highlight=False,
        )
    table = Table(title=f"{title}: medians over {len(cases)}")
    for name in ("our corgi / paper's", "paper: attack / certified", "ours: falsified / certified", "seconds in all"):
        table.add_column(name, justify="right")
    own, theirs, ours = (statistics.median(column) for column in zip(*ratios, strict=True))
    table.add_row(f"{own:.3f}", f"{theirs:.2f}", f"{ours:.4f}", f"{time.monotonic() - start:.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's case study beside ours.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the GTSRB data and the paper's results")
    parser.add_argument("--ks", default=",".join(map(str, range(1, 51))), help="k for training image 496")
    parser.add_argument("--images", type=int, default=54, help="how many test images")
    parser.add_argument("--methods", default="crown,bab", help="beside corgi; comma-separated")
    parser.add_argument("--rtol", type=float, default=0.01)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds per method and case")
    parser.add_argument("--no-clip", action="store_true", help="let images leave [0, 1]")
    args = parser.parse_args()
    args.methods = args.methods.split(",")

    console = Console(width=160)
    paper = gtsrb.load_paper_image_496(args.root)
    model = gtsrb.load_paper_model(args.root / paper.model)
    first = gtsrb.load_split(args.root, "train").find(paper.image).image()
    net = co.from_torch(model, first)
    console.print(net)
    ks = [int(k) for k in args.ks.split(",") if k]
    if ks:
        report(console, net, "training image 496", training_image(args.root, ks), args)
        console.print("* the published value is a search cap, not a bound", highlight=False)
    if args.images:
        report(console, net, "test images, k = 15", test_images(args.root, args.images), args)


if __name__ == "__main__":
    main()
