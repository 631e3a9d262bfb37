"""Re-proves a certificate from the network's weights, with numpy alone.

Certified: bounds of every neuron by intervals, or by D at CROWN's multipliers where the file claims more; then every
part of the statement, trees, and every atom that is still open, by D again. Falsified: the image is in the region, and
the parts' values there are in intervals that decide so many atoms.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from corgi_opt.errors import ProofError
from corgi_opt.proof.arithmetic import Arithmetic, Array, Exact, Float64, keeps_denormals
from corgi_opt.proof.bounds import Bounds, Indices
from corgi_opt.proof.certificate import Certificate, Claim, PartTree
from corgi_opt.proof.leaves import Leaves
from corgi_opt.proof.network import Network
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import Objective, Statement

MOST_OPEN = 4096
"""Most atoms that get a bound of their own; a certificate that leaves more open needs trees for them."""

MOST_EXACT = 2_000_000
"""Most weights and values of a network that is checked in fractions."""


@dataclass(frozen=True)
class Checked:
    """What was proven: ``kind``, and a bound of the margin: from below (certified) or from above (falsified).

    ``said``: what its writer calls the statement (a property, as JSON types). ``corgi_opt.check_certificate`` checks
    that as well; this checker proves the statement alone.
    """

    kind: str
    margin: float
    seconds: float
    exact: bool
    said: Mapping[str, Any]


def check(certificate: Certificate, network: Network, *, exact: bool = False) -> Checked:
    """Proves a certificate's claim anew, in float64 with error bounds or, slowly, in exact fractions.

    Raises ProofError where the claim is about another network, malformed, or not proven.
    """
    start, claim = time.perf_counter(), certificate.claim
    arithmetic = Exact() if exact else Float64()
    statement = _require_claim(claim, network)
    if not exact and not keeps_denormals():
        raise ProofError("this process flushes denormal numbers to zero (as torch.set_flush_denormal(True) does)")
    prove = _falsified if claim.kind == "falsified" else _certified
    if exact:
        _require_small(network)
    try:
        margin = prove(certificate, statement, network, arithmetic)
    except OverflowError as error:  # no fraction is infinite
        raise ProofError(f"its numbers are too large to calculate with ({error})") from error
    except MemoryError as error:  # the network itself may be too large for this machine
        raise ProofError(f"this machine has too little memory to check it ({error})") from error
    return Checked(claim.kind, margin, time.perf_counter() - start, exact, claim.said)


def _require_small(network: Network) -> None:
    """Raises ProofError for a network that is too large to be checked in fractions."""
    held = sum(math.prod(node.shape) for node in network.nodes) + network.weight.size
    held += sum(weight.size for node in network.nodes for weight in node.op.weights)
    if held > MOST_EXACT:
        raise ProofError(
            f"the network has {held:,} weights and values; fractions are for those with up to {MOST_EXACT:,}: check "
            "it in float64, without 'exact'"
        )


def _require_claim(claim: Claim, network: Network) -> Statement:
    """The claimed statement. Raises ProofError for a claim about another network, or one that does not fit this one."""
    region, shape = claim.region, network.nodes[0].shape
    sha256 = network.sha256_of_logits if claim.says.logits else network.sha256
    if claim.sha256 != sha256:
        raise ProofError(f"it is about another network (SHA-256 {claim.sha256[:16]}..., not {sha256[:16]}...)")
    if region.center.shape != shape:
        raise ProofError(f"its image has shape {region.center.shape}, the network's {shape}")
    if region.ends is not None and any(len(end) not in (1, shape[0]) for end in region.ends):
        raise ProofError(f"its box is for another number of channels than {shape[0]}")
    if not region.boxed(region.center):
        raise ProofError("its image lies outside its box")
    return claim.says.of(network)


def _certified(certificate: Certificate, statement: Statement, network: Network, arithmetic: Arithmetic) -> float:
    claim = certificate.claim
    bounds = Bounds(network, claim.region, arithmetic)
    for node in range(network.features + 1):
        bounds.reach(node, certificate.claims.get(node))
    if set(certificate.claims) - set(range(network.features + 1)):
        raise ProofError("it claims bounds of nodes that do not exist")
    margins = Margins(bounds, statement)
    for proof in certificate.trees:
        margins.add_tree(proof)
    margins.bound_atoms()
    if len(statement.anchors):  # an atom that holds on the whole region does so at its centre
        _require_anchored(statement, _values_at(claim.region.center, statement, network, arithmetic))
    margin = margins.margin
    if not margin > 0:
        raise ProofError(f"its margin is only proven to be above {margin:.6g}")
    return margin


class Margins:
    """Proven lower bounds of the atoms (A,) of a statement: those of their parts, and their own."""

    def __init__(self, bounds: Bounds, statement: Statement) -> None:
        self.bounds, self.statement, self.objective = bounds, statement, Objective(bounds, statement)
        count = len(statement.head)
        self.low, self.high = np.full(count, -np.inf), np.full(count, np.inf)
        self._own = np.full(len(statement.terms), -np.inf)
        coefs = np.broadcast_to(statement.coefs, statement.terms.shape)
        for sign, side in ((1.0, self.low), (-1.0, self.high)):
            parts = np.unique(statement.terms[coefs * sign > 0])
            side[parts] = sign * self._bounded(parts[:, None], np.full((len(parts), 1), sign))

    def _bounded(self, terms: Indices, coefs: Array) -> Array:
        """D's lower bounds (Q,) of combinations of parts."""
        bounds, lower = self.bounds, np.full(len(terms), -np.inf)
        for objectives in self.objective.rows(terms, coefs):
            value = bounds.bound(bounds.network.features, objectives.rows)
            lower[objectives.which] = objectives.lower(value, bounds.arithmetic)
        return lower

    @property
    def atoms(self) -> Array:
        """The best lower bound of each atom (A,)."""
        return np.asarray(np.maximum(np.nextafter(self.statement.least(self.low, self.high), -np.inf), self._own))

    @property
    def per_group(self) -> Array:
        """The slack of each group (G,)."""
        return self.statement.slack(self.atoms)

    @property
    def margin(self) -> float:
        return float(self.per_group.min())

    def open_atoms(self) -> Indices:
        """Atoms (Q,) that are not proven, of groups that are not."""
        members = self.statement.members[~(self.per_group > 0)]
        mine = members[members >= 0]
        return np.asarray(np.sort(mine[~(self.atoms[mine] > 0)]))

    def bound_atoms(self) -> None:
        """Bounds open atoms by D, each as one functional."""
        some = self.open_atoms()
        if len(some) <= MOST_OPEN and self.statement.terms.shape[1] > 1:
            coefs = np.broadcast_to(self.statement.coefs, self.statement.terms.shape)[some]
            self._own[some] = np.maximum(self._own[some], self._bounded(self.statement.terms[some], coefs))

    def add_tree(self, proof: PartTree) -> float:
        """Takes in the lower bound that a tree proves, and returns it. Raises ProofError for a malformed tree."""
        terms, signs = np.array([proof.parts], dtype=np.int64), np.array([proof.signs], dtype=np.float64)
        if terms.shape != signs.shape or not terms.size or not np.isfinite(signs).all():
            raise ProofError(f"a malformed tree: {len(proof.parts)} parts with signs {proof.signs}")
        if (terms < 0).any() or (terms >= len(self.low)).any():
            raise ProofError("a tree about parts that do not exist")
        atoms = self._same(terms[0], signs[0])
        if not len(atoms) and proof.signs not in ((1,), (-1,)):
            raise ProofError("a tree about a combination of parts that is no atom")
        proof.tree.require_whole()
        (objectives,) = self.objective.rows(terms, signs)
        shift = float(objectives.shift[0])
        leaves = Leaves(self.bounds, proof.tree, self.bounds.network.features, objectives.rows, shift)
        proven = float(objectives.lower(leaves.lower().min(keepdims=True), self.bounds.arithmetic)[0])
        self._own[atoms] = np.maximum(self._own[atoms], proven)
        if proof.signs == (1,):
            self.low[terms[0]] = np.maximum(self.low[terms[0]], proven)
        elif proof.signs == (-1,):
            self.high[terms[0]] = np.minimum(self.high[terms[0]], -proven)
        return proven

    def _same(self, parts: Indices, signs: Array) -> Indices:
        """The atoms that are exactly this combination of parts."""
        terms, coefs = self.statement.terms, self.statement.coefs
        if len(parts) != terms.shape[1]:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero((terms == parts).all(axis=1) & (coefs == signs).all(axis=1))


def _values_at(image: Array, statement: Statement, network: Network, arithmetic: Arithmetic) -> tuple[Array, Array]:
    """Floats (F,), (F,) that the parts at one image lie between."""
    bounds = Bounds(network, Region(image, 0.0, "inf", None), arithmetic)
    for node in range(network.features + 1):
        bounds.reach(node)
    channels = network.weight.shape[1]
    low, high = (side[network.features].reshape(channels, -1) for side in (bounds.lower, bounds.upper))
    return Objective(bounds, statement).values(low, high)


def _require_anchored(statement: Statement, at_center: tuple[Array, Array]) -> None:
    """Raises ProofError where the statement's anchors are not proven to hold at the centre."""
    if not statement.anchored(*at_center):
        raise ProofError(
            "its anchors are not proven to hold at its image: that the parts it names are the larger ones there"
        )


def _falsified(certificate: Certificate, statement: Statement, network: Network, arithmetic: Arithmetic) -> float:
    claim, image = certificate.claim, certificate.witness
    if image is None or image.shape != claim.region.center.shape or not np.isfinite(image).all():
        raise ProofError("it has no image that would be a counterexample")
    require_inside(claim.region, image)
    at_center = _values_at(claim.region.center, statement, network, arithmetic)
    if not statement.slack(statement.least(*at_center)).min() > 0:
        raise ProofError("what it claims to break is not proven to hold at its centre")
    _require_anchored(statement, at_center)
    most = statement.most(*_values_at(image, statement, network, arithmetic))
    slack = statement.slack(most)
    if not slack.min() <= 0:
        raise ProofError("at its image no group of the statement is proven to fail")
    return float(slack.min())


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
