"""Whatever is killed, whenever: resuming ends with the answers of an undisturbed run; only culprits have crashed."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from studies import answers, culprits, start, write_plan

from corgi_opt.study import Plan, Store
from corgi_opt.study.store import FILE


def plan(folder: Path, images: int, ks: list[int]) -> Path:
    culprits(folder)
    return write_plan(
        folder / "plan.toml",
        f"""
        name = "killed"
        time_limit = 60
        [models]
        digits = "digits"
        killer = "culprits.py:killer"
        [images.test]
        source = "digits"
        take = "0:{images}"
        [images.own]
        source = "culprits.py:images"
        take = "0:2"
        [[questions]]
        models = "digits"
        images = "test"
        k = {ks}
        method = ["crown", "bab"]
        [[questions]]
        models = "killer"
        images = "own"
        k = 1
        method = "crown"
        """,
    )


def count(folder: Path) -> int:
    if not (folder / FILE).is_file():
        return 0
    try:
        with Store.reading(folder) as store:
            return len(store.states())
    except Exception:
        return 0  # killed while it was being made


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def disturbed(path: Path, folder: Path, kills: int, seed: int) -> tuple[int, int, int]:
    """Runs the study, killing something at a random moment, again and again. Returns kills of drivers, of workers (a
    cell's own process counts as one), and the last driver's exit code."""
    draw = random.Random(seed)
    kinds = ["driver", "worker"] * kills
    kinds = draw.sample(kinds[:kills], kills)
    command = (path.parent / "killed.log", "run", path, "--out", folder, "--workers", 2)
    drivers = workers = 0
    running = start(*command)
    while drivers + workers < kills:
        target, patience = count(folder) + draw.randint(0, 5), time.monotonic() + draw.uniform(0.2, 25)
        while count(folder) < target and time.monotonic() < patience and running.poll() is None:
            time.sleep(draw.uniform(0.01, 0.2))
        if running.poll() is not None:
            break  # too quick for us
        below = descendants(running)
        if kinds[drivers + workers] == "driver":
            running.kill()
            running.wait()
            drivers += 1
            _, alive = psutil.wait_procs(below, timeout=60)
            assert not alive, f"left behind: {alive}"
            running = start(*command)
        elif below:
            with suppress(psutil.NoSuchProcess):
                draw.choice(below).kill()
                workers += 1
    return drivers, workers, running.wait(timeout=900)


def check(folder: Path, kills: int, images: int, ks: list[int]) -> None:
    path = plan(folder, images, ks)
    quiet = start(folder / "quiet.log", "run", path, "--out", folder / "quiet", "--workers", 2)
    assert quiet.wait(timeout=900) == 2, (folder / "quiet.log").read_text()  # the culprits have no answer
    drivers, workers, code = disturbed(path, folder / "killed", kills, seed=3)
    print(f"killed {drivers} drivers, {workers} workers")
    assert drivers + workers == kills and drivers and workers
    assert code == 2, (folder / "killed.log").read_text()
    expected, found = answers(folder / "quiet"), answers(folder / "killed")
    assert len(expected) == 2 * images * len(ks) + 2
    pd.testing.assert_frame_equal(found, expected)
    culprit_keys = {c.key for c in Plan.load(path).cells() if c.model.name == "killer"}
    assert set(found[found["state"] != "done"]["key"]) == culprit_keys
    assert set(found[found["state"] != "done"]["state"]) == {"crashed"}
    with sqlite3.connect(folder / "killed" / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
def test_fifty_kills_leave_the_answers_of_an_undisturbed_run(tmp_path):
    check(tmp_path, kills=50, images=20, ks=[1, 2, 3, 4, 5])
