"""Where the paper's network and images are, and one thread per worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

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
