"""Exact radii on the paper's network: how far the brackets close, what it costs, and what the encoding is worth.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/exact.py --root DIR [--images 20] [--k 15] [--method auto] [--only ...]

DIR as for examples/reproduce_paper.py. Sections: ``radii`` (brackets of the first test images, with and without the
clip box), ``verify`` (one verdict just below and just above each radius), ``classes`` (robust classification),
``queries`` (single CAM pixels to optimality, beside the textbook MILP of plain.py), ``pairs`` (recorded pairs by branch
and bound beside HiGHS), ``within`` (the paper's relaxed question on training image 496), ``certificates`` (made and
checked). Record tables in benchmarks/RESULTS.md with the date and the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from corgi_solvers import Highs
from plain import PlainMilp, bounds_of_values

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import plain_network
from corgi_opt.data import gtsrb
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.program import compile_program
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene
from corgi_opt.proof.checker import check
from corgi_opt.search.atom import AtomSolver, PartExpressions
from corgi_opt.search.decide import Branched, SolvedProgram

CLIPS = ((0.0, 1.0), None)


class Bench:
    """The paper's network, its training image 496 and the first test images."""

    def __init__(self, root: Path, images: int) -> None:
        self.paper = gtsrb.load_paper_image_496(root)
        self.x = gtsrb.load_split(root, "train").find(self.paper.image).image()
        self.net = co.from_torch(gtsrb.load_paper_model(root / self.paper.model), self.x)
        self.tests = gtsrb.load_paper_test_images(root).images[:images]
        self.split = gtsrb.load_split(root, "test")

    def image(self, row: gtsrb.PaperTestImage) -> tuple[torch.Tensor, dict[str, Any]]:
        sample = self.split[row.index]
        return sample.image(), {"class_idx": sample.label}


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def radii(bench: Bench, k: int, method: str, rtol: float, limit: float) -> None:
    """Brackets from scratch, an image each; crown and lp beside them, not timed with them."""
    for clip in CLIPS:
        print(f"\nradii by {method}, k={k}, clip {clip or 'off'}, rtol {rtol:g}, at most {limit:g} s an image")
        print(
            f"{'image':>6} | paper: corgi    attack   gap | ours: corgi     crown        lp  [certified, falsified]"
            "    ratio    attack  seconds"
        )
        ratios, gaps, seconds = [], [], []
        for row in bench.tests:
            x, asked = bench.image(row)
            asked |= {"k": k, "clip": clip}
            r, took = timed(partial(co.radius, bench.net, x, method=method, rtol=rtol, time_limit=limit, **asked))
            beside = co.compare(bench.net, x, methods=["crown", "lp"], time_limit=limit, **asked).radii
            crown, lp = beside["crown"].lower, beside["lp"].lower
            published = f"{row.corgi_radius:12.3e} {row.attack_radius:9.3e} {row.attack_radius / row.corgi_radius:5.1f}"
            print(
                f"{row.index:6d} | {published if k == 15 else ' ' * 28} |  {r.corgi:10.3e} {crown:9.3e} "
                f"{lp:9.3e}  [{r.lower:.4e}, {r.upper:.4e}] {r.ratio:8.4f} {r.attack:9.3e} {took:8.1f}"
                + ("" if r.ratio <= 1 + rtol else f"  {r.reason}"),
                flush=True,
            )
            ratios.append(r.ratio)
            gaps.append(row.attack_radius / row.corgi_radius)
            seconds.append(took)
        print(
            f"falsified / certified: median {statistics.median(ratios):.4f}, worst {max(ratios):.4f}; seconds: median "
            f"{statistics.median(seconds):.1f}, worst {max(seconds):.1f}"
            + (f"; paper's attack / certificate: median {statistics.median(gaps):.2f}" if k == 15 else "")
        )


def verify(bench: Bench, k: int, method: str) -> None:
    """One verdict at 0.99 and one at 1.01 of the exact radius."""
    below, above = list[float](), list[float]()
    for row in bench.tests:
        x, asked = bench.image(row)
        r = co.radius(bench.net, x, k=k, method=method, rtol=0.002, time_limit=120, **asked)
        if r.ratio > 1.01:
            print(f"image {row.index}: bracket {r.lower:.4e}..{r.upper:.4e}, left out")
            continue
        for eps, found, wanted in ((0.99 * r.lower, below, "certified"), (1.01 * r.upper, above, "falsified")):
            v, took = timed(partial(co.verify, bench.net, x, eps=eps, k=k, method=method, **asked))
            found.append(took)
            if v.status != wanted:
                print(f"image {row.index}, eps {eps:.4e}: {v}")
    for name, found in (("0.99x (certified)", below), ("1.01x (falsified)", above)):
        middle, most = statistics.median(found), max(found)
        print(f"verify by {method} at {name}, k={k}: median {middle:.2f} s, worst {most:.2f} s of {len(found)}")


def classes(bench: Bench, method: str, rtol: float, limit: float) -> None:
    """Radii of robust classification: within which no image has another class."""
    print(f"\nclass kept, by {method}, rtol {rtol:g}, at most {limit:g} s an image")
    print(f"{'image':>6} | {'corgi':>10} {'crown':>9}  [certified, falsified]    ratio    attack  seconds")
    ratios = []
    for row in bench.tests:
        x, kept = bench.image(row)[0], co.KeepsClass()
        r, took = timed(partial(co.radius, bench.net, x, property=kept, method=method, rtol=rtol, time_limit=limit))
        crown = co.radius(bench.net, x, property=kept, method="crown", time_limit=limit).lower
        print(
            f"{row.index:6d} | {r.corgi:10.3e} {crown:9.3e}  [{r.lower:.4e}, {r.upper:.4e}] {r.ratio:8.4f} "
            f"{r.attack:9.3e} {took:8.1f}" + ("" if r.ratio <= 1 + rtol else f"  {r.reason}"),
            flush=True,
        )
        ratios.append(r.ratio)
    closed = sum(ratio <= 1 + rtol for ratio in ratios)
    print(f"{closed} of {len(ratios)} closed; falsified / certified: median {statistics.median(ratios):.4f}")


def queries(bench: Bench, limit: float) -> None:
    """Single CAM pixels near the border of the top 15, to HiGHS's default gap, ours beside the textbook's."""
    solver = Highs(mip_rel_gap=1e-4, mip_abs_gap=1e-6, feasibility_tolerance=1e-6)
    scene = Scene.of(bench.net, bench.x, class_idx=bench.paper.class_idx, norm="inf", clip=(0, 1))
    question, order, faster = Question.ask(scene, co.TopK(15)), scene.cam.flatten().argsort(descending=True), []
    print("\n   eps  pixel | binaries: plain ours | seconds: plain     ours   ratio |     optimum: plain        ours")
    for eps in (2e-3, 3e-3, 4e-3):
        ball = question.ball(eps)
        values = bounds_of_values(bench.net, ball)
        ladder = Ladder(question, eps, torch.device("cpu"))
        ladder.bound("crown")
        assert ladder.margins.relaxed is not None
        known = replace(ladder.margins.relaxed.only(0), planes={})
        parts = PartExpressions(question, Expressions(bench.net.graph, known))
        for pixel, sign in zip(order[13:17].tolist(), (1, 1, -1, -1), strict=True):
            plain = PlainMilp(bench.net, question.class_idx, pixel, float(sign), values)
            theirs = solver.solve(plain.problem(), time_limit=limit)
            start = time.perf_counter()
            value = parts.parts([pixel], Deadline(60))[pixel]  # the parts of a top-k set are the pixels
            program = compile_program(parts.expressions, ball, [value if sign > 0 else -value], Deadline(60))
            encoded = time.perf_counter() - start
            ours = solver.solve(big_m(program), time_limit=limit)
            mine, plainly = encoded + ours.report.seconds, theirs.report.seconds
            faster.append(plainly / mine)
            print(
                f"{eps:.0e}  {sign * pixel:+5d} | {plain.binaries:15d} {program.units:4d} | {plainly:14.2f} "
                f"{mine:8.2f} {faster[-1]:7.1f} | {theirs.objective:18.4f} {ours.objective * program.scales[0]:11.4f}"
                f"  {theirs.status.value} {ours.status.value}",
                flush=True,
            )
    mean = math.exp(statistics.mean(math.log(f) for f in faster))
    print(f"plain / ours, geometric mean of {len(faster)}: {mean:.1f} (a run stopped at {limit:g} s counts as that)")


def pairs(bench: Bench, limit: float) -> None:
    """The pairs that CROWN leaves open at a few eps, is their sign positive? Branch and bound beside HiGHS."""
    first = {row.index: row for row in bench.tests}
    asked = [
        (None, 15, 1.2e-3),
        (None, 13, 2.9e-3),
        (None, 13, 3.0e-3),
        (14, 5, 5.0e-3),
        (14, 5, 5.5e-3),
        (14, 5, 5.8e-3),
    ]
    faster = []
    print("\nimage  k      eps       pair binaries | seconds: HiGHS      bab   ratio | nodes | lower: HiGHS       bab")
    for index, k, eps in asked:
        x, of_image = (bench.x, {"class_idx": bench.paper.class_idx}) if index is None else bench.image(first[index])
        question = Question.ask(Scene.of(bench.net, x, norm="inf", clip=(0, 1), **of_image), co.TopK(k))
        ladder = Ladder(question, eps, torch.device("cpu"))
        ladder.bound("crown")
        assert ladder.margins.relaxed is not None
        known = replace(ladder.margins.relaxed.only(0), planes={})
        parts = PartExpressions(question, Expressions(bench.net.graph, known))
        for atom in ladder.undecided[:3]:
            found, pair = [], question.groups.labels[atom].tolist()
            branched = Branched(Highs(), torch.device("cpu"))
            for decide in (SolvedProgram(big_m, Highs()), branched):
                solver = AtomSolver(question, ladder.ball, parts, decide)
                found.append(timed(partial(solver.solve, atom, Deadline(limit))))
            (theirs, plainly), (ours, mine) = found
            faster.append(plainly / mine)
            print(
                f"{index or 496:5d} {k:2d} {eps:.2e}  {pair[0]:4d},{pair[1]:4d} {ours.binaries:8d} | {plainly:14.2f} "
                f"{mine:8.2f} {faster[-1]:7.1f} | {ours.nodes:5d} | {theirs.lower:12.4f} {ours.lower:9.4f}  "
                f"{theirs.reason or 'decided'}, {ours.reason or 'decided'}",
                flush=True,
            )
    mean = math.exp(statistics.mean(math.log(f) for f in faster))
    print(f"HiGHS / bab, geometric mean of {len(faster)}: {mean:.1f} (a run stopped at {limit:g} s counts as that)")


def within(bench: Bench, limit: float) -> None:
    """The paper's (k1, k2) question: each of the 15 brightest stays among the k2 brightest."""
    print("\n k2 | paper: corgi | ours: corgi     crown  [certified, falsified]    ratio  seconds")
    for k2 in (16, 20, 30, 50):
        asked: Any = {"k": 15, "within": k2, "class_idx": bench.paper.class_idx}
        crown = co.radius(bench.net, bench.x, method="crown", **asked)
        r, took = timed(partial(co.radius, bench.net, bench.x, method="auto", time_limit=limit, **asked))
        published = bench.paper.relaxed_corgi_radius_by_k2[k2]
        print(
            f"{k2:3d} | {published:12.3e} |  {r.corgi:10.3e} {crown.lower:9.3e}  "
            f"[{r.lower:.4e}, {r.upper:.4e}] {r.ratio:8.4f} {took:8.1f}  {r.reason}",
            flush=True,
        )


def certificates(bench: Bench, limit: float) -> None:
    """From the question to a certificate, and from the file to its check, up to a few per cent below exact radii."""
    first = {row.index: row for row in bench.tests}
    asked = [(None, 15, 1.1e-3), (None, 15, 1.2e-3), (None, 13, 3.0e-3), (14, 5, 5.8e-3), (14, 5, 6.1e-3)]
    network = plain_network(bench.net)
    print("\nimage  k      eps | seconds: verify    prove    check | trees leaves  bytes     | margin >=")
    for index, k, eps in asked:
        x, of_image = (bench.x, {"class_idx": bench.paper.class_idx}) if index is None else bench.image(first[index])
        verdict, seconds = timed(partial(co.verify, bench.net, x, eps=eps, k=k, time_limit=limit, **of_image))
        certificate, proving = timed(verdict.prove)  # its own check included
        content = certificate.to_bytes()
        found = check(co.Certificate.from_bytes(content), network)
        leaves = sum(len(proof.tree.phases) for proof in certificate.trees)
        print(
            f"{index or 496:5d} {k:2d} {eps:.2e} | {seconds:15.2f} {proving - found.seconds:8.2f} "
            f"{found.seconds:8.2f} | {len(certificate.trees):5d} {leaves:6d} {len(content):9,d} | {found.margin:.3g}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact radii on the paper's network.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--method", default="auto", help="of radii and verify: auto, bab or milp")
    parser.add_argument("--rtol", type=float, default=0.002)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds an image or a query")
    parser.add_argument("--only", default="radii,verify,classes,queries,pairs,within,certificates")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} with {threads} threads")
    bench, wanted = Bench(args.root, args.images), args.only.split(",")
    if "radii" in wanted:
        radii(bench, args.k, args.method, args.rtol, args.limit)
    if "verify" in wanted:
        verify(bench, args.k, args.method)
    if "classes" in wanted:
        classes(bench, args.method, args.rtol, args.limit)
    if "queries" in wanted:
        queries(bench, args.limit)
    if "pairs" in wanted:
        pairs(bench, args.limit)
    if "within" in wanted:
        within(bench, args.limit)
    if "certificates" in wanted:
        certificates(bench, args.limit)


if __name__ == "__main__":
    main()
