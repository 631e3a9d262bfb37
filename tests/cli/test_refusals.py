"""Every way to name a model and an image, and what the command line says of what it cannot answer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
