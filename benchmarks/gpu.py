"""What a GPU gains: passes of many images, a radius, trees, and brackets of the zoo; beside two CPU threads.

    python benchmarks/gpu.py [--root DIR] [--zoo DIR] [--device cuda] [--limit 480]
        [--only passes,radius,trees,brackets]

DIR as in benchmarks/exact.py and benchmarks/zoo.py. It takes at most ``--limit`` seconds (what does not fit is left out
and says so), so that it suits a card that is lent for minutes. ``--device cpu`` rehearses it. Sections:

* passes: CROWN intervals of all CAM pixels of the paper's network, float32, 256 images at once, images/s; auto_LiRPA at
  its best batch on the same card, where it is installed (peer_autolirpa.py).
* radius: the CROWN radius of resnet8, image 0, k=5; attack and CORGI's share beside it. The second of two runs: the
  first loads the card's libraries.
* trees: nodes/s of branch and bound on open pairs of resnet8, on the device and on two CPU threads.
* brackets: falsified / certified of the zoo's networks, k=5, 20 s an image.

Record the output in benchmarks/RESULTS.md with the date, the card and the command.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import peer_autolirpa as peer
import torch
from bounds import cam_bounds
from corgi_solvers import Highs
from torch import Tensor, nn

import corgi_opt as co
from corgi_opt._deadline import NEVER, Deadline
from corgi_opt.answering.ladder import Ladder
from corgi_opt.bounding.crown import crown_pass
from corgi_opt.bounding.regions import Regions
from corgi_opt.data import gtsrb
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.program import Program, compile_program
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene
from corgi_opt.search.atom import PartExpressions
from corgi_opt.search.branch import Branching

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # they read the same folder
from zoos import Zoo

HERE = Path(__file__).resolve()
ZOO, ROOT = (HERE.parents[2] / "shared" / name for name in ("zoo", "gtsrb"))
SECTIONS = ("passes", "radius", "trees", "brackets")
CPU = torch.device("cpu")
MANY = 256
PAIRS = ((0, 1.143e-3), (0, 1.239e-3), (1, 2.01e-3))
"""Images and eps of open pairs of resnet8: 1.19 and 1.29 times CROWN's radius."""


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the device's queue included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def passes(root: Path, device: torch.device, deadline: Deadline) -> None:
    paper = gtsrb.load_paper_image_496(root)
    train = gtsrb.load_split(root, "train")
    images = torch.cat([train[i].image() for i in range(64)])
    model = gtsrb.load_paper_model(root / paper.model)
    net = co.from_torch(model, images[:1]).to(torch.float32, device)
    balls = [co.Ball(images[i % 64][None], 1e-3) for i in range(MANY)]

    def ours() -> None:
        relaxed = crown_pass(net.graph, Regions.of(balls, torch.float32, device))
        cam_bounds(net, paper.class_idx, relaxed.bound, len(balls))

    seconds(ours, device)
    rate = MANY / min(seconds(ours, device) for _ in range(3))
    print(f"passes: {MANY} images at once {rate:.1f} images/s", flush=True)
    missing = peer.available()
    if missing:
        print(f"passes: {missing}")
        return
    linear = model[-1]
    assert isinstance(linear, nn.Linear)
    cam = peer.cam_model(peer.difference_pool(model[:-3]), linear.weight[paper.class_idx])
    best = theirs(cam, images, device, deadline)
    print(f"passes: auto_LiRPA {best:.1f} images/s at its best batch; ratio {rate / best:.1f}", flush=True)


def theirs(model: nn.Module, images: Tensor, device: torch.device, deadline: Deadline) -> float:
    """Images/s of auto_LiRPA at the best of some batches."""
    best = 0.0
    for count in (1, 4, 16, 64):
        some = images[:count].to(device)
        try:
            bounded = peer.build(model.to(device), some, sparse=True)
            run = partial(peer.crown_bounds, bounded, some, 1e-3, (0.0, 1.0))
            seconds(run, device)
            best = max(best, count / seconds(run, device))
        except RuntimeError as error:  # out of memory
            print(f"passes: auto_LiRPA with {count} images: {str(error).splitlines()[0][:80]}")
            break
        if deadline.over:
            break
    return best


def radius(zoo: Zoo, device: torch.device, deadline: Deadline) -> None:
    net = co.from_torch(zoo.model("resnet8"), zoo.image(0))
    for run in ("first", "second"):
        start = time.perf_counter()
        found = co.radius(net, zoo.image(0), k=5, method="crown", device=device, time_limit=max(1.0, deadline.left))
        spent, crown = time.perf_counter() - start, found.stats["seconds_crown"]
        print(f"radius: {found.lower:.4e} in {spent:.2f} s, of them CROWN's {crown:.2f}, {run} run", flush=True)


def pair(zoo: Zoo, image: int, eps: float, device: torch.device) -> Program:
    """The most doubtful pair that CROWN leaves open."""
    net = co.from_torch(zoo.model("resnet8"), zoo.image(0))
    scene = Scene.of(net, zoo.image(image), class_idx=None, norm="inf", clip=(0.0, 1.0))
    question = Question.ask(scene, co.TopK(5))
    ladder = Ladder(question, eps, device)
    ladder.bound("crown", NEVER)
    relaxed = ladder.margins.relaxed
    assert relaxed is not None  # CROWN was asked for
    parts = PartExpressions(question, Expressions(net.graph, replace(relaxed.only(0), planes={})))
    (terms,) = parts.atoms([ladder.undecided[0]], NEVER)
    return compile_program(parts.expressions, ladder.ball, [terms], NEVER)


def trees(zoo: Zoo, device: torch.device, deadline: Deadline) -> None:
    for image, eps in PAIRS:
        program, rates = pair(zoo, image, eps, device), {}
        for where in (device, CPU):
            if deadline.over:
                print("trees: no time is left")
                return
            start = time.perf_counter()
            limit = Deadline(min(20.0, deadline.left))
            found = Branching(program, 0.0, Highs(), where).run(limit)
            rates[where] = found.nodes / (time.perf_counter() - start)
            ended = found.reason or "decided"
            print(f"trees: image {image}, eps {eps:g}, {where}: {found.nodes} nodes, {rates[where]:.0f}/s, {ended}")
        print(f"trees: ratio {rates[device] / rates[CPU]:.1f}", flush=True)


def brackets(zoo: Zoo, device: torch.device, deadline: Deadline) -> None:
    for image in range(2):
        for name in zoo.names:
            if deadline.left < 20:
                print("brackets: no time is left")
                return
            net = co.from_torch(zoo.model(name), zoo.image(0))
            found = co.radius(net, zoo.image(image), k=5, device=device, time_limit=20)
            print(f"brackets: {name} {image} [{found.lower:.4e}, {found.upper:.4e}] {found.ratio:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a GPU gains.")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=480.0)
    parser.add_argument("--only", default=",".join(SECTIONS))
    args = parser.parse_args()
    torch.set_num_threads(2)
    device, deadline, zoo = torch.device(args.device), Deadline(args.limit), Zoo(args.zoo)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else args.device
    print(f"{platform.machine()}, {name}, torch {torch.__version__}, at most {args.limit:g} s", flush=True)
    sections: dict[str, Callable[[], None]] = {
        "passes": lambda: passes(args.root, device, deadline),
        "radius": lambda: radius(zoo, device, deadline),
        "trees": lambda: trees(zoo, device, deadline),
        "brackets": lambda: brackets(zoo, device, deadline),
    }
    for section in args.only.split(","):
        if deadline.left < 30:
            print(f"{section}: no time is left")
            continue
        start = time.perf_counter()
        sections[section]()
        print(f"{section}: took {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
