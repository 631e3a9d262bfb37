"""Whatever state torch is in, every public function answers as it does outside, and leaves the state as it was."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ambient_states import STATES, default_dtype, observed
from nets import Small, image, seeded
from patience import mostly_slow
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import corgi_opt as co
from corgi_opt import _ambient as ambient
from corgi_opt._ambient import ENTRIES, pinned, pinned_with_grad
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.data import digits
from corgi_opt.network.onnx.network import read_onnx
from corgi_opt.study.answer import answer, said_image
from corgi_opt.study.ask import Ask
from corgi_opt.study.models import ModelSource

KIND = {"pool": 1, "hidden": 3, "features": 3}
EPS, K = 0.069, 2
"""Where CROWN leaves a pair open that branch and bound certifies."""


@dataclass(frozen=True)
class Scene:
    """What a caller has before the state changes: a network that has answered nothing yet, and files."""

    model: nn.Module
    net: co.CamNetwork
    x: Tensor
    x64: Tensor
    cam: Tensor
    blank: nn.Module
    weights: Path
    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Scene:
        model, x = seeded(Small, 7, **KIND), image(1, 3, 4, seed=7)
        torch.save(seeded(Small, 5, **KIND).state_dict(), folder / "weights.pt")
        return cls(
            model,
            co.from_torch(model, x),
            x,
            x.double(),
            torch.arange(4.0).view(2, 2),
            seeded(Small, 6, **KIND),
            folder / "weights.pt",
            folder,
        )


NOTHING = torch.zeros(12)
"""As many numbers as an image of a scene has, made where nothing is unusual."""


def checked(s: Scene) -> Any:
    """A lazily made certificate, its file and what the check of it proves."""
    path = s.folder / "a.cert"
    co.verify(s.net, s.x, eps=EPS, k=K).prove().save(path)
    return path.read_bytes(), co.check_certificate(path, s.model)


def verifying(method: str) -> Callable[[Scene], Any]:
    return lambda s: co.verify(s.net, s.x, eps=EPS, k=K, method=method)


def bounding(method: str) -> Callable[[Scene], Any]:
    return lambda s: co.bounds(s.net, co.Ball(s.x, EPS), method=method)


CALLS: dict[str, Callable[[Scene], Any]] = {
    **{f"verify by {method}": verifying(method) for method in ("ibp", "corgi", "crown", "dual", "lp", "milp", "bab")},
    "verify within": lambda s: co.verify(s.net, s.x, eps=EPS, k=K, within=3),
    "verify keeping the class": lambda s: co.verify(s.net, s.x, eps=0.09, k=K, keep_class=True),
    "verify in L1": lambda s: co.verify(s.net, s.x, eps=0.2, k=K, norm="1", method="bab"),
    "verify in L2": lambda s: co.verify(s.net, s.x, eps=0.15, k=K, norm="2", method="bab"),
    "verify checked": lambda s: co.verify(s.net, s.x, eps=EPS, k=K, proof="checked"),
    "radius": lambda s: (lambda r: (r, r.prove()))(co.radius(s.net, s.x, k=K, method="crown", rtol=0.05)),
    "compare": lambda s: co.compare(s.net, s.x, k=K, methods=["corgi"], rtol=0.05).questions,
    "compare margins": lambda s: co.compare(s.net, s.x, k=K, eps=EPS, methods=["corgi"]).questions,
    "tight_margin": lambda s: tight_margin(s.net, s.x, eps=EPS, k=K, method="lp"),
    "attack": lambda s: co.attack(s.net, s.x, eps=0.09, k=K),
    "heat_map": lambda s: co.heat_map(s.net, s.x, eps=EPS, k=K),
    **{f"bounds by {method}": bounding(method) for method in ("ibp", "crown", "dual")},
    "bounds in float32": lambda s: co.bounds(s.net, co.Ball(s.x, EPS), dtype=torch.float32),
    "export_mps": lambda s: (
        co.export_mps(s.net, s.x, s.folder / "a.mps", eps=EPS, k=K).pair,
        (s.folder / "a.mps").read_text(),
    ),
    "export_vnnlib": lambda s: (
        (lambda e: (e.compared, e.image(s.x, NOTHING)))(co.export_vnnlib(s.net, s.x, s.folder / "b", eps=EPS, k=K)),
        [path.read_bytes() for path in sorted((s.folder / "b").iterdir())],
    ),
    "plot_cam": lambda s: np.asarray(co.plot_cam(s.net, s.x).images[0].get_array()),
    "from_torch": lambda s: co.from_torch(s.model, s.x).model_cam(s.x, 0),
    "check_model": lambda s: co.check_model(s.model, s.x),
    "certificate and its check": checked,
    "load_weights": lambda s: dict(co.load_weights(s.blank, s.weights).named_parameters()),
    "CamNetwork.to": lambda s: s.net.to(torch.float32).weight,
    "CamNetwork.image": lambda s: s.net.image(s.x),
    "CamNetwork.class_index": lambda s: s.net.class_index(s.x, None),
    "CamNetwork.logits": lambda s: s.net.logits(s.x),
    "CamNetwork.cam": lambda s: s.net.cam(s.x),
    "CamNetwork.cams": lambda s: s.net.cams(s.x, 0),
    "CamNetwork.outputs": lambda s: s.net.outputs(s.x),
    "CamNetwork.model_cam": lambda s: s.net.model_cam(s.x, 0),
    "CamNetwork.model_logits": lambda s: s.net.model_logits(s.x),
    "LayerGraph.forward": lambda s: s.net.graph.forward(s.x64),
    "LayerGraph.values": lambda s: s.net.graph.values(s.x64),
    "LayerGraph.to": lambda s: s.net.graph.to(torch.float32).forward(s.x),
    "Ball": lambda s: (
        lambda b: (b.center, b.lower, b.upper, b.project(s.x64), replace(b, eps=0.5).eps, b.contains(s.x))
    )(co.Ball(s.x, EPS)),
    "digits": lambda _: (*digits.load_digits(), *digits.digits_split(), dict(digits.digits_model().named_parameters())),
}
"""Under the name of what is called."""

TIMES = {"stats", "seconds", "prover", "dtype"}
"""Fields of answers that say how long it took, or make a proof when asked."""


def said(value: Any) -> Any:
    """An answer as plain values that compare exactly, NaN included; every tensor must be an ordinary one."""
    if isinstance(value, Tensor):
        assert type(value) in (Tensor, nn.Parameter) and not value.is_inference() and value.device.type == "cpu"
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: said(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in TIMES}
    if isinstance(value, Mapping):
        return {key: said(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [said(v) for v in value]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return value if isinstance(value, int | str | bytes) else repr(value)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What every call says where nothing is unusual."""
    scene = Scene.at(tmp_path_factory.mktemp("outside"))
    return {name: said(call(scene)) for name, call in CALLS.items()}


OFTEN = [
    ("several at once", 1),
    *((state, 5) for state in ("default dtype float64", "default device", "inference mode", "fake tensors")),
]
"""States that are not like another one here, nor rare, and how many calls are gone through for each that is made. What
every state is inside is asked of the guard itself."""


@pytest.mark.parametrize(("state", "step"), mostly_slow([*OFTEN[1:], *((state, 1) for state in STATES)], OFTEN))
def test_every_answer_is_what_it_is_outside(state, step, outside, tmp_path):
    scene, usual, found = Scene.at(tmp_path), observed(), {}
    with STATES[state]():
        before = observed()
        for name, call in [*CALLS.items()][::step]:
            try:
                found[name] = call(scene)
            except Exception as error:
                found[name] = error
            assert observed() == before, name
    assert observed() == usual
    wrong = {name: answer for name, answer in found.items() if said(answer) != outside[name]}
    assert wrong == {}


def test_the_states_are_unusual():
    usual = observed()
    seen = {}
    for name, state in STATES.items():
        with state():
            seen[name] = {key: value for key, value in observed().items() if value != usual[key]}
    assert [name for name, difference in seen.items() if not difference] == ["enable_grad"]
    assert observed() == usual


@pytest.mark.parametrize("state", ["default dtype float64", "default device", "inference mode", "several at once"])
@pytest.mark.parametrize(
    ("module", "name"), [("corgi_opt.bounding.crown", "propagate"), ("corgi_opt.search.decide", "Branching")]
)
def test_a_call_that_fails_spoils_nothing(module, name, state, outside, tmp_path, monkeypatch):
    """It fails in the middle, when its graphs have been moved to a device and a precision and are kept for reuse."""
    scene = Scene.at(tmp_path)

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError("in the middle")

    with STATES[state]():
        before = observed()
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], name, failing)
            with pytest.raises(OSError, match="in the middle"):
                CALLS["verify by bab"](scene)
        assert observed() == before
    for call in ("verify by bab", "heat_map", "bounds in float32", "CamNetwork.cams"):
        assert said(CALLS[call](scene)) == outside[call], call


def of_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", [of_inference, lambda x: x.clone().requires_grad_(True), lambda x: nn.Parameter(x)])
def test_an_image_may_come_from_anywhere(made, dtype, outside, tmp_path):
    """From inference mode, or with a gradient: one cannot be differentiated, the other must not be."""
    scene = Scene.at(tmp_path)
    given = dataclasses.replace(scene, x=made(scene.x.to(dtype)))
    for call in ("verify by bab", "attack", "heat_map", "radius", "CamNetwork.image", "CamNetwork.logits", "Ball"):
        assert said(CALLS[call](given)) == outside[call], call
    assert given.x.grad is None


def test_a_network_may_be_built_in_inference_mode(tmp_path, outside):
    scene = Scene.at(tmp_path)
    with torch.inference_mode():
        net = co.from_torch(scene.model, scene.x)
    given = dataclasses.replace(scene, net=net, x=scene.x.clone())
    for call in ("verify by bab", "attack", "radius"):
        assert said(CALLS[call](given)) == outside[call], call


def test_what_holds_no_values_is_refused(tmp_path):
    scene = Scene.at(tmp_path)
    with FakeTensorMode():
        fake = torch.rand(1, 1, 3, 4)
    for call in (
        lambda: co.verify(scene.net, fake, eps=EPS, k=K),
        lambda: co.radius(scene.net, x=fake, k=K),
        lambda: co.from_torch(scene.model, fake),
        lambda: co.Ball(fake, EPS),
    ):
        with pytest.raises(co.InputError, match="FakeTensor holds no values"):
            call()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("within", [torch.func.grad, torch.vmap, lambda f: torch.jit.trace(f, torch.zeros(1))])
def test_where_tensors_stand_for_others_it_says_so(within, tmp_path):
    scene = Scene.at(tmp_path)

    def traced(scale: Tensor) -> Tensor:
        return scale.sum() * co.verify(scene.net, scene.x, eps=EPS, k=K).margin_lower

    with pytest.raises(co.InputError, match="call it outside"):
        within(traced)(torch.ones(1))


def test_a_compiled_function_may_ask(tmp_path, outside):
    scene = Scene.at(tmp_path)

    @torch.compile(backend="eager")
    def compiled(x: Tensor) -> tuple[Tensor, Any]:
        return x + 1, CALLS["verify by bab"](scene)

    moved, verdict = compiled(scene.x)
    assert torch.equal(moved, scene.x + 1)
    assert said(verdict) == outside["verify by bab"]


def test_cams_are_differentiable_where_the_caller_differentiates(tmp_path):
    scene = Scene.at(tmp_path)
    x = scene.x.clone().requires_grad_(True)
    single = scene.net.graph.to(torch.float32)
    calls: list[Callable[[], Tensor]] = [
        lambda: scene.net.cams(x, 0),
        lambda: scene.net.outputs(x)[1],
        lambda: single.forward(x),
    ]
    for call in calls:
        with default_dtype(torch.float64), torch.autocast("cpu", torch.bfloat16):
            found = call()
        assert found.requires_grad and found.dtype == torch.float32
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert float(gradient.abs().sum()) > 0
        with torch.no_grad():
            assert not call().requires_grad
    assert not scene.net.logits(x).requires_grad


# --- the guard itself ------------------------------------------------------------------------------------------------


@pinned
def inner() -> dict[str, Any]:
    return observed()


@pinned
def outer() -> dict[str, Any]:
    inner()
    return observed()


@pinned
def wrong() -> None:
    inner()
    raise KeyboardInterrupt


@pytest.mark.parametrize("state", STATES)
def test_the_state_is_the_same_inside_whatever_it_is_outside(state):
    usual = outer()
    assert not usual["grad"] and not usual["inference"] and not usual["autocast"] and not usual["flushed"]
    assert usual["dtype"] == torch.float32 and usual["device"] == torch.device("cpu") and usual["products"] == "highest"
    with STATES[state]():
        before = observed()
        assert outer() == usual
        assert observed() == before
        with pytest.raises(KeyboardInterrupt):
            wrong()
        assert observed() == before


def test_torch_finds_its_settings_contradictory():
    """Both names of one setting, used against each other: torch refuses to say what it is; it is left as it is."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this version of torch has one name only")
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        assert matmul.fp32_precision == "tf32"
        assert outer is not None and inner_precision() == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before
        matmul.fp32_precision = "none"


@pinned
def inner_precision() -> str:
    return str(torch.backends.cuda.matmul.fp32_precision)


def test_calls_overlap_in_threads():
    """The state of the process is put back by whoever is last, and holds until then."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    @pinned
    def waiting() -> None:
        entered.set()
        assert leave.wait(60)
        seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        thread = threading.Thread(target=waiting)
        thread.start()
        assert entered.wait(60)
        assert inner()["dtype"] == torch.float32  # a shorter call in this thread comes and goes
        torch.set_default_dtype(torch.float16)
        assert inner()["dtype"] == torch.float32  # also where somebody has changed it meanwhile
        leave.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
    assert ambient._process._inside == 0 and not ambient._process._before


PLAIN = {
    co.Compared: "drawn, printed or laid out in a table",
    co.Comparison: "drawn, printed or laid out in a table",
    co.HeatMap: "masks of what has been computed, and drawn",
    co.Witness: "printed and drawn",
    co.Interval: "two tensors, compared and met",
    co.PgdOptions: "numbers",
    co.Certificate: "arrays and files, without torch",
    co.Checked: "numbers",
    co.Exported: "numbers",
    co.Unsupported: "words",
    co.ModelCheck: "words and counts, printed",
}
"""Public classes whose methods do no arithmetic that a state of torch could change."""

SMALL = {
    (co.Verdict, "plot"),
    (co.Radius, "plot"),
    (co.Radius, "ratio"),
    (co.Radius, "seconds"),
    *((co.Verdict, name) for name in ("certified", "falsified", "unknown", "seconds")),
    (co.CamNetwork, "input_shape"),
    (co.CamNetwork, "map_shape"),
    (co.CamNetwork, "classes"),
    (co.CamNetwork, "model"),
    (co.CamNetwork, "note"),
    (co.CamNetwork, "curved"),
    (co.Ball, "box"),
    (co.Radius, "corgi_cut_off"),
    (co.Radius, "corgi_in_words"),
    (co.Verdict, "corgi_in_words"),
    (co.Verdict, "certificate"),
    (co.LayerGraph, "consumers"),
    (co.LayerGraph, "ancestors"),
    (co.LayerGraph, "to_networkx"),
    *(
        (what, name)
        for what in (co.TopK, co.KeepsClass)
        for name in ("__post_init__", "short", "in_words", "rank", "outlined")
    ),
}
"""Methods of other classes that do none either."""


def entries(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods and properties that a class adds, and what runs when it is made or called."""
    for name, member in vars(cls).items():
        for kind, part in ((property, "fget"), (cached_property, "func"), ((classmethod, staticmethod), "__func__")):
            if isinstance(member, kind):
                member = getattr(member, part)
        if inspect.isfunction(member) and (not name.startswith("_") or name in ("__post_init__", "__call__")):
            yield name, member


@pytest.mark.parametrize("name", co.__all__)
def test_every_public_name_is_pinned(name):
    """A new public function without the guard fails here."""
    public = getattr(co, name)
    if inspect.isclass(public):
        if issubclass(public, BaseException) or public in PLAIN:
            return
        open_ = [n for n, f in entries(public) if f not in ENTRIES and (public, n) not in SMALL]
        assert open_ == [], f"{name} has entries without @pinned"
    else:
        assert public in ENTRIES, f"{name} needs @pinned (corgi_opt/_ambient.py)"


def test_a_function_without_the_guard_is_seen():
    class Public:
        def method(self) -> None: ...

        @property
        @pinned
        def guarded(self) -> None: ...

        @cached_property
        @pinned_with_grad
        def kept(self) -> None: ...

        @classmethod
        def made(cls) -> None: ...

        def _private(self) -> None: ...

    assert [n for n, f in entries(Public) if f not in ENTRIES] == ["method", "made"]


@pytest.mark.parametrize(
    "function",
    [tight_margin, digits.load_digits, digits.digits_split, digits.digits_model, read_onnx],
    ids=lambda f: f.__name__,
)
def test_what_is_public_elsewhere_is_pinned(function):
    assert function in ENTRIES


# --- a study's cell: the file of a model may change the state of its process -----------------------------------------

FILE = """
import torch
from nets import Small, seeded

def build():
    torch.set_default_dtype(torch.float32)
    net = seeded(Small, 7, pool=1, hidden=3, features=3)
    torch.set_default_dtype({dtype})
    torch.use_deterministic_algorithms({deterministic})
    return net
"""


def test_a_cell_of_a_study(tmp_path):
    found, x = [], image(1, 3, 4, seed=7).double()
    for name, dtype, deterministic in (("usual", "torch.float32", False), ("unusual", "torch.float64", True)):
        path = tmp_path / f"{name}.py"
        path.write_text(FILE.format(dtype=dtype, deterministic=deterministic))
        ask = Ask(kind="verify", k=K, method="bab", eps=EPS)
        with default_dtype(torch.float32):
            try:
                model = ModelSource(f"{path}:build", None).sourced(name)
                task = {
                    "ask": ask.plain(),
                    "image": said_image(x),
                    "model": {"name": name, **dataclasses.asdict(model.source), "sha256": model.sha256},
                    "device": "cpu",
                }
                found.append({k: v for k, v in answer(task).items() if k != "seconds"})
            finally:
                torch.use_deterministic_algorithms(False)
    assert found[0] == found[1] and found[0]["status"] == "certified"
