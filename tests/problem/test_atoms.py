"""Groups of atoms by brute force: margins by sorting, extremes over all corners, parts by torch's own products."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from corgi_opt.errors import InputError
from corgi_opt.problem.atoms import MEAN, Groups, Parts, alone, cam_pixels

NONE = torch.zeros(0, 2, dtype=torch.long)
CLASSES, CHANNELS, PIXELS = 3, 4, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts() -> Parts:
    heads = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    return Parts(heads, torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 4, 2, MEAN, MEAN]))


def groups(need: tuple[int, ...] = (2, 1)) -> Groups:
    """Six atoms of one or two pixels or of a logit: four in one group and two in the other."""
    return Groups(
        parts=parts(),
        terms=torch.tensor([[0, 1], [1, 2], [2, 0], [3, 0], [4, 0], [1, 0]]),
        coefs=torch.tensor([[1, -1], [0.5, 2], [-3, 1], [1, 0], [-1, 0], [1, 0]], dtype=torch.float64),
        members=torch.tensor([[5, 0, 2, 3], [1, 4, -1, -1]]),
        need=torch.tensor(need),
        anchors=NONE,
        labels=torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [0, 4]]),
        things=("pixel", "pixels"),
    )


MEMBERS = ([5, 0, 2, 3], [1, 4])


def test_parts_are_products_of_heads_and_maps_and_logits():
    features, weight, bias = drawn(5, CHANNELS, 2, 3), drawn(CLASSES, CHANNELS, seed=1), drawn(CLASSES, seed=2)
    logits = features.mean((2, 3)) @ weight.T + bias
    cams = torch.einsum("kc,nchw->nkhw", weight, features).flatten(2)
    difference = cams[:, 1] - cams[:, 2]
    expected = [cams[:, 0, 0], cams[:, 0, 4], difference[:, 2], logits[:, 1] - logits[:, 2], logits[:, 0]]
    torch.testing.assert_close(parts().values(features, logits, weight), torch.stack(expected, dim=1))
    torch.testing.assert_close(parts().shifts(bias), torch.stack([*[bias[0] * 0] * 3, bias[1] - bias[2], bias[0]]))
    assert cam_pixels(CLASSES, 2, PIXELS).values(features, logits, weight).equal(cams[:, 2])


@pytest.mark.parametrize("head", [[2.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_other_heads_are_refused(head):
    with pytest.raises(InputError, match="a head vector must be"):
        Parts(torch.tensor([head]), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))


def atoms_by_hand(values: Tensor) -> Tensor:
    v = values.unbind(dim=-1)
    return torch.stack([v[0] - v[1], 0.5 * v[1] + 2 * v[2], -3 * v[2] + v[0], v[3], -v[4], v[1]], dim=-1)


def test_atoms_are_sums_of_parts():
    values = drawn(7, 5)
    torch.testing.assert_close(groups().atoms(values), atoms_by_hand(values))
    some = torch.tensor([[3, 0], [1, 5]])
    torch.testing.assert_close(groups().of_rows(values[:2], some), atoms_by_hand(values[:2]).gather(1, some))


@pytest.mark.parametrize("need", [(1, 1), (2, 1), (3, 2), (4, 2), (2, 2)])
def test_a_groups_margin_is_its_need_th_largest_atom(need):
    asked, atoms = groups(need), drawn(20, 6, seed=3)
    slack = asked.slack(atoms)
    for row, found in zip(atoms.tolist(), slack.tolist(), strict=True):
        expected = [sorted((row[a] for a in m), reverse=True)[n - 1] for m, n in zip(MEMBERS, need, strict=True)]
        assert found == expected
        one = torch.tensor(row, dtype=torch.float64)
        assert float(asked.margin(one)) == min(expected) == row[asked.worst(one)]
        # it holds iff so many of its atoms are positive
        assert (float(asked.margin(one)) > 0) == all(
            sum(row[a] > 0 for a in m) >= n for m, n in zip(MEMBERS, need, strict=True)
        )


def test_how_many_there_are_and_how_many_may_fail():
    asked = groups((3, 2))
    assert len(asked) == 6 and asked.sizes.tolist() == [4, 2] and asked.enough.tolist() == [2, 1]
    assert not asked.every and groups((4, 2)).every
    assert asked.group.tolist() == [0, 1, 0, 0, 1, 0]
    assert [asked.atoms_of(g).tolist() for g in (0, 1)] == list(MEMBERS)


def test_the_least_of_an_atom_is_that_of_all_corners():
    low, high = drawn(5, seed=4) - 1, drawn(5, seed=4) + 0.5
    corners = torch.stack([torch.stack(c) for c in itertools.product(*zip(low, high, strict=True))])
    found, size = groups().least(low, high)
    torch.testing.assert_close(found, atoms_by_hand(corners).amin(dim=0))
    assert bool((size >= found.abs() - 1e-12).all())


def test_which_sides_of_parts_atoms_ask_for():
    asked = groups()
    for atom in range(6):
        marked = torch.zeros(6, dtype=torch.bool)
        marked[atom] = True
        low, high = asked.sides_of(marked)
        base = torch.zeros(5, dtype=torch.float64)
        for part in range(5):
            raised = base.clone()
            raised[part] = 1.0
            slope = float(atoms_by_hand(raised)[atom] - atoms_by_hand(base)[atom])
            assert (bool(low[part]), bool(high[part])) == (slope > 0, slope < 0)


def test_atoms_among_some_parts_read_no_other():
    for chosen in ([0, 1], [2, 4], [0, 1, 2, 3, 4], []):
        assert groups().among(torch.tensor(chosen, dtype=torch.long)).tolist() == [
            all(p in chosen for p, c in zip(ts, cs, strict=True) if c)
            for ts, cs in zip(groups().terms.tolist(), groups().coefs.tolist(), strict=True)
        ]


@pytest.mark.parametrize(
    ("terms", "coefs", "words"),
    [
        ([[0, 0]], [[1.0, -1.0]], "at different pixels"),
        ([[3, 0]], [[1.0, -1.0]], "or one logit"),
        ([[3, 4]], [[1.0, -1.0]], "at different pixels"),
    ],
)
def test_atoms_whose_rounding_would_not_be_seen_are_refused(terms, coefs, words):
    members, need, anchors = alone(1)
    with pytest.raises(InputError, match=words):
        Groups(parts(), torch.tensor(terms), torch.tensor(coefs).double(), members, need, anchors, NONE, ("a", "as"))


def test_no_atoms_say_nothing():
    members, need, anchors = alone(0)
    with pytest.raises(InputError, match="says nothing about this image"):
        Groups(parts(), NONE, NONE.double(), members, need, anchors, NONE, ("a", "as"))


def test_in_words():
    asked, atoms = groups((2, 2)), torch.tensor([-1.0, 0.0, 2.0, -3.0, 1.0, 5.0], dtype=torch.float64)
    assert asked.named(3) == "pixels 1 and 2"
    assert asked.what_changed(0, atoms) == "pixel 1 passes pixel 0, which 2 pixels equal or exceed"
    assert asked.what_changed(1, atoms) == "pixel 2 ties with pixel 0"
    members, need, _ = alone(3)
    assert members.tolist() == [[0], [1], [2]] and need.tolist() == [1, 1, 1]
