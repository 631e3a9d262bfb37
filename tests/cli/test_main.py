"""The command line: what it prints, its exit codes, every way to name a model and an image."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
from asking import about
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.cli import main as cli
from corgi_opt.data import digits
from corgi_opt.problem.plain import plain

QUESTION = ("digits", "--image", "0", "--k", "3")
"""Radius about 0.0049; the paper's bound certifies up to about half of it."""

MODELS = """
import torch
from torch import nn
import helper_of_models

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def build(channels=1):
    with torch.random.fork_rng():
        torch.manual_seed(helper_of_models.SEED)
        return Net(channels).eval()

def colour():
    return build(3)

def fixed():
    model = build()
    return nn.Sequential(model.body, nn.AvgPool2d(6), nn.Flatten(), model.head).eval()

def training():
    return build().train()

class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)

def bent():
    model = build()
    model.body[1] = Erf()
    return model.eval()

def headless():
    return build().body

def a_number():
    return 7

def broken():
    return 1 / 0

constant = 3
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def corgi(monkeypatch, capsys):
    """Runs the console script in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["corgi-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr()]
        return Ran(int(exited.value.code or 0), *plain)

    return run


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with my_models.py, its helper, and the same as package.module; also the current directory."""
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "helper_of_models.py").write_text("SEED = 2\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "my_" in name or "helper_of_models" in name:
            del sys.modules[name]


def only_json(ran: Ran) -> dict[str, Any]:
    """Standard output is one line holding one object."""
    assert ran.out.count("\n") == 1
    found = json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def bundled(index: int) -> tuple[co.CamNetwork, torch.Tensor]:
    x = digits.load_digits()[0][digits.digits_split()[1][index]][None]
    return co.from_torch(digits.digits_model(), x), x


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
    net, x = bundled(0)
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
    net, x = bundled(0)
    broken = torch.tensor(found["image"], dtype=torch.float64)
    assert float((broken - x).abs().max()) <= 0.02
    assert float(broken.min()) >= 0 and float(broken.max()) <= 1
    tops = [set(net.cam(i, 7).flatten().topk(3).indices.tolist()) for i in (x, broken)]
    assert tops[0] != tops[1]


def test_class_clip_and_time_limit_reach_the_question(corgi):
    found = only_json(
        corgi("verify", *QUESTION, "--eps", 0.001, "--class", 3, "--clip", "none", "--time-limit", 50, "--json")
    )
    net, x = bundled(0)
    v = co.verify(net, x, eps=0.001, k=3, class_idx=3, clip=None)
    assert (found["asked"]["class_idx"], found["status"]) == (3, v.status)
    assert found["margin_lower"] == pytest.approx(v.margin_lower, rel=1e-9)


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


def k_of(found: dict[str, Any]) -> int:
    return found["asked"]["property"]["k"]


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
    ran = corgi("compare", "digits", "--image", "0", "--k", "2,3", "--eps", "0.001,0.002", "--methods", "corgi,bab")
    assert (ran.code, ran.err) == (0, "")
    for k, eps in (("2", "0.001"), ("2", "0.002"), ("3", "0.001"), ("3", "0.002")):
        assert f"top-{k} set of the CAM of class 7, eps={eps}" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.split()[:1] in (["corgi"], ["bab"])]
    assert len(rows) == 8 and all(float(row[1]) <= float(row[2]) for row in rows)
    bad = corgi("compare", "digits", "--image", "0", "--k", "two")
    assert bad.code == 3 and "--k must be a number" in bad.err


# --- demo ------------------------------------------------------------------------------------------------------


def test_demo_prints_a_table_that_fits_and_saves_a_picture(corgi, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    picture = tmp_path / "new" / "demo.png"
    ran = corgi("demo", "--picture", picture)
    assert (ran.code, ran.err) == (0, "")
    rows = re.findall(r"^(\d+) \(a (\d)\) +(\d+) +([\d. ]+)$", ran.out, re.M)
    assert [(int(i), int(k)) for i, _, k, _ in rows] == [(i, k) for i in range(4) for k in (1, 3, 5)]
    for _, _, _, cells in rows:
        corgi_eps, crown, lp, milp, attack, gain, gap = map(float, cells.split())
        assert corgi_eps < crown <= lp <= milp <= attack  # to three digits
        assert gain == pytest.approx(milp / corgi_eps, rel=0.01)
        assert gap == pytest.approx(attack / milp, rel=0.01)
    table = ran.out[ran.out.index("image ") : ran.out.index("certified: proven")]
    times = re.findall(r"^ +((?:[\d.]+ s *){5})$", table, re.M)
    assert len(times) == len(rows)
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in ran.out
    assert f"Picture: {picture}" in ran.out
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- models and images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["my_models.py:build", "{folder}/my_models.py:build", "my_package.nets:build"])
def test_a_model_is_named_by_file_or_by_module(corgi, models, form):
    x = image(1, 6, 6)
    np.save("x.npy", x.numpy())
    ran = corgi("verify", form.format(folder=models), "--image", "x.npy", "--eps", 0.001, "--k", 2, "--json")
    namespace: dict[str, Any] = {"__name__": "same"}
    sys.path.insert(0, "")
    try:
        exec(MODELS, namespace)
    finally:
        sys.path.remove("")
    v = co.verify(co.from_torch(namespace["build"](), x), x, eps=0.001, k=2)
    found = only_json(ran)
    assert found["status"] == v.status
    assert found["margin_lower"] == pytest.approx(v.margin_lower, rel=1e-9)


def test_a_model_file_takes_no_other_modules_place(corgi, models):
    (models / "json.py").write_text((models / "my_models.py").read_text())
    np.save("x.npy", image(1, 6, 6).numpy())
    ran = corgi("verify", models / "json.py:build", "--image", "x.npy", "--eps", 0.001, "--k", 2, "--json")
    assert k_of(only_json(ran)) == 2
    assert sys.modules["json"] is json
    assert str(models) not in sys.path


def test_each_channel_may_have_a_box_of_its_own(corgi, models):
    x = 4 * image(3, 6, 6) - 2
    np.save("x.npy", x.numpy())
    asked = ("my_models.py:colour", "--image", "x.npy", "--k", 2, "--json")
    box = ((-2.0, -2.5, -2.0), (2.0, 2.0, 3.0))
    found = only_json(corgi("radius", *asked, "--method", "crown", "--clip", "-2,2;-2.5,2;-2,3"))
    sys.path.insert(0, str(models))
    try:
        net = co.from_torch(__import__("my_models").colour(), x)
    finally:
        sys.path.remove(str(models))
    assert found["lower"] == co.radius(net, x, k=2, method="crown", clip=box).lower > 0
    outside = corgi("radius", *asked, "--clip", "-2,2;-2,2;-1,3")
    assert (outside.code, outside.out) == (3, "") and "in channel 2, outside the clip box [-1.0, 3.0]" in outside.err


def test_what_was_done_to_an_image_is_said_beside_the_json(corgi, models):
    pillow = pytest.importorskip("PIL.Image")
    grey = (255 * image(1, 6, 6)[0, 0]).byte().numpy()
    pillow.fromarray(np.dstack([grey, np.full_like(grey, 255)]), "LA").save("x.png")
    asked = ("--image", "x.png", "--k", 2, "--eps", 0.001, "--json")
    ran = corgi("verify", "my_models.py:colour", *asked)
    assert k_of(only_json(ran)) == 2
    assert "note: x.png: its alpha channel" in ran.err and "note: the network does not take an image" in ran.err
    plain = corgi("verify", "my_models.py:build", *asked)
    assert k_of(only_json(plain)) == 2 and plain.err.count("note:") == 1


def test_an_image_of_another_size_is_refused_and_size_is_the_way_out(corgi, models):
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray((255 * image(1, 13, 12)[0, 0]).byte().numpy()).save("x.png")
    asked = ("my_models.py:fixed", "--image", "x.png", "--k", 2, "--eps", 0.001, "--json")
    ran = corgi("verify", *asked)
    assert (ran.code, ran.out) == (3, "")
    assert "the image has 1 channels and 13 x 12 pixels; --size N makes an image file N x N" in ran.err
    again = corgi("verify", *asked, "--size", 6)
    assert k_of(only_json(again)) == 2 and "12 x 13 pixels are made 6 x 6" in again.err


# --- refusals --------------------------------------------------------------------------------------------------

FILE = ("my_models.py:build", "--image", "x.npy", "--k", "2", "--eps", "0.01")


def with_model(name: str) -> tuple[str, ...]:
    return (name, *FILE[1:])


def with_image(name: str, *more: str) -> tuple[str, ...]:
    return (FILE[0], "--image", name, *FILE[3:], *more)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            with_model("my_models.py"),
            ["MODEL must be 'digits', model.onnx, model.keras, file.py:function or", "package.module:function"],
        ),
        (with_model("absent.py:build"), ["no such file", "absent.py"]),
        (with_model("my_models.py:absent"), ["my_models.py has no function 'absent'"]),
        (with_model("my_models.py:constant"), ["my_models.py has no function 'constant'"]),
        (with_model("my_models.py:a_number"), ["my_models.py:a_number returned int, not a torch.nn.Module"]),
        (with_model("no_such_package.nets:build"), ["cannot import 'no_such_package.nets'"]),
        (with_model("./my_models:build"), ["'./my_models' is neither a .py file nor a dotted module name"]),
        (with_model("my_models.py:training"), ["training mode", "call model.eval() first"]),
        (with_model("my_models.py:bent"), ["body.1", "erf is not supported", "retrain with one of them"]),
        (with_model("my_models.py:headless"), ["no CAM head"]),
        (("my_models.py:colour", "--image", "two.npy", *FILE[3:]), ["Net", "torch said", "the image has 2 channels"]),
        (with_image("absent.png"), ["no such image file: absent.png"]),
        (with_image("3"), ["an index names a bundled image", "give a file"]),
        (with_image("my_models.py"), ["cannot read my_models.py as an image"]),
        (with_image("text.npy"), ["text.npy is not a .npy array"]),
        (with_image("empty.npy"), ["empty.npy is not a .npy array"]),
        (with_image("words.npy"), ["words.npy must hold real numbers", "<U"]),
        (with_image("line.npy"), ["line.npy must have shape", "got (6,)"]),
        (with_image("x.npy", "--size", "6"), ["--size is for image files"]),
        (with_image("bright.npy"), ["outside the clip box [0.0, 1.0]", "pass clip=None"]),
        ((*FILE, "--clip", "1,0"), ["clip must be (low, high) with low < high"]),
        ((*FILE, "--clip", "0"), ["--clip must be 'low,high' or 'none', got '0'"]),
        ((*FILE, "--clip", "0,1,2"), ["--clip must be 'low,high' or 'none'"]),
        ((*FILE, "--clip", "0,1;0,1"), ["ends of 2 channels for an image of 1"]),
        ((*FILE, "--clip", "0,1;1,0;0,1"), ["(1.0, 0.0) in channel 1"]),
        ((*FILE, "--method", "gurobi"), ["unknown method 'gurobi'", "'milp'"]),
        ((*FILE, "--class", "9"), ["class_idx must be an int in 0..2, got 9"]),
        ((*FILE, "--time-limit", "0"), ["time_limit must be a positive number of seconds"]),
        ((*FILE, "--device", "gpu"), ["device 'gpu' is not usable here"]),
        ((*FILE[:-1], "-1"), ["eps must be >= 0"]),
        ((*FILE[:-1], "nan"), ["eps must be a finite number"]),
        ((*FILE[:4], "36", *FILE[5:]), ["k must be an int in 1..35"]),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line_and_exit_code_3(corgi, models, arguments, words):
    np.save("x.npy", image(1, 6, 6).numpy())
    np.save("bright.npy", 3 * image(1, 6, 6).numpy())
    np.save("line.npy", np.zeros(6))
    np.save("two.npy", image(2, 6, 6).numpy())
    np.save("words.npy", np.array([["a", "b"]]))
    Path("text.npy").write_text("not an array")
    Path("empty.npy").write_bytes(b"")
    ran = corgi("verify", *arguments)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert re.search(".*".join(map(re.escape, words)), ran.err), ran.err


@pytest.mark.parametrize("index", ["360", "-1"])
def test_an_index_beyond_the_bundled_images(corgi, index):
    ran = corgi("verify", "digits", "--image", index, "--k", 3, "--eps", 0.01)
    assert ran == (3, "", f"error: the bundled test split has images 0..359, got {index}\n")


def test_a_missing_pillow_is_named_with_the_whole_pip_command(corgi, models, monkeypatch):
    Path("x.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = corgi("verify", *with_image("x.png"))
    assert ran.code == 3
    # square brackets are markup to rich: they must come through
    assert ran.err.endswith("Run: pip install 'corgi_opt[gtsrb]'\n")


@pytest.mark.parametrize("option", ["--plot", "--picture"])
@pytest.mark.parametrize("name", ["my_models.py/picture.png", "picture.docx", "picture"])
def test_a_picture_that_cannot_be_saved_is_refused_before_the_work(corgi, models, monkeypatch, option, name):
    monkeypatch.setattr(cli, "compare", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr("corgi_opt.cli.demo.compare", lambda *_, **__: pytest.fail("work was done"))
    ran = corgi("compare", *QUESTION, option, name) if option == "--plot" else corgi("demo", option, name)
    assert ran.code == 3
    assert re.match(r"error: .*picture", ran.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", *QUESTION], "--eps"),
        (["verify", *QUESTION, "--eps", "small"], "--eps"),
        (["verify", *QUESTION, "--eps", "0.1", "--k", "2.5"], "--k"),
        (["verify", *QUESTION, "--eps", "0.1", "--size", "0"], "--size"),
        (["verify", *QUESTION, "--eps", "0.1", "--colour", "red"], "--colour"),
        (["prove", "digits"], "prove"),
        (["radius"], "model"),
    ],
)
def test_usage_errors_exit_with_3_too(corgi, arguments, words):
    ran = corgi(*arguments)
    assert (ran.code, ran.out) == (3, "")
    assert "Usage" in ran.err and words in ran.err.replace("MODEL", "model")


def test_a_crash_is_never_taken_for_falsified(corgi, models):
    np.save("x.npy", image(1, 6, 6).numpy())
    ran = corgi("verify", *with_model("my_models.py:broken"))
    assert ran.code == 3
    assert "Traceback" in ran.err and ran.err.rstrip().endswith("ZeroDivisionError: division by zero")


def test_an_interrupt_is_not_a_verdict(corgi, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "verify", interrupted)
    assert corgi("verify", *QUESTION, "--eps", 0.003).code == 130


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


SETTING = "--keep-class --class=None --norm=inf --clip=0,1 --size=None --weights=None --solver=None"
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
