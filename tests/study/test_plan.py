"""Plans: cells are known by what they are about, and by nothing else."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Plain, Small, image, seeded
from page_code import blocks
from safetensors.torch import save_file
from studies import culprits, write_plan

import corgi_opt as co
from corgi_opt.data import digits
from corgi_opt.study import Plan, Store
from corgi_opt.study.answer import answer
from corgi_opt.study.engine import row_of, task_of
from corgi_opt.study.report import tables

QUESTION = [{"k": 1, "method": "crown"}]


def plan(**more: object) -> Plan:
    base = {"name": "p", "models": {"m": "digits"}, "images": {"t": {"source": "digits", "take": [3]}}}
    return Plan.of({**base, "questions": QUESTION, **more})


def key(**more: object) -> str:
    (cell,) = plan(**more).cells()
    return cell.key


def test_a_toml_file_expands_to_all_its_cells(tmp_path):
    culprits(tmp_path)
    path = write_plan(
        tmp_path / "p.toml",
        """
        name = "both"
        time_limit = 5
        [models]
        digits = "digits"
        own = "culprits.py:fine"
        [images.test]
        source = "digits"
        take = "0:3"
        [images.own]
        source = "culprits.py:images"
        [[questions]]
        models = "digits"
        images = ["test"]
        k = [1, 2]
        method = ["crown", "bab"]
        [[questions]]
        models = "own"
        images = "own"
        k = 1
        method = "crown"
        class_idx = "label"
        time_limit = 7
        clip = "none"
        """,
    )
    cells = Plan.load(path).cells()
    assert len(cells) == 3 * 4 + 3 == len({c.key for c in cells})
    assert {c.ask.time_limit for c in cells if c.model.name == "digits"} == {5.0}
    own = [c for c in cells if c.model.name == "own"]
    assert [c.ask.class_idx for c in own] == [0, 1, 2] and own[0].ask.clip is None and own[0].ask.time_limit == 7
    images, _ = digits.load_digits()
    _, test = digits.digits_split()
    assert torch.equal(cells[0].image.x, images[test[0]][None].double()) and cells[0].image.name == "test[0]"


def test_a_key_depends_on_contents_only(tmp_path):
    base = key()
    images, _ = digits.load_digits()
    _, test = digits.digits_split()
    assert key(name="other", images={"u": images[test[3]][None]}) == base  # the same image by another name
    assert key(models={"n": {"build": "digits"}}) == base
    assert key(questions=[{"k": 1, "method": "crown", "seed": 0}]) == base
    changed = images[test[3]][None].clone()
    changed[..., 0, 0] += 1e-7
    others = {
        key(images={"t": changed}),
        key(images={"t": images[test[3]][None].view(1, 1, 4, 16)}),
        key(questions=[{"k": 2, "method": "crown"}]),
        key(questions=[{"k": 1, "method": "crown", "time_limit": 1}]),
        key(questions=[{"k": 1, "method": "crown", "eps": 0.1}]),
        base,
    }
    assert len(others) == 6


OWN = """
import torch
from nets import Plain

class Scaled(Plain):
    scale = 1.0
    def forward(self, x):
        return super().forward(x) * self.factor

def build():
    torch.manual_seed(1)
    model = Scaled()
    model.factor = 2.0
    return model.eval()
"""


def test_a_network_is_known_by_its_weights_its_structure_and_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python takes an edit within a second for none

    def sha(text: str, weights: str | None = None) -> str:
        (tmp_path / "own.py").write_text(text)
        entry = {"build": "own.py:build", **({} if weights is None else {"weights": weights})}
        base = {"name": "p", "images": {"t": image(1, 6, 6)}, "questions": QUESTION}
        (cell,) = Plan.of({**base, "models": {"m": entry}}, tmp_path).cells()
        return cell.model.sha256

    first = sha(OWN)
    assert sha(OWN) == first == sha("# words\n" + OWN + "\nx = 1\n")  # neither where it stands nor what else is there
    state = seeded(Plain, 5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    found = {
        first,
        sha(OWN.replace("seed(1)", "seed(2)")),
        sha(OWN.replace("factor = 2.0", "factor = 3.0")),
        sha(OWN.replace("* self.factor", "+ 0 + self.factor")),
        sha(OWN.replace("Scaled()", "Scaled(channels=3)")),
        sha(OWN, "w.safetensors"),
    }
    state = {n: t.clone() for n, t in state.items()}
    next(iter(state.values())).view(-1)[0] += 1e-3
    save_file(state, tmp_path / "w.safetensors")
    found.add(sha(OWN, "w.safetensors"))
    assert len(found) == 7


def test_a_network_that_changed_is_not_built(tmp_path):
    (tmp_path / "own.py").write_text("from nets import Plain, seeded\ndef build(): return seeded(Plain, 1)\n")
    made = Plan.of(
        {"name": "p", "models": {"m": "own.py:build"}, "images": {"t": image(1, 6, 6)}, "questions": QUESTION}, tmp_path
    )
    (cell,) = made.cells()
    assert isinstance(cell.model.built(), Plain)
    (tmp_path / "own.py").write_text("from nets import Plain, seeded\ndef build(): return seeded(Plain, 33)\n")
    with pytest.raises(co.InputError, match="another network"):
        cell.model.built()


def test_the_same_question_twice_is_one_cell():
    assert len(plan(questions=QUESTION * 2).cells()) == 1
    assert len(plan(images={"t": {"source": "digits", "take": [3, 3]}}).cells()) == 1


def test_files_are_images_too(tmp_path):
    for name in ("b", "a"):
        np.save(tmp_path / f"{name}.npy", image(1, 8, 8, seed=ord(name)).numpy())
    base = {"name": "p", "models": {"m": "digits"}, "questions": QUESTION}
    cells = Plan.of({**base, "images": {"t": {"source": "*.npy"}}}, tmp_path).cells()
    assert [c.image.name for c in cells] == ["a.npy", "b.npy"]
    assert torch.equal(cells[1].image.x, image(1, 8, 8, seed=ord("b")).double())
    cells = Plan.of({**base, "images": {"t": {"source": ["b.npy", "a.npy"], "take": "1:2"}}}, tmp_path).cells()
    assert [c.image.name for c in cells] == ["a.npy"]


def test_a_plan_in_python(tmp_path):
    (tmp_path / "plans.py").write_text(
        "import torch\n"
        "def study():\n"
        "    return {'name': 'py', 'models': {'m': 'digits'}, 'images': {'t': torch.rand(2, 1, 8, 8)},\n"
        "            'questions': [{'k': 1, 'method': 'crown'}]}\n"
    )
    made = Plan.load(f"{tmp_path / 'plans.py'}:study")
    assert made.name == "py" and len(made.cells()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"models": {}}, "at least one \\[models"),
        ({"models": {"m": seeded(Plain)}}, "module object cannot be given"),
        ({"models": {"m": {"weights": "w"}}}, "models.m needs build"),
        ({"models": {"m": "gone.py:f"}}, "no such file"),
        ({"images": {"t": {"take": [1]}}}, "images.t needs a source"),
        ({"images": {"t": {"source": "digits", "take": [9999]}}}, "image 9999"),
        ({"images": {"t": {"source": "digits", "take": "a:b"}}}, "take must be"),
        ({"images": {"t": {"source": "digits", "take": "5:5"}}}, "leaves none"),
        ({"images": {"t": {"source": "none/*.npy"}}}, "no file is"),
        ({"images": {"t": torch.rand(8, 8)}}, "must be a tensor"),
        ({"images": {"t": torch.full((1, 1, 8, 8), torch.nan)}}, "not finite"),
        ({"questions": []}, "at least one \\[\\[questions"),
        ({"questions": ["k"]}, "must be a table"),
        ({"questions": [{"k": 1, "method": "crown", "models": "gone"}]}, "no models.gone"),
        ({"questions": [{"k": 1, "method": "crown", "images": "gone"}]}, "no images.gone"),
        (
            {"images": {"t": torch.rand(1, 1, 8, 8)}, "questions": [{"k": 1, "method": "crown", "class_idx": "label"}]},
            "without a label",
        ),
    ],
)
def test_what_is_no_plan_is_refused_with_its_place(change, message):
    with pytest.raises(co.InputError, match=message):
        plan(**change).cells()


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(co.InputError, match="no plan can be read"):
        Plan.load(tmp_path / "gone.toml")
    with pytest.raises(co.InputError, match="not TOML"):
        Plan.load(write_plan(tmp_path / "p.toml", "name = "))


def test_the_plan_in_the_docs_is_one(tmp_path):
    docs = Path(__file__).parents[2] / "docs" / "studies.md"
    (text,) = blocks(docs.read_text(encoding="utf-8"), "toml")
    cells = Plan.load(write_plan(tmp_path / "p.toml", text)).cells()
    assert len(cells) == 20 * (3 * 2 + 2 + 3 * 4 + 1)
    assert {c.ask.kind for c in cells} == {"radius", "verify", "margin", "heat_map"}


COLOUR = """
import torch
from nets import Small, image, seeded

def build():
    return seeded(Small, 3, channels=3)

def images():
    return 4 * image(3, 3, 4, seed=2) - 2
"""


def test_a_cell_whose_channels_have_boxes_of_their_own_is_answered_and_reported(tmp_path):
    (tmp_path / "colour.py").write_text(COLOUR)
    path = write_plan(
        tmp_path / "p.toml",
        """
        name = "channels"
        [models]
        m = "colour.py:build"
        [images]
        t = "colour.py:images"
        [[questions]]
        k = 1
        method = "crown"
        clip = [[-2, -2, -3.5], [2, 2.5, 2]]
        """,
    )
    (cell,) = Plan.load(path).cells()
    found = answer(task_of(cell, 0.0, 60.0, "cpu"))
    net = co.from_torch(seeded(Small, 3, channels=3), cell.image.x.float())
    r = co.radius(net, cell.image.x, k=1, method="crown", clip=cell.ask.clip, device="cpu")
    assert found["state"] == "done" and found["lower"] == r.lower > 0
    row = row_of(cell, found)
    assert (row.clip_low, row.clip_high, row.clip) == (-3.5, 2.5, "[[-2.0, -2.0, -3.5], [2.0, 2.5, 2.0]]")
    with Store.writing(tmp_path / "out") as store:
        store.put(row)
        store.put(dataclasses.replace(row, key="other", clip=None, clip_low=0.0, clip_high=1.0))
        said = tables(store.to_frame())["about"]["clip boxes"]
    assert said == "[-2, 2] x [-2, 2.5] x [-3.5, 2], [0, 1]"
