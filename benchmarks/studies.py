"""What a study costs beside its answers: start-up and report of a large store, and what a second worker brings.

    python benchmarks/studies.py [--only store|workers] [--cells 10000] [--repeats 3] [--root DIR]

``store``: a plan of so many cells whose answers are made up (they are not what is measured); how long ``study run``
takes to find that there is nothing to do, and ``study report`` to write the page and the figures.
``workers``: 60 cells, answered for real by one worker and by two, cold, in turn: on the digits network, where a cell
takes far less than a worker takes to start; and with ``--root`` (as for examples/reproduce_paper.py) on the paper's.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from corgi_opt.study import Plan, Store
from corgi_opt.study.engine import row_of

MADE_UP = """
name = "ten thousand"
[models]
digits = "digits"
[images.test]
source = "digits"
take = "0:{images}"
[[questions]]
k = [1, 2, 3, 4, 5, 6, 7, 8]
method = ["corgi", "crown", "lp", "bab"]
[[questions]]
kind = "margin"
k = 3
eps = [0.001, 0.002]
method = ["corgi", "crown", "lp", "bab"]
"""

REAL = """
name = "sixty"
[models]
digits = "digits"
[images.test]
source = "digits"
take = "0:15"
[[questions]]
k = [2, 4, 6, 8]
method = "bab"
rtol = 0.001
"""


def command(*args: object) -> float:
    """Seconds of ``corgi-opt study ...``."""
    code = "from corgi_opt.cli.main import main; main()"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, "study", *map(str, args)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def made_up(plan: Plan, folder: Path) -> int:
    """Fills a store; returns how many cells it has."""
    cells = plan.cells()
    with Store.writing(folder) as store:
        store.began(plan.name, plan.said)
        for cell in cells:
            exact = random.Random(f"{cell.image.name} {cell.ask.k}").lognormvariate(-5, 1)
            draw = random.Random(cell.key)
            share = {"corgi": 0.5, "crown": 0.8, "lp": 0.9, "bab": 0.99}[cell.ask.method] * draw.uniform(0.8, 1.0)
            found = {"state": "done", "gap": 100 * exact, "corgi": 0.4 * exact, "seconds": draw.lognormvariate(-1, 1)}
            if cell.ask.kind == "radius":
                found |= {"status": "closed" if share > 0.9 else "open", "lower": share * exact, "upper": 1.001 * exact}
            else:
                found |= {"status": "certified", "lower": 80 * share * exact, "upper": 81 * exact}
            store.put(row_of(cell, found))
    return len(cells)


def store_times(cells: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "plan.toml"
        path.write_text(MADE_UP.format(images=max(1, round(cells / 40))))
        start = time.monotonic()
        count = made_up(Plan.load(path), folder / "plan")
        print(f"{count} cells put one by one: {time.monotonic() - start:.1f} s")
        for what in ("run", "status", "report"):
            seconds = [command(what, path) for _ in range(repeats)]
            print(f"study {what}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")


PAPERS = """
name = "sixty"
[models]
gtsrb = "{script}:model"
[images.test]
source = "{script}:test_images"
take = "0:30"
[[questions]]
k = [10, 15]
method = "bab"
rtol = 0.002
time_limit = 60
"""


def worker_times(what: str, plan: str, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "plan.toml"
        path.write_text(plan)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(repeats):
            for workers in (1, 2):
                out = folder / f"{workers}-{repeat}"
                seconds[workers].append(command("run", path, "--out", out, "--workers", workers))
        one, two = (statistics.median(seconds[w]) for w in (1, 2))
        times = f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f}x"
        print(f"60 cells on {what}: {times} (medians of {repeats}, cold)")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a study costs beside its answers.")
    parser.add_argument("--only", choices=("store", "workers"))
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", type=Path, help="folder of the GTSRB data and the paper's results")
    args = parser.parse_args()
    print(f"torch {torch.__version__}")
    if args.only != "workers":
        store_times(args.cells, args.repeats)
    if args.only != "store":
        worker_times("digits", REAL, args.repeats)
        if args.root is not None:
            os.environ["CORGI_GTSRB_DIR"] = str(args.root.resolve())
            script = Path(__file__).resolve().parents[1] / "examples" / "reproduce_paper.py"
            worker_times("the paper's network", PAPERS.format(script=script), args.repeats)


if __name__ == "__main__":
    main()
