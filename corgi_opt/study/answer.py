"""Answers one cell, in the process that is made for it. Everything in and out is JSON types."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corgi_opt._checks import resolve_device
from corgi_opt.answering.asking import chosen_property
from corgi_opt.answering.heatmap import HeatMap, heat_map
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.errors import CorgiError, TieError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.problem.question import Question
from corgi_opt.problem.results import Radius, Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.study.ask import Ask
from corgi_opt.study.models import ModelSource, SourcedModel
from corgi_opt.study.own import bring_in, known_here
from corgi_opt.study.sharing import WITNESS, before_of, joined
from corgi_opt.study.where import where_it_ran

HEAT_MAPS = ("cam", "lower", "upper", "best", "worst")
"""The maps (H, W) of a heat map, by the names of its fields."""

Begin = Callable[[], object]
"""Is called when the network is there and the question is asked: a cell's time is counted from then on."""


def answer(task: Mapping[str, Any], begin: Begin = lambda: None) -> dict[str, Any]:
    """The columns of the cell's row that only its answer can fill, and ``arrays``: its maps and images by name, as
    :func:`said_image` writes them. Raises nothing that one cell alone can cause."""
    return _or_failed(lambda told: _answered(told, begin), task) | where_it_ran()


def reply(task: Mapping[str, Any], begin: Begin = lambda: None) -> dict[str, Any]:
    """What a process of the study says to a task: a cell's answer, or what it knows of what cells use (``uses``)."""
    return _or_failed(known_here, task) if "uses" in task else answer(task, begin)


def _or_failed(do: Callable[[Mapping[str, Any]], dict[str, Any]], task: Mapping[str, Any]) -> dict[str, Any]:
    """What comes of a task, an error included."""
    try:
        return do(task)
    except CorgiError as error:
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    except Exception:
        return {"state": "failed", "reason": traceback.format_exc(limit=-5)}


def _answered(task: Mapping[str, Any], begin: Begin) -> dict[str, Any]:
    bring_in(task)
    device = str(resolve_device(task["device"]))
    ask = Ask.from_plain(task["ask"])
    x = image_of(task["image"])
    name, build, weights, sha256 = (task["model"][key] for key in ("name", "build", "weights", "sha256"))
    net = _network(SourcedModel(name, ModelSource(build, weights), sha256), tuple(x.shape))
    class_idx = net.class_index(net.image(x), ask.class_idx)
    begin()
    start = time.monotonic()  # building the network is shared by many cells
    try:
        found = _found(net, x, ask, class_idx, task["device"])
    except TieError as tie:
        found, columns = None, {"status": "tied", "reason": str(tie)}
    seconds = time.monotonic() - start
    if isinstance(found, HeatMap):
        columns = _of_heat_map(found)
    elif found is not None:
        columns = _shared(found, net, x, ask, class_idx, task.get("before"))
    return {"state": "done", "class_idx": class_idx, **columns, "seconds": seconds, "device": device}


def _found(net: CamNetwork, x: Tensor, ask: Ask, class_idx: int, device: str) -> Radius | Verdict | HeatMap:
    """What the public function of the question's kind says. Raises what that raises."""
    where: dict[str, Any] = {"norm": ask.norm, "clip": ask.clip, "class_idx": class_idx}
    means: dict[str, Any] = {"method": ask.method, "device": device}
    if ask.kind == "heat_map":
        assert ask.k is not None
        return heat_map(net, x, eps=_eps(ask), k=ask.k, **where, **means)
    means |= {"solver": ask.solver, "time_limit": ask.time_limit, "progress": False}
    what: dict[str, Any] = {"k": ask.k, "within": ask.within} if ask.property is None else {"property": ask.property}
    what |= {"keep_class": ask.keep_class}
    if ask.kind == "radius":
        return radius(net, x, rtol=ask.rtol, seed=ask.seed, **what, **where, **means)
    if ask.kind == "verify":
        return verify(net, x, eps=_eps(ask), seed=ask.seed, **what, **where, **means)
    return tight_margin(net, x, eps=_eps(ask), rtol=ask.rtol, **what, **where, **means)  # draws nothing: no seed


def _shared(
    own: Radius | Verdict, net: CamNetwork, x: Tensor, ask: Ask, class_idx: int, told: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The columns of an answer, once it has what weaker cells of the same question had, and its pictures."""
    own_lower, own_upper = (own.lower, own.upper) if isinstance(own, Radius) else (own.margin_lower, own.margin_upper)
    columns: dict[str, Any] = {"own_lower": _finite(own_lower), "own_upper": _finite(own_upper)}
    if own.counterexample is None and told is None:
        return _columns(own, ask.rtol) | columns
    scene = Scene.of(net, x, class_idx=class_idx, norm=ask.norm, clip=ask.clip)
    found = own
    if told is not None and not _is_tied(own):
        what = chosen_property(ask.property, ask.k, ask.within, net)
        question = Question.ask(scene, what, keep_class=ask.keep_class)
        witness = image_of(told["witness"]) if "witness" in told else None
        found = joined(own, before_of(told, witness), question)
    nearest = found.counterexample
    if nearest is not None and nearest is own.counterexample:  # another is kept by the cell that met it
        maps = {"image": scene.x, "cam": scene.cam, WITNESS: nearest.image, "witness_cam": nearest.cam}
        columns["arrays"] = {name: said_image(array) for name, array in maps.items()}
    return _columns(found, ask.rtol) | columns


def _is_tied(found: Radius | Verdict) -> bool:
    return isinstance(found, Radius) and found.upper == 0


def _columns(found: Radius | Verdict, rtol: float) -> dict[str, Any]:
    return _of_radius(found, rtol) if isinstance(found, Radius) else _of_verdict(found)


def _of_heat_map(found: HeatMap) -> dict[str, Any]:
    maps = {name: getattr(found, name).double() for name in HEAT_MAPS}
    counts = (int(mask.sum()) for mask in (found.inside, found.outside, found.undecided))
    said = ", ".join(f"{n} {what}" for n, what in zip(counts, ("in", "out", "undecided"), strict=True))
    return {
        "status": "mapped",
        "gap": found.asked.gap,
        "proof": "float64",
        "settled_by": found.method,
        "reason": f"pixels: {said}",
        "arrays": {name: said_image(array) for name, array in maps.items()},
    }


def _eps(ask: Ask) -> float:
    assert ask.eps is not None  # every kind but a radius has one
    return ask.eps


@lru_cache(maxsize=4)
def _network(model: SourcedModel, shape: tuple[int, ...]) -> CamNetwork:
    """The network for images of this shape, built once for cells that follow one another."""
    # dtype and device are said, since a model's file may set other defaults of torch
    return from_torch(model.built(), torch.zeros(shape, dtype=torch.float32, device="cpu"))


def _of_radius(r: Radius, rtol: float) -> dict[str, Any]:
    closed = "closed" if r.ratio <= 1 + rtol else "open"
    return {
        "status": "tied" if _is_tied(r) else closed,
        "gap": r.asked.gap,
        "lower": r.lower,
        "upper": _finite(r.upper),
        "corgi": _finite(r.corgi),
        "attack": _finite(r.attack),
        "proof": r.proof,
        "settled_by": r.method,
        "reason": r.reason,
    }


def _of_verdict(v: Verdict) -> dict[str, Any]:
    return {
        "status": v.status,
        "gap": v.asked.gap,
        "lower": _finite(v.margin_lower),
        "upper": _finite(v.margin_upper),
        "corgi": _finite(v.corgi_margin),
        "proof": v.proof,
        "settled_by": v.method,
        "reason": v.reason,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def image_of(said: Mapping[str, Any]) -> Tensor:
    """The image (1, C, H, W), or other float64 tensor, that :func:`said_image` wrote."""
    return torch.from_numpy(np.frombuffer(bytes.fromhex(said["data"])).reshape(said["shape"]).copy())


def said_image(x: Tensor) -> dict[str, Any]:
    """An image (1, C, H, W), or other float64 tensor, as JSON types, to the last bit."""
    return {"shape": list(x.shape), "data": x.contiguous().numpy().tobytes().hex()}
