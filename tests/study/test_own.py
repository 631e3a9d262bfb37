"""Properties, methods, solvers and layers of one's own in a study: its processes know what the plan imports."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from corgi_solvers.choose import BACKENDS
from studies import answers, start, study_command, write_plan

import corgi_opt as co
from corgi_opt import methods
from corgi_opt.cli.main import main
from corgi_opt.network.builders import BUILDERS
from corgi_opt.problem.properties import PROPERTIES
from corgi_opt.study import Plan, Store, own, run, worker, write_report
from corgi_opt.study.answer import answer
from corgi_opt.study.engine import _layers_hint, require_known, task_of
from corgi_opt.study.figures import FIGURES

REGISTERS = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from corgi_opt import methods
from corgi_opt.problem.atoms import Groups, cam_pixels
from corgi_opt.problem.properties import Property, register


@register
@dataclass(frozen=True)
class InTop(Property):
    pixel: int
    rank: int
    name: ClassVar[str] = "InTop"

    def pose(self, scene, tie_tol):
        pixels = scene.cam.numel()
        others = torch.tensor([j for j in range(pixels) if j != self.pixel])
        pairs = torch.stack([torch.full_like(others, self.pixel), others], dim=1)
        return Groups(
            parts=cam_pixels(scene.net.classes, scene.class_idx, pixels),
            terms=pairs,
            coefs=torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(len(pairs), 2),
            members=torch.arange(pixels - 1)[None],
            need=torch.tensor([pixels - self.rank]),
            anchors=torch.zeros(0, 2, dtype=torch.long),
            labels=pairs,
            things=("pixel", "pixels"),
        )


def both(margins, deadline):
    margins.corgi(deadline)
    return margins.crown(deadline)


methods.add(methods.Method("both", methods.Look("#aa3377", "--", "h"), bound=both), before="dual")
"""

REGISTERS_MORE = """
from corgi_opt.network import lowering
from corgi_opt.network.builders import covers
from corgi_opt.network.ops import Combine, ReLU
from corgi_opt.study.figures import FIGURES
from corgi_solvers import Highs
from corgi_solvers.choose import BACKENDS


class Mine(Highs):
    name = "mine"


BACKENDS["mine"] = lambda: Mine()


@covers("abs.default")
def absolute(t, fx, *, x):
    operand, one, minus = t.value(x), lowering.scalar(1.0), lowering.scalar(-1.0)
    negated = t.add(fx, f"{fx.name}.negated", Combine((minus,)), (operand,))
    sides = [t.add(fx, f"{fx.name}.{at}", ReLU(), (side,)) for at, side in enumerate((operand, negated))]
    return t.add(fx, str(fx.name), Combine((one, one)), tuple(sides))


class Absolute(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x).abs().mean((2, 3)))


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Absolute().eval()


def images():
    return torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def seconds(frame):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot(frame["seconds"], ".")
    return figure


FIGURES["seconds"] = (seconds, "Seconds, drawn by a figure of one's own.")
"""

PLAN = """
    name = "own"
    time_limit = 60
    imports = ["mine.py"]
    [models]
    digits = "digits"
    absolute = "mine.py:build"            # of the file that registers: it is run once
    [images.test]
    source = "digits"
    take = [0]
    [images.random]
    source = "mine.py:images"
    [[questions]]
    models = "digits"
    images = "test"
    property = {name = "InTop", pixel = 53, rank = 2}
    method = "both"
    rtol = 0.1
    [[questions]]
    models = "digits"
    images = "test"
    k = 2
    eps = 0.01
    method = "milp"
    solver = "mine"
    [[questions]]
    models = "absolute"
    images = "random"
    k = 1
    method = "both"
"""

TABLES: tuple[dict[str, Any], ...] = (methods.TABLE, BUILDERS, BACKENDS, PROPERTIES, FIGURES)


@contextmanager
def as_before():
    """The tables, and what was imported for plans, are afterwards as they were before."""
    before = [dict(table) for table in (*TABLES, own._LOADED)]
    try:
        yield
    finally:
        for table, rows in zip((*TABLES, own._LOADED), before, strict=True):
            table.clear()
            table.update(rows)
        for name in [name for name in sys.modules if name.startswith(own.alias_of(Path())[:-16])]:
            del sys.modules[name]


@pytest.fixture
def tables():
    with as_before():
        yield


def write(folder: Path, text: str = REGISTERS + REGISTERS_MORE, name: str = "mine.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def plan(**more: object) -> dict[str, object]:
    """One question about a property and a method of one's own."""
    return {
        "name": "p",
        "models": {"m": "digits"},
        "images": {"t": {"source": "digits", "take": [0]}},
        "questions": [{"property": {"name": "InTop", "pixel": 53, "rank": 2}, "method": "both", "rtol": 0.2}],
        **more,
    }


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The plan of a study that was run on this machine, with processes that answer its cells."""
    folder = tmp_path_factory.mktemp("own")
    write(folder)
    path = write_plan(folder / "plan.toml", PLAN)
    log = folder / "log"
    assert start(log, "run", path, "--workers", 1).wait(timeout=300) == 0, log.read_text()
    return path


# --- answered elsewhere as here -----------------------------------------------------------------------------------


def test_its_rows_are_what_the_functions_give(studied, tables):
    cells = {cell.key: cell for cell in Plan.load(studied).cells()}
    with Store.reading(studied.with_suffix("")) as store:
        rows = store.rows()
    assert {row.key for row in rows} == cells.keys() and len(rows) == 3
    for row in rows:
        cell = cells[row.key]
        x = cell.image.x
        net = co.from_torch(cell.model.built(), x)
        asked: dict[str, Any] = {"method": row.method, "time_limit": 60, "device": "cpu"}
        if row.property is not None:
            in_top: Any = {"name": "InTop", "pixel": 53, "rank": 2}
            r = co.radius(net, x, property=in_top, rtol=0.1, **asked)
        elif row.kind == "radius":
            r = co.radius(net, x, k=1, **asked)
        else:
            v = co.verify(net, x, eps=0.01, k=2, solver="mine", **asked)
            assert row.status == v.status and row.lower == pytest.approx(v.margin_lower)
            continue
        assert 0 < r.lower < r.upper
        assert (row.lower, row.upper, row.attack) == pytest.approx((r.lower, r.upper, r.attack))
    assert {part.role for cell in cells.values() for part in cell.own} == {"property", "method", "solver", "layer"}


def test_it_goes_on_and_is_reported_by_its_plan(studied, tables, monkeypatch, capsys):
    folder = studied.with_suffix("")
    before = answers(folder)
    monkeypatch.setattr("corgi_opt.study.engine._client", None)  # nothing is left to do, so no worker starts
    assert run(Plan.load(studied), folder, progress=False).states == {"done": 3}
    pd.testing.assert_frame_equal(answers(folder), before)
    monkeypatch.setattr(sys, "argv", ["corgi-opt", "study", "status", str(studied)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "3 cells: 3 done, 0 to do" in capsys.readouterr().out
    command = subprocess.run(study_command("report", studied), capture_output=True, text=True, timeout=120)
    assert command.returncode == 0 and "report.html: 3 cells" in command.stdout, (
        command.stderr
    )  # it knew nothing before
    page = (folder / "report.html").read_text()
    assert "InTop(pixel=53, rank=2)" in page and "drawn by a figure of one&#39;s own" in page


def test_a_report_says_what_is_not_registered(studied, tables):
    with pytest.raises(co.StudyError, match=r"method 'both', which is not registered here.*imports = "):
        write_report(studied.with_suffix(""))


class Client:
    """In place of dask's: a cell's process answers, and no cluster stands between."""

    def submit(self, function, task, **_):
        done: Future[object] = Future()
        done.set_result(function(task))
        return done


def test_what_only_the_caller_registered_is_refused_and_the_advice_works(tmp_path, tables, monkeypatch):
    write(tmp_path / "beside", REGISTERS)
    monkeypatch.syspath_prepend(tmp_path / "beside")
    importlib.import_module("mine")
    made = Plan.of(plan())
    with pytest.raises(co.StudyError, match="is registered in this process and not in those that answer") as refused:
        require_known(Client(), made.cells(), made.imports, 2.0**31)
    advice = tomllib.loads(str(refused.value)[str(refused.value).index("imports = ") :])
    made = Plan.of(plan(**advice))
    require_known(Client(), made.cells(), made.imports, 2.0**31)
    (cell,) = made.cells()
    reply = worker.run_cell(task_of(cell, 2.0**31, 60.0, "cpu", made.imports))
    worker.end_children()
    del sys.modules["mine"]
    assert reply["state"] == "done" and reply["lower"] > 0


def test_what_a_notebook_registered_is_refused_with_the_way_out(tables):
    exec(compile(REGISTERS, "<a cell of a notebook>", "exec", dont_inherit=True), {"__name__": "nowhere"})
    made = Plan.of(plan())
    with pytest.raises(co.StudyError, match=r"in a file of its own, and start this process anew.*\"FILE.py"):
        require_known(Client(), made.cells(), made.imports, 2.0**31)
    worker.end_children()


SCRIPT = """
import sys, tomllib
from corgi_opt import StudyError, study

{before}

PLAN = {plan!r}

if __name__ == "__main__":
    try:
        study.run(study.Plan.of(PLAN), "out", workers=1, progress=False)
        sys.exit("it ran")
    except StudyError as error:
        print(error)
        advice = tomllib.loads(str(error)[str(error).index("imports = "):])
    print(study.run(study.Plan.of({{**PLAN, **advice}}), "out", workers=1, progress=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", [pytest.param("import mine", id="in a module"), pytest.param(REGISTERS, id="in the script")]
)
def test_a_script_is_refused_and_the_advice_works(tmp_path, before):
    write(tmp_path / "beside", REGISTERS)
    write(tmp_path / "beside", SCRIPT.format(before=before, plan=plan()), "script.py")
    command = [sys.executable, "beside/script.py"]  # modules beside it are found, those of this folder are not
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    refused, done = ran.stdout.splitlines()
    assert "method 'both' is registered in this process and not in those that answer cells" in refused
    assert done == "1 cells: 1 done, 0 to do"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"method": "both", "k": 1}, "unknown method 'both'"),
        ({"method": "crown", "property": {"name": "InTop", "pixel": 53, "rank": 2}}, "there is no property 'InTop'"),
        ({"method": "crown", "property": '{"name": "InTop", "pixel": 53, "rank": 2}'}, "there is no property 'InTop'"),
        ({"method": "lp", "k": 1, "solver": "mine"}, "there is no solver 'mine'"),
    ],
)
def test_an_unknown_name_is_refused_and_the_advice_works(tmp_path, tables, question, words):
    path = write(tmp_path)
    asked = plan(questions=[question])
    with pytest.raises(co.StudyError, match=f"questions 1: .*{words}") as refused:
        Plan.of(asked, tmp_path)
    assert isinstance(refused.value, co.InputError)  # as what no question could mean always was
    advice = tomllib.loads(str(refused.value)[str(refused.value).index("imports = ") :].replace("FILE.py", path.name))
    assert len(Plan.of({**asked, **advice}, tmp_path).cells()) == 1


def test_what_is_known_and_asked_wrongly_gets_no_advice(tmp_path, tables):
    with pytest.raises(co.InputError, match="pixel") as refused:
        Plan.of(plan(imports=str(write(tmp_path)), questions=[{"method": "both", "property": "InTop"}]))
    assert not isinstance(refused.value, co.StudyError)


def known_as(role: Any, name: str) -> own.Own:
    """What of one's own has this name."""
    mine = own.own_of(role, name)
    assert mine is not None
    return mine


# --- keys ---------------------------------------------------------------------------------------------------------


def keys(folder: Path, text: str, **more: Any) -> list[str]:
    """Of a cell that uses a property and a method of one's own, and of one that uses nothing of the kind."""
    made: Any = plan()
    mine, plain = made["questions"][0], {"k": 1, "method": "crown"}
    with as_before():
        write(folder, text)
        return [c.key for c in Plan.of(plan(imports=["mine.py"], questions=[mine, plain], **more), folder).cells()]


def test_a_key_holds_the_file_of_what_its_cell_uses(tmp_path):
    (bare,) = Plan.of(plan(questions=[{"k": 1, "method": "crown"}])).cells()
    three = json.dumps([bare.model.sha256, bare.image.sha256, bare.ask.plain()], sort_keys=True)
    assert bare.key == hashlib.sha256(three.encode()).hexdigest()[:32]  # as before there were imports
    first = keys(tmp_path / "a", REGISTERS)
    assert first[1] == bare.key  # what is answered stays answered when a plan imports something new
    assert keys(tmp_path / "b", REGISTERS) == first  # wherever the file stands
    changed = keys(tmp_path / "c", REGISTERS.replace("margins.corgi(deadline)", "margins.ibp(deadline)"))
    assert changed[0] != first[0] and changed[1] == first[1]


def test_a_layer_that_is_imported_is_in_every_key(tmp_path):
    first = keys(tmp_path / "a", REGISTERS + REGISTERS_MORE)
    changed = keys(tmp_path / "b", REGISTERS + REGISTERS_MORE + "\n")
    assert all(one != other for one, other in zip(first, changed, strict=True))


# --- importing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ("gone.py", "imports: no such file: .*gone.py"),
        (["corgi_opt", 3], "imports must be"),
        ({"file": "mine.py"}, "imports must be"),
        ("my things", "neither a .py file nor a dotted module name"),
        ("no_such_module_anywhere", "cannot import 'no_such_module_anywhere'"),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path, imports, message):
    with pytest.raises(co.InputError, match=message):
        Plan.of(plan(imports=imports), tmp_path)


def test_a_file_that_changed_is_not_what_was_planned(tmp_path, tables):
    path = write(tmp_path, REGISTERS)
    made = Plan.of(plan(imports="mine.py"), tmp_path)
    (cell,) = made.cells()
    write(tmp_path, REGISTERS + "\nMORE = 1\n")
    with pytest.raises(co.StudyError, match=r"mine\.py has changed since this process imported it"):
        Plan.of(plan(imports="mine.py"), tmp_path)
    with as_before():
        methods.TABLE.pop("both")
        PROPERTIES.pop("InTop")
        own._LOADED.clear()
        sys.modules.pop(own.alias_of(path.resolve()))
        reply = answer(task_of(cell, 0.0, 60.0, "cpu", made.imports))
    assert reply["state"] == "failed" and "mine.py is another file than when the study began" in reply["reason"]


def test_a_file_that_fails_can_be_mended(tmp_path, tables):
    write(tmp_path, "raise OverflowError('not yet')\n")
    with pytest.raises(co.UserCodeError, match=r"line 1, in <module>\n.*\n  OverflowError: not yet"):
        Plan.of(plan(imports="mine.py"), tmp_path)
    write(tmp_path, REGISTERS)
    assert len(Plan.of(plan(imports="mine.py"), tmp_path).cells()) == 1


def test_a_module_is_found_where_the_caller_finds_it_and_plans_do_not_mix(tmp_path, tables, monkeypatch):
    """One thread's cells come from two plans with methods of the same name."""
    write(tmp_path / "package", REGISTERS, "things.py")
    monkeypatch.syspath_prepend(tmp_path)
    made = Plan.of(plan(imports=["package.things"]))
    other = write(tmp_path / "other", "THE_SAME_NAME = 1\n" + REGISTERS)
    uses = [["method", "both"], ["property", "InTop"], ["method", "crown"], ["method", "gone"]]
    replies = []
    for imports in ([[i.name, i.sha256] for i in made.imports], [[str(other), own._sha256([other])]]):
        task = {"imports": imports, "uses": uses, "hard_limit": 120.0}
        replies.append(worker.run_guarded(task, 2.0**31)["known"])
    worker.end_children()
    first, second = replies
    assert first[0] == first[1] == known_as("method", "both").sha256 and first[2:] == ["", None]
    assert second[0] == second[1] == own._sha256([other]) != first[0]
    assert known_as("property", "InTop").homes == ("package.things",)  # by dots: it may import its neighbours so


STARTS = """
from corgi_opt import study
study.run(study.Plan.of({plan!r}), "out", progress=False)
"""


def test_a_file_that_starts_a_study_when_it_is_imported_is_told_of_it(tmp_path, tables):
    inner = plan(questions=[{"k": 1, "method": "crown"}])
    path = write(tmp_path, STARTS.format(plan=inner), "script.py")
    with pytest.raises(co.StudyError, match=rf'{re.escape(str(path))}.* starts a study itself.*__name__ == "__main__"'):
        Plan.of(plan(imports="script.py"), tmp_path)
    assert not (tmp_path / "out").exists() and own.being_imported() is None


def test_a_plan_in_python_may_stand_in_the_file_that_it_imports(tmp_path, tables):
    asked = json.dumps(plan(imports=["mine.py"]))
    path = write(tmp_path, f"{REGISTERS}\ndef study():\n    import json\n    return json.loads('{asked}')\n")
    for _ in range(2):
        assert len(Plan.load(f"{path}:study").cells()) == 1
    with pytest.raises(co.InputError, match=r"mine\.py has no function 'gone'"):
        Plan.load(f"{path}:gone")


def test_a_layer_that_only_the_caller_knows_is_named_in_the_reason(tmp_path, tables):
    BUILDERS["abs.default"] = lambda t, fx, *, x: t.value(x)
    columns = {"state": "failed", "reason": "UnsupportedOpError: forward (abs): abs is not supported. Rewrite it."}
    said = _layers_hint(columns, ())["reason"]
    assert said.startswith(columns["reason"]) and "knows abs.default, which none of the plan's imports" in said
    assert _layers_hint({"state": "failed", "reason": "InputError: no"}, ()) == {}
    BUILDERS.pop("abs.default")
    assert _layers_hint(columns, ()) == {}
