"""Questions about top-k sets, as the tests ask them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import corgi_opt as co
from corgi_opt.bounding.objective import combination_bounds, objectives, part_bounds
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.atoms import Parts, cam_pixels
from corgi_opt.problem.question import Question
from corgi_opt.problem.scene import Scene


def ask(net: co.CamNetwork, x: Tensor, *, k: int, within: int | None = None, **about: Any) -> Question:
    """Whether the top-k set stays; what is not said is as in ``co.verify``."""
    given = {"class_idx": None, "norm": "inf", "clip": (0.0, 1.0), "tie_tol": None, "keep_class": False} | about
    scene = Scene.of(net, x, **{name: given.pop(name) for name in ("class_idx", "norm", "clip")})
    return Question.ask(scene, co.TopK(k, within), **given)


def about(k: int = 3, within: int | None = None, class_idx: int = 1, clip: Any = (0.0, 1.0)) -> Asked:
    """What stands beside a made-up answer."""
    return Asked(co.TopK(k, within), class_idx, "inf", clip, None, 0.5, "float32", "0" * 64)


def atom_of(question: Question, pair: tuple[int, int]) -> int:
    """The atom that compares these two pixels."""
    return question.groups.labels.tolist().index(list(pair))


def top_of(question: Question) -> list[int]:
    """The k brightest pixels, the brightest first."""
    return list(dict.fromkeys(question.groups.labels[:, 0].tolist()))


def pixels_of(net: co.CamNetwork, class_idx: int) -> Parts:
    height, width = net.map_shape
    return cam_pixels(net.classes, class_idx, height * width)


def pixel_rows(net: co.CamNetwork, class_idx: int, pixels: Tensor, case: Tensor) -> Any:
    """CAM pixels (R,), flat indices, of regions ``case`` (R,), as functionals of the last feature map."""
    ones = torch.ones(len(pixels), 1, dtype=torch.float64)
    (found,) = objectives(net, pixels_of(net, class_idx), pixels.cpu()[:, None], ones, case)
    return found.rows


def cam_bounds(net: co.CamNetwork, class_idx: int, bound: Any, wanted: Tensor) -> co.Interval:
    """Bounds (B, P) of the CAM pixels marked in ``wanted`` (B, P); infinite elsewhere."""
    return part_bounds(net, pixels_of(net, class_idx), bound, wanted, wanted)


def pair_bounds(net: co.CamNetwork, class_idx: int, bound: Any, pairs: Tensor, case: Tensor) -> Tensor:
    """Lower bounds (Q,) of ``CAM_i - CAM_j`` for pairs (Q, 2) of flat pixel indices, each as one objective."""
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(len(pairs), 2)
    return combination_bounds(net, pixels_of(net, class_idx), bound, pairs, signs, case)
