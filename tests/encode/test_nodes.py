"""Nodes: phases that are fixed keep what the multipliers say, and several are one."""

from __future__ import annotations

import torch

from corgi_opt.encode.nodes import Nodes


def drawn_nodes(count: int, units: int = 5, own: bool = False) -> Nodes:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    slopes, pulls, mixes = (uniform(units, count) for _ in range(3))
    ends = torch.stack([-uniform(units, count), uniform(units, count)]) if own else None
    phases = torch.zeros(units, count, dtype=torch.int8)
    goal, recorded = torch.arange(count), torch.arange(count) + 7
    return Nodes(phases, slopes, pulls, mixes, goal, uniform(count), recorded, ends)


def test_fixed_phases_keep_mu():
    """On: mu = lam - pull, off: mu = pull, open: mu = slope lam, all of a positive lam."""
    nodes, lam = drawn_nodes(3), torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, -2.0]])
    units, phases = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[1, -1, 0], [-1, 1, 1]])
    after = nodes.fixed(units, phases, lam)
    for row, k in ((0, 0), (1, 0), (1, 1)):
        unit, on = units[row, k], phases[row, k] > 0
        pull, slope = after.pulls[unit, k], nodes.slopes[unit, k]
        torch.testing.assert_close(lam[row, k] - pull if on else pull, slope * lam[row, k])
    # a negative one goes to the upper line, which a phase replaces
    assert float(after.pulls[1, 1]) == 0 and float(after.pulls[0, 2]) == 0
    assert after.phases.tolist() == [[1, 0, 1], [0, -1, 0], [0, 0, 0], [-1, 0, 0], [0, 1, 0]]
    others = after.phases == 0
    assert after.pulls[others].equal(nodes.pulls[others]) and not nodes.phases.any()


def test_children_are_both_phases_of_a_unit():
    nodes = drawn_nodes(2, own=True)
    both = nodes.split(torch.tensor([1, 4]), torch.tensor([1.0, 1.0]))
    assert both.phases[[1, 4], [0, 1]].tolist() == [1, 1] and both.phases[[1, 4], [2, 3]].tolist() == [-1, -1]
    assert both.recorded.tolist() == [7, 8, 7, 8]
    assert both.goal.tolist() == [0, 1, 0, 1] and int(both.phases.abs().sum()) == 4
    assert both.ends is not None and nodes.ends is not None
    assert both.ends[:, :, :2].equal(nodes.ends) and both.ends[:, :, 2:].equal(nodes.ends)


def test_parts_are_joined_again():
    for own in (False, True):
        nodes = drawn_nodes(4, own=own)
        parts = Nodes.joined([nodes[torch.tensor([0])], nodes[torch.tensor([1, 2, 3])]])
        for name, value in vars(nodes).items():
            held = getattr(parts, name)
            assert held is None if value is None else held.equal(value)
        assert (nodes.to(torch.float64).ends is None) == (not own)
