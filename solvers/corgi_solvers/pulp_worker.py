"""The child process of ``pulp``: one problem in, one claim out.

Run as ``python -m corgi_solvers.pulp_worker QUESTION ANSWER``. The question is a pickle made by ``Pulp``, the answer
JSON, see ``pulp.read_answer``. Whatever goes wrong ends in a nonzero exit code, which the parent takes for an error.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from corgi_solvers.pulp_engines import ENGINES, Limits, Model


def main(question: Path, answer: Path) -> None:
    solver, problem, limits = pickle.loads(question.read_bytes())
    assert isinstance(limits, Limits)
    claim = ENGINES[solver](Model(problem), limits)
    said = {
        "status": claim.status.value,
        "raw_status": claim.raw_status,
        "x": None if claim.x is None else claim.x.tolist(),
        "row_dual": None if claim.row_dual is None else claim.row_dual.tolist(),
        "bound": claim.bound + problem.offset,  # which PuLP drops
        "nodes": claim.nodes,
        "iterations": claim.iterations,
        "version": claim.version,
    }
    answer.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
