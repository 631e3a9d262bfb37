"""What a long run says to the logger ``corgi_opt``: nothing unless somebody listens, else the steps of a search."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from nets import Pooled, Small, image, seeded

import corgi_opt as co


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What the package logged at this level."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("corgi_opt.") and r.levelno == level]


def test_by_default_nothing_is_written():
    code = (
        "import logging, torch, corgi_opt as co\n"
        "m = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten(), torch.nn.Linear(2, 2)).eval()\n"
        "x = torch.linspace(0, 1, 25).view(1, 1, 5, 5) ** 2\n"
        "co.radius(co.from_torch(m, x), x, k=2, method='crown')\n"
        "assert logging.getLogger('corgi_opt').level == logging.NOTSET\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_radius_says_its_probes_and_what_they_decided(caplog):
    caplog.set_level(logging.INFO, "corgi_opt")
    x = image(1, 8, 8)
    r = co.radius(co.from_torch(seeded(Pooled), x), x, k=2, method="crown")
    lines = said(caplog)
    assert any(line.startswith("radius by crown: begins") for line in lines)
    certified = [line for line in lines if line.startswith("probe by crown") and " certified, margin >= " in line]
    assert any(f"eps={r.lower:.6g} " in line for line in certified)
    assert f"attack: nearest counterexample at eps={r.upper:.6g}" in lines
    assert any(line.startswith(f"radius by crown: certified up to eps={r.lower:.6g}") for line in lines)
    assert said(caplog, logging.DEBUG) == []


def test_a_verdict_says_its_methods_and_trees(caplog):
    x = image(1, 3, 4, seed=7)
    net = co.from_torch(seeded(Small, 7, pool=1, hidden=3, features=3), x)
    caplog.set_level(logging.DEBUG, "corgi_opt")
    v = co.verify(net, x, eps=0.069, k=2)  # where CROWN leaves a pair that branch and bound certifies
    lines = said(caplog)
    assert v.certified and v.method == "bab"
    assert lines[0] == "verify by auto: eps=0.069, k=2"
    assert any(line.startswith("bab: eps=0.069, 1 pairs to decide") for line in lines)
    assert any(line.startswith("tree of ") and line.endswith("units: begun") for line in lines)
    assert lines[-1] == f"verify by auto: certified by bab, {v.reason}"
    assert any(line.startswith("crown: eps=0.069, margin >= ") for line in said(caplog, logging.DEBUG))


def test_margins_say_both_sides(caplog):
    caplog.set_level(logging.INFO, "corgi_opt")
    x = image(1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    found = co.compare(net, x, k=2, eps=0.01, methods=["corgi", "bab"]).only
    for method in ("corgi", "bab"):
        v = found.answers[method]
        assert isinstance(v, co.Verdict)
        text = f"margin by {method}: eps=0.01, in [{v.margin_lower:.4g}, {v.margin_upper:.4g}]"
        assert text in said(caplog)
