"""The command line: what it prints, its exit codes, its help."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
import typer
from asking import about
from commands import QUESTION, bundled, k_of, only_json
from nets import Plain, image, seeded
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.cli import main as cli
from corgi_opt.data import digits
from corgi_opt.problem.plain import plain

STUDY = ["run", "status", "report", "export"]

# --- verify ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps", "method", "status", "code"),
    [
        (0.003, "auto", "certified", 0),
        (0.02, "auto", "falsified", 1),
        (0.004, "corgi", "unknown", 2),
    ],
)
def test_verify_says_the_verdict_and_exits_with_it(corgi, eps, method, status, code):
    ran = corgi("verify", *QUESTION, "--eps", eps, "--method", method)
    assert (ran.code, ran.err) == (code, "")
    assert ran.out.startswith(f"{status} at eps={eps:g}, k=3, class 7: ")
    assert "CORGI's bound" in ran.out
    assert ("proof: " in ran.out) == (status == "certified")


def test_verify_json_is_the_verdict(corgi):
    ran = corgi("verify", *QUESTION, "--eps", 0.003, "--json")
    found = only_json(ran)
    assert list(found) == [f.name for f in fields(co.Verdict) if f.repr]
    assert ran.code == 0
    assert (found["status"], k_of(found), found["asked"]["class_idx"], found["eps"]) == ("certified", 3, 7, 0.003)
    assert found["counterexample"] is None
    net, x = bundled(1442)
    v = co.verify(net, x, eps=0.003, k=3)
    assert found["margin_lower"] == pytest.approx(v.margin_lower, rel=1e-9)
    assert found["corgi_margin"] == pytest.approx(v.corgi_margin, rel=1e-9)


def test_verify_asks_the_relaxed_question_with_the_class_kept_by_another_solver(corgi):
    """The set changes at this eps; each of its pixels stays among the five brightest."""
    assert corgi("verify", *QUESTION, "--eps", 0.006).code == 1
    ran = corgi("verify", *QUESTION, "--eps", 0.006, "--within", 5, "--keep-class", "--solver", "pulp:highs", "--json")
    found = only_json(ran)
    assert (ran.code, found["status"], found["asked"]["property"]) == (
        0,
        "certified",
        {"name": "TopK", "k": 3, "within": 5},
    )
    said = corgi("radius", *QUESTION, "--within", 5, "--method", "crown").out
    assert "k=3 within 5, class 7, crown" in said


def test_the_counterexample_in_json_breaks_the_top_set(corgi):
    ran = corgi("verify", *QUESTION, "--eps", 0.02, "--json")
    found = only_json(ran)["counterexample"]
    assert ran.code == 1
    assert list(found) == [f.name for f in fields(co.Witness)]
    net, x = bundled(1442)
    broken = torch.tensor(found["image"], dtype=torch.float64)
    assert float((broken - x).abs().max()) <= 0.02
    assert float(broken.min()) >= 0 and float(broken.max()) <= 1
    tops = [set(net.cam(i, 7).flatten().topk(3).indices.tolist()) for i in (x, broken)]
    assert tops[0] != tops[1]


def test_class_clip_and_time_limit_reach_the_question(corgi):
    found = only_json(
        corgi("verify", *QUESTION, "--eps", 0.001, "--class", 3, "--clip", "none", "--time-limit", 50, "--json")
    )
    net, x = bundled(1442)
    v = co.verify(net, x, eps=0.001, k=3, class_idx=3, clip=None)
    assert (found["asked"]["class_idx"], found["status"]) == (3, v.status)
    assert found["margin_lower"] == pytest.approx(v.margin_lower, rel=1e-9)


DIGITS = "zero,one,two,three,four,five,six,seven,eight,nine"


def test_classes_have_names(corgi):
    ran = corgi("verify", *QUESTION, "--eps", 0.001, "--classes", DIGITS, "--class", "three")
    assert (ran.code, ran.err) == (0, "") and ", class 3 (three): " in ran.out
    ran = corgi("compare", *QUESTION, "--methods", "crown", "--classes", DIGITS, "--json")
    assert only_json(ran)["questions"][0]["asked"]["class_name"] == "seven"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--class", "three"), "--class must be the number of a class, or its name together with --classes"),
        (("--classes", DIGITS, "--class", "thre"), "there is no class 'thre'; there are 'three'"),
        (("--classes", "one,two"), "classes has 2 names, but the network has 10 class scores"),
        (("--classes", "one,,three"), "its entry 1 is ''"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(corgi, options, words):
    ran = corgi("verify", *QUESTION, "--eps", 0.001, *options)
    assert (ran.code, ran.out) == (3, "") and words in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize("command", [("verify", "--eps", 0.001), ("radius",), ("compare",)])
def test_a_solver_that_is_not_installed_is_named_before_a_model_is_loaded(corgi, command, monkeypatch):
    import corgi_solvers.pulp

    monkeypatch.setattr(corgi_solvers.pulp, "installed", lambda package: package != "gurobipy")
    asked = ("absent.py:build", "--image", "0", "--k", 3, "--solver", "pulp:gurobi")
    ran = corgi(command[0], *asked, *command[1:])
    assert (ran.code, ran.out) == (3, "") and "pip install gurobipy" in ran.err and "absent.py" not in ran.err


# --- check -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eps", "status", "code"), [(0.003, "certified", 0), (0.02, "falsified", 1)])
def test_a_certificate_is_written_and_proven_anew(corgi, tmp_path, eps, status, code):
    file = tmp_path / "answer.cert"
    ran = corgi("verify", *QUESTION, "--eps", eps, "--certificate", file)
    assert (ran.code, ran.err) == (code, "") and "proof: checked" in ran.out
    for options, how in (([], "float64"), (["--exact"], "rational")):
        ran = corgi("check", file, "--model", "digits", *options)
        assert (ran.code, ran.err) == (code, "")
        assert ran.out.startswith("proven in ") and how in ran.out and f": {status}, margin" in ran.out
    found = only_json(corgi("check", file, "--model", "digits", "--json"))
    assert found["proven"] and found["kind"] == status and (found["margin"] > 0) == (status == "certified")


def test_an_answer_that_is_not_proven_leaves_no_file(corgi, tmp_path):
    file = tmp_path / "answer.cert"
    ran = corgi("verify", *QUESTION, "--eps", 0.004, "--method", "corgi", "--certificate", file)
    assert ran.code == 2 and not file.exists()


def test_a_certificate_of_another_model_is_not_proven(corgi, tmp_path):
    file = tmp_path / "answer.cert"
    assert corgi("verify", *QUESTION, "--eps", 0.003, "--certificate", file).code == 0
    certificate = co.Certificate.load(file)
    replace(certificate, claim=replace(certificate.claim, sha256="0" * 64)).save(file)
    ran = corgi("check", file, "--model", "digits")
    assert ran.code == 2 and "another network" in ran.out
    ran = corgi("check", file, "--model", "digits", "--json")
    found = only_json(ran)
    assert ran.code == 2 and found["proven"] is False and "another network" in found["reason"]


def test_a_certificate_is_of_weights_and_not_of_a_model_file(corgi, tmp_path):
    import safetensors.torch

    file, weights = tmp_path / "answer.cert", tmp_path / "weights.safetensors"
    state = digits.digits_model().state_dict()
    safetensors.torch.save_file(state, weights)
    assert corgi("verify", *QUESTION, "--eps", 0.003, "--weights", weights, "--certificate", file).code == 0
    assert corgi("check", file, "--model", "digits", "--weights", weights).code == 0
    safetensors.torch.save_file({name: 1.001 * value for name, value in state.items()}, weights)
    assert corgi("check", file, "--model", "digits", "--weights", weights).code == 2


@pytest.mark.parametrize("content", [None, b"not a certificate"])
def test_a_file_that_is_no_certificate_is_exit_code_3(corgi, tmp_path, content):
    file = tmp_path / "answer.cert"
    if content is not None:
        file.write_bytes(content)
    ran = corgi("check", file, "--model", "digits")
    assert ran.code == 3 and "certificate" in ran.err and ran.out == ""


# --- radius and compare ----------------------------------------------------------------------------------------


def test_radius_prints_the_bracket(corgi):
    ran = corgi("radius", *QUESTION)
    assert (ran.code, ran.err) == (0, "")
    said = re.match(r"certified up to (\S+), falsified at (\S+) \(ratio (\S+)\)", ran.out)
    assert said is not None
    low, high, ratio = map(float, said.groups())
    assert low <= high <= 1.0101 * low
    assert ratio == pytest.approx(high / low, abs=1e-3)


def test_radius_json_is_the_radius_and_its_ratio(corgi):
    found = only_json(corgi("radius", *QUESTION, "--method", "crown", "--rtol", 0.05, "--json"))
    assert list(found) == [*(f.name for f in fields(co.Radius) if f.repr), "ratio"]
    assert found["method"] == "crown"
    assert 0 < found["corgi"] <= found["lower"] <= found["upper"] <= found["attack"]
    assert np.shape(found["counterexample"]["image"]) == (1, 1, 8, 8)


def test_what_json_has_no_word_for_is_null():
    endless = co.Radius(
        about(), 0.0, float("inf"), "milp", 0.0, float("inf"), None, None, "", {"seconds": float("nan")}
    )
    found = plain(endless)
    assert (found["upper"], found["ratio"], found["stats"]) == (None, None, {"seconds": None})
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_compare_prints_a_row_and_a_reason_for_each_method(corgi, tmp_path):
    picture = tmp_path / "new" / "compare.png"
    ran = corgi("compare", *QUESTION, "--methods", "milp, corgi", "--plot", picture)
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("  ") and "0.00" in line]
    assert [row[0] for row in rows] == ["corgi", "milp"]
    assert float(rows[0][1]) < float(rows[1][1]) <= float(rows[1][2])
    assert re.search(r"^corgi: .*looseness$", ran.out, re.M)
    assert re.search(r"^milp: bracket closed", ran.out, re.M)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compare_json_holds_every_radius(corgi):
    found = only_json(corgi("compare", *QUESTION, "--methods", "corgi,crown", "--json"))
    assert list(found) == [f.name for f in fields(co.Comparison)]
    (question,) = found["questions"]
    assert list(question["answers"]) == ["corgi", "crown"] and question["eps"] is None
    assert question["answers"]["corgi"]["lower"] <= question["answers"]["crown"]["lower"]
    assert question["asked"]["clip"] == [0.0, 1.0]


def test_compare_takes_several_k_and_eps(corgi):
    ran = corgi("compare", "digits", "--image", "1442", "--k", "2,3", "--eps", "0.001,0.002", "--methods", "corgi,bab")
    assert (ran.code, ran.err) == (0, "")
    for k, eps in (("2", "0.001"), ("2", "0.002"), ("3", "0.001"), ("3", "0.002")):
        assert f"top-{k} set of the CAM of class 7, eps={eps}" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.split()[:1] in (["corgi"], ["bab"])]
    assert len(rows) == 8 and all(float(row[1]) <= float(row[2]) for row in rows)
    bad = corgi("compare", "digits", "--image", "1442", "--k", "two")
    assert bad.code == 3 and "--k must be a number" in bad.err


# --- demo ------------------------------------------------------------------------------------------------------


def test_demo_prints_a_table_that_fits_and_saves_a_picture(corgi, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    picture = tmp_path / "new" / "demo.png"
    ran = corgi("demo", "--picture", picture)
    assert (ran.code, ran.err) == (0, "")
    rows = re.findall(r"^(\d+) +(\d+) +([\d. ]+)\na (\d) ", ran.out, re.M)
    shown = digits.digits_split()[1][:4].tolist()
    assert [(int(i), int(k)) for i, k, _, _ in rows] == [(i, k) for i in shown for k in (1, 3, 5)]
    steps = re.findall(r"^(\d)\. ", ran.out, re.M)
    assert steps == ["1", "2", "3", "4"] and ran.out.count("certified up to") == len(rows)
    for _, _, cells, _ in rows:
        corgi_eps, crown, lp, milp, attack, gain, gap = map(float, cells.split())
        assert corgi_eps < crown <= lp <= milp <= attack  # to three digits
        assert gain == pytest.approx(milp / corgi_eps, rel=0.01)
        assert gap == pytest.approx(attack / milp, rel=0.01)
    table = ran.out[ran.out.index("\nimage ") + 1 : ran.out.index("certified: proven")]
    times = re.findall(r"^a \d +((?:(?:[\d.]+ s|shared) *){5})$", table, re.M)
    assert len(times) == len(rows)
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in ran.out
    assert f"Picture: {picture}" in ran.out
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- numbers and names ---


def test_eps_may_be_a_fraction(corgi):
    asked = (*QUESTION, "--method", "corgi", "--json")
    found = only_json(corgi("verify", *asked, "--eps", "0.5/255"))
    assert found["eps"] == 0.5 / 255
    compared = only_json(corgi("compare", *QUESTION, "--methods", "corgi", "--eps", "0.1/255,2e-3", "--json"))
    assert [q["eps"] for q in compared["questions"]] == [0.1 / 255, 2e-3]


@pytest.mark.parametrize(("spelling", "norm"), [("Linf", "inf"), ("L2", "2"), ("l_1", "1"), ("INF", "inf")])
def test_norms_may_be_spelt_as_people_do(corgi, spelling, norm):
    found = only_json(corgi("verify", *QUESTION, "--method", "ibp", "--eps", "1e-5", "--norm", spelling, "--json"))
    assert found["asked"]["norm"] == norm


@pytest.mark.parametrize("number", mostly_slow([7, 1442], [7]))
def test_a_bundled_image_is_the_one_of_that_number_in_python(corgi, number):
    found = only_json(corgi("radius", "digits", "--image", number, "--k", 3, "--method", "crown", "--json"))
    images, _ = digits.load_digits()
    net = co.from_torch(digits.digits_model(), images[:1])
    r = co.radius(net, images[number : number + 1], k=3, method="crown")
    assert (found["lower"], found["upper"]) == (r.lower, r.upper)


# --- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["verify", "radius", "compare", "demo", "Exit codes: 0 certified"]),
        (("verify",), ["--image", "--eps", "--k", "--method", "--class", "--clip", "--size", "--json"]),
        (("radius",), ["The bracket: the largest certified eps", "--rtol", "--json"]),
        (("compare",), ["--methods", "--plot", "--json"]),
        (("demo",), ["--picture"]),
    ],
)
def test_help(corgi, command, words):
    ran = corgi(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert [w for w in words if w not in ran.out] == []


COMMANDS = ["verify", "radius", "compare", "check", "doctor", "demo", "study", *(f"study {c}" for c in STUDY)]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_nothing_is_cut_off(corgi, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    ran = corgi(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert [line for line in ran.out.splitlines() if len(line) > 80 or "…" in line] == []


def test_every_command_is_one_of_these():
    known: Any = typer.main.get_command(cli.app)
    assert set(known.commands) == {command for command in COMMANDS if " " not in command}
    assert set(known.commands["study"].commands) == set(STUDY)


def test_help_says_what_every_exit_code_means(corgi):
    said = " ".join(corgi("--help").out.replace("│", " ").split())
    for words in ("0 certified", "1 falsified", "2 unknown (or a radius of 0)", "3 usage", "130 stopped", "141 output"):
        assert words in said
    assert "CORGI_TRACEBACK" in said
    assert "2: none is" in " ".join(corgi("radius", "--help").out.split())


SETTING = "--keep-class --class=None --classes=None --norm=inf --clip=0,1 --size=None --weights=None --solver=None"
WHAT = "--k=None --within=None --property=None --method=auto"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            ["verify"],
            f"model --image --eps {WHAT} {SETTING} --time-limit=300.0 --device=auto --seed=0 --certificate=None --json",
        ),
        (
            ["radius"],
            f"model --image {WHAT} --rtol=0.01 {SETTING} --time-limit=600.0 --device=auto --seed=0 --json",
        ),
        (
            ["compare"],
            "model --image --k=None --property=None --eps=None --methods=None --rtol=0.01 --within=None "
            f"{SETTING} --plot=None --time-limit=600.0 --device=auto --seed=0 --json",
        ),
        (["check"], "file --model --weights=None --exact --json"),
        (
            ["study", "run"],
            "plan --out=None --workers=None --scheduler=None --memory-limit=None --grace=60.0 --device=auto "
            "--retry-failed --json",
        ),
    ],
)
def test_commands_have_their_options_in_this_order_and_with_these_defaults(corgi, command, options):
    known: Any = typer.main.get_command(cli.app)
    for name in command:
        known = known.commands[name]
    assert [shown(parameter) for parameter in known.params] == options.split()
    help_text = corgi(*command, "--help").out
    places = [help_text.index(f"{option.partition('=')[0]} ") for option in options.split()[1:]]
    assert places == sorted(places)


def shown(parameter) -> str:
    """An option with its default, unless it has to be given or is a flag that is off."""
    asked = parameter.required or (parameter.default is False and parameter.is_flag)
    return parameter.opts[0] if asked else f"{parameter.opts[0]}={parameter.default}"


def test_no_command_shows_the_help(corgi):
    ran = corgi()
    assert ran.code == 3
    assert "verify" in ran.out + ran.err


def test_the_console_script_is_main():
    (script,) = entry_points(group="console_scripts", name="corgi-opt")
    assert script.load() is cli.main


def test_the_shared_tiny_model_can_be_asked_about(corgi, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", image(1, 6, 6).numpy())
    (tmp_path / "tiny.py").write_text("from nets import Plain, seeded\n\ndef build():\n    return seeded(Plain, 2)\n")
    ran = corgi("radius", tmp_path / "tiny.py:build", "--image", tmp_path / "x.npy", "--k", 3, "--json")
    r = co.radius(co.from_torch(seeded(Plain, 2), image(1, 6, 6)), image(1, 6, 6), k=3)
    assert only_json(ran)["lower"] == pytest.approx(r.lower, rel=1e-9)
