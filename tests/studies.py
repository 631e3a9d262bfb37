"""Plans for tests of studies: the bundled digits, and networks whose forward pass takes its process down."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd

from corgi_opt.study import Store

CULPRITS = """
import os, signal, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 3, 3, padding=1)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        self.harm()
        return self.head(self.body(x).relu().mean((2, 3)))

    def harm(self):
        pass

class Killer(Net):
    def harm(self):
        print("this goes to standard output", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

class Sleeper(Net):
    def harm(self):
        time.sleep(600)

class Hungry(Net):
    def harm(self):
        self.food = []
        while True:
            self.food.append(b"x" * 2**26)
            time.sleep(0.05)

class Wrong(Net):
    def harm(self):
        raise OverflowError("this network is wrong")

def seeded(kind):
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return kind().eval()

def fine(): return seeded(Net)
def killer(): return seeded(Killer)
def sleeper(): return seeded(Sleeper)
def hungry(): return seeded(Hungry)
def wrong(): return seeded(Wrong)

def images():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.rand(3, 1, 6, 6), [0, 1, 2]
"""

ANSWER = ["key", "state", "status", "lower", "upper", "corgi", "attack", "gap", "class_idx", "proof", "settled_by"]
"""The columns that do not depend on when and where a cell was answered."""


def culprits(folder: Path) -> Path:
    """A file of networks in the folder."""
    path = folder / "culprits.py"
    path.write_text(CULPRITS)
    return path


def write_plan(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def study_command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from corgi_opt.cli.main import main; main()", "study", *map(str, args)]


def start(log: Path, *args: object) -> subprocess.Popen[bytes]:
    """A study in a process of its own, which writes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("ab") as output:
        return subprocess.Popen(study_command(*args), stdout=output, stderr=output, env=environment)


def answers(folder: Path) -> pd.DataFrame:
    with Store.reading(folder) as store:
        return store.to_frame()[ANSWER].sort_values("key").reset_index(drop=True)
