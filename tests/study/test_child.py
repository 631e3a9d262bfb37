"""The process that answers cells: a line in, a line out, whatever a model prints; it ends with whoever started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from corgi_opt.study import Plan
from corgi_opt.study.engine import task_of

CHILD = [sys.executable, "-m", "corgi_opt.study.child", "[]"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


NOISY = """
import os, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 3)

    def forward(self, x):
        print("to standard output", flush=True)
        return self.head(self.body(x).relu().mean((2, 3)))

def build():
    os.write(1, b"raw\\n")
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return Net().eval()
"""


def test_every_line_has_its_reply_and_what_a_model_prints_goes_elsewhere(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    plan = Plan.of(
        {
            "name": "noise",
            "models": {"m": "noisy.py:build"},
            "images": {"i": torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))},
            "questions": [{"k": 1, "method": "ibp", "time_limit": 60}],
        },
        tmp_path,
    )
    (cell,) = plan.cells()
    told: tuple[Any, ...] = ({"device": "magic"}, task_of(cell, 0.0, 60.0, "cpu"), {})
    lines = "".join(json.dumps(t) + "\n" for t in told)
    done = subprocess.run(CHILD, input=lines, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=True)
    ready, *replies = map(json.loads, done.stdout.splitlines())
    assert ready.keys() == {"ready"} and ready["ready"] > 0
    assert replies.pop(1) == {"asked": True}  # before the one answer that came to a question
    assert [r["state"] for r in replies] == ["failed", "done", "failed"]
    assert "magic" in replies[0]["reason"] and "KeyError" in replies[2]["reason"]
    assert replies[1]["lower"] > 0
    assert "to standard output" in done.stderr and "raw" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: looks at /proc")
def test_it_ends_in_the_middle_of_nothing_when_its_parent_is_gone():
    middle = textwrap.dedent(f"""
        import subprocess, sys, time
        child = subprocess.Popen({CHILD!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()  # it is ready
        print(child.pid, flush=True)
        import os; os.kill(os.getpid(), 9)
        """)
    read, write = os.pipe()  # held open, so that the child never sees the end of its input
    done = subprocess.run(
        [sys.executable, "-c", middle.replace("stdin=subprocess.PIPE", f"stdin={read}, pass_fds=[{read}]")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
        pass_fds=[read],
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.1)
    for end in (read, write):
        os.close(end)
