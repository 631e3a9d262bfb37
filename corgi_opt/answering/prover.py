"""Certificates: what has been decided, written down so that somebody else can check it.

Proofs are built on the checker's own bounds (proof/bounds.py), with whatever multipliers our searches find: first what
CROWN proves of neurons, pixels and pairs, then a tree by branch and bound for each pair that is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from corgi_solvers import Backend
from torch import nn

from corgi_opt._ambient import pinned
from corgi_opt._deadline import Deadline
from corgi_opt.answering.backends import missing_for
from corgi_opt.answering.plain import plain_network as plain_network
from corgi_opt.bounding.crown import Bounded
from corgi_opt.bounding.dual import Interval
from corgi_opt.encode.expressions import Expressions
from corgi_opt.errors import CertificateError, InputError, ProofError
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Verdict, Witness
from corgi_opt.proof.arithmetic import Float64
from corgi_opt.proof.bounds import Bounds, Claims
from corgi_opt.proof.certificate import Certificate, Claim, PixelTree
from corgi_opt.proof.checker import Checked, Margins, check, require_inside
from corgi_opt.proof.network import Network
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.tree import Tree
from corgi_opt.search.decide import Branched
from corgi_opt.search.leaves import Leaves
from corgi_opt.search.pairs import CamExpressions, PairSolver

SLACK = 1e-9
"""What claimed bounds leave, of their layer's largest, and trees, of the question's scale, for the rounding of another
machine."""


@dataclass(frozen=True, eq=False)
class Prover:
    """Makes and checks the certificate of one answer: that nothing changes in ``ball``, or that ``witness`` shows it.

    ``solver`` takes linear programs. Raises CertificateError where no proof is found; MissingPackageError without the
    solver.
    """

    question: Question
    ball: Ball
    witness: Witness | None
    solver: Backend
    device: torch.device

    def __call__(self, deadline: Deadline) -> Certificate:
        try:
            return self.within(deadline)[0]
        except ProofError as error:
            raise CertificateError(f"no proof was found: {error}") from error

    def within(self, deadline: Deadline) -> tuple[Certificate, Checked]:
        """The certificate, and what its check proved; the search for it keeps to the deadline, its check does not."""
        if self.witness is not None:
            found = falsified(self.question, self.ball, self.witness)
        else:
            with missing_for("a proof"):
                found = certified(self.question, self.ball, self.solver, self.device, deadline)
        return found, check(found, plain_network(self.question.net))


def checked(verdict: Verdict, prover: Prover, deadline: Deadline) -> Verdict:
    """The verdict as far as it passes the checker: what is certified and does not is unknown."""
    try:
        certificate, found = prover.within(deadline)
    except (CertificateError, ProofError) as error:
        reason = f"{verdict.reason}; but no checked proof was found: {error}"
        return replace(
            verdict, status="unknown" if verdict.status == "certified" else verdict.status, reason=reason, proof=None
        )
    margin = found.margin if verdict.status == "certified" else verdict.margin_lower
    return replace(verdict, proof="checked", margin_lower=margin, proven=certificate)


@pinned
def check_certificate(path: str | Path, model: nn.Module | CamNetwork, *, exact: bool = False) -> Checked:
    """Proves the claim of a certificate file anew, for the network that ``model`` is.

    The check itself needs numpy only and none of the code that searched (corgi_opt.proof.checker); reading the model
    (torch.export to affine + ReLU) is what it shares with it. ``exact``: in rational arithmetic, for small networks.

    Raises CertificateError for a damaged file, ProofError for one that is about another network or proves nothing.
    """
    certificate = Certificate.load(path)
    if isinstance(model, nn.Module):
        model = from_torch(model, torch.from_numpy(certificate.claim.region.center.copy())[None].float())
    if not isinstance(model, CamNetwork):
        raise InputError(f"model must be a torch module or a CamNetwork, got {type(model).__name__}")
    return check(certificate, plain_network(model), exact=exact)


def falsified(question: Question, ball: Ball, witness: Witness) -> Certificate:
    """That a replayed image is a counterexample; where it is so only as floats compare distances, one that is nearer.

    Raises ProofError where none is inside.
    """
    claim = _claim("falsified", question, ball, plain_network(question.net))
    center, image = claim.region.center, witness.image[0].numpy()
    for share in (1.0, *(1 - 2.0**-power for power in range(52, 40, -2))):
        nearer = image if share == 1.0 else center + share * (image - center)
        try:
            require_inside(claim.region, nearer)
        except ProofError:
            continue
        return Certificate(claim, witness=nearer)
    raise ProofError("its image is not in the region")


def certified(question: Question, ball: Ball, solver: Backend, device: torch.device, deadline: Deadline) -> Certificate:
    """A proof that the top-k set stays, or that each of its pixels stays among the ``within`` brightest.

    Raises CertificateError where none is found: the claim is false, time is over, or rivals have to be counted or the
    class to be kept, which only MILPs do so far.
    """
    network = plain_network(question.net)
    claim = _claim("certified", question, ball, network)
    bounds = Bounds(network, claim.region, Float64())
    claims = {}
    sources = {node.inputs[0] for node in network.nodes if isinstance(node.op, Relu)}
    for node in range(network.features + 1):
        bounds.reach(node)
        if node in sources:
            found = _claims(bounds, node)
            bounds.take(node, found)
            claims[node] = found
    margins = Margins(bounds, claim)
    margins.bound_pairs()
    trees = _trees(question, ball, margins, solver, device, deadline)
    if not margins.margin > 0:
        raise CertificateError(f"the margin is only proven to be above {margins.margin:.6g}")
    return Certificate(claim, claims, tuple(trees))


def _claim(kind: str, question: Question, ball: Ball, network: Network) -> Claim:
    region = Region(ball.center[0].numpy(), ball.eps, ball.norm, ball.box)
    topk = question.topk
    top = tuple(sorted(topk.top.tolist()))
    return Claim(kind, network.sha256, region, question.class_idx, top, topk.within)  # type: ignore[arg-type]


def _claims(bounds: Bounds, node: int) -> Claims:
    """What CROWN proves of the neurons whose sign intervals leave open."""
    low, high = bounds.lower[node], bounds.upper[node]
    flat = np.flatnonzero((low < 0) & (high > 0))
    found = bounds.neurons(node, flat, flat)
    slack = SLACK * float(np.maximum(np.abs(low), np.abs(high)).max(initial=0.0))
    lower, upper = found[0] - slack, found[1] + slack
    better = lower > low.flat[flat], upper < high.flat[flat]
    return Claims(flat, np.where(better[0], lower, -np.inf), np.where(better[1], upper, np.inf))


def _trees(
    question: Question, ball: Ball, margins: Margins, solver: Backend, device: torch.device, deadline: Deadline
) -> list[PixelTree]:
    """Trees for the pairs that are open, the most doubtful first where all have to hold, else the least."""
    names = question.net.graph.ancestors(question.net.features)
    bounds = margins.bounds
    intervals = {
        name: Interval(torch.from_numpy(bounds.lower[at]), torch.from_numpy(bounds.upper[at]))
        for at, name in enumerate(names)
    }
    expressions = Expressions(question.net.graph, Bounded(intervals, {}))
    branched = Branched(solver, device, SLACK * question.scale, keep_leaves=True)
    solve = PairSolver(question, ball, CamExpressions(question, expressions), branched).solve
    trees = []
    for pair in margins.open_pairs().tolist():
        if tuple(pair) not in {tuple(p) for p in margins.open_pairs().tolist()}:
            continue  # a tree of one of its pixels has settled it
        answer = solve((pair[0], pair[1]), deadline)
        if not answer.lower > 0 or None in answer.trees:
            if question.topk.allowed:
                continue
            raise CertificateError(f"pixels {pair[0]} and {pair[1]} are not decided ({answer.reason or 'no proof'})")
        signed = [(tuple(pair), (1, -1))] if len(answer.trees) == 1 else [((pair[0],), (1,)), ((pair[1],), (-1,))]
        for (pixels, signs), leaves in zip(signed, answer.trees, strict=True):
            assert leaves is not None
            proof = PixelTree(pixels, signs, _tree(expressions, {n: at for at, n in enumerate(names)}, leaves))
            margins.add_tree(proof)
            trees.append(proof)
    return trees


def _tree(expressions: Expressions, place: dict[str, int], leaves: Leaves) -> Tree:
    """Leaves in the units of the network itself."""
    program = leaves.program
    node, flat = [], []
    for name, at in expressions.by_node(program.units_at).items():
        node.append(np.full(len(at), place[name], dtype=np.int64))
        flat.append(expressions.flat(name, at))
    shape = expressions.graph[expressions.graph.input].shape
    inputs = np.ravel_multi_index(tuple(program.places.T), shape).astype(np.int64)
    none = [np.zeros(0, dtype=np.int64)]
    return Tree(
        node=np.concatenate(node or none),
        flat=np.concatenate(flat or none),
        phases=leaves.phases,
        slopes=leaves.slopes,
        mixes=leaves.mixes,
        pushes=leaves.pushes * (program.scales[0] / program.widths),
        inputs=inputs,
        shares=_shares(leaves),
    )


def _shares(leaves: Leaves) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Of every row, the share that its unit's plane has."""
    if leaves.planes is None:
        return None
    rows, slopes = leaves.program.rows.toarray(), leaves.planes.slopes.toarray()
    shares = np.divide(slopes, rows, out=np.zeros_like(rows), where=rows != 0)
    return np.asarray(shares, dtype=np.float32)
