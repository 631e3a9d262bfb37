"""Every way to name a model and an image, and what the command line says of what it cannot answer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import MODELS, QUESTION, k_of, only_json
from nets import image

import corgi_opt as co
from corgi_opt.cli import main as cli

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
        ((*FILE, "--norm", "L3"), ["norm must be 'inf', '2' or '1', got 'L3'"]),
        ((*FILE, "--norm", "2", "--method", "milp"), ["method 'milp' answers norm 'inf' and '1', not '2'"]),
        ((*FILE, "--within", "1"), ["within"]),
        ((*FILE, "--property", "KeepsClass"), ["k and within are the short form", "give one or the other"]),
        ((*FILE[:3], "--eps", "0.1"), ["say what is asked: k=15"]),
        ((*FILE[:3], "--eps", "0.1", "--property", "Keeps"), ["Keeps", "TopK"]),
        ((*FILE[:3], "--eps", "0.1", "--property", "{broken"), ["property"]),
        ((*FILE, "--solver", "cplexx"), ["cplexx"]),
        ((*FILE, "--solver", "cvxpy:clarabel", "--method", "milp"), ["does not take MILPs"]),
        ((*FILE, "--seed", "-1"), ["seed must be an int in 0..", "got -1"]),
        ((*FILE, "--weights", "absent.pt"), ["no such file: absent.pt"]),
        ((*FILE, "--weights", "x.npy"), ["weights are read from .safetensors, .pt or .pth files"]),
        (
            (*FILE, "--weights", "other.pt"),
            ["other.pt are not this model's", "4 missing", "1 not in the model"],
        ),
        (("absent.onnx", *FILE[1:]), ["absent.onnx"]),
        (("absent.keras", *FILE[1:]), ["absent.keras"]),
        (("x.onnx", *FILE[1:]), ["x.onnx"]),
        (("x.keras", *FILE[1:]), ["x.keras"]),
        (("absent.onnx", *FILE[1:], "--weights", "other.pt"), ["absent.onnx holds its own weights"]),
        (with_image("arrays.npz"), ["arrays.npz may hold several arrays", "np.save"]),
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
    np.savez("arrays.npz", np.zeros(3))
    torch.save({"elsewhere": torch.zeros(1)}, "other.pt")
    Path("x.onnx").write_text("not a model")
    Path("x.keras").write_text("not a model")
    ran = corgi("verify", *arguments)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert re.search(".*".join(map(re.escape, words)), ran.err), ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("radius", *QUESTION, "--rtol", "0"), "rtol must be a number between 0 and 1"),
        (("radius", *QUESTION, "--rtol", "1"), "rtol must be a number between 0 and 1"),
        (("radius", *QUESTION, "--method", "exact"), "unknown method 'exact'"),
        (("compare", *QUESTION, "--methods", "corgi,exact"), "unknown method 'exact'"),
        (("compare", *QUESTION, "--methods", ","), "methods must be a non-empty sequence"),
        (("compare", *QUESTION, "--rtol", "2"), "rtol must be a number between 0 and 1"),
        (("compare", *QUESTION, "--eps", "1/0"), "--eps must be a number, or several with commas between, got '1/0'"),
        (("compare", *QUESTION, "--eps", "0.1,"), "--eps must be a number, or several with commas between"),
        (("compare", *QUESTION, "--eps", "-1"), "eps must be >= 0"),
        (("compare", *QUESTION, "--k", "64"), "k must be an int in 1..63"),
        (("check", "absent.cert", "--model", "digits"), "no certificate can be read from 'absent.cert'"),
        (("check", "my_models.py", "--model", "digits"), "certificate"),
        (("study", "run", "absent.toml"), "no plan can be read from 'absent.toml'"),
        (("study", "run", "my_models.py"), "a plan must be a .toml file, file.py:function or package.module:function"),
        (("study", "run", "bad.toml"), "bad.toml is not TOML"),
        (("study", "run", "empty.toml"), "a plan needs a name"),
        (("study", "report", "absent.toml"), "absent"),
        (("study", "export", "absent.toml", "out.csv"), "absent"),
    ],
)
def test_what_other_commands_cannot_answer_is_one_clear_line_too(corgi, models, arguments, words):
    Path("bad.toml").write_text("name = ")
    Path("empty.toml").write_text("")
    ran = corgi(*arguments)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert words in ran.err


@pytest.mark.parametrize("index", ["1797", "-1"])
def test_an_index_beyond_the_bundled_images(corgi, index):
    ran = corgi("verify", "digits", "--image", index, "--k", 3, "--eps", 0.01)
    assert ran == (3, "", f"error: the bundled digits are images 0..1796, got {index}\n")


def test_a_missing_pillow_is_named_with_the_whole_pip_command(corgi, models, monkeypatch):
    Path("x.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = corgi("verify", *with_image("x.png"))
    assert ran.code == 3
    # square brackets are markup to rich: they must come through
    assert ran.err.endswith("Run: pip install 'corgi_opt[gtsrb]'\n")


WRITERS = {
    "--plot": ("compare", *QUESTION),
    "--picture": ("demo",),
    "--certificate": ("verify", *QUESTION, "--eps", "0.001"),
}


@pytest.fixture
def idle(monkeypatch):
    """No command does any work."""
    for where in ("main.compare", "main.verify", "demo.compare"):
        monkeypatch.setattr(f"corgi_opt.cli.{where}", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr("corgi_opt.cli.options.load", lambda *_, **__: pytest.fail("a model was read"))


@pytest.mark.parametrize("option", WRITERS)
@pytest.mark.parametrize("name", ["my_models.py/picture.png", "folder.png", f"{'long' * 100}.png"])
def test_what_cannot_be_written_is_refused_before_the_work(corgi, models, idle, option, name):
    (models / "folder.png").mkdir()
    ran = corgi(*WRITERS[option], option, name)
    assert (ran.code, ran.out) == (3, "") and ran.err.count("\n") == 1
    assert ran.err.startswith(f"error: cannot write '{name}': ")


@pytest.mark.parametrize("option", ["--plot", "--picture"])
@pytest.mark.parametrize("name", ["picture.docx", "picture"])
def test_a_picture_of_no_known_kind_is_refused_before_the_work(corgi, models, idle, option, name):
    ran = corgi(*WRITERS[option], option, name)
    assert ran.code == 3
    assert re.match(r"error: a picture's name must end in one of \.", ran.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", *QUESTION], "--eps"),
        (["verify", *QUESTION, "--eps", "small"], "--eps"),
        (["verify", *QUESTION, "--eps", "1/0"], "1/255"),
        (["verify", *QUESTION, "--eps", "1/2/3"], "1/255"),
        (["radius", *QUESTION, "--time-limit", "long"], "--time-limit"),
        (["check", "a.cert"], "--model"),
        (["study", "run", "plan.toml", "--workers", "0"], "--workers"),
        (["study", "paint"], "paint"),
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


MISTAKES = """
import torch
from my_models import Net

def broken():
    return 1 / 0

def quits():
    raise SystemExit(1)

def refused():
    import corgi_opt as co
    raise co.InputError("said by the package")

class Mistaken(Net):
    def forward(self, x):
        return self.hed(x)

def mistaken():
    return Mistaken(1).eval()

def by_way_of_torch():
    return torch.zeros(2).view(3)
"""


@pytest.mark.parametrize(
    ("function", "place", "line", "said"),
    [
        ("broken", "mistakes.py, line 6, in broken", "return 1 / 0", "ZeroDivisionError: division by zero"),
        ("quits", "mistakes.py, line 9, in quits", "raise SystemExit(1)", "SystemExit: 1"),
        ("mistaken", "mistakes.py, line 17, in forward", "return self.hed(x)", "AttributeError: 'Mistaken' object has"),
        (
            "by_way_of_torch",
            "mistakes.py, line 23, in by_way_of_torch",
            "return torch.zeros(2).view(3)",
            "RuntimeError:",
        ),
    ],
)
def test_a_mistake_in_the_users_file_is_five_lines(corgi, models, monkeypatch, function, place, line, said):
    np.save("x.npy", image(1, 6, 6).numpy())
    Path("mistakes.py").write_text(MISTAKES)
    asked = ("verify", *with_model(f"mistakes.py:{function}"))
    ran = corgi(*asked)
    assert (ran.code, ran.out) == (3, "")
    first, where, source, error, hint = ran.err.splitlines()
    assert first == f"error: mistakes.py:{function} failed in its own code:"
    assert (where, source) == (f"  {place}", f"    {line}") and error.startswith(f"  {said}")
    assert "CORGI_TRACEBACK=1" in hint and "Traceback" not in ran.err
    monkeypatch.setenv("CORGI_TRACEBACK", "1")
    whole = corgi(*asked)
    assert whole.code == 3 and whole.err.endswith(ran.err)
    assert "Traceback" in whole.err and f'mistakes.py", line {place.split()[2][:-1]}' in whole.err


def test_a_file_that_is_no_python_or_lacks_a_package_is_said_by_its_line(corgi, models):
    np.save("x.npy", image(1, 6, 6).numpy())
    Path("typo.py").write_text("def build():\n    return (1\n")
    Path("lacks.py").write_text("import no_such_package\n")
    for name, place, said in (
        ("typo.py:build", "  typo.py, line 2", "  SyntaxError: "),
        (
            "lacks.py:build",
            "  lacks.py, line 1, in <module>",
            "  ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("lacks:build", "  lacks.py, line 1, in <module>", "  ModuleNotFoundError: No module named 'no_such_package'"),
    ):
        ran = corgi("verify", *with_model(name))
        lines = ran.err.splitlines()
        assert (ran.code, len(lines), lines[1]) == (3, 5, place) and lines[3].startswith(said)


def test_a_mistake_in_what_a_plan_names_is_said_so_too(corgi, models):
    """The plan itself, what it imports, its images and what builds its models."""
    Path("mistakes.py").write_text("def broken():\n    return 1 / 0\n")
    Path("fails.py").write_text("1 / 0\n")
    plan = (
        'name = "a"\n{first}\n[models]\nm = "{model}"\n[images]\ni = "{images}"\n[[questions]]\nk = 2\nmethod = "ibp"\n'
    )
    usual = {"first": "", "model": "digits", "images": "digits"}
    broken, fails = "  mistakes.py, line 2, in broken", "  fails.py, line 1, in <module>"
    for changed, place in (
        ({"model": "mistakes.py:broken"}, broken),
        ({"images": "mistakes.py:broken"}, broken),
        ({"first": 'imports = ["fails.py"]'}, fails),
        ({"first": 'imports = ["fails"]'}, fails),
    ):
        Path("plan.toml").write_text(plan.format(**{**usual, **changed}))
        ran = corgi("study", "status", "plan.toml")
        lines = ran.err.splitlines()
        assert (ran.code, len(lines), lines[1]) == (3, 5, place) and "ZeroDivisionError" in lines[3]
    ran = corgi("study", "run", "mistakes.py:broken", "--out", "out")
    assert (ran.code, ran.err.splitlines()[1]) == (3, broken)


def test_an_error_of_ours_in_the_users_file_is_said_as_it_is(corgi, models):
    np.save("x.npy", image(1, 6, 6).numpy())
    Path("mistakes.py").write_text(MISTAKES)
    ran = corgi("verify", *with_model("mistakes.py:refused"))
    assert (ran.code, ran.err) == (3, "error: said by the package\n")


def test_a_crash_is_never_taken_for_falsified(corgi, monkeypatch):
    def crashes(*_: object, **__: object) -> None:
        raise IndexError("a mistake of ours")

    monkeypatch.setattr(cli, "verify", crashes)
    ran = corgi("verify", *QUESTION, "--eps", 0.003)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("Traceback") and "IndexError: a mistake of ours" in ran.err
    assert ran.err.rstrip().splitlines()[-1].endswith("/issues") and "Please report it" in ran.err
