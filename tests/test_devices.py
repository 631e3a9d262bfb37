"""Every method on a device that is not the CPU: on a stand-in for it, over the paths that a GPU takes, and on a GPU.

What a GPU refuses the stand-in refuses (``stand_in.py``), so that a tensor left on the CPU is found without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, pixel_rows
from corgi_solvers import Cvxpy, Highs
from encoding import PATIENT, scipy_milp
from encoding import exact_setting as setting
from nets import Deep, Everything, Plain, Pooled, Residual, Small, image, seeded
from patience import mostly_slow
from small_questions import SmallQuestion, known_questions
from stand_in import DEVICE, OnDevice, StandIn
from torch import Tensor

import corgi_opt as co
from corgi_opt._checks import resolve_device
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.bounding.ascent import ascend
from corgi_opt.encode.big_m import big_m
from corgi_opt.encode.expressions import Expressions
from corgi_opt.encode.hull import hull_planes
from corgi_opt.encode.phases import PhaseBounds
from corgi_opt.problem.question import Question
from corgi_opt.search import branch as branch_module
from corgi_opt.search.atom import PartExpressions
from corgi_opt.search.branch import Branching
from corgi_opt.search.clipping import Clipped
from corgi_opt.search.counting import CountSolver
from corgi_opt.search.narrowing import Narrowing
from corgi_opt.search.premises import premises

CPU = torch.device("cpu")
NORMS = ("inf", "2", "1")

NETWORKS: dict[str, Callable[[], tuple[co.CamNetwork, Tensor]]] = {
    "pooled": lambda: built(Pooled, (1, 8, 8), 1),
    "plain": lambda: built(Plain, (1, 6, 6), 1),
    "residual": lambda: built(Residual, (1, 7, 5), 0),
    "deep": lambda: built(Deep, (1, 8, 6), 0),
    "overlapping pool": lambda: built(Pooled, (1, 9, 9), 1, kernel=3, stride=2, padding=1),
    "small": lambda: built(Small, (1, 3, 4), 7, pool=1, hidden=3, features=3),
    "everything": lambda: built(Everything, (3, 12, 11), 0),
    "apart": lambda: built(Plain, (1, 9, 9), 13),
    "planes": lambda: built(Pooled, (1, 12, 12), 3),
}


def built(model: Any, shape: tuple[int, ...], seed: int, **kwargs: int) -> tuple[co.CamNetwork, Tensor]:
    x = image(*shape, seed=seed)
    return co.from_torch(seeded(model, seed, **kwargs), x), x


@cache
def network(name: str) -> tuple[co.CamNetwork, Tensor]:
    return NETWORKS[name]()


@contextmanager
def other_device(name: str) -> Iterator[str]:
    """A device by the name that public functions take, and proof that it was worked on."""
    if name == "cuda":
        yield name
        return
    with StandIn() as device:
        yield "cuda"
    assert sum(device.calls.values()) > 20, "hardly anything ran on the device"


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


# --- the stand-in refuses what CUDA refuses ---------------------------------------------------------------------------


def with_start(whole: Tensor, start: Tensor) -> Tensor:
    copied = whole.clone()
    copied[: len(start)] = start
    return copied


REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "arithmetic": lambda there, here: there + here,
    "arithmetic the other way": lambda there, here: here * there,
    "a number of the device with a tensor of the CPU": lambda there, here: there.sum() + here,
    "products": lambda there, here: there[None] @ here[:, None],
    "in place": lambda there, here: there.add_(here),
    "concatenation": lambda there, here: torch.cat([there, here]),
    "stacking": lambda there, here: torch.stack([here, there]),
    "a choice": lambda there, here: torch.where(there > 0, there, here),
    "comparison": lambda there, here: torch.equal(there, here),
    "gathering by indices of the CPU": lambda there, here: there.gather(0, here.long()),
    "selecting by indices of the CPU": lambda there, here: there.index_select(0, here.long()),
    "a tensor of the CPU indexed by the device's": lambda there, here: here[there.long()],
    "a tensor of the CPU masked by the device's": lambda there, here: here[there > 0],
    "assigning to a mask": lambda there, here: there.__setitem__(there >= 0, here),
    "putting at indices": lambda there, here: there.index_put((there.long(),), here),
    "adding at indices": lambda there, here: there.index_add(0, here.long(), there),
    "an array": lambda there, here: there.numpy(),
    "an array by numpy": lambda there, here: __import__("numpy").asarray(there),
    "a generator of the CPU's": lambda there, here: torch.rand(3, generator=torch.Generator(), device="cuda"),
    "a gradient": lambda there, here: torch.autograd.grad(
        (there.clone().requires_grad_(True) * 2).sum(), [here.requires_grad_(True)]
    ),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a number": lambda there, here: there + 1.0,
    "a number of the CPU": lambda there, here: there * torch.tensor(2.0),
    "indices of the CPU": lambda there, here: there[here.long()],
    "a mask of the CPU": lambda there, here: there[here >= 0],
    "copying": lambda there, here: torch.empty_like(there).copy_(here),
    "assigning to a slice": lambda there, here: with_start(there, here[:2]),
    "moving": lambda there, here: there + here.to("cuda"),
    "moving to where another is": lambda there, here: there + here.to(there),
    "moving to its device": lambda there, here: there + here.to(there.device, torch.float32),
    "making": lambda there, here: torch.arange(3, device=there.device) + there,
    "making alike": lambda there, here: there.new_tensor([1.0]) + torch.zeros_like(there) + there.new_ones(3),
    "sorting": lambda there, here: there.sort().values + there.topk(3).indices,
    "unpacking": lambda there, here: (lambda a, b, c: a + b + c)(*there),
    "a gradient": lambda there, here: gradient(there),
}


def gradient(there: Tensor) -> Tensor:
    x = torch.ones_like(there).requires_grad_(True)
    windows = x.new_zeros(3)
    windows[::1] = x * there
    (found,) = torch.autograd.grad(windows.sum() + x.square().sum(), x)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses(name, device):
    with nullcontext() if device == "cuda" else StandIn():
        there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
        with pytest.raises((RuntimeError, TypeError, IndexError)):
            REFUSED[name](there, here)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_allows(name, device):
    with nullcontext() if device == "cuda" else StandIn():
        there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
        found = ALLOWED[name](there, here)
        assert found.device == DEVICE and found.is_cuda
        assert found.cpu().device.type == "cpu" and not isinstance(found.cpu(), OnDevice)
        assert found.cpu().numpy().size in (1, 3)


# --- every method answers there as it does on the CPU -----------------------------------------------------------------

QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{method} of {name}": (name, {"eps": eps, "k": k, "method": method})
        for name, eps, k in (("small", 0.069, 2),)
        for method in ("ibp", "corgi", "crown", "dual", "lp", "milp", "bab", "auto")
    },
    "dual of pooled": ("pooled", {"eps": 0.037, "k": 1, "method": "dual"}),
    **{
        f"bab of {name}": (name, {"eps": eps, "k": k, "method": "bab"})
        for name, eps, k in (
            ("pooled", 0.037, 1),
            ("residual", 0.02, 2),
            ("deep", 0.01, 2),
            ("overlapping pool", 0.004, 2),
        )
    },
    **{
        f"{method} where pixels share no input": ("apart", {"eps": 0.015194, "k": 1, "method": method})
        for method in ("dual", "milp", "bab")
    },
    **{
        f"{method} where a pool has planes": ("planes", {"eps": 0.029639, "k": 1, "method": method})
        for method in ("dual", "lp", "bab")
    },
    "a counterexample of the tree's": ("pooled", {"eps": 0.0399, "k": 1, "method": "bab"}),
    "bab in L1": ("small", {"eps": 0.2, "k": 2, "norm": "1", "method": "bab"}),
    "bab in L2": ("small", {"eps": 0.15, "k": 2, "norm": "2", "method": "bab"}),
    "milp in L1": ("small", {"eps": 0.2, "k": 2, "norm": "1", "method": "milp"}),
    "lp in L2": ("small", {"eps": 0.15, "k": 2, "norm": "2", "method": "lp"}),
    "without a clip box": ("small", {"eps": 0.069, "k": 2, "clip": None}),
    "within": ("pooled", {"eps": 0.05, "k": 2, "within": 4}),
    "within, counted": ("small", {"eps": 0.12, "k": 1, "within": 2, "method": "milp"}),
    "keeping the class": ("pooled", {"eps": 0.05, "k": 1, "keep_class": True}),
    "a checked proof": ("small", {"eps": 0.069, "k": 2, "proof": "checked"}),
}


def require_alike(found: Any, known: Any) -> None:
    """Floats of another device may be rounded another way."""
    assert found.status == known.status
    assert (found.proof, found.method) == (known.proof, known.method)
    scale = abs(known.margin_upper) + abs(known.margin_lower)
    if known.status != "certified" or known.method not in ("bab", "milp"):  # a search stops above zero, where it does
        assert found.margin_lower == pytest.approx(known.margin_lower, rel=1e-3, abs=1e-4 * scale)
    assert found.corgi_margin == pytest.approx(known.corgi_margin, rel=1e-6, abs=1e-9)


OFTEN = (
    *(f"{method} of small" for method in ("corgi", "dual", "lp", "milp", "bab")),
    *("dual of pooled", "bab of residual", "a counterexample of the tree's", "within", "bab in L2", "milp in L1"),
    *("bab where pixels share no input", "bab where a pool has planes", "keeping the class", "a checked proof"),
)
"""One of each kind."""


@pytest.mark.parametrize("question", mostly_slow(QUESTIONS, OFTEN))
def test_verify(question, device):
    name, asked = QUESTIONS[question]
    net, x = network(name)
    known = co.verify(net, x, device="cpu", **asked)
    with other_device(device) as there:
        found = co.verify(net, x, device=there, **asked)
    require_alike(found, known)


RADII = mostly_slow([("small", 2, "dual"), ("small", 2, "milp"), ("apart", 3, "auto")], [("small", 2, "milp")])


@pytest.mark.parametrize(("name", "k", "method"), RADII)
def test_radius(name, k, method, device):
    net, x = network(name)
    known = co.radius(net, x, k=k, method=method, rtol=0.02, device="cpu")
    with other_device(device) as there:
        found = co.radius(net, x, k=k, method=method, rtol=0.02, device=there)
        certificate = found.prove()
    assert found.lower == pytest.approx(known.lower, rel=0.04)
    assert found.upper == pytest.approx(known.upper, rel=0.04)
    assert certificate.claim.region.eps == found.lower


COMPARED = [["corgi", "dual", "bab"], ["corgi", "dual", "lp", "bab"]]


@pytest.mark.parametrize("methods", mostly_slow(COMPARED, COMPARED[:1]))
def test_compare(methods, device):
    net, x = network("small")
    known = co.compare(net, x, k=2, methods=methods, device="cpu")
    margins = co.compare(net, x, k=2, eps=0.069, methods=methods, device="cpu").only
    with other_device(device) as there:
        found = co.compare(net, x, k=2, methods=methods, device=there)
        there_margins = co.compare(net, x, k=2, eps=0.069, methods=methods, device=there).only
    for method in methods:
        assert found.radii[method].lower == pytest.approx(known.radii[method].lower, rel=0.02)
        assert there_margins.lower(method) == pytest.approx(margins.lower(method), rel=0.05, abs=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_attack(norm, device):
    net, x = network("pooled")
    eps = {"inf": 0.05, "2": 0.3, "1": 1.5}[norm]
    questions: list[dict[str, Any]] = [{"k": 1}, {"k": 1, "keep_class": True}, {"k": 2, "within": 4}]
    for options in (None, co.PgdOptions(rows=4, restarts=2)):
        for asked in questions:
            known = co.attack(net, x, eps=eps, norm=norm, device="cpu", options=options, **asked)
            with other_device(device) as there:
                found = co.attack(net, x, eps=eps, norm=norm, device=there, options=options, **asked)
            assert (found is None) == (known is None)


@pytest.mark.parametrize("method", ["ibp", "corgi", "crown", "dual"])
def test_heat_map(method, device):
    for name, eps in (("pooled", 0.01), ("small", 0.03))[method == "dual" :]:
        net, x = network(name)
        known = co.heat_map(net, x, eps=eps, k=2, method=method, device="cpu")
        with other_device(device) as there:
            found = co.heat_map(net, x, eps=eps, k=2, method=method, device=there)
        torch.testing.assert_close(found.lower, known.lower, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.best, known.best) and torch.equal(found.worst, known.worst)
        assert found.lower.device.type == "cpu"


BOUNDED = [
    *(
        (name, m, norm)
        for name in ("everything", "deep", "overlapping pool")
        for m in ("ibp", "crown")
        for norm in NORMS
    ),
    *(("small", "dual", norm) for norm in NORMS),
]


@pytest.mark.parametrize(
    ("name", "method", "norm"),
    mostly_slow(
        BOUNDED,
        [
            ("everything", "ibp", "inf"),
            ("overlapping pool", "crown", "1"),
            ("deep", "crown", "2"),
            ("small", "dual", "2"),
        ],
    ),
)
def test_bounds(name, method, norm, device):
    net, x = network(name)
    share = {"inf": 1, "2": 3, "1": 8}[norm] * (20 if name == "small" else 1)
    balls = [co.Ball(x, eps * share, norm) for eps in (0.002, 0.004)]
    known = co.bounds(net, balls, method=method, device="cpu")
    with other_device(device) as there:
        found = co.bounds(net, balls, method=method, device=there)
    for node, bound in found.items():
        assert bound.lower.device == torch.device("cuda", 0)
        torch.testing.assert_close(bound.lower.cpu(), known[node].lower, rtol=1e-6, atol=1e-6)


def test_tight_margin_and_export(device, tmp_path):
    net, x = network("small")
    known = tight_margin(net, x, eps=0.069, k=2, device="cpu")
    with other_device(device) as there:
        found = tight_margin(net, x, eps=0.069, k=2, device=there)
        exported = co.export_mps(net, x, tmp_path / "a.mps", eps=0.069, k=2, device=there)
    assert found.margin_lower == pytest.approx(known.margin_lower, rel=0.05)
    assert exported.pair == co.export_mps(net, x, tmp_path / "b.mps", eps=0.069, k=2, device="cpu").pair


def test_auto_takes_the_device_that_there_is(monkeypatch):
    net, x = network("small")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with StandIn() as device:
        verdict = co.verify(net, x, eps=0.069, k=2)
    assert verdict.status == "certified" and device.calls["addmm_"] > 0


def test_a_network_is_moved_to_the_device_once(monkeypatch):
    """By whatever name the device is called: "cuda" is where "cuda:0" is."""
    net, x = built(Small, (1, 3, 4), 7, pool=1, hidden=3, features=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with StandIn():
        for name in ("auto", "cuda", torch.device("cuda"), "cuda:0"):
            assert resolve_device(name) == DEVICE
            co.verify(net, x, eps=0.069, k=2, device=name)
    there = [(dtype, device) for dtype, device in net._moved if device.type == "cuda"]
    assert sorted(map(str, there)) == sorted(map(str, [(torch.float32, DEVICE), (torch.float64, DEVICE)]))


def test_a_gpu_that_is_there_and_does_not_work_is_an_error(monkeypatch):
    net, x = network("small")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if torch.backends.cuda.is_built():
        pytest.skip("this build of torch has CUDA")
    with pytest.raises(co.InputError, match=r"device 'auto' is not usable here .*; use 'cpu'"):
        co.verify(net, x, eps=0.069, k=2)
    assert co.verify(net, x, eps=0.069, k=2, device="cpu").status == "certified"


def test_an_image_may_be_on_the_device():
    net, x = network("small")
    with StandIn():
        found = co.verify(net, x.to("cuda"), eps=0.069, k=2, device="cpu")
        assert co.Ball(x.to("cuda"), 0.1).center.device.type == "cpu"
    assert found.status == "certified"


@cache
def small_questions() -> list[SmallQuestion]:
    return list(known_questions(58, norms=("inf", "1")))


@pytest.mark.parametrize("at", mostly_slow([28, 38, 57], [38]))
def test_what_only_a_milp_answers(at, device):
    """Rivals are counted, classes are kept."""
    question = small_questions()[at]
    net = question.network
    known = co.verify(net, question.x, device="cpu", **question.arguments)
    assert known.method == "milp"
    with other_device(device) as there:
        found = co.verify(net, question.x, device=there, **question.arguments)
    require_alike(found, known)


# --- paths that few questions take ------------------------------------------------------------------------------------


def relaxed_on(name: str, eps: float, device: str, **asked: Any) -> tuple[Question, Ladder]:
    net, x = network(name)
    about = {"class_idx": None, "norm": "inf", "clip": (0.0, 1.0), "tie_tol": None} | asked
    question = ask(net, x, **about)
    ladder = Ladder(question, eps, torch.device(device))
    ladder.bound("crown")
    return question, ladder


@pytest.mark.parametrize("most", [0, 300])
def test_the_class_in_part_and_whole(most, device, monkeypatch):
    """What is far from a pair counts with its proven largest share, which is had on the device."""
    monkeypatch.setattr("corgi_opt.search.premises.MOST_UNITS", most)

    def gaps(device: str) -> tuple[list[float], bool]:
        question, ladder = relaxed_on("pooled", 0.05, device, k=1, keep_class=True)
        assert ladder.margins.relaxed is not None
        expressions = Expressions(question.net.graph, ladder.margins.relaxed.only(0))
        found = premises(question, expressions, ladder.margins.relaxed, [0, 5], PATIENT)
        return [e.constant for e in found.expressions], found.exact

    known = gaps("cpu")
    with other_device(device) as there:
        found = gaps(there)
    assert found[1] == known[1] == (most > 0)
    assert found[0] == pytest.approx(known[0], rel=1e-9)


def test_an_ascent_in_which_some_are_decided_early(device):
    def ascended(device: str, enough: float | None) -> Tensor:
        question, ladder = relaxed_on("pooled", 0.02, device, k=1)
        net, relaxed = question.net.to(torch.float64, device), ladder.margins.relaxed
        assert relaxed is not None
        pixels = torch.arange(16, device=device)
        rows = pixel_rows(net, question.class_idx, pixels, torch.zeros_like(pixels))
        start = relaxed.bound(net.features, rows)
        return ascend(relaxed, net.features, rows, enough=float(start.median()) if enough is None else enough).cpu()

    known = ascended("cpu", None)
    assert not torch.equal(known, ascended("cpu", math.inf))
    with other_device(device) as there:
        found = ascended(there, None)
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4)


def test_rivals_are_counted(device):
    """Also those that are ahead from the start, and where the pixel falls out."""
    for eps, left in ((0.02, 1.0), (0.3, -math.inf)):

        def counted(device: str, eps: float = eps) -> Any:
            question, ladder = relaxed_on("small", eps, device, k=1, within=2)
            relaxed = ladder.margins.relaxed
            assert relaxed is not None
            parts = PartExpressions(question, Expressions(question.net.graph, relaxed.only(0)))
            rivals = question.groups.atoms_of(0).tolist()
            return next(CountSolver(question, ladder.ball, parts, Highs()).attempts(0, rivals, [], relaxed, PATIENT))

        known = counted("cpu")
        with other_device(device) as there:
            found = counted(there)
        assert (found.slack > 0) == (known.slack > 0) == (left > 0)
        assert (found.image is None) == (known.image is None) == (left > 0)


def test_a_tree_that_stops_early_says_how_low_its_open_nodes_are(device, monkeypatch):
    """And takes those first that are nearest to being closed, where memory is short."""
    _, program = setting("pooled", "inf")
    threshold = scipy_milp(big_m(program)) - 1e-4
    for most_looked_at, most_bytes in ((30_000, 2_000_000_000), (1, 2_000)):
        monkeypatch.setattr(branch_module, "MOST_LOOKED_AT", most_looked_at)
        monkeypatch.setattr("corgi_opt.search.frontier.MOST_BYTES", most_bytes)

        def lower(where: torch.device) -> float:
            tree = branch_module._Tree(program, None, threshold, Highs(), where)
            return tree.search(PATIENT, 40).lower

        known = lower(CPU)
        with other_device(device):
            assert lower(DEVICE) == pytest.approx(known, rel=1e-3, abs=1e-4)


def test_nodes_narrow_their_intervals(device):
    _, program = setting("residual", "inf")
    bounds = PhaseBounds(program, None, torch.float64, CPU)
    # between the root's bound and the lowest image that it names
    found = bounds.below_outputs(bounds.root())
    least = bounds.values(bounds.lowest(found.coefs), torch.zeros(1, dtype=torch.long))
    root = found.constants + bounds.least(found.coefs)
    threshold = float(root + 0.6 * (least - root))
    clipped = Clipped(program, hull_planes(program), threshold, np.zeros(program.units, dtype=np.int8))

    def narrowed(where: torch.device) -> tuple[float, Tensor]:
        tree = branch_module._Tree(program, clipped.planes, threshold, Highs(), where, clipped=clipped)
        tree.narrowing = Narrowing(clipped, where)
        tree.root = tree.narrowing.root(tree.root)
        nodes, bound, point = tree.bounds.ascend(tree.root, 8)
        doubt = tree.bounds.doubt(nodes, bound, point)
        after = tree.narrowing.narrowed(nodes, bound.lam[program.inputs :], doubt).nodes
        assert after.ends is not None and tree.root.ends is not None
        assert bool((after.ends != tree.root.ends).any())
        return tree.search(PATIENT, 60).lower, after.ends.cpu()

    lower, ends = narrowed(CPU)
    with other_device(device):
        again, ends_there = narrowed(DEVICE)
    assert again == pytest.approx(lower, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(ends_there, ends, rtol=1e-3, atol=1e-4)


# --- stubborn leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "norm", "planes"),
    mostly_slow(
        [("residual", "inf", True), ("pooled", "inf", False), ("residual", "1", False), ("pooled", "2", False)],
        [("residual", "inf", True), ("pooled", "2", False)],
    ),
)
def test_leaves_that_a_linear_program_leaves_open(case, norm, planes, device, monkeypatch):
    """Every node counts as settled, none is ascended and no image falls: linear programs close them, or say what to
    split them by."""
    monkeypatch.setattr("corgi_opt.encode.phases.FALLS", 0)
    for name, value in (("SETTLED", 1e9), ("STEPS", 0), ("ROOT_STEPS", 0), ("FIRST_NODES", 1 if planes else math.inf)):
        monkeypatch.setattr(branch_module, name, value)
    split, leaf = [], branch_module._Tree._leaf

    def told(*args: Any) -> Any:
        split.append(leaf(*args))
        return split[-1]

    monkeypatch.setattr(branch_module._Tree, "_leaf", told)
    _, program = setting(case, norm)
    solver = Cvxpy() if norm == "2" else Highs()
    if norm == "2":
        thresholds = [Branching(program, -math.inf, solver, CPU).run(PATIENT).upper - 1e-2]
    else:
        minimum = scipy_milp(big_m(program))
        thresholds = [minimum - 1e-3, minimum + 1e-3]
    for threshold in thresholds:
        known = Branching(program, threshold, solver, CPU, True).run(PATIENT)
        split.clear()
        with other_device(device):
            found = Branching(program, threshold, solver, DEVICE, True).run(PATIENT)
        assert [unit for unit in split if unit is not None], "no leaf was left open"
        assert (found.lower > threshold) == (known.lower > threshold)
        assert (found.upper <= threshold) == (known.upper <= threshold)
        assert found.reason == known.reason and (found.tree is None) == (known.tree is None)
