"""The PuLP backend: children that die, lie, babble or outstay their time; Ctrl-C; what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
from corgi_solvers import BackendMissingError, Problem, ProblemError, Pulp, Solution, Status, cbc, child, pulp
from corgi_solvers.pulp import read_answer
from ending import ended
from solver_problems import INF, problem_of, skip_without, usable

LP = problem_of([1.0, 1.0], 0.0, [[1.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [False, False])  # minimum 0.5
MIP = problem_of([1.0, 1.0], 0.0, [[2.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [True, True])  # minimum 1

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX: a script stands in for the solver")


def assert_no_claim(s: Solution) -> None:
    assert (s.status, s.objective, s.bound, s.x) == (Status.ERROR, INF, -INF, None)


# ------------------------------------------------------------------------------------------------------------ CBC


@pytest.fixture
def fake_cbc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``fake_cbc(body)``: a CBC whose body sees ``text(line)`` and ``binary(rows, columns, numbers)``."""

    def install(body: str) -> None:
        script = tmp_path / "cbc"
        head = f"""\
            #!{sys.executable} -SE
            import os, signal, struct, sys, time
            files = dict(zip(sys.argv, sys.argv[1:]))
            def text(line):
                open(files["-solution"], "w").write(line + "\\n")
            def binary(rows, columns, numbers):
                data = struct.pack("=ii", rows, columns) + struct.pack(f"={{len(numbers)}}d", *numbers)
                open(files["-saveSolution"], "wb").write(data)
            print("Coin0008I corgi read with 0 errors", flush=True)
            """
        script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        script.chmod(0o755)
        monkeypatch.setattr(pulp, "cbc_executable", lambda: str(script))

    return install


# objective, row activity, row dual, x0, x1, two reduced costs: the optimum of LP
LP_ANSWER = [0.5, 1.0, 0.5, 0.0, 0.5, 0.5, 0.0]


@posix
def test_the_fake_that_tells_the_truth_is_believed(fake_cbc) -> None:
    fake_cbc(f"text('Optimal - objective value 0.5'); binary(1, 2, {LP_ANSWER})")
    s = Pulp().solve(LP)
    assert (s.status, s.objective, s.bound) == (Status.OPTIMAL, 0.5, 0.5)


@posix
@pytest.mark.parametrize("problem", [LP, MIP], ids=["lp", "mip"])
@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "sys.exit(3)",
        "pass",
        "text('Optimal - objective value 0.5')",
        f"binary(1, 2, {LP_ANSWER})",
        f"text(''); binary(1, 2, {LP_ANSWER})",
        f"text('Better than ever - objective value 0.5'); binary(1, 2, {LP_ANSWER})",
        f"text('Status unknown - objective value 0.5'); binary(1, 2, {LP_ANSWER})",
        f"text('Optimal - objective value 0.5'); binary(1, 2, {LP_ANSWER[:-1]})",
        f"text('Optimal - objective value 0.5'); binary(2, 1, {LP_ANSWER})",
        "text('Optimal - objective value 0.5'); open(files['-saveSolution'], 'w').write('garbage')",
        "text('\\0\\1\\2'); open(files['-saveSolution'], 'wb').write(bytes(64))",
        f"text('Optimal - objective value 0.5'); binary(1, 2, {LP_ANSWER}); os.kill(os.getpid(), signal.SIGSEGV)",
        f"text('Infeasible - objective value 0.5'); binary(1, 2, {LP_ANSWER}) if 'x' in files else sys.exit(1)",
    ],
)
def test_garbage_claims_nothing(fake_cbc, problem: Problem, body: str) -> None:
    fake_cbc(body)
    assert_no_claim(Pulp().solve(problem))


@posix
@pytest.mark.parametrize("bad", [math.nan, INF, 1e300])
def test_numbers_that_are_none_make_no_optimum(fake_cbc, bad: float) -> None:
    value = f"float('{bad}')"
    fake_cbc(f"text('Optimal - objective value 0.5'); binary(1, 2, [.5, 1., {value}, 0., .5, .5, 0.])")
    s = Pulp().solve(LP)
    assert s.status is Status.LIMIT
    assert s.bound == -INF or s.bound <= 0.5
    fake_cbc(f"text('Optimal - objective value 0.5'); binary(1, 2, [.5, 1., 0., {value}, 1., .5, 0.])")
    assert_no_claim(Pulp().solve(MIP))


@posix
def test_a_limit_labelled_optimal_is_no_optimum(fake_cbc) -> None:
    fake_cbc("text('Optimal - objective value 5.0'); binary(1, 2, [5., 5., .25, 5., 0., .5, 0.])")
    s = Pulp().solve(LP)
    assert (s.status, s.objective, s.bound) == (Status.LIMIT, 5.0, 0.25)


@posix
def test_a_limit_with_an_incumbent_has_no_bound(fake_cbc) -> None:
    """Where PuLP says "Optimal"."""
    fake_cbc("text('Stopped on time - objective value 3.0'); binary(1, 2, [3., 6., 0., 3., 0., 0., 0.])")
    s = Pulp().solve(MIP)
    assert (s.status, s.objective, s.bound) == (Status.LIMIT, 3.0, -INF)
    fake_cbc(
        "text('Stopped on time (no integer solution - continuous used) - objective value 1.0');"
        "binary(1, 2, [1., 2., 0., 1., 0., 0., 0.])"
    )
    s = Pulp().solve(MIP)
    assert (s.status, s.objective, s.bound, s.x) == (Status.LIMIT, INF, -INF, None)


@posix
def test_infeasible_is_asked_again_without_objective(fake_cbc) -> None:
    """CBC calls unbounded LPs infeasible, and its preprocessing feasible MIPs."""
    body = """
        model = open(sys.argv[1]).read()
        if "obj 1.0" in model:
            text("Infeasible - objective value 0"); binary(1, 2, [0.0] * 7)
        else:
            text("{}"); binary(1, 2, [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    """
    fake_cbc(textwrap.dedent(body).format("Optimal - objective value 0"))
    assert_no_claim(Pulp().solve(MIP))
    fake_cbc(textwrap.dedent(body).format("Integer infeasible - objective value 0"))
    assert Pulp().solve(MIP).status is Status.INFEASIBLE


@posix
def test_a_child_that_outstays_its_time_is_killed(fake_cbc, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be at it for an hour; its claim would then be an error."""
    fake_cbc("time.sleep(3600)")
    started = []

    class Told(subprocess.Popen[bytes]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    monkeypatch.setattr(child, "subprocess", types.SimpleNamespace(**(vars(subprocess) | {"Popen": Told})))
    s = Pulp().solve(LP, time_limit=0.5)
    assert (s.status, s.bound, s.x) == (Status.LIMIT, -INF, None)
    (pid,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_cbc_is_told_its_tolerances_and_gaps() -> None:
    settings = cbc.CbcSettings("cbc", 1, 1e-7, 1e-8)
    words = list(map(str, cbc._command(settings, 2.5, Path("m"), Path("s"), Path("b"))))
    options = dict(itertools.pairwise(words))
    assert (options["-sec"], options["-allowableGap"], options["-ratioGap"]) == ("2.5", "1e-07", "1e-08")
    assert (options["-preprocess"], options["-cuts"], options["-timeMode"]) == ("off", "off", "elapsed")
    skip_without("pulp:cbc")
    s = Pulp(mip_abs_gap=0.25).solve(MIP)
    assert s.objective - s.bound >= 0.25  # what was allowed is off the bound


def test_mips_that_cbc_gets_wrong_by_itself() -> None:
    """Preprocessing calls the first infeasible; with cuts the second ends "Optimal" at -211.68."""
    skip_without("pulp:cbc")
    A = [
        [0.31668839366275753, -1.55799503151274, 0.11480049287713974, -1.5049660592453986],
        [2.1216958204180876, -2.2783911239551085, 0.7277890474981358, 1.1453311321825687],
    ]
    c = [28.35423289334687, -89.30997222024614, -0.2010201765218665, -95.75409509167008]
    box = np.ones(4)
    p = problem_of(c, 7.0, A, [-INF] * 2, [2.6553696523831523, 2.9329953091025076], -box, box, np.arange(4) < 2)
    assert Pulp().solve(p).objective == pytest.approx(-206.61932038178497)
    c = [-71.46397570991022, 45.211812615863025, 151.27703793394602, 138.87156685999273]
    A = [[-4.903309198699517, -5.63997277922874, 2.0012795055806762, 2.7309425813168686]]
    p = problem_of(c, 7.0, A, [-1.3159375071081887], [0.3938261344473661], -box, box, box > 0)
    s = Pulp().solve(p)
    assert s.status is Status.OPTIMAL
    assert s.bound == pytest.approx(-260.95282625971925)


# ------------------------------------------------------------------------------------------------- other engines


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``fake_worker(body)``: stands in for the worker's Python; its body sees ``question`` and ``answer``."""

    def install(body: str) -> None:
        script = tmp_path / "python"
        head = f"#!{sys.executable} -SE\nimport os, signal, sys, time\nquestion, answer = sys.argv[-2:]\n"
        script.write_text(head + textwrap.dedent(body))
        script.chmod(0o755)
        monkeypatch.setattr(pulp, "sys", types.SimpleNamespace(executable=str(script), path=sys.path))

    return install


def said(**changes: object) -> str:
    truth = {"status": "optimal", "raw_status": "kOptimal", "x": [0.0, 0.5], "row_dual": [0.5], "bound": 1.0}
    return json.dumps(truth | {"nodes": 1, "iterations": 1, "version": "1"} | changes)


@posix
@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "sys.exit(1)",
        "pass",
        "open(answer, 'w').write('garbage')",
        "open(answer, 'wb').write(bytes(range(256)))",
        "open(answer, 'w').write('[]')",
        "open(answer, 'w').write('{\"status\": \"optimal\"}')",
        f"open(answer, 'w').write('''{said(status='splendid')}''')",
        f"open(answer, 'w').write('''{said(x='garbage')}''')",
        f"open(answer, 'w').write('''{said(bound=None)}''')",
    ],
)
def test_a_worker_that_dies_or_babbles_claims_nothing(fake_worker, body: str) -> None:
    fake_worker(body)
    assert_no_claim(Pulp("highs").solve(LP))


@posix
def test_a_worker_that_lies_is_not_believed(fake_worker) -> None:
    fake_worker(f"open(answer, 'w').write('''{said(row_dual=[math.nan])}''')")
    assert Pulp("highs").solve(LP).bound == -INF
    fake_worker(f"open(answer, 'w').write('''{said(x=[5.0, 5.0], bound=3.0)}''')")
    assert Pulp("highs").solve(LP).status is Status.LIMIT
    assert_no_claim(Pulp("highs").solve(MIP))


def test_answers_are_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "answer"
    path.write_text(said(x=[1 / 3, 5e-324], row_dual=[-math.pi], bound=-INF))
    claim = read_answer(path)
    assert claim.status is Status.OPTIMAL
    assert claim.x is not None and claim.row_dual is not None
    assert (claim.x.tolist(), claim.row_dual.tolist(), claim.bound) == ([1 / 3, 5e-324], [-math.pi], -INF)
    assert read_answer(tmp_path / "none").status is Status.ERROR


def test_the_offset_that_pulp_drops_is_in_the_bound() -> None:
    p = problem_of([1.0, 1.0], 100.0, [[2.0, 2.0]], [1.0], [INF], [0.0, 0.0], [5.0, 5.0], [True, True])
    for solver in (one for one in ("cbc", "highs") if usable(f"pulp:{one}")):
        s = Pulp(solver).solve(p)
        assert s.status is Status.OPTIMAL
        assert s.objective == pytest.approx(101.0)
        assert s.bound == pytest.approx(101.0, abs=1e-5)


@pytest.mark.parametrize("solver", ["highs", "scip", "gurobi", "cplex"])
def test_columns_that_pulp_leaves_out_are_where_they_may_be(solver: str) -> None:
    """In no row with a side, and without cost; eleven columns, so that x10 is not before x2."""
    skip_without(f"pulp:{solver}")
    n = 11
    A, c = np.zeros((3, n)), np.zeros(n)
    A[0, [2, 10]], A[1, 5], A[2, 7] = (1.0, 2.0), 1.0, 1.0
    c[[2, 10]] = 3.0, 5.0
    lower, upper, whole = np.zeros(n), np.full(n, 9.0), np.zeros(n, dtype=bool)
    lower[7], whole[7], lower[3], upper[3] = 2.5, True, -4.0, -1.0
    p = problem_of(c, 0.0, A, [4.0, 1.5, -INF], [INF, 2.0, INF], lower, upper, whole)
    s = Pulp(solver).solve(p)
    assert s.status is Status.OPTIMAL
    assert s.objective == pytest.approx(10.0)
    assert s.x is not None
    assert s.x[[2, 3, 7, 10]].tolist() == pytest.approx([0.0, -1.0, 3.0, 2.0])
    assert 1.5 - 1e-6 <= s.x[5] <= 2.0 + 1e-6


# -------------------------------------------------------------------------------------------------------- the rest


def test_settings_that_cannot_be_taken_are_refused() -> None:
    with pytest.raises(ProblemError, match=r"no solver 'glpk' behind PuLP here; there are cbc, highs, scip"):
        Pulp("glpk")
    for settings in ({"threads": 0}, {"mip_rel_gap": -1.0}, {"mip_abs_gap": math.nan}):
        with pytest.raises(ProblemError):
            Pulp(**settings)


def test_a_missing_solver_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"pyscipopt"}
    monkeypatch.setattr(pulp, "installed", lambda package: package not in missing)
    assert not Pulp("scip").available()
    with pytest.raises(BackendMissingError, match=r"pyscipopt is not installed\. Run: pip install pyscipopt"):
        Pulp("scip").solve(LP)
    missing.add("pulp")
    assert not Pulp("cbc").available()
    with pytest.raises(BackendMissingError, match=r"pulp is not installed\. Run: pip install"):
        Pulp("cbc").solve(LP)


def test_declares_itself_and_pickles() -> None:
    assert (Pulp.capabilities.lp, Pulp.capabilities.mip, Pulp.capabilities.soc) == (True, True, False)
    assert pickle.loads(pickle.dumps(Pulp("scip", threads=2))) == Pulp("scip", threads=2)
    skip_without("pulp:cbc")
    report = Pulp().solve(MIP).report
    assert report.solver == "pulp:cbc"
    assert report.version.startswith("2.")
    assert report.raw_status.startswith("Optimal - objective value 1.0")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: sends SIGINT to one process")
@pytest.mark.parametrize("solver", ["cbc", "highs"])
def test_ctrl_c_is_raised_and_leaves_no_child(solver: str) -> None:
    skip_without(f"pulp:{solver}")
    code = f"""
        import subprocess
        import numpy as np
        from corgi_solvers import Problem, Pulp, child

        class Told(subprocess.Popen[bytes]):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                print(self.pid, flush=True)

        child.subprocess.Popen = Told
        rng = np.random.default_rng(0)
        n, A = 100, rng.integers(1, 1000, (10, 100)).astype(float)
        c = -A.mean(axis=0) - rng.integers(0, 50, n)
        p = Problem(c, 0.0, A, np.full(10, -np.inf), A.sum(axis=1) // 2, np.zeros(n), np.ones(n), np.ones(n, bool))
        try:
            Pulp({solver!r}).solve(p)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with ended(command) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(1.0)
        os.kill(pid, 0)  # at work
        process.send_signal(signal.SIGINT)  # hours before it would be done
        assert process.stdout.readline() == "interrupted\n"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        out, err = process.communicate()
        assert (process.returncode, out, err) == (0, "", "")
