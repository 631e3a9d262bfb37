"""A cell that takes its process with it, hangs, or eats memory costs that cell, with the reason, and no other."""

from __future__ import annotations

import psutil
import pytest
from studies import culprits

from corgi_opt.study import Plan, worker
from corgi_opt.study.engine import row_of, task_of

GIGABYTE = 2.0**30

SLOW = """
import time
import culprits

def build():
    time.sleep(5)
    return culprits.fine()
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task for each network, by its name; all ask the same of one image."""
    folder = tmp_path_factory.mktemp("culprits")
    culprits(folder)
    names = ("fine", "killer", "sleeper", "hungry", "wrong")
    plan = Plan.of(
        {
            "name": "culprits",
            "models": {n: f"culprits.py:{n}" for n in names},
            "images": {"own": {"source": f"{folder / 'culprits.py'}:images", "take": [0]}},
            "questions": [{"k": 1, "method": "crown", "time_limit": 60}],
        },
        folder,
    )
    yield {c.model.name: (c, task_of(c, 0.0, 60.0, "cpu")) for c in plan.cells()}
    worker.end_children()
    assert not worker._children


def test_every_harm_has_its_name_and_the_next_cell_is_answered(tasks):
    found = {}
    for name, memory, seconds in (
        ("killer", GIGABYTE, 60),
        ("hungry", GIGABYTE, 60),
        ("wrong", GIGABYTE, 60),
        ("sleeper", GIGABYTE, 3),
        ("fine", GIGABYTE, 120),
    ):
        cell, task = tasks[name]
        found[name] = row_of(cell, worker.run_guarded({**task, "build_limit": seconds}, memory))
    assert {n: r.state for n, r in found.items()} == {
        "killer": "crashed",
        "hungry": "crashed",
        "wrong": "failed",
        "sleeper": "timeout",
        "fine": "done",
    }
    why = {n: r.reason or "" for n, r in found.items()}
    assert "died 3 times" in why["killer"] and "SIGKILL" in why["killer"]
    assert "this goes to standard output" in why["killer"]  # its last words, and no reply
    assert "more than 1024 MB" in why["hungry"] and (found["hungry"].peak_mb or 0) > 1024
    assert "this network is wrong" in why["wrong"]
    assert why["sleeper"] == "building the network took more than 3 s"
    assert (found["sleeper"].seconds or 0) >= 3
    fine = found["fine"]
    assert (fine.lower or 0) > 0 and fine.status in ("open", "closed") and (fine.peak_mb or 0) > 50
    assert "torch" in (fine.versions or "")


def test_a_process_that_somebody_killed_is_not_the_cells_fault(tasks):
    _, task = tasks["fine"]
    before = worker.run_guarded(task, GIGABYTE)
    (child,) = worker._children.values()
    psutil.Process(child._process.pid).kill()
    again = worker.run_guarded(task, GIGABYTE)
    assert again["state"] == "done" and again["lower"] == before["lower"]


def test_a_network_that_is_another_by_now_fails_its_cell(tasks):
    _, task = tasks["fine"]
    changed = {**task, "model": {**task["model"], "sha256": "0" * 64}}
    found = worker.run_guarded(changed, GIGABYTE)
    assert found["state"] == "failed" and "another network" in found["reason"]


def test_a_cells_time_is_counted_from_when_its_question_is_asked(tmp_path):
    """Its network takes longer to build than the cell has."""
    culprits(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    plan = Plan.of(
        {
            "name": "slow",
            "models": {"m": "slow.py:build"},
            "images": {"own": {"source": f"{tmp_path / 'culprits.py'}:images", "take": [0]}},
            "questions": [{"k": 1, "method": "ibp", "time_limit": 4}],
        },
        tmp_path,
    )
    (cell,) = plan.cells()
    found = worker.run_guarded(task_of(cell, 0.0, 0.0, "cpu"), GIGABYTE)
    worker.end_children()
    assert found["state"] == "done" and found["seconds"] < 4, found
