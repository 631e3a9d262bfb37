"""The open nodes: what is put is what is taken, the lowest first, until memory is short."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corgi_opt.encode.nodes import Nodes
from corgi_opt.search import frontier as frontier_module
from corgi_opt.search.frontier import Frontier, Likely

CPU = torch.device("cpu")
UNITS, TRIES = 11, 4


def random_open(count: int, seed: int = 0, units: int = UNITS, tries: int = TRIES) -> tuple[Nodes, Tensor, Likely]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    phases = torch.randint(-1, 2, (units, count), generator=generator, dtype=torch.int8)
    goal = torch.randint(0, 3, (count,), generator=generator)
    slopes, pulls, mixes = (uniform(units, count) for _ in range(3))
    recorded = torch.randint(-1, 99, (count,), generator=generator)
    nodes = Nodes(phases, slopes, pulls, mixes, goal, uniform(count), recorded)
    tried = torch.randint(0, max(units, 1), (count, tries), generator=generator)
    return nodes, uniform(count) - 0.5, Likely(tried, uniform(count, tries))


def rows(*several: tuple[Nodes, Tensor, Likely]) -> list[tuple[object, ...]]:
    """One tuple for each node with all that belongs to it, by value."""
    found = []
    for nodes, value, likely in several:
        maps = (nodes.phases.T, nodes.slopes.T, nodes.pulls.T, nodes.mixes.T, likely.units, likely.lam)
        for k in range(len(nodes)):
            single = float(value[k]), int(nodes.goal[k]), float(nodes.pace[k]), int(nodes.recorded[k])
            found.append((*single, *(tuple(m[k].tolist()) for m in maps)))
    return sorted(found)


def test_what_is_put_is_taken_the_lowest_first():
    """In pieces of any size, with more put in between; slots are used again."""
    frontier = Frontier(UNITS, TRIES, CPU)
    assert len(frontier) == 0
    first, second = random_open(700, 0), random_open(40, 1)
    frontier.put(*first)
    assert len(frontier) == 700
    taken = [frontier.take(100)]
    assert rows(*taken) == rows(first)[:100]
    frontier.put(*second)
    expected = sorted(rows(first)[100:] + rows(second))
    for size in (1, 128, 300):
        piece = frontier.take(size)
        assert rows(piece) == expected[:size]
        expected = expected[size:]
        assert len(frontier) == len(expected)
    assert rows(frontier.take(1000)) == expected
    assert len(frontier) == 0
    nodes, value, likely = frontier.take(5)
    assert len(nodes) == len(value) == len(likely.units) == 0


def test_many_small_puts_keep_what_was_there():
    frontier, put = Frontier(UNITS, TRIES, CPU), []
    for seed in range(60):
        put.append(random_open(1 + 7 * seed % 23, seed))
        frontier.put(*put[-1])
    assert rows(frontier.take(10_000)) == rows(*put)


def test_taken_nodes_do_not_change_with_what_is_put_later():
    frontier, first = Frontier(UNITS, TRIES, CPU), random_open(50)
    frontier.put(*first)
    taken = frontier.take(50)
    frontier.put(*random_open(50, 1))
    assert rows(taken) == rows(first)


def test_where_memory_is_short_the_highest_go_first(monkeypatch):
    frontier, every = Frontier(UNITS, TRIES, CPU), random_open(300)
    per_node = 13 * UNITS + 12 * TRIES + 12
    monkeypatch.setattr(frontier_module, "MOST_BYTES", 2 * 200 * per_node)
    frontier.put(*every)
    expected = rows(every)
    assert rows(frontier.take(60)) == expected[-60:]  # 300 are more than 200
    assert rows(frontier.take(60)) == expected[-120:-60]
    assert rows(frontier.take(60)) == expected[:60]  # 180 are not
    # as many as there are, though more are asked for
    monkeypatch.setattr(frontier_module, "MOST_BYTES", 0)
    assert rows(frontier.take(1000)) == expected[60:-120]


def test_memory_is_counted_right():
    frontier, (nodes, value, likely) = Frontier(UNITS, TRIES, CPU), random_open(256)
    frontier.put(nodes, value, likely)
    held = [v for v in vars(frontier).values() if isinstance(v, Tensor)]
    assert sum(v.nbytes for v in held) == 256 * frontier._slot_bytes


@pytest.mark.parametrize(("units", "tries"), [(0, 0), (1, 1)])
def test_programs_of_no_or_one_unit(units, tries):
    frontier, only = Frontier(units, tries, CPU), random_open(1, 0, units, tries)
    frontier.put(*only)
    assert rows(frontier.take(128)) == rows(only)
