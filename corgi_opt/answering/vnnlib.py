"""A question as an ONNX network and a VNN-LIB property, for other verifiers of neural networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt.answering.asking import atom_of, chosen_property
from corgi_opt.encode import vnnlib
from corgi_opt.encode.onnx_graph import OnnxWriter, Value, onnx_package, windows_on_image, write_maps
from corgi_opt.encode.onnx_moves import one_axis_at_a_time
from corgi_opt.encode.square_pools import with_square_pools
from corgi_opt.encode.vnnlib import Way
from corgi_opt.errors import InputError
from corgi_opt.methods import listed
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.ops import Window
from corgi_opt.problem.atoms import MEAN, Groups
from corgi_opt.problem.clip import Clip, as_tensors, clip_in_words
from corgi_opt.problem.properties import Property
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball, Norm, canonical_norm
from corgi_opt.problem.scene import Scene

MOST_WAYS = 10_000
"""Of failing, that a file lists where atoms of a group are counted."""

MOST_NUMBERS = 2**28
"""Of the last layer."""

NETWORK, VERSION_1, VERSION_2 = "network.onnx", "property.vnnlib", "property-2.0.vnnlib"


@dataclass(frozen=True)
class ExportedVnnlib:
    """A question as files: is there an input of the box whose outputs fulfil the condition?

    ``network``: ONNX, from X (1, C, h, w) to Y (1, outputs). ``vnnlib``: box and condition in VNN-LIB 1.0, ``vnnlib2``
    in 2.0. ``window``: the rows ``y .. y+h-1`` and columns ``x .. x+w-1`` of the image that X is, as (y, x, h, w).
    ``compared``: for each output the two things (pixels, classes) that it is the difference of; those from
    ``premises`` on are at least 0 at a counterexample, and make sure that the class is kept. ``pair``: the one that
    was asked about, or None. ``unsat`` and ``sat``: what these answers mean, in words.
    """

    network: Path
    vnnlib: Path
    vnnlib2: Path
    window: tuple[int, int, int, int]
    compared: tuple[tuple[int, int], ...]
    premises: int
    pair: tuple[int, int] | None
    unsat: str
    sat: str

    @pinned
    def image(self, x: Tensor, values: Tensor) -> Tensor:
        """The image that a verifier's answer ``values`` (X_0, X_1, ... in any shape) stands for: x (1, C, H, W) in
        float64 with the inputs of the window replaced.

        It may be beside the region by the rounding of the files: ``co.Ball(x, eps).project`` moves it in. Raises
        InputError for a wrong number of values.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or len(x) != 1:
            raise InputError("x must be the image (1, C, H, W) that was exported")
        y, left, h, w = self.window
        image, count = x.detach().to("cpu", torch.float64, copy=True), x.shape[1] * h * w
        values = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
        if values.numel() != count or y + h > x.shape[2] or left + w > x.shape[3]:
            raise InputError(f"the window of the image has {count} inputs, got {values.numel()} values")
        image[0, :, y : y + h, left : left + w] = values.reshape(-1, h, w)
        return image


@pinned
def export_vnnlib(
    net: CamNetwork,
    x: Tensor,
    folder: str | PathLike[str],
    *,
    eps: float,
    k: int | None = None,
    within: int | None = None,
    property: Property | str | None = None,
    class_idx: int | str | None = None,
    norm: Norm = "inf",
    clip: Clip = (0.0, 1.0),
    tie_tol: float | None = None,
    keep_class: bool = False,
    pair: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ExportedVnnlib:
    """Writes network.onnx, property.vnnlib and property-2.0.vnnlib into ``folder``, which is made where it is missing.

    ``unsat`` is the answer where the property holds at every image of the region. ``pair``: flat indices of a top pixel
    and one outside (or what else the property compares): this comparison alone, of its cone alone, which is much
    smaller; None: all of the property. ``dtype``: of the network's weights; the box is rounded outwards to it. Most
    verifiers calculate in float32, whatever a file holds. Other arguments as in :func:`corgi_opt.verify`.

    Raises InputError for a norm other than "inf", whose region is no box, for a pair that is none, for curved layers,
    and for a property that fails in too many ways to list them; UnsupportedOpError for a network that convolutions
    cannot say; MissingPackageError without the package onnx.
    """
    onnx = onnx_package()
    if canonical_norm(norm) != "inf":
        raise InputError(f"a VNN-LIB file holds a box: norm must be 'inf', got {norm!r}; co.export_mps takes norm '1'")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if not isinstance(folder, str | PathLike):
        raise InputError(f"folder must be the path of a folder, got {type(folder).__name__}")
    wanted = chosen_property(property, k, within, net)
    scene = Scene.of(net, x, class_idx=class_idx, norm="inf", clip=clip)
    if net.curved:
        raise InputError(
            "files for other verifiers are written of affine and piecewise-linear layers only, and this network has "
            f"{listed(net.curved)}; 'ibp', 'corgi', 'crown', 'dual' and 'split' bound it here"
        )
    question = Question.ask(scene, wanted, tie_tol=tie_tol, keep_class=keep_class)
    ball = scene.checked_ball(eps)
    groups, premises = question.groups, question.premises
    atoms = torch.arange(len(groups)) if pair is None else torch.tensor([atom_of(question, pair)])
    pair = None if pair is None else (int(pair[0]), int(pair[1]))
    kept = tuple(range(len(atoms), len(atoms) + (0 if premises is None else len(premises))))
    ways = [Way((0,), kept)] if pair is not None else list(_ways(groups, kept))

    asked = [(groups, atoms)] + ([] if premises is None else [(premises, torch.arange(len(premises)))])
    graph = one_axis_at_a_time(with_square_pools(net.graph))
    windows = windows_on_image(graph, net.features, None if pair is None else _window(net, asked))
    window = windows[graph.input]
    writer = OnnxWriter(dtype)
    _write_outputs(writer, net, write_maps(writer, graph, net.features, windows), asked)
    said = _Said.of(question, ball, pair)
    outputs = len(atoms) + len(kept)
    model = writer.model(net.input_shape[0], window, outputs, said.title)

    y, left, h, w = window
    low, high = (end[:, y : y + h, left : left + w] for end in vnnlib.outward(*exact_box(ball), dtype))
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise InputError(f"the box of eps={ball.eps:g} does not fit {dtype}; pass a clip box or a smaller eps")
    compared = torch.cat([group.labels[mine] for group, mine in asked])
    comments = [
        said.title,
        f"X: rows {y} to {y + h - 1} and columns {left} to {left + w - 1} of the image, channel by channel",
        f"unsat: {said.unsat}",
        f"sat: {said.sat}",
    ]
    where = _made(folder)
    onnx.save_model(model, str(where / NETWORK))
    (where / VERSION_1).write_text(vnnlib.version_1(low, high, outputs, ways, comments), "utf-8")
    (where / VERSION_2).write_text(vnnlib.version_2(low, high, outputs, ways, comments, dtype), "utf-8")
    return ExportedVnnlib(
        network=where / NETWORK,
        vnnlib=where / VERSION_1,
        vnnlib2=where / VERSION_2,
        window=(y, left, h, w),
        compared=tuple((int(a), int(b)) for a, b in compared.tolist()),
        premises=len(atoms),
        pair=pair,
        unsat=said.unsat,
        sat=said.sat,
    )


def exact_box(ball: Ball) -> tuple[Tensor, Tensor]:
    """The smallest box of float64 numbers (C, H, W) that holds the region of an L-infinity ball as real numbers."""
    ends = []
    for eps in (-ball.eps, ball.eps):
        center = ball.center[0]
        end = center + eps
        back = end - center
        lost = (center - (end - back)) + (eps - back)  # exactly: end + lost = center + eps
        ends.append(torch.where(lost * eps > 0, torch.nextafter(end, torch.full_like(end, eps * torch.inf)), end))
    low, high = ends
    if ball.box is not None:
        least, most = as_tensors(ball.box)
        low, high = torch.maximum(low, least), torch.minimum(high, most)
    return low, high


def _made(folder: str | PathLike[str]) -> Path:
    where = Path(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"there can be no folder {str(where)!r}: {error.strerror}") from error
    return where


def _ways(groups: Groups, kept: tuple[int, ...]) -> Iterator[Way]:
    """Every set of atoms that, when all of them fail, make a group fail. Raises InputError for too many."""
    count = sum(math.comb(int(size), int(enough)) for size, enough in zip(groups.sizes, groups.enough, strict=True))
    if count > max(MOST_WAYS, len(groups)):
        raise InputError(
            f"so many comparisons fail at once in {count:.3g} ways, and a VNN-LIB file would have to list them all (at "
            f"most {MOST_WAYS:,}); name a pair=(i, j), or ask co.verify"
        )
    for group, enough in enumerate(groups.enough.tolist()):
        for failing in itertools.combinations(groups.atoms_of(group).tolist(), enough):
            yield Way(failing, kept)


def _window(net: CamNetwork, asked: list[tuple[Groups, Tensor]]) -> Window | None:
    """The window of the last feature map that these atoms read; None: all of it."""
    width, found = net.map_shape[1], []
    for groups, atoms in asked:
        found.append(groups.parts.place[groups.terms[atoms][groups.coefs[atoms] != 0]])
    places = torch.cat(found)
    if bool((places == MEAN).any()):
        return None
    rows, columns = places // width, places % width
    y, x = int(rows.min()), int(columns.min())
    return Window(y, x, int(rows.max()) - y + 1, int(columns.max()) - x + 1)


def _write_outputs(writer: OnnxWriter, net: CamNetwork, features: Value, asked: list[tuple[Groups, Tensor]]) -> None:
    """Writes what follows the last feature map: its head vectors as one convolution, and the atoms as a row.

    Atoms are sums of parts, parts of places of these maps: one matrix, or two where that is much smaller.
    """
    vectors, parts, atoms, heads = [], [], [], 0
    for groups, mine in asked:
        used = torch.unique(groups.terms[mine][groups.coefs[mine] != 0])
        head, which = torch.unique(groups.parts.head[used], return_inverse=True)
        vectors.append(groups.parts.vectors(net.weight)[head])
        parts.append((groups, used, which + heads))
        atoms.append(_of_parts(groups, mine, used))
        heads += len(head)
    maps = writer.conv("cam", features, torch.cat(vectors)[:, :, None, None], None, features.window)
    window, size = maps.window, heads * maps.window.h * maps.window.w
    sums = torch.block_diag(*atoms)
    if sums.shape[1] * size > MOST_NUMBERS:
        raise InputError(
            f"the last layer would have {sums.shape[1] * size:.3g} numbers (at most {MOST_NUMBERS:.3g}); name a "
            "pair=(i, j), or leave keep_class out"
        )
    places = torch.cat([_of_places(net, *some, window, size) for some in parts])
    shifts = torch.cat([groups.parts.shifts(net.bias)[used] for groups, used, _ in parts])
    row = writer.flatten("row", maps)
    if len(sums) * size > 2 * (places.numel() + sums.numel()):
        row = writer.gemm("parts", row, places, shifts)
        places, shifts = torch.eye(len(places), dtype=torch.float64), torch.zeros_like(shifts)
    writer.gemm("atoms", row, sums @ places, sums @ shifts)


def _of_parts(groups: Groups, atoms: Tensor, used: Tensor) -> Tensor:
    """Atoms (A, F) as sums of the used parts."""
    found = torch.zeros(len(atoms), len(groups.parts), dtype=torch.float64)
    found.scatter_add_(1, groups.terms[atoms], groups.coefs[atoms])
    return found[:, used]


def _of_places(net: CamNetwork, groups: Groups, used: Tensor, head: Tensor, window: Window, size: int) -> Tensor:
    """Parts (F, ``size``) as sums of places of maps, of which each part has one, ``head`` (F,)."""
    found = torch.zeros(len(used), size, dtype=torch.float64)
    maps, place, width = found.view(len(used), -1, window.h, window.w), groups.parts.place[used], net.map_shape[1]
    every = torch.arange(len(used))
    whole = place == MEAN
    maps[every[whole], head[whole]] = 1.0 / math.prod(net.map_shape)
    pixel, at = ~whole, place[~whole]
    maps[every[pixel], head[pixel], at // width - window.y, at % width - window.x] = 1.0
    return found


@dataclass(frozen=True)
class _Said:
    """What is asked, and what the two answers mean."""

    title: str
    unsat: str
    sat: str

    @classmethod
    def of(cls, question: Question, ball: Ball, pair: tuple[int, int] | None) -> _Said:
        what = question.property.in_words(question.class_in_words)
        box = clip_in_words(ball.box)
        keeping = "" if question.kept is None else f" that is still given class {question.kept}"
        if pair is None:
            holds, fails = "the property holds", "the property fails"
        else:
            one, many = question.groups.things
            holds, fails = (
                f"{one} {pair[0]} is ahead of {one} {pair[1]}",
                f"{many} {pair[0]} and {pair[1]} tie or change",
            )
            what = f"{many} {pair[0]} and {pair[1]} of: {what}"
        title = f"corgi_opt: {what}, within {ball.eps!r} of an image in L-inf, {box}"
        return cls(title, f"{holds} at every image of the box{keeping}", f"{fails} at an image of the box{keeping}")
