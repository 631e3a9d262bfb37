"""Whole networks from ONNX: the same answers as of the torch model that was exported, by every door."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from nets import Everything, Plain, Pooled, Residual, Small, image, seeded
from onnx import helper
from onnx_models import exported, node, proto, run, weights
from patience import diagonal, mostly_slow
from torch import nn

import corgi_opt as co
from corgi_opt.cli import main as cli
from corgi_opt.data import sources
from corgi_opt.network.onnx.module import OnnxModule
from corgi_opt.network.onnx.network import read_onnx
from corgi_opt.study.models import ModelSource, model_sha256

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


class Sized(nn.Module):
    """A head that is written by sizes, which an exporter spells out as arithmetic on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.adaptive_avg_pool2d(self.conv(x).relu(), 1)
        return self.fc(y.view(y.size(0), -1))


NETS = {
    "plain": (Plain, (1, 6, 6)),
    "small": (Small, (1, 3, 4)),
    "residual": (Residual, (1, 6, 6)),
    "pooled": (Pooled, (1, 8, 8)),
    "everything": (Everything, (3, 17, 17)),
    "sized": (Sized, (1, 5, 5)),
}


EXPORTED: list[list[Any]] = [sorted(NETS), [11, 17, 20]]


@pytest.mark.parametrize(("name", "opset"), mostly_slow(itertools.product(*EXPORTED), diagonal(*EXPORTED)))
def test_an_exported_network_is_the_network(name, opset):
    build, shape = NETS[name]
    maker: Any = build
    model, x = seeded(maker), image(*shape)
    axes = {"x": {0: "batch"}} if name == "sized" else None
    file = exported(model, x, opset, input_names=["x"], dynamic_axes=axes)
    theirs, ours = co.from_torch(model, x), co.from_onnx(file)
    assert isinstance(ours.model, OnnxModule)
    assert ours.model.origin.compared and ours.model.origin.opset == opset
    assert ours.input_shape == theirs.input_shape and ours.map_shape == theirs.map_shape
    assert torch.equal(ours.weight, theirs.weight)
    for seed in range(3):
        x = image(*shape, seed=seed).double()
        torch.testing.assert_close(ours.logits(x), theirs.logits(x), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours.cam(x), theirs.cam(x), atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(ours.logits(x).numpy(), run(file, x.float().numpy())[0][0], atol=1e-4, rtol=1e-4)


def test_answers_are_those_of_the_torch_model(tmp_path):
    model, x = seeded(Small), image(1, 3, 4).double()
    onnx.save(exported(model, x.float()), tmp_path / "m.onnx")
    ours, theirs = co.from_onnx(tmp_path / "m.onnx"), co.from_torch(model, x.float())
    a, b = (co.radius(net, x, k=1, rtol=1e-3) for net in (ours, theirs))
    assert a.lower == pytest.approx(b.lower, rel=1e-4) and a.upper == pytest.approx(b.upper, rel=1e-4)
    assert a.corgi == pytest.approx(b.corgi, rel=1e-4)
    assert co.verify(ours, x, eps=0.9 * b.lower, k=1).status == "certified"
    broken = co.verify(ours, x, eps=1.1 * b.upper, k=1)
    assert broken.status == "falsified"
    assert broken.counterexample is not None
    there = theirs.cam(broken.counterexample.image, broken.asked.class_idx)
    assert int(there.argmax()) != int(theirs.cam(x, broken.asked.class_idx).argmax())
    a.prove().save(tmp_path / "a.cert")
    assert co.check_certificate(tmp_path / "a.cert", ours).kind == "certified"
    assert co.check_certificate(tmp_path / "a.cert", read_onnx(tmp_path / "m.onnx")).kind == "certified"


def padded(pad: dict[str, Any]) -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], strides=[2, 2], **pad),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[1, 1]),
        node("Conv", ["p", "w2"], ["f"], kernel_shape=[1, 1]),
        node("Relu", ["f"], ["g"]),
        node("GlobalAveragePool", ["g"], ["m"]),
        node("Flatten", ["m"], ["v"]),
        node("MatMul", ["v", "w3"], ["s"]),
        node("Add", ["s", "b3"], ["y"]),
    ]
    return proto(nodes, weights(3, w1=(3, 1, 3, 3), b1=(3,), w2=(4, 3, 1, 1), w3=(4, 3), b3=(3,)), (1, 1, 7, 7))


@pytest.mark.parametrize("pad", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}, {"pads": [1, 1, 1, 1]}])
def test_a_graph_written_by_hand_is_read(pad):
    model = padded(pad)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (1, 3)))
    net, x = co.from_onnx(model), image(1, 7, 7)
    np.testing.assert_allclose(net.logits(x).numpy(), run(model, x.numpy())[0][0], atol=1e-5)
    assert net.bias == pytest.approx(weights(3, w1=(3, 1, 3, 3), b1=(3,), w2=(4, 3, 1, 1), w3=(4, 3), b3=(3,))["b3"])
    v = co.verify(net, x, eps=1e-4, k=2)
    assert v.status == "certified"


def test_what_the_builders_refuse_is_named_by_the_node():
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Erf", ["a"], ["squashed"]),
        node("GlobalAveragePool", ["squashed"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    model = proto(nodes, weights(0, w=(3, 1, 3, 3)), (1, 1, 6, 6), {"y": (1, 3)})
    with pytest.raises(co.UnsupportedOpError, match=r"the_squashed.*erf") as caught:
        co.from_onnx(model)
    assert co.check_model(read_onnx(model), image(1, 6, 6))[0].node == caught.value.node
    no_head = proto([node("Conv", ["x", "w"], ["y"])], weights(0, w=(3, 1, 3, 3)), (1, 1, 6, 6), {"y": (1, 3, 4, 4)})
    with pytest.raises(co.NoCamHeadError):
        co.from_onnx(no_head)


def test_an_example_must_fit():
    file = exported(seeded(Plain), image(1, 6, 6))
    assert co.from_onnx(file, image(1, 6, 6)).input_shape == (1, 6, 6)
    with pytest.raises(co.InputError, match="the example has"):
        co.from_onnx(file, image(1, 7, 7))
    wrongs: tuple[Any, ...] = (image(1, 6, 6)[0], "x", 3)
    for wrong in wrongs:
        with pytest.raises(co.InputError, match="example"):
            co.from_onnx(file, wrong)
    with pytest.raises(co.InputError, match="output must be"):
        co.from_onnx(file, output=wrongs[2])
    open_sizes = exported(seeded(Plain), image(1, 6, 6), input_names=["x"], dynamic_axes={"x": [0, 2, 3]})
    assert co.from_onnx(open_sizes, image(1, 8, 9)).input_shape == (1, 8, 9)
    assert co.from_onnx(open_sizes, input_shape=(1, 5, 4)).input_shape == (1, 5, 4)


# --- the other doors


@pytest.fixture
def corgi(monkeypatch, capsys, tmp_path):
    """Runs the console script in this process, in a folder with m.onnx, open.onnx, soft.onnx and x.npy."""
    monkeypatch.chdir(tmp_path)
    model, x = seeded(Plain, 2), image(1, 6, 6)
    onnx.save(exported(model, x), "m.onnx")
    onnx.save(exported(model, x, input_names=["x"], dynamic_axes={"x": [0, 2, 3]}), "open.onnx")
    onnx.save(exported(nn.Sequential(model, nn.Softmax(1)).eval(), x), "soft.onnx")
    np.save("x.npy", x.numpy())

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["corgi-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        said = capsys.readouterr()
        return int(exited.value.code or 0), said.out, said.err

    return called


def test_the_command_line_takes_a_file(corgi):
    x = image(1, 6, 6)
    wanted = co.radius(co.from_torch(seeded(Plain, 2), x), x, k=1)
    code, out, err = corgi("radius", "m.onnx", "--image", "x.npy", "--k", "1", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["lower"] == pytest.approx(wanted.lower, rel=1e-3)
    for name in ("m.onnx", "open.onnx"):
        eps = 0.5 * wanted.lower
        code, out, _ = corgi("verify", name, "--image", "x.npy", "--k", "1", "--eps", eps, "--certificate", "c.cert")
        assert code == 0 and "certified" in out
        assert corgi("check", "c.cert", "--model", name)[0] == 0


def test_the_command_line_names_the_class_scores(corgi):
    scores = onnx.load("soft.onnx").graph.node[-1].input[0]  # before the softmax
    named, plain = (
        corgi("radius", name, "--image", "x.npy", "--k", "1", "--json") for name in (f"soft.onnx:{scores}", "m.onnx")
    )
    assert named[0] == plain[0] == 0
    assert json.loads(named[1])["lower"] == pytest.approx(json.loads(plain[1])["lower"], rel=1e-3)


def test_the_command_line_refuses_in_one_line(corgi):
    for arguments, why in (
        (("gone.onnx",), "no such file"),
        (("m.onnx:nothing",), "no value 'nothing'"),
        (("m.onnx", "--weights", "w.pt"), "holds its own weights"),
    ):
        code, _, err = corgi("verify", *arguments, "--image", "x.npy", "--k", "1", "--eps", "0.01")
        assert code == 3 and why in " ".join(err.split()) and "Traceback" not in err


def test_the_command_line_says_what_was_not_compared(corgi, monkeypatch):
    from missing import hidden

    with hidden(monkeypatch, "onnxruntime"):
        code, _, err = corgi("verify", "m.onnx", "--image", "x.npy", "--k", "1", "--eps", "1e-5")
    assert code == 0 and "note: onnxruntime is not installed" in err


def test_names_of_files():
    assert sources.onnx_name("a/b.onnx") == ("a/b.onnx", None)
    assert sources.onnx_name("a.onnx:out:0") == ("a.onnx", "out:0")
    assert sources.onnx_name("A.ONNX") == ("A.ONNX", None)
    for other in ("digits", "a.py:onnx", "a.onnx.py:build", "onnx:build", ".onnx"):
        assert sources.onnx_name(other) is None


def test_a_study_knows_a_file_by_what_is_in_it(tmp_path, monkeypatch):
    x = image(1, 6, 6)
    onnx.save(exported(seeded(Plain, 2), x), tmp_path / "a.onnx")
    onnx.save(exported(seeded(Plain, 2), x), tmp_path / "b.onnx")
    onnx.save(exported(seeded(Plain, 3), x), tmp_path / "c.onnx")
    source = ModelSource.of("a.onnx", tmp_path, "models.m")
    assert source.build == str((tmp_path / "a.onnx").resolve())
    assert ModelSource.of("a.onnx:out", tmp_path, "models.m").build.endswith("a.onnx:out")
    a, b, c = (ModelSource.of(f"{name}.onnx", tmp_path, "models.m").sourced("m") for name in "abc")
    assert a.sha256 == b.sha256 != c.sha256
    from missing import hidden

    with hidden(monkeypatch, "onnxruntime"):  # what was compared is no part of what the network is
        assert model_sha256(source.built()) == a.sha256
    again = a.built()
    torch.testing.assert_close(again(x.double()).float(), seeded(Plain, 2)(x), atol=1e-6, rtol=1e-6)
    assert model_sha256(read_onnx(clipped(0.25))) != model_sha256(read_onnx(clipped(0.5)))


def clipped(low: float) -> onnx.ModelProto:
    shape = (1, 1, 2, 2)
    return proto([node("Clip", ["x", "low"], ["y"])], {"low": np.float32(low)}, shape, {"y": shape})


# --- published graphs, which the package onnx brings (their weights are one number, written out by the graph)

WITH_A_HEAD = ("densenet121", "inception_v2", "resnet50", "shufflenet", "squeezenet")


def light(name: str) -> tuple[Path, str | None]:
    """The file, and the value that holds the class scores."""
    path = LIGHT / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("this release of onnx brings no such graphs")
    last = onnx.load(path).graph.node[-1]
    return path, last.input[0] if last.op_type == "Softmax" else None


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_A_HEAD)
def test_published_graphs_are_read_as_onnxruntime_reads_them(name):
    path, output = light(name)
    module = read_onnx(path, output=output)
    assert module.origin.compared and module.shape == (1, 3, 224, 224)


def drawn(path: Path) -> onnx.ModelProto:
    """The graph with weights drawn at random in place of one number everywhere, so that channels differ."""
    rng, model = np.random.default_rng(0), onnx.load(path)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = [n for n in model.graph.node if n.op_type == "ConstantOfShape"]
    variances = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
    for constant in made:
        shape, name = shapes[constant.input[0]], constant.output[0]
        size = np.prod(shape[1:]) if len(shape) > 1 else 1.0
        values = rng.normal(0.1, 1.0, shape) / np.sqrt(size)
        values = np.abs(values) + 0.5 if name in variances else values
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
        model.graph.node.remove(constant)
    model.ir_version = 4  # in 3, weights had to be among the inputs
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_published_graphs_with_weights_of_their_own_are_networks(name):
    path, output = light(name)
    model = drawn(path)
    net, x = co.from_onnx(model), image(3, 224, 224)
    assert "every operation was compared" in net.note
    assert len(set(np.round(net.logits(x).tolist(), 9))) > 900, "classes differ, so that mixing them up is seen"
    assert output is not None
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    wanted = run(model, x.numpy())[-1].ravel()
    np.testing.assert_allclose(net.logits(x).numpy(), wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(("name", "why"), [("zfnet512", "LRN"), ("inception_v1", "LRN")])
def test_published_graphs_that_do_not_fit_are_refused_by_name(name, why):
    path, _ = light(name)
    with pytest.raises(co.UnsupportedOpError, match=why):
        co.from_onnx(path)


SMOOTH = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Elu": "ELU", "Selu": "ELU", "Celu": "ELU", "HardSwish": "hardswish"}


@pytest.mark.parametrize("op", [*SMOOTH, "Softplus"])
def test_smooth_activations_of_a_file_are_bounded_by_planes(op):
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node(op, ["a"], ["squashed"]),
        node("GlobalAveragePool", ["squashed"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    model, x = proto(nodes, weights(0, w=(3, 1, 3, 3)), (1, 1, 6, 6), {"y": (1, 3)}), image(1, 6, 6)
    net = co.from_onnx(model)
    assert net.curved == (f"the_squashed ({SMOOTH.get(op, 'softplus')})",)
    np.testing.assert_allclose(net.logits(x).numpy(), run(model, x.numpy())[0][0], atol=1e-5)
    assert co.verify(net, x, eps=1e-5, k=2).status == "certified"
