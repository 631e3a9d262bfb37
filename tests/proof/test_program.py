"""Rows and planes of a tree's program say what the network does."""

from __future__ import annotations

import numpy as np
import pytest
from checked_networks import built, crowned
from checked_trees import CASES, at_images, open_units, pair_rows, tree_of

from corgi_opt.proof.program import Program


@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("case", CASES)
def test_programs_say_what_the_network_does(case, norm, share):
    """Rows give pre-activations within their slack, and planes are above; also where some open units are not in the
    tree."""
    _, network, x = built(case)
    bounds, rng = crowned(case, norm), np.random.default_rng(2)
    every = open_units(bounds)
    units = [u for u in every if rng.random() < share][:150]
    values, z = at_images(case, norm, 60, units)
    rows, whole = pair_rows(bounds)
    tree = tree_of(units, np.zeros((1, len(units)), dtype=np.int8), rng, x[0].numel(), planes=True)
    program = Program(bounds, tree, network.features, rows)
    v = np.concatenate([values[0][:, program.image], np.maximum(z, 0)], axis=1)
    said = v @ program.rows.T + program.constants
    tolerance = 1e-12 * (1 + np.abs(z).max())
    assert (np.abs(said - z) <= program.slack + tolerance).all()
    if share == 1.0 and len(units) == len(every):
        assert program.slack.max(initial=0.0) < 1e-10
    assert program.planes is not None
    assert (np.maximum(z, 0) <= v @ program.planes.T + program.shifts + tolerance).all()
    objective = values[network.features] @ whole.flatten()
    assert (np.abs(v @ program.objective[0] + program.offset[0] - objective) <= program.off_by[0] + tolerance).all()
