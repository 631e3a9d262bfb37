"""How much is computed at once: a budget of the device's, and fewer where its memory does not suffice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import pixel_rows
from encoding import PATIENT, Setting
from nets import Pooled, image, seeded
from stand_in import DEVICE, OnDevice, StandIn

import corgi_opt as co
from corgi_opt.bounding import budget
from corgi_opt.bounding.budget import CPU_BYTES, GPU_BYTES, SHARE, chunk_bytes, free_bytes, in_parts
from corgi_opt.bounding.dual import Rows, rows_at_once

CPU = torch.device("cpu")
DUAL, PHASES = sys.modules["corgi_opt.bounding.dual"], sys.modules["corgi_opt.encode.phases"]


def full(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


@pytest.mark.parametrize(
    ("free", "chunk"), [(80 * 10**9, GPU_BYTES), (SHARE * 10**6, 10**6), (SHARE * GPU_BYTES, GPU_BYTES), (0, 0)]
)
def test_a_gpu_gives_a_share_of_what_is_free(free, chunk):
    with StandIn(free):
        assert chunk_bytes(torch.device("cuda")) == chunk_bytes(DEVICE) == chunk
        assert chunk_bytes(CPU) == CPU_BYTES


def test_what_torch_keeps_without_using_it_is_free(monkeypatch):
    asked = []

    def saying(value: Any) -> Callable[[torch.device], Any]:
        def said(device: torch.device) -> Any:
            asked.append(device)
            return value

        return said

    for name, value in {"mem_get_info": (10, 100), "memory_reserved": 50, "memory_allocated": 20}.items():
        monkeypatch.setattr(torch.cuda, name, saying(value))
    assert free_bytes(DEVICE) == 40
    assert asked == [DEVICE] * 3


def test_other_devices_are_not_asked():
    assert chunk_bytes(torch.device("meta")) == CPU_BYTES


@pytest.mark.parametrize("device", [CPU, DEVICE])
def test_the_environment_overrides_it(device, monkeypatch):
    monkeypatch.setenv(budget.VARIABLE, "12345")
    assert chunk_bytes(device) == 12345
    monkeypatch.setenv(budget.VARIABLE, "")
    assert chunk_bytes(CPU) == CPU_BYTES


@pytest.mark.parametrize("value", ["0", "-5", "5e6", "many", "1.5", " "])
def test_an_override_that_is_no_number_of_bytes_is_refused(value, monkeypatch):
    monkeypatch.setenv(budget.VARIABLE, value)
    with pytest.raises(co.InputError, match="CORGI_CHUNK_BYTES must be a positive number of bytes, got"):
        chunk_bytes(CPU)


def test_rows_fill_the_budget_of_their_device():
    at = Setting.case("pooled")
    rows = pixel_rows(at.net, 0, torch.arange(9), torch.zeros(9, dtype=torch.int64))
    usual = rows_at_once(at.net.graph, at.net.features, rows)
    with StandIn(SHARE * 10 * CPU_BYTES):
        there = Rows.at(rows.coefs.to(DEVICE), rows.places.corners.to(DEVICE), rows.places.case.to(DEVICE))
        many = rows_at_once(at.net.graph, at.net.features, there)
    assert 10 * usual <= many < 10 * (usual + 1)


# --- where memory does not suffice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [1, 2, 3, 7, 100])
def test_parts_are_halved_until_they_fit(fits):
    tried = []

    def run(start: int, count: int) -> list[int]:
        tried.append(count)
        return list(range(start, start + count)) if count <= fits else full()

    found = in_parts(23, 16, run)
    assert [number for part in found for number in part] == list(range(23))
    assert tried[0] == 16
    assert sum(count > fits for count in tried) <= 5  # what did not fit is not tried again


def test_where_not_even_one_fits_it_is_said():
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(4, 4, full)


def test_no_rows_are_no_parts():
    assert in_parts(0, 5, full) == []
    assert in_parts(3, 0, lambda start, count: (start, count)) == [(0, 1), (1, 1), (2, 1)]


def test_what_did_not_fit_is_let_go_of_before_the_next_try(monkeypatch):
    """A traceback holds the tensors of its frames: memory is only free again when that is gone."""
    alive, seen = [], []

    class Held:
        def __init__(self) -> None:
            alive.append(self)

        def __del__(self) -> None:
            seen.append("gone")

    def run(start: int, count: int) -> int:
        held = Held()
        alive.clear()
        assert held is not None
        return count if count <= 2 else full()

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("emptied"))
    assert in_parts(4, 4, run) == [2, 2]
    assert seen[:2] == ["gone", "emptied"]


def few_at_once(most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which a pass over more rows than this runs out of memory. Returns how many each pass had."""
    passes, backward = [], DUAL.backward

    def limited(graph: Any, node: str, rows: Rows, *more: Any) -> Any:
        passes.append(len(rows))
        return backward(graph, node, rows, *more) if len(rows) <= most else full()

    for module in ("corgi_opt.bounding.dual", "corgi_opt.encode.expressions"):
        monkeypatch.setattr(sys.modules[module], "backward", limited)
    return passes


@pytest.mark.parametrize(
    ("method", "device", "most"), [("crown", "cpu", 5), ("crown", "cuda", 5), ("dual", "cpu", 30), ("dual", "cuda", 30)]
)
def test_bounds_are_the_same_with_little_memory(method, device, most, monkeypatch):
    net, ball = co.from_torch(seeded(Pooled, 1), image(1, 8, 8)), co.Ball(image(1, 8, 8), 0.02)
    whole = co.bounds(net, ball, method=method, device="cpu")
    passes = few_at_once(most, monkeypatch)
    with StandIn():
        parts = co.bounds(net, ball, method=method, device=device)
        assert isinstance(parts[net.features].lower, OnDevice) == (device == "cuda")
        for name, bound in whole.items():
            torch.testing.assert_close(parts[name].lower.cpu(), bound.lower, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(parts[name].upper.cpu(), bound.upper, rtol=1e-9, atol=1e-9)
    assert max(passes) > most and 0 < min(passes) <= most


@pytest.mark.parametrize("method", ["lp", "bab", "dual"])
def test_verdicts_are_the_same_with_little_memory(method, monkeypatch):
    net, x = co.from_torch(seeded(Pooled, 1), image(1, 8, 8)), image(1, 8, 8, seed=1)
    whole = co.verify(net, x, eps=0.037, k=1, method=method)
    monkeypatch.setattr(PHASES, "AT_ONCE", 1000)
    passes, descend = few_at_once(3, monkeypatch), PHASES.PhaseBounds._descend

    def limited(self: Any, goal: Any, lines: Any) -> Any:
        tree = sys._getframe(1).f_code.co_name == "value"
        return full() if tree and len(goal) > 7 else descend(self, goal, lines)

    monkeypatch.setattr(PHASES.PhaseBounds, "_descend", limited)
    parts = co.verify(net, x, eps=0.037, k=1, method=method)
    assert max(passes) > 3
    assert (parts.status, parts.method) == (whole.status, whole.method)
    assert parts.margin_lower == pytest.approx(whole.margin_lower, rel=1e-6)


@pytest.mark.parametrize("call", ["verify", "bounds", "heat_map"])
def test_a_device_that_is_full_is_an_error_that_says_what_to_do(call, monkeypatch):
    net, x = co.from_torch(seeded(Pooled, 1), image(1, 8, 8)), image(1, 8, 8, seed=1)
    calls: dict[str, Callable[[], object]] = {
        "verify": lambda: co.verify(net, x, eps=0.037, k=1),
        "bounds": lambda: co.bounds(net, co.Ball(x, 0.037)),
        "heat_map": lambda: co.heat_map(net, x, eps=0.037, k=1),
    }
    with monkeypatch.context() as patch:
        few_at_once(0, patch)
        with pytest.raises(co.InputError, match=r"ran out of memory \(CUDA out of memory\); pass device='cpu'"):
            calls[call]()
    calls[call]()  # and nothing is spoiled


def test_expressions_are_the_same_with_little_memory(monkeypatch):
    at = Setting.case("pooled")
    rows = pixel_rows(at.net, 0, torch.arange(9), torch.zeros(9, dtype=torch.int64))
    whole = at.expressions.of(at.net.features, rows, PATIENT)
    passes = few_at_once(2, monkeypatch)
    parts = at.expressions.of(at.net.features, rows, PATIENT)
    assert passes[:3] == [9, 4, 2]
    for mine, theirs in zip(parts, whole, strict=True):
        assert mine.constant == pytest.approx(theirs.constant, rel=1e-12)
        assert mine.columns.tolist() == theirs.columns.tolist()
