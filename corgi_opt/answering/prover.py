"""Certificates: what has been decided, written down so that somebody else can check it.

Proofs are built on the checker's own bounds (proof/bounds.py), with whatever multipliers our searches find: first what
CROWN proves of neurons, parts and atoms, then a tree by branch and bound for each atom that is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
from corgi_opt.errors import CertificateError, CorgiError, InputError, ProofError
from corgi_opt.methods import listed
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.problem.atoms import Groups
from corgi_opt.problem.properties import property_from
from corgi_opt.problem.question import Question
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Verdict
from corgi_opt.problem.scene import Scene
from corgi_opt.problem.witness import Witness
from corgi_opt.proof.arithmetic import Float64
from corgi_opt.proof.bounds import Bounds, Claims
from corgi_opt.proof.certificate import Certificate, Claim, PartTree
from corgi_opt.proof.checker import Checked, Margins, check, require_inside
from corgi_opt.proof.network import Network
from corgi_opt.proof.operations import Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import Statement, TopPixels
from corgi_opt.proof.tree import Clips, Descent, Tree
from corgi_opt.search.atom import AtomSolver, PartExpressions
from corgi_opt.search.decide import Branched
from corgi_opt.search.leaves import Leaves

SLACK = 1e-9
"""What claimed bounds leave, of their layer's largest, for the rounding of another machine."""

SPARES = (1e-9, 1e-6)
"""What trees leave for it, of the question's scale; more where the checker, which adds up in another order, proves less
than the search did (large terms that cancel)."""


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
        if self.question.net.curved:
            raise CertificateError(_unprovable(self.question.net))
        if self.witness is not None:
            found = falsified(self.question, self.ball, self.witness)
        else:
            with missing_for("a proof"):
                found = certified(self.question, self.ball, self.solver, self.device, deadline)
        return found, check(found, plain_network(self.question.net))


def require_provable(net: CamNetwork) -> None:
    """Raises InputError for a network that no certificate is about."""
    if net.curved:
        raise InputError(f"{_unprovable(net)}; proof='float64' rests on bounds less what rounding may hide")


def _unprovable(net: CamNetwork) -> str:
    return f"certificates are of affine and piecewise-linear layers only, and this network has {listed(net.curved)}"


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
    (torch.export to affine + ReLU), and what the property says there, it shares with that. ``exact``: in rational
    arithmetic, for small networks.

    Raises CertificateError for a damaged file, ProofError for one that is about another network or proves nothing.
    """
    certificate = Certificate.load(path)
    if isinstance(model, nn.Module):
        model = from_torch(model, torch.from_numpy(certificate.claim.region.center.copy())[None].float())
    if not isinstance(model, CamNetwork):
        raise InputError(f"model must be a torch module or a CamNetwork, got {type(model).__name__}")
    found = check(certificate, plain_network(model), exact=exact)
    _require_said(certificate.claim, model)
    return found


def _require_said(claim: Claim, net: CamNetwork) -> None:
    """Raises ProofError where a statement is not what the property it is said to be says of this network and image."""
    if isinstance(claim.says, TopPixels):
        return  # that is the statement itself
    said, region = dict(claim.said), claim.region
    try:
        class_idx, what = said.pop("class_idx"), property_from(said)
        center = torch.from_numpy(region.center.copy())[None]
        scene = Scene.of(net, center, class_idx=class_idx, norm=region.norm, clip=region.clip)
        same = _same(_statement(what.pose(scene, 0.0)), claim.says)
    except (CorgiError, KeyError) as error:
        raise ProofError(f"its statement is proven, but not that it is {claim.said}: {error}") from error
    if not same:
        raise ProofError(f"its statement is proven, but it is not what {claim.said} says of this network and image")


def _same(first: Statement, second: Statement) -> bool:
    """Whether two statements say the same, in whatever order: of pixels nearly as bright, another machine may have
    another one."""
    alike = all(np.array_equal(getattr(first, n), getattr(second, n)) for n in ("heads", "head", "place"))
    return alike and _groups_of(first) == _groups_of(second)


def _groups_of(statement: Statement) -> list[tuple[int, list[tuple[float, ...]]]]:
    coefs = np.broadcast_to(statement.coefs, statement.terms.shape)
    atoms = [tuple(row) for row in np.hstack([statement.terms, coefs]).tolist()]
    groups = zip(statement.need.tolist(), statement.members.tolist(), strict=True)
    return sorted((need, sorted(atoms[a] for a in members if a >= 0)) for need, members in groups)


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
    """A proof that the property holds.

    Raises CertificateError where none is found: the claim is false, time is over, trees are larger than a file holds,
    or atoms have to be counted or premises kept to, which only MILPs do so far.
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
    assert isinstance(claim.says, Statement)
    margins = Margins(bounds, claim.says)
    margins.bound_atoms()
    trees = _trees(question, ball, margins, solver, device, deadline)
    if not margins.margin > 0:
        raise CertificateError(f"the margin is only proven to be above {margins.margin:.6g}")
    certificate = Certificate(claim, claims, tuple(trees))
    certificate.require_readable()
    return certificate


def _claim(kind: Literal["certified", "falsified"], question: Question, ball: Ball, network: Network) -> Claim:
    region = Region(ball.center[0].numpy(), ball.eps, ball.norm, ball.box)
    statement = _statement(question.groups)
    sha256 = network.sha256_of_logits if statement.logits else network.sha256
    return Claim(kind, sha256, region, statement, {**question.property.to_dict(), "class_idx": question.class_idx})


def _statement(groups: Groups) -> Statement:
    """What a property says at an image, as a certificate has it."""
    same = bool((groups.coefs == groups.coefs[:1]).all())
    coefs = groups.coefs[:1] if same else groups.coefs
    parts = groups.parts
    arrays = (parts.heads, parts.head, parts.place, groups.terms, coefs, groups.members, groups.need, groups.anchors)
    return Statement(*(np.ascontiguousarray(array.numpy()) for array in arrays))


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
) -> list[PartTree]:
    """Trees for the atoms that are open, the most doubtful first where all have to hold, else the least."""
    names = question.net.graph.ancestors(question.net.features)
    bounds = margins.bounds
    intervals = {
        name: Interval(torch.from_numpy(bounds.lower[at]), torch.from_numpy(bounds.upper[at]))
        for at, name in enumerate(names)
    }
    expressions = Expressions(question.net.graph, Bounded(intervals, {}))
    parts = PartExpressions(question, expressions)
    searches = [
        AtomSolver(question, ball, parts, Branched(solver, device, spare * question.scale, keep_leaves=True))
        for spare in SPARES
    ]
    trees: list[PartTree] = []
    place = {name: at for at, name in enumerate(names)}
    for atom in margins.open_atoms().tolist():
        made: list[PartTree] = []
        for search in searches:
            if atom not in margins.open_atoms() or bool(question.ahead[atom]):
                break  # trees have settled it (one of its parts may be enough), or nobody can
            answer = search.solve(atom, deadline)
            if not answer.lower > 0 or None in answer.trees:
                if not question.groups.every:
                    break
                why = answer.reason or "their tree has more leaves than a certificate holds"
                raise CertificateError(f"{question.groups.named(atom)} are not decided ({why})")
            terms, made = parts.terms(atom), []  # in the place of those that proved less than they should
            about = [terms] if len(answer.trees) == 1 else [[term] for term in terms]
            for some, leaves in zip(about, answer.trees, strict=True):
                assert leaves is not None
                found = tuple(part for part, _ in some), tuple(coef for _, coef in some)
                made.append(PartTree(*found, _tree(expressions, place, leaves)))
                margins.add_tree(made[-1])
        trees += made
    return trees


def _tree(expressions: Expressions, place: dict[str, int], leaves: Leaves) -> Tree:
    """Leaves in the units of the network itself."""
    program, rows = leaves.program, leaves.rows
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
        phases=rows.phases,
        slopes=rows.slopes,
        mixes=rows.mixes,
        pushes=rows.pushes * (program.scales[0] / program.widths),
        inputs=inputs,
        shares=_shares(leaves),
        clips=_clips(leaves),
        descent=_descent(leaves),
    )


def _clips(leaves: Leaves) -> Clips | None:
    """How intervals were clipped, for a goal in the output's own unit."""
    clipped = leaves.clipped
    if clipped is None or not clipped.steps:
        return None
    every = [np.stack(m) for m in zip(*((s.slopes, s.mixes, s.shares) for s in clipped.steps), strict=True)]
    return Clips(clipped.goal * float(leaves.program.scales[0]), *every)


def _descent(leaves: Leaves) -> Descent | None:
    """How intervals were narrowed in nodes; None: they were not."""
    program, rows = leaves.program, leaves.rows
    if (rows.parents < 0).all():
        return None
    shares = rows.shares * (program.widths / program.scales[0])[rows.sides % program.units]
    return Descent(rows.parents, rows.counts, rows.sides, shares.astype(np.float32))


def _shares(leaves: Leaves) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Of every row, the share that its unit's plane has."""
    if leaves.planes is None:
        return None
    rows, slopes = leaves.program.rows.toarray(), leaves.planes.slopes.toarray()
    shares = np.divide(slopes, rows, out=np.zeros_like(rows), where=rows != 0)
    return np.asarray(shares, dtype=np.float32)
