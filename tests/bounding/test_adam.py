"""The steps are those of torch's own Adam, in every row, also after other rows have ended."""

from __future__ import annotations

import torch

from corgi_opt.bounding.adam import Adam

RATE = 0.05


def test_steps_are_those_of_torch_optim():
    draw = torch.Generator().manual_seed(3)
    target = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    theirs = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theirs], lr=RATE, betas=(0.9, 0.999), eps=1e-12)
    ours, adam, rows = torch.zeros(4, 3, dtype=torch.float64), Adam(target), torch.arange(4)
    for step in range(30):
        optimiser.zero_grad()
        (theirs - target).pow(4).sum().backward()
        optimiser.step()
        ours = ours - RATE * adam.step(4 * (ours - target[rows]) ** 3)
        torch.testing.assert_close(ours, theirs.detach()[rows], rtol=1e-9, atol=1e-12)
        if step == 9:  # two rows end here
            keep = torch.tensor([True, False, True, False])
            adam.keep(keep)
            ours, rows = ours[keep], rows[keep]
    assert float((ours - target[rows]).abs().max()) < float(target[rows].abs().max())  # it went somewhere


def test_a_gradient_of_nothing_moves_nothing():
    assert float(Adam(torch.zeros(2)).step(torch.zeros(2)).abs().max()) == 0.0
