"""An exported program, solved by scipy after HiGHS has read the file: its optimum is the pair's, by enumeration."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
import pytest
import torch
from encoding import Setting
from relaxing import pairs
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

import corgi_opt as co
from corgi_opt.errors import InputError

SEED, EPS = 9, 0.3


def optimum(path) -> float:
    """Of an MPS file: read by HiGHS, solved by scipy."""
    reader = highspy.Highs()
    reader.setOptionValue("output_flag", False)
    assert reader.readModel(str(path)) == highspy.HighsStatus.kOk
    lp = reader.getLp()
    shape = (lp.num_col_, lp.num_row_)
    columns = lp.a_matrix_.format_ == highspy.MatrixFormat.kColwise
    parts = (np.array(lp.a_matrix_.value_), np.array(lp.a_matrix_.index_), np.array(lp.a_matrix_.start_))
    matrix = csr_array(parts, shape=shape).T if columns else csr_array(parts, shape=shape[::-1])
    whole = [int(kind == highspy.HighsVarType.kInteger) for kind in lp.integrality_] or [0] * shape[0]
    answer = milp(
        np.array(lp.col_cost_),
        integrality=whole,
        bounds=Bounds(np.array(lp.col_lower_), np.array(lp.col_upper_)),
        constraints=LinearConstraint(matrix, np.array(lp.row_lower_), np.array(lp.row_upper_)),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status == 0, answer.message
    return float(answer.fun) + lp.offset_


@pytest.fixture(scope="module")
def asked():
    """A network of few enough ReLUs to enumerate, a pair of pixels whose first is ahead, and their least difference."""
    at, least = Setting.tiny(SEED, EPS)
    return at, least


def exported(at: Setting, path, **given: Any) -> Any:
    cam = at.net.cam(at.ball.center, 0).flatten()
    i, j = at.pair
    k = int((cam >= cam[i]).sum())
    assert cam[i] > cam[j]
    options: dict[str, Any] = {"eps": EPS, "k": k, "class_idx": 0, "pair": (i, j), "device": "cpu"}
    return co.export_mps(at.net, at.ball.center, path, **options | given)


def test_the_milps_optimum_is_the_pairs_minimum(asked, tmp_path):
    at, least = asked
    found = exported(at, tmp_path / "a.mps")
    assert (found.path, found.pair) == (tmp_path / "a.mps", at.pair)
    assert found.binaries > 0
    assert optimum(found.path) * found.scale == pytest.approx(least, abs=1e-6)


def test_the_lps_optimum_is_below_it_and_above_intervals(asked, tmp_path):
    at, least = asked
    found = exported(at, tmp_path / "a.mps", method="lp")
    assert found.binaries == 0
    lp = optimum(found.path) * found.scale
    ibp = co.bounds(at.net, at.ball, method="ibp", device="cpu")[at.net.features]
    size = float((at.net.weight[0].abs() @ torch.maximum(ibp.lower.abs(), ibp.upper.abs()).flatten(1)).max())
    assert -2 * size <= lp <= least + 1e-6


def test_unnamed_it_is_the_pair_that_crown_leaves_most_open(asked, tmp_path):
    at, _ = asked
    bounds = {p: float(pairs(at.net, at.whole, 0, torch.tensor([p]))[0]) for p in ((1, 0), (1, 2))}
    assert len(set(bounds.values())) == 2 and max(bounds.values()) < 0
    assert exported(at, tmp_path / "a.mps", pair=None).pair == min(bounds, key=bounds.__getitem__)
    with pytest.raises(InputError, match="CROWN decides every pair"):
        exported(at, tmp_path / "b.mps", pair=None, eps=1e-9)


@pytest.mark.parametrize("pair", ["backwards", (0, 0), (0, 99), (1, 2, 3)])
def test_what_is_no_pair_is_refused(pair, asked, tmp_path):
    at, _ = asked
    with pytest.raises(InputError, match="pair must be two"):
        exported(at, tmp_path / "a.mps", pair=at.pair[::-1] if pair == "backwards" else pair)


@pytest.mark.parametrize("given", [{"method": "crown"}, {"norm": "2", "method": "lp"}, {"method": "bab"}])
def test_what_is_no_linear_program_is_refused(given, asked, tmp_path):
    at, _ = asked
    with pytest.raises(InputError, match="an MPS file holds an 'lp' or 'milp'"):
        exported(at, tmp_path / "a.mps", **given)
