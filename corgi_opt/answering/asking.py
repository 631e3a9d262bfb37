"""How every public function's question is made from its arguments, and what stands beside every answer."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from corgi_solvers import Backend

from corgi_opt._checks import integer, resolve_device
from corgi_opt._deadline import Deadline, check_time_limit
from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.prover import plain_network
from corgi_opt.errors import InputError
from corgi_opt.methods import Method, check_method, listed
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.names import name_of
from corgi_opt.problem.asked import Asked
from corgi_opt.problem.properties import Property, TopK, property_from
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.problem.scene import Scene


def chosen_property(property: Any, k: Any, within: Any, net: Any = None) -> Property:
    """What is asked of a network: ``property``, or its short form ``k=`` and ``within=``. Raises InputError where it is
    both, or neither."""
    if property is None:
        if k is None:
            raise InputError("say what is asked: k=15 (the 15 brightest pixels stay), or property=co.TopK(15)")
        if isinstance(net, CamNetwork):
            pixels = math.prod(net.map_shape)
            integer("k", k, 1, max(1, pixels - 1), f" (the CAM has {pixels} pixels)")
        return TopK(k, within)
    if k is not None or within is not None:
        raise InputError("k and within are the short form of property=co.TopK(k, within): give one or the other")
    return property_from(property)


_HASHES: weakref.WeakKeyDictionary[CamNetwork, str] = weakref.WeakKeyDictionary()


def asked_of(scene: Scene, property: Property, *, gap: float, kept: int | None) -> Asked:
    """What stands beside an answer. The hash of a network is calculated once."""
    net = scene.net
    if net not in _HASHES:
        _HASHES[net] = plain_network(net).sha256_of_logits
    return Asked(
        property=property,
        class_idx=scene.class_idx,
        norm=scene.norm,
        clip=scene.clip,
        kept=kept,
        gap=gap,
        dtype=scene.dtype,
        network=_HASHES[net],
        class_name=scene.class_name,
        kept_name=None if kept is None or net.classes == 1 else name_of(kept, net.class_names),
    )


def asked(question: Question) -> Asked:
    return asked_of(question, question.property, gap=question.gap, kept=question.kept)


def atom_of(question: Question, pair: Any) -> int:
    """The atom that compares a pair, the one ahead first. Raises InputError where there is none."""
    groups = question.groups
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, Integral) for end in pair):
        same = torch.nonzero((groups.labels == torch.tensor(pair)).all(dim=1)).flatten()
        if len(same):
            return int(same[0])
    what = question.property.in_words(question.class_in_words)
    raise InputError(f"pair must be two {groups.things[1]} that the {what} compares, the one ahead first, got {pair!r}")


def curved_layers(net: object) -> tuple[str, ...]:
    """``net.curved``; nothing for what is no network, which is refused where the image is looked at."""
    return net.curved if isinstance(net, CamNetwork) else ()


@dataclass(frozen=True, eq=False)
class Means:
    """What a question is answered with: the method, the solver that it asks, the device it runs on, and until when.

    ``note``: that another method answers than the one that was asked for, and why.
    """

    method: Method
    solver: Backend
    device: torch.device
    deadline: Deadline
    seconds: float
    note: str = ""

    @classmethod
    def of(
        cls,
        net: CamNetwork,
        *,
        method: str,
        norm: Norm,
        solver: str | None,
        device: str | torch.device,
        time_limit: float,
    ) -> Means:
        """Raises InputError, UnknownMethodError; MissingPackageError where the solver is not installed."""
        norm = canonical_norm(norm)
        curved = curved_layers(net)
        row, deadline = check_method(method, norm, curved), check_time_limit(time_limit)
        replaced = row.name != method
        note = f"method {method!r} is {row.name!r} here: no exact one takes {listed(curved)}" if replaced else ""
        backend = check_solver(solver, row.name, norm)
        return cls(row, backend, resolve_device(device), deadline, float(time_limit), note)

    def said(self, reason: str) -> str:
        """A reason, with the word that another method answered."""
        return f"{reason}; {self.note}" if self.note else reason
