"""Answers one cell, in the process that is made for it. Everything in and out is JSON types."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corgi_opt._checks import resolve_device
from corgi_opt.answering.margin_search import tight_margin
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.errors import CorgiError, TieError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.problem.results import Radius, Verdict
from corgi_opt.study.ask import Ask
from corgi_opt.study.models import ModelSource, SourcedModel
from corgi_opt.study.own import bring_in, known_here

PACKAGES = ("corgi_opt", "torch", "highspy", "numpy")


def answer(task: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the cell's row that only its answer can fill. Raises nothing that one cell alone can cause."""
    return _or_failed(_answered, task) | {
        "host": platform.node(),
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]),
    }


def reply(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a process of the study says to a task: a cell's answer, or what it knows of what cells use (``uses``)."""
    return _or_failed(known_here, task) if "uses" in task else answer(task)


def _or_failed(do: Callable[[Mapping[str, Any]], dict[str, Any]], task: Mapping[str, Any]) -> dict[str, Any]:
    """What comes of a task, an error included."""
    try:
        return do(task)
    except CorgiError as error:
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    except Exception:
        return {"state": "failed", "reason": traceback.format_exc(limit=-5)}


def _answered(task: Mapping[str, Any]) -> dict[str, Any]:
    bring_in(task)
    device = str(resolve_device(task["device"]))
    ask = Ask.from_plain(task["ask"])
    x = image_of(task["image"])
    name, build, weights, sha256 = (task["model"][key] for key in ("name", "build", "weights", "sha256"))
    net = _network(SourcedModel(name, ModelSource(build, weights), sha256), tuple(x.shape))
    class_idx = net.class_index(net.image(x), ask.class_idx)
    common: dict[str, Any] = {
        **({"k": ask.k} if ask.property is None else {"property": ask.property}),
        "method": ask.method,
        "norm": ask.norm,
        "clip": ask.clip,
        "class_idx": class_idx,
        "solver": ask.solver,
        "time_limit": ask.time_limit,
        "seed": ask.seed,
        "device": task["device"],
        "progress": False,
    }
    relaxed: dict[str, Any] = {"within": ask.within, "keep_class": ask.keep_class}
    start = time.monotonic()  # building the network is shared by many cells
    try:
        if ask.kind == "radius":
            columns = _of_radius(radius(net, x, rtol=ask.rtol, **relaxed, **common), ask.rtol)
        elif ask.kind == "verify":
            columns = _of_verdict(verify(net, x, eps=_eps(ask), **relaxed, **common))
        else:
            del common["seed"]  # that search draws nothing
            columns = _of_verdict(tight_margin(net, x, eps=_eps(ask), rtol=ask.rtol, **relaxed, **common))
    except TieError as tie:
        columns = {"status": "tied", "reason": str(tie)}
    seconds = time.monotonic() - start
    return {"state": "done", "class_idx": class_idx, **columns, "seconds": seconds, "device": device}


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
        "status": "tied" if r.upper == 0 else closed,
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
    """The image (1, C, H, W) float64 that :func:`said_image` wrote."""
    return torch.from_numpy(np.frombuffer(bytes.fromhex(said["data"])).reshape(said["shape"]).copy())


def said_image(x: Tensor) -> dict[str, Any]:
    """An image (1, C, H, W) float64 as JSON types, to the last bit."""
    return {"shape": list(x.shape), "data": x.contiguous().numpy().tobytes().hex()}
