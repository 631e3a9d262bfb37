"""Where the paper's network and the zoo's are, one thread per worker, and an attack on whatever is certified."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ending import hear_ctrl_c
from zoos import Zoo

from corgi_opt.answering.ladder import Ladder
from corgi_opt.problem.results import Verdict
from corgi_opt.search.attack import PgdOptions, pgd, rank_targets

hear_ctrl_c()
torch.set_num_threads(1)  # tests run side by side (-n 2)


def gtsrb_root() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "gtsrb"
    return Path(os.environ.get("CORGI_GTSRB_DIR", default))


@pytest.fixture(scope="session")
def gtsrb() -> Path:
    """The folder of the paper's network and images; skips where it is absent."""
    root = gtsrb_root()
    if not (root / "models" / "model_gtsrb.h5").is_file():
        pytest.skip(f"the paper's network and images are not at {root} (set CORGI_GTSRB_DIR)")
    return root


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    """Small trained networks of the usual kinds; skips where their folder is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "zoo"
    root = Path(os.environ.get("CORGI_ZOO_DIR", default))
    if not (root / "architectures.py").is_file():
        pytest.skip(f"the zoo's networks are not at {root} (set CORGI_ZOO_DIR)")
    return Zoo(root)


@pytest.fixture(autouse=True)
def what_is_certified_is_attacked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """What ``verify`` certifies, in any test, is attacked afterwards, from more starts than before.

    Returns the package's own ``settle``, for a test in which verdicts may be wrong.
    """
    module = sys.modules["corgi_opt.answering.verdict"]
    settle = module.settle

    def attacked(ladder: Ladder, *given: Any) -> Verdict:
        verdict = settle(ladder, *given)
        if verdict.status == "certified":
            targets, options = rank_targets(ladder.question, ladder.device), PgdOptions(rows=8, restarts=3, seed=99)
            found = pgd(ladder.question, ladder.ball, targets, ladder.device, options)
            assert found is None, f"certified, and broken by an attack: {verdict} {found}"
        return verdict

    monkeypatch.setattr(module, "settle", attacked)
    return settle
