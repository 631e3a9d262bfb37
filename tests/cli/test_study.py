"""``corgi-opt study``: where a study's folder is, how far it is, and its table, without an answer being computed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from studies import write_plan
from typer.testing import CliRunner

from corgi_opt.cli.study import UNFINISHED, folder_of, study_app
from corgi_opt.errors import InputError, Interrupted
from corgi_opt.study import Plan, Store
from corgi_opt.study.engine import row_of
from corgi_opt.study.store import Progress

PLAN = """\
    name = "two cells"
    [models]
    digits = "digits"
    [images]
    t = { source = "digits", take = [0] }
    [[questions]]
    k = [1, 2]
    method = "crown"
    """


@pytest.fixture
def plan(tmp_path) -> Path:
    return write_plan(tmp_path / "plan.toml", PLAN)


def run(*arguments: object):
    return CliRunner().invoke(study_app, [str(a) for a in arguments])


def answered(plan: Path, count: int, folder: Path, state: str = "done") -> None:
    """As many of the plan's cells as if they had been answered."""
    made = Plan.load(str(plan))
    with Store.writing(folder) as store:
        store.began(made.name, made.said)
        for cell in made.cells()[:count]:
            assert cell.ask.k is not None
            found = {"state": state, "status": "open", "lower": 0.01 * cell.ask.k, "upper": 0.1, "corgi": 0.005}
            store.put(row_of(cell, found if state == "done" else {"state": state, "reason": "no"}))


def test_a_stopped_run_says_how_far_the_study_is(corgi, plan, monkeypatch):
    def stops(*_: object, **__: object) -> None:
        raise Interrupted(Progress(2, 1, {"done": 1}))

    monkeypatch.setattr("corgi_opt.cli.study.run", stops)
    ran = corgi("study", "run", plan)
    assert ran.code == 130 and ran.err.startswith("interrupted") and ran.out == "2 cells: 1 done, 1 to do\n"
    ran = corgi("study", "run", plan, "--json")
    assert ran.code == 130 and json.loads(ran.out)["states"] == {"done": 1}


@pytest.mark.parametrize(
    ("given", "out", "folder"),
    [("a/b.toml", None, "a/b"), ("a/b.toml", "c", "c"), ("plans.py:one", "c", "c")],
)
def test_where_a_studys_folder_is(given, out, folder):
    assert folder_of(given, None if out is None else Path(out)) == Path(folder)


def test_a_plan_in_python_has_no_folder_of_its_own():
    with pytest.raises(InputError, match="--out DIR"):
        folder_of("plans.py:one", None)


@pytest.mark.parametrize(
    ("count", "state", "code"), [(1, "done", UNFINISHED), (2, "done", 0), (2, "failed", UNFINISHED)]
)
def test_status_counts_and_its_exit_code_says_whether_all_is_answered(count, state, code, plan):
    answered(plan, count, plan.with_suffix(""), state)
    ran = run("status", plan, "--json")
    assert ran.exit_code == code
    said = json.loads(ran.stdout)
    assert said["cells"] == 2 and said["states"] == {state: count}


def test_all_answered_nothing_is_computed(plan, monkeypatch):
    answered(plan, 2, plan.with_suffix(""))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("computed"))
    ran = run("run", plan, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.splitlines()[-1])["states"] == {"done": 2}


def test_the_store_is_exported_as_one_table(plan, tmp_path):
    folder = tmp_path / "elsewhere"
    answered(plan, 2, folder)
    file = tmp_path / "table.csv"
    ran = run("export", plan, file, "--out", folder)
    assert (ran.exit_code, ran.stdout.strip()) == (0, str(file))
    assert sorted(zip(*[pd.read_csv(file)[c] for c in ("k", "lower")], strict=True)) == [(1, 0.01), (2, 0.02)]


def test_the_report_is_named_with_its_figures(plan):
    answered(plan, 2, plan.with_suffix(""))
    said = json.loads(run("report", plan, "--json").stdout)
    assert said["rows"] == 2 and Path(said["report"]).is_file()
    assert said["figures"] and all(Path(f).is_file() for f in said["figures"])
