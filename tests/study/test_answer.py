"""The answer of one cell: the public functions' own, as JSON types; and what goes wrong is a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from studies import culprits

import corgi_opt as co
from corgi_opt.data import digits
from corgi_opt.study import Plan
from corgi_opt.study.answer import answer, image_of, said_image
from corgi_opt.study.engine import task_of

QUESTIONS = {
    "radius": {"k": 2, "method": "crown", "rtol": 0.05},
    "verify": {"kind": "verify", "k": 2, "eps": 0.003, "method": "crown"},
    "margin": {"kind": "margin", "k": 2, "eps": 0.003, "method": "crown"},
}


def task(question: dict[str, object], build: str = "digits", source: str = "digits", folder=None) -> dict[str, Any]:
    plan = Plan.of(
        {
            "name": "one",
            "models": {"m": build},
            "images": {"i": {"source": source, "take": [0]}},
            "questions": [{"time_limit": 60, **question}],
        },
        *([] if folder is None else [folder]),
    )
    (cell,) = plan.cells()
    return json.loads(json.dumps(task_of(cell, 0.0, 60.0, "cpu")))


@pytest.fixture(scope="module")
def asked():
    x = digits.load_digits()[0][digits.digits_split()[1][0]][None]
    return co.from_torch(digits.digits_model(), x), x


@pytest.mark.parametrize("kind", QUESTIONS)
def test_it_is_what_the_public_functions_say(kind, asked):
    found = json.loads(json.dumps(answer(task(QUESTIONS[kind])), allow_nan=False))
    net, x = asked
    assert found["state"] == "done" and found["device"] == "cpu" and found["seconds"] > 0
    if kind == "radius":
        r = co.radius(net, x, k=2, method="crown", rtol=0.05, device="cpu")
        assert (found["lower"], found["upper"], found["corgi"], found["attack"]) == (
            r.lower,
            r.upper,
            r.corgi,
            r.attack,
        )
        assert found["status"] == ("closed" if r.upper <= 1.05 * r.lower else "open")
    else:
        v = co.verify(net, x, k=2, eps=0.003, method="crown", device="cpu")
        assert found["status"] == v.status
        assert found["lower"] <= v.margin_upper
        assert found["gap"] == v.asked.gap and found["class_idx"] == v.asked.class_idx
    assert all(name in found["versions"] for name in ("python", "torch", "highspy", "corgi_opt"))


def test_what_is_wrong_is_the_cells_reason(tmp_path):
    culprits(tmp_path)
    source = f"{tmp_path / 'culprits.py'}:images"
    found = answer(task({"k": 1, "method": "crown"}, "culprits.py:wrong", source, tmp_path))
    assert found["state"] == "failed" and "this network is wrong" in found["reason"]
    refused = answer(task({"k": 99, "method": "crown"}))
    assert refused["state"] == "failed" and refused["reason"].startswith("InputError: k must be")
    elsewhere = task(QUESTIONS["radius"]) | {"device": "magic"}
    assert answer(elsewhere)["reason"].startswith("InputError: device 'magic'")
    assert "python" in found["versions"] and found["host"] == refused["host"]


def test_another_network_than_the_one_that_was_hashed_is_no_answer():
    told = task(QUESTIONS["radius"])
    told["model"]["sha256"] = "0" * 64
    assert "builds another network" in answer(told)["reason"]


def test_images_go_through_json_to_the_bit():
    x = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0, 0, :3] = torch.tensor([5e-324, -0.0, 1 / 3], dtype=torch.float64)
    for given in (x, x.transpose(2, 3)):
        back = image_of(json.loads(json.dumps(said_image(given))))
        assert back.shape == given.shape and back.dtype == torch.float64
        assert torch.equal(back.view(torch.int64), given.contiguous().view(torch.int64))


def test_a_heat_map_is_that_of_the_public_function(asked):
    found = json.loads(json.dumps(answer(task({"kind": "heat_map", "k": 2, "eps": 0.02, "method": "crown"}))))
    net, x = asked
    drawn = co.heat_map(net, x, k=2, eps=0.02, method="crown", device="cpu")
    assert (found["state"], found["status"], found["gap"]) == ("done", "mapped", drawn.asked.gap)
    for name in ("cam", "lower", "upper", "best", "worst"):
        assert torch.equal(image_of(found["arrays"][name]), getattr(drawn, name).double())
    assert found["reason"] == f"pixels: {int(drawn.inside.sum())} in, " + (
        f"{int(drawn.outside.sum())} out, {int(drawn.undecided.sum())} undecided"
    )
