"""The command line as tests call it: its question, models in a file, what a run printed."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch

import corgi_opt as co
from corgi_opt.data import digits

QUESTION = ("digits", "--image", "1442", "--k", "3")
"""Radius about 0.0049; the paper's bound certifies up to about half of it."""

MODELS = """
import torch
from torch import nn
import helper_of_models

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def build(channels=1):
    with torch.random.fork_rng():
        torch.manual_seed(helper_of_models.SEED)
        return Net(channels).eval()

def colour():
    return build(3)

def fixed():
    model = build()
    return nn.Sequential(model.body, nn.AvgPool2d(6), nn.Flatten(), model.head).eval()

def training():
    return build().train()

class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)

def bent():
    model = build()
    model.body[1] = Erf()
    return model.eval()

def headless():
    return build().body

def a_number():
    return 7

def broken():
    return 1 / 0

constant = 3
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def only_json(ran: Ran) -> dict[str, Any]:
    """Standard output is one line holding one object."""
    assert ran.out.count("\n") == 1
    found = json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def bundled(index: int) -> tuple[co.CamNetwork, torch.Tensor]:
    x = digits.load_digits()[0][index][None]
    return co.from_torch(digits.digits_model(), x), x


def k_of(found: dict[str, Any]) -> int:
    return found["asked"]["property"]["k"]
