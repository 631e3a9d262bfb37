"""Re-proves a certificate from the network's weights, with numpy alone.

Certified: bounds of every neuron by intervals, or by D at CROWN's multipliers where the file claims more; then every
CAM pixel, trees, and every pair that is still open, by D again. Falsified: the image is in the region, and pixels'
values there are in intervals that do not overlap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Arithmetic, Array, Exact, Float64, keeps_denormals
from corgi_opt.proof.bounds import Bounds, Indices
from corgi_opt.proof.certificate import Certificate, Claim, PixelTree
from corgi_opt.proof.memory import blocks
from corgi_opt.proof.network import Network
from corgi_opt.proof.region import Region
from corgi_opt.proof.rows import Rows
from corgi_opt.proof.tree import Program, covers

MOST_PAIRS = 4096
"""Pairs that get a bound of their own; one that leaves more open needs a certificate with trees."""

MOST_EXACT = 2_000_000
"""Weights and values of a network that fractions take."""


@dataclass(frozen=True)
class Checked:
    """What was proven: ``kind``, and a bound of the margin: from below (certified) or from above (falsified)."""

    kind: str
    margin: float
    seconds: float
    exact: bool


def check(certificate: Certificate, network: Network, *, exact: bool = False) -> Checked:
    """Proves a certificate's claim anew, in float64 with error bounds or, slowly, in exact fractions.

    Raises ProofError where the claim is about another network, malformed, or not proven.
    """
    start, claim = time.perf_counter(), certificate.claim
    arithmetic = Exact() if exact else Float64()
    _require_claim(claim, network)
    if not exact and not keeps_denormals():
        raise ProofError("this process flushes denormal numbers to zero (as torch.set_flush_denormal(True) does)")
    prove = _falsified if claim.kind == "falsified" else _certified
    if exact:
        _require_small(network)
    try:
        margin = prove(certificate, network, arithmetic)
    except OverflowError as error:  # no fraction is infinite
        raise ProofError(f"its numbers are too large to calculate with ({error})") from error
    except MemoryError as error:  # what sizes the network itself asks for, on a machine that has less
        raise ProofError(f"this machine has too little memory to check it ({error})") from error
    return Checked(claim.kind, margin, time.perf_counter() - start, exact)


def _require_small(network: Network) -> None:
    """Raises ProofError for a network that fractions are no way to check."""
    held = sum(math.prod(node.shape) for node in network.nodes) + network.weight.size
    held += sum(weight.size for node in network.nodes for weight in node.op.weights)
    if held > MOST_EXACT:
        raise ProofError(
            f"the network has {held:,} weights and values; fractions are for those with up to {MOST_EXACT:,}: check "
            "it in float64, without 'exact'"
        )


def _require_claim(claim: Claim, network: Network) -> None:
    if claim.sha256 != network.sha256:
        raise ProofError(f"it is about another network (SHA-256 {claim.sha256[:16]}..., not {network.sha256[:16]}...)")
    region, shape = claim.region, network.nodes[0].shape
    if region.center.shape != shape:
        raise ProofError(f"its image has shape {region.center.shape}, the network's {shape}")
    if region.ends is not None and any(len(end) not in (1, shape[0]) for end in region.ends):
        raise ProofError(f"its box is for another number of channels than {shape[0]}")
    if not region.boxed(region.center):
        raise ProofError("its image lies outside its box")
    pixels, top = _pixels(network), claim.top
    if not 0 <= claim.class_idx < len(network.weight):
        raise ProofError(f"class {claim.class_idx} does not exist")
    if len(set(top)) != len(top) or not top or min(top) < 0 or max(top) >= pixels:
        raise ProofError("its top pixels are not distinct pixels of the map")
    if not len(top) <= claim.within < pixels:
        raise ProofError(f"within={claim.within} for {len(top)} of {pixels} pixels")


def _pixels(network: Network) -> int:
    _, height, width = network.nodes[network.features].shape
    return height * width


def _certified(certificate: Certificate, network: Network, arithmetic: Arithmetic) -> float:
    claim = certificate.claim
    bounds = Bounds(network, claim.region, arithmetic)
    for node in range(network.features + 1):
        bounds.reach(node, certificate.claims.get(node))
    if set(certificate.claims) - set(range(network.features + 1)):
        raise ProofError("it claims bounds of nodes that there are not")
    margins = Margins(bounds, claim)
    for proof in certificate.trees:
        margins.add_tree(proof)
    margins.bound_pairs()
    if claim.within > len(claim.top):  # else strictly brighter pixels are the brightest at the centre too
        _require_top(claim, network, arithmetic)
    margin = margins.margin
    if not margin > 0:
        raise ProofError(f"its margin is only proven to be above {margin:.6g}")
    return margin


class Margins:
    """Proven lower bounds of ``CAM_i - CAM_j`` (k, P) for the claim's top pixels and all others."""

    def __init__(self, bounds: Bounds, claim: Claim) -> None:
        self.bounds, self.claim = bounds, claim
        self.top = np.array(claim.top, dtype=np.int64)
        count = _pixels(bounds.network)
        others = np.setdiff1d(np.arange(count), self.top)
        self.low, self.high = np.full(count, -np.inf), np.full(count, np.inf)
        self.low[self.top] = bounds.bound(bounds.network.features, self._pixel_rows(self.top, 1.0))
        self.high[others] = -bounds.bound(bounds.network.features, self._pixel_rows(others, -1.0))
        self._pairs: dict[int, dict[int, float]] = {}  # by the top pixel's place: rivals with a bound of their own

    def _pixel_rows(self, pixels: Indices, sign: float) -> Rows:
        network = self.bounds.network
        weight = sign * network.weight[self.claim.class_idx]
        coefs = np.broadcast_to(weight[None, :, None, None], (len(pixels), len(weight), 1, 1))
        width = network.nodes[network.features].shape[2]
        return Rows(self.bounds.arithmetic.of(coefs), np.stack([pixels // width, pixels % width], axis=1))

    def _pair_rows(self, pairs: Indices) -> Rows:
        """``CAM_i - CAM_j`` of pairs (Q, 2) whose pixels are as far apart, on the rectangles that span them."""
        network = self.bounds.network
        width, weight = network.nodes[network.features].shape[2], network.weight[self.claim.class_idx]
        at = np.stack([pairs // width, pairs % width], axis=2)  # (Q, 2 pixels, y x)
        corners = at.min(axis=1)
        h, w = (at.max(axis=1) - corners)[0] + 1
        coefs, row = np.zeros((len(pairs), len(weight), h, w)), np.arange(len(pairs))
        for side, sign in ((0, 1.0), (1, -1.0)):
            y, x = (at[:, side] - corners).T
            coefs[row, :, y, x] = sign * weight
        return Rows(self.bounds.arithmetic.of(coefs), corners)

    def lower(self, some: slice) -> Array:
        """Of some top pixels (b, P); infinite for one against itself, minus infinity against the other top pixels."""
        with np.errstate(invalid="ignore"):
            apart = np.nextafter(self.low[self.top[some], None] - self.high[None], -np.inf)
        found = np.where(np.isnan(apart), -np.inf, apart)
        for row, place in enumerate(range(*some.indices(len(self.top)))):
            for rival, value in self._pairs.get(place, {}).items():
                found[row, rival] = max(found[row, rival], value)
        found[np.arange(len(found)), self.top[some]] = np.inf
        return np.asarray(found)

    def _blocks(self) -> Iterator[slice]:
        return blocks(len(self.top), len(self.high))

    @property
    def per_pixel(self) -> Array:
        """The slack of each top pixel (k,): the bound against the rival that is the ``within``-th to pass it."""
        return np.concatenate([np.sort(self.lower(b), axis=1)[:, self.claim.within - 1] for b in self._blocks()])

    @property
    def margin(self) -> float:
        return float(self.per_pixel.min())

    def open_pairs(self, most: int | None = None) -> Indices:
        """Pairs (Q, 2) that may matter: not proven, with a top pixel that is not, and no two top pixels. More than
        ``most`` are not looked for."""
        found, count, left = [np.zeros((0, 2), dtype=np.int64)], 0, self.per_pixel
        for block in self._blocks():
            open_ = ~(self.lower(block) > 0) & ~(left[block] > 0)[:, None]
            open_[:, self.top] = False
            row, rival = np.nonzero(open_)
            found.append(np.stack([self.top[block][row], rival], axis=1))
            count += len(row)
            if most is not None and count > most:
                break
        return np.concatenate(found)

    def bound_pairs(self) -> None:
        """Bounds open pairs by D, each as one functional."""
        pairs = self.open_pairs(MOST_PAIRS)
        if len(pairs) > MOST_PAIRS:
            return
        network = self.bounds.network
        channels, _, width = network.nodes[network.features].shape
        span = np.abs(np.stack([np.diff(pairs // width, axis=1), np.diff(pairs % width, axis=1)], axis=1))[:, :, 0]
        for size in np.unique(span, axis=0):
            group = pairs[(span == size).all(axis=1)]
            step = max(1, self.bounds.arithmetic.at_once // (channels * int(np.prod(size + 1))))
            for start in range(0, len(group), step):
                some = group[start : start + step]
                self._take(some, self.bounds.bound(network.features, self._pair_rows(some)))

    def _take(self, pairs: Indices, values: Array) -> None:
        for (i, j), value in zip(pairs.tolist(), values.tolist(), strict=True):
            known = self._pairs.setdefault(self.claim.top.index(i), {})
            known[j] = max(known.get(j, -math.inf), value)

    def add_tree(self, proof: PixelTree) -> float:
        """Takes in what a tree proves, and returns it. Raises ProofError for one that proves nothing."""
        pixels, count = np.array(proof.pixels, dtype=np.int64), len(self.high)
        if proof.signs not in ((1,), (-1,), (1, -1)) or len(pixels) != len(proof.signs):
            raise ProofError(f"a tree about {len(pixels)} pixels with signs {proof.signs}")
        if (pixels < 0).any() or (pixels >= count).any() or len(set(proof.pixels)) != len(pixels):
            raise ProofError("a tree about pixels that there are not")
        if len(pixels) == 2 and proof.pixels[0] not in self.claim.top:
            raise ProofError("a tree about a pair whose first pixel is no top pixel")
        if not covers(proof.tree.phases):
            raise ProofError(f"the leaves of the tree of pixels {proof.pixels} leave something out")
        rows = self._pair_rows(pixels[None]) if len(pixels) == 2 else self._pixel_rows(pixels, float(proof.signs[0]))
        program = Program(self.bounds, proof.tree, self.bounds.network.features, rows)
        found = float(program.lower().min())
        if len(pixels) == 2:
            self._take(pixels[None], np.array([found]))
        elif proof.signs == (1,):
            self.low[pixels] = np.maximum(self.low[pixels], found)
        else:
            self.high[pixels] = np.minimum(self.high[pixels], -found)
        return found


def _values_at(image: Array, claim: Claim, network: Network, arithmetic: Arithmetic) -> tuple[Array, Array]:
    """Floats that the CAM pixels (P,) at one image are between."""
    bounds = Bounds(network, Region(image, 0.0, "inf", None), arithmetic)
    for node in range(network.features + 1):
        bounds.reach(node)
    sides = (bounds.lower, bounds.upper)
    low, high = (arithmetic.of(side[network.features]).reshape(len(network.weight[0]), -1) for side in sides)
    weight = network.weight[claim.class_idx]
    plus, minus = arithmetic.of(np.maximum(weight, 0.0)), arithmetic.of(np.minimum(weight, 0.0))
    magnitude = bounds.magnitude(network.features).reshape(len(weight), -1)
    size = np.abs(weight) @ magnitude
    idle = ~((weight != 0)[:, None] & (magnitude > 0)).any(axis=0)  # exactly zero: pixels that are dead may tie
    error = arithmetic.gamma(2 * len(weight) + 8) * size * 2 + len(weight) * 4 * arithmetic.tiny
    error = arithmetic.of(np.where(idle, 0, error))
    return arithmetic.down(plus @ low + minus @ high - error), arithmetic.up(plus @ high + minus @ low + error)


def _require_top(claim: Claim, network: Network, arithmetic: Arithmetic) -> None:
    low, high = _values_at(claim.region.center, claim, network, arithmetic)
    top = np.isin(np.arange(len(low)), claim.top)
    if not low[top].min() > high[~top].max():
        raise ProofError("its top pixels are not proven to be the brightest at its image")


def _falsified(certificate: Certificate, network: Network, arithmetic: Arithmetic) -> float:
    claim, image = certificate.claim, certificate.witness
    if image is None or image.shape != claim.region.center.shape or not np.isfinite(image).all():
        raise ProofError("it has no image that would be a counterexample")
    require_inside(claim.region, image)
    _require_top(claim, network, arithmetic)
    low, high = _values_at(image, claim, network, arithmetic)
    top = np.array(claim.top)
    if claim.within == len(top):
        # the set changes as soon as one pixel outside equals one inside, however those inside stand to each other
        least = float(high[top].min() - np.delete(low, top).max())
        if not least <= 0:
            raise ProofError("at its image no pixel outside is proven to be as bright as one of the top pixels")
        return least
    ahead, least = 0, math.inf
    for block in blocks(len(top), len(low)):
        some, own = top[block], np.arange(len(top[block]))
        passed = low[None] >= high[some, None]  # (b, P): rivals that are as bright as each top pixel, or brighter
        passed[own, some] = False
        ahead = max(ahead, int(passed.sum(axis=1).max()))
        # the within-th brightest of the others is ahead by so much at least
        gaps = high[some, None] - low[None]
        gaps[own, some] = np.inf
        least = min(least, float(np.sort(gaps, axis=1)[:, claim.within - 1].min()))
    if ahead < claim.within:
        raise ProofError(f"at its image no top pixel is proven to have {claim.within} pixels as bright as itself")
    return least


def require_inside(region: Region, image: Array) -> None:
    """Raises ProofError for an image (C, H, W) that is not in the region, in exact fractions."""
    if not region.boxed(image):
        raise ProofError("its image lies outside the box")
    moved = [
        abs(Fraction(x) - Fraction(c))
        for x, c in zip(image.flatten().tolist(), region.center.flatten().tolist(), strict=True)
        if x != c
    ]
    eps = Fraction(region.eps)
    inside = {
        "inf": lambda: max(moved, default=Fraction(0)) <= eps,
        "1": lambda: sum(moved) <= eps,
        "2": lambda: sum(m * m for m in moved) <= eps * eps,
    }[region.norm]()
    if not inside:
        raise ProofError("its image is farther than eps from the centre")
