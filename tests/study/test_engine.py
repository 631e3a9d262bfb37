"""Studies as they are run: on this machine, on a cluster that was there before, again after a change of mind."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nets import image
from studies import answers, culprits, start, write_plan

import corgi_opt as co
from corgi_opt.cli.main import main
from corgi_opt.data import digits
from corgi_opt.study import Plan, Store, run


def plan(folder: Path) -> Path:
    culprits(folder)
    return write_plan(
        folder / "plan.toml",
        """
        name = "small"
        time_limit = 60
        [models]
        digits = "digits"
        fine = "culprits.py:fine"
        wrong = "culprits.py:wrong"
        [images.test]
        source = "digits"
        take = "0:2"
        [images.own]
        source = "culprits.py:images"
        take = [0]
        [[questions]]
        models = "digits"
        images = "test"
        k = 2
        method = ["crown", "bab"]
        [[questions]]
        models = "digits"
        images = "test"
        k = 2
        eps = 0.01
        method = "auto"
        [[questions]]
        kind = "margin"
        models = "digits"
        images = "test"
        k = 2
        eps = 0.01
        method = "lp"
        [[questions]]
        models = ["fine", "wrong"]
        images = "own"
        k = 1
        norm = "2"
        method = "crown"
        """,
    )


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder, the plan and the log of a study that was run on this machine."""
    folder = tmp_path_factory.mktemp("study")
    path = plan(folder)
    log = folder / "log"
    assert start(log, "run", path, "--workers", 2, "--json").wait(timeout=300) == 2, log.read_text()
    return folder, path, log.read_text()


def test_every_cell_has_its_answer(studied):
    folder, path, log = studied
    said = json.loads(log.splitlines()[-1])
    assert said == {"cells": 10, "left": 0, "states": {"done": 9, "failed": 1}}
    images = {c.image.name: c.image.x for c in Plan.load(path).cells()}
    with Store.reading(folder / "plan") as store:
        rows = store.rows()
        assert store.name == "small"
    net = co.from_torch(digits.digits_model(), images["test[0]"])
    for row in (r for r in rows if r.model == "digits"):
        x = images[row.image]
        if row.kind == "radius":
            r = co.radius(net, x, k=2, method=row.method)
            assert (row.lower, row.upper, row.corgi, row.attack) == pytest.approx((r.lower, r.upper, r.corgi, r.attack))
            assert row.status == ("closed" if r.ratio <= 1.01 else "open")
        elif row.kind == "verify":
            assert row.status == co.verify(net, x, eps=0.01, k=2).status and row.settled_by
        else:
            v = co.compare(net, x, k=2, eps=0.01, methods=["lp"]).only.answers["lp"]
            assert isinstance(v, co.Verdict)
            assert (row.lower, row.upper) == pytest.approx((v.margin_lower, v.margin_upper))
        cam = net.cam(x).flatten().sort(descending=True).values
        assert row.gap == pytest.approx(float(cam[1] - cam[2]), rel=1e-5)
        assert row.class_idx == int(net.class_index(x, None)) and (row.seconds or 0) > 0 and row.host
    (failed,) = (r for r in rows if r.state == "failed")
    assert failed.model == "wrong" and "this network is wrong" in (failed.reason or "")


def test_running_again_does_nothing_and_starts_no_worker(studied, monkeypatch):
    folder, path, _ = studied
    monkeypatch.setattr("corgi_opt.study.engine._client", None)
    found = run(Plan.load(path), folder / "plan", progress=False)
    assert found.left == 0 and found.states == {"done": 9, "failed": 1}


def test_every_cell_is_said_to_who_listens(tmp_path, monkeypatch, caplog):
    """Without workers: what comes of a cell is made up."""
    monkeypatch.setattr("corgi_opt.study.engine._client", lambda *_: nullcontext())
    monkeypatch.setattr("corgi_opt.study.engine.require_known", lambda *_: None)
    failed = {"state": "failed", "reason": "InputError: no\nmore"}
    monkeypatch.setattr("corgi_opt.study.engine._answers", lambda _, tasks, __: ((c, failed) for t in tasks for c in t))
    caplog.set_level(logging.INFO, "corgi_opt.study")
    found = run(Plan.load(plan(tmp_path)), tmp_path / "out", progress=False)
    lines = [record.getMessage() for record in caplog.records]
    assert found.states == {"failed": 10} and len(lines) == 11
    assert lines[0] == "study small: 10 of 10 cells to do"
    assert all(line.startswith("cell ") and line.endswith(": failed InputError: no") for line in lines[1:])


@pytest.mark.slow
def test_a_cluster_that_was_there_before_gives_the_same_answers(studied, tmp_path):
    folder, path, _ = studied
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as stack:
        local = ["--host", "127.0.0.1"]
        for command in (
            [*dask, "scheduler", *local, "--port", str(port), "--no-dashboard"],
            *[[*dask, "worker", address, *local, "--nthreads", "1", "--no-dashboard"]] * 2,
        ):
            process = subprocess.Popen(command, cwd=tmp_path, **quiet)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        log = tmp_path / "log"
        ran = start(log, "run", path, "--out", tmp_path / "out", "--scheduler", address)
        assert ran.wait(timeout=300) == 2, log.read_text()
    pd.testing.assert_frame_equal(answers(tmp_path / "out"), answers(folder / "plan"))


@pytest.mark.slow
def test_failed_cells_are_tried_again_when_asked(studied, tmp_path):
    folder, path, _ = studied
    with Store.reading(folder / "plan") as store, Store.writing(tmp_path) as copy:
        for row in store.rows():
            copy.put(row)
    before = answers(tmp_path)
    log = tmp_path / "log"
    ran = start(log, "run", path, "--out", tmp_path, "--workers", 1, "--retry-failed")
    assert ran.wait(timeout=300) == 2, log.read_text()
    pd.testing.assert_frame_equal(answers(tmp_path), before)
    with Store.reading(tmp_path) as store:
        rows = store.rows()
    assert len(rows) == 10 and rows[-1].model == "wrong"  # put again, last


@pytest.mark.slow
def test_what_was_stopped_goes_on_to_the_same_answers(studied, tmp_path):
    """Ctrl-C, then SIGKILL, then to the end. (Fifty kills: test_kills.py.)"""
    folder, path, _ = studied
    log = tmp_path / "log"
    command = (log, "run", path, "--out", tmp_path / "out", "--workers", 1)
    for sign, code, least in ((signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 5)):
        ran = start(*command)
        patience = time.monotonic() + 200
        while answered(tmp_path / "out") < least and time.monotonic() < patience:
            time.sleep(0.05)
        ran.send_signal(sign)
        assert ran.wait(timeout=60) == code, log.read_text()
        assert least <= answered(tmp_path / "out") < 10
        assert "Traceback" not in log.read_text()
    assert start(*command).wait(timeout=200) == 2, log.read_text()
    pd.testing.assert_frame_equal(answers(tmp_path / "out"), answers(folder / "plan"))


def answered(folder: Path) -> int:
    try:
        return len(answers(folder))
    except co.StoreError:
        return 0


def test_status_report_and_export_on_the_command_line(studied, monkeypatch, capsys):
    folder, path, _ = studied

    def command(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["corgi-opt", "study", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    assert command("status", path) == (2, "10 cells: 9 done, 1 failed, 0 to do\n", "")
    code, _, _ = command("export", path, folder / "t.parquet")
    assert code == 0 and len(pd.read_parquet(folder / "t.parquet")) == 10
    code, said, _ = command("report", path, "--json")
    assert code == 0 and json.loads(said)["rows"] == 10
    assert (folder / "plan" / "report.html").stat().st_size > 10_000
    assert command("status", path, "--out", folder / "gone") == (2, "0 of 10 cells have an answer\n", "")
    assert not (folder / "gone").exists()
    code, _, error = command("report", path, "--out", folder / "gone")
    assert code == 3 and "no results" in error


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, co.InputError, "either workers"),
        ({"workers": 0}, co.InputError, "workers must be"),
        ({"memory_limit": "lots"}, co.InputError, "memory_limit"),
        ({"grace": -1}, co.InputError, "grace"),
        ({"progress": 3}, co.InputError, "progress"),
        ({"scheduler": "nonsense://nowhere"}, co.StudyError, "no scheduler answers"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, options, error, message):
    made = Plan.of(
        {
            "name": "p",
            "models": {"m": "digits"},
            "images": {"t": image(1, 8, 8)},
            "questions": [{"k": 1, "method": "crown"}],
        }
    )
    with pytest.raises(error, match=message):
        run(made, tmp_path, **options)


SCRIPT = """
from corgi_opt import study

plan = study.Plan.of(
    {
        "name": "script",
        "models": {"digits": {"build": "digits"}},
        "images": {"test": {"source": "digits", "take": "0:1"}},
        "questions": [{"k": 3, "method": "corgi"}],
    }
)
"""
STARTS = "print(study.run(plan, 'out', workers=1, progress=False))"
GUARD = 'if __name__ == "__main__":'


@pytest.mark.parametrize(
    ("unguarded", "advised"),
    [
        pytest.param(STARTS, False, id="at the top"),
        pytest.param(STARTS, True, id="at the top, and then as advised", marks=pytest.mark.slow),
        pytest.param(f"def main():\n    {STARTS}\n\nmain()", True, id="in a function", marks=pytest.mark.slow),
    ],
)
def test_a_script_without_a_main_guard_is_told_of_it_and_works_with_it(tmp_path, unguarded, advised):
    def ran(code: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(SCRIPT + code)
        command = [sys.executable, "script.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    refused = ran(unguarded)
    assert refused.returncode == 1 and refused.stdout == ""
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("corgi_opt.errors.StudyError: the processes of the study do not start")
    assert f"`{GUARD}`" in last
    if not advised:  # a study more, which costs most of the time
        return
    *before, start = unguarded.splitlines()
    kept = ran("\n".join([*before, GUARD, f"    {start}"]))  # as the message says
    assert kept.stdout == "1 cells: 1 done, 0 to do\n", kept.stderr
    assert kept.returncode == 0
