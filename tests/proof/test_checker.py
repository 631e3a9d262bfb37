"""Certificates of small questions: what is true is proven, and nothing else passes, however the file was changed."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from corgi_solvers import Highs, Problem, Solution, Status
from patience import mostly_slow
from small_questions import SmallQuestion, questions
from torch import nn

import corgi_opt as co
from corgi_opt._deadline import Deadline
from corgi_opt.answering import backends
from corgi_opt.answering import prover as prove
from corgi_opt.answering.ladder import Ladder
from corgi_opt.answering.prover import Prover, certified, plain_network
from corgi_opt.errors import CertificateError, ProofError
from corgi_opt.proof import archive as archive_module
from corgi_opt.proof.certificate import STATEMENT_ARRAYS, Certificate, Claim
from corgi_opt.proof.checker import check
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Conv, Input, Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import TopPixels
from corgi_opt.search import branch as branch_module

COUNT = 90


@dataclass(frozen=True, eq=False)
class Case:
    asked: SmallQuestion
    net: co.CamNetwork
    network: Network
    verdict: co.Verdict
    stable: bool | None

    @property
    def certificate(self) -> Certificate:
        return self.verdict.certificate

    @property
    def top(self) -> TopPixels:
        """What is claimed, as files of older versions have it."""
        cam, class_idx = self.net.cam(self.asked.x, self.verdict.asked.class_idx), self.verdict.asked.class_idx
        top = sorted(cam.flatten().topk(self.asked.k).indices.tolist())
        return TopPixels(class_idx, tuple(top), self.asked.k if self.asked.within is None else self.asked.within)

    def claiming(self, **changes: object) -> Certificate:
        """The certificate, for another claim about top pixels."""
        return with_claim(self.certificate, says=replace(self.top, **changes))


@functools.cache
def cases() -> tuple[Case, ...]:
    """Questions that keep no class, each answered by branch and bound and checked at once."""
    found = []
    for question in questions(COUNT, seed=11):
        asked = replace(question, keep_class=False)
        net = co.from_torch(asked.model, asked.x.float())
        verdict = co.verify(net, asked.x, method="bab", proof="checked", **asked.arguments)
        found.append(Case(asked, net, plain_network(net), verdict, asked.answer().stable))
    return tuple(found)


def of_kind(kind: str, trees: bool = False) -> list[Case]:
    found = [c for c in cases() if c.verdict.proof == "checked" and c.verdict.status == kind]
    return [c for c in found if not trees or c.certificate.trees]


def rejected(certificate: Certificate, network: Network) -> str:
    with pytest.raises(ProofError) as caught:
        check(certificate, network)
    return str(caught.value)


def test_what_is_checked_is_true_and_most_that_is_true_is_checked():
    refuted = {"certified": False, "falsified": True, "unknown": "never"}
    wrong = [c.asked.label for c in cases() if c.stable == refuted[c.verdict.status]]
    assert wrong == []
    # an exact tie is no stable set, but too close to tell for the oracle
    assert all(c.verdict.status != "certified" for c in cases() if c.stable is None and c.asked.answer().upper <= 0)
    counted = [c for c in cases() if c.asked.within is None]
    # rivals that have to be counted leave no proof
    assert sum(c.verdict.proof == "checked" for c in counted) >= 0.97 * sum(c.stable is not None for c in counted)
    assert min(len(of_kind("certified")), len(of_kind("falsified")), len(of_kind("certified", trees=True))) >= 12


def test_files_come_back_as_they_were(tmp_path: Path):
    for case in [*of_kind("certified")[:12], *of_kind("falsified")[:6]]:
        path = tmp_path / "a.cert"
        case.certificate.save(path)
        assert path.read_bytes() == case.certificate.to_bytes()
        assert Certificate.load(path).to_bytes() == path.read_bytes()
        found = co.check_certificate(path, case.asked.model)
        assert (found.kind, found.exact) == (case.verdict.status, False)
        assert (found.margin > 0) == (found.kind == "certified")


def test_files_of_older_versions_prove_what_they_did(tmp_path: Path):
    """What they claim is the same statement: each top pixel, and how many may pass it."""
    for case in [*of_kind("certified")[:20], *of_kind("falsified")[:10]]:
        old = Certificate.from_bytes(case.claiming().to_bytes())
        assert isinstance(old.claim.says, TopPixels) and old.to_bytes() == case.claiming().to_bytes()
        found, known = check(old, case.network), check(case.certificate, case.network)
        assert (found.kind, found.margin) == (known.kind, pytest.approx(known.margin, rel=1e-9, abs=1e-12))


def test_a_statement_is_what_it_is_said_to_be(tmp_path: Path):
    """The checker proves a statement; that it is what the property says here, ``co.check_certificate`` sees."""
    path = tmp_path / "a.cert"
    for case in [*of_kind("certified")[:6], *of_kind("falsified")[:3]]:
        claim, asked = case.certificate.claim, case.verdict.asked
        assert claim.said == {**asked.property.to_dict(), "class_idx": asked.class_idx}
        k = case.asked.k
        for wrong in (
            {**claim.said, "k": k + 1 if k + 1 < case.net.cam(case.asked.x).numel() else k - 1, "within": None},
            {**claim.said, "name": "Nothing"},
            {**claim.said, "class_idx": case.net.classes},
            {"name": "TopK", "k": k},
            {},
        ):
            with_claim(case.certificate, said=wrong).save(path)
            assert check(Certificate.load(path), case.network).kind == case.verdict.status
            with pytest.raises(ProofError, match="statement is proven, but"):
                co.check_certificate(path, case.asked.model)
        case.certificate.save(path)
        assert co.check_certificate(path, case.asked.model).said == claim.said


def test_fractions_prove_the_same():
    for case in [*of_kind("certified", trees=True)[:4], *of_kind("certified")[:4], *of_kind("falsified")[:4]]:
        by_float, exact = check(case.certificate, case.network), check(case.certificate, case.network, exact=True)
        assert exact.exact and exact.kind == by_float.kind
        assert exact.margin == pytest.approx(by_float.margin, rel=1e-9, abs=1e-9)


def test_nothing_is_checked_where_denormals_are_flushed():
    case = of_kind("certified")[0]
    torch.set_flush_denormal(True)
    try:
        assert "denormal" in rejected(case.certificate, case.network)
        assert check(case.certificate, case.network, exact=True).kind == "certified"
    finally:
        torch.set_flush_denormal(False)
    assert check(case.certificate, case.network).kind == "certified"


def test_a_margin_is_no_more_than_the_exact_one():
    for case in of_kind("certified"):
        assert check(case.certificate, case.network).margin <= case.asked.answer().upper + 1e-12
    for case in of_kind("falsified"):
        # within=k is the set itself, whose margin is that of a pair
        asked = replace(case.asked, within=None) if case.asked.within == case.asked.k else case.asked
        assert check(case.certificate, case.network).margin >= asked.answer().lower - 1e-12


def test_another_network_is_refused():
    for case in of_kind("certified")[:8]:
        model = replace(case.asked).model
        with torch.no_grad():
            moved: nn.Parameter = model.head.weight
            moved[0, 0] = torch.nextafter(moved[0, 0], moved[0, 0] + 1)
            other = plain_network(co.from_torch(model, case.asked.x.float()))
            moved[0, 0] = torch.nextafter(moved[0, 0], moved[0, 0] - 1)
        assert "another network" in rejected(case.certificate, other)


def with_claim(certificate: Certificate, **changes: object) -> Certificate:
    return replace(certificate, claim=replace(certificate.claim, **changes))


def with_region(certificate: Certificate, **changes: object) -> Certificate:
    return with_claim(certificate, region=replace(certificate.claim.region, **changes))


def test_a_larger_region_than_is_stable_is_not_proven():
    """Certificates just inside the radius, widened to just outside it."""
    tried = 0
    for case in of_kind("certified"):
        for factor in (1.0005, 1.3):
            wider = replace(case.asked, eps=case.asked.eps * factor)
            if wider.answer().stable is not True:
                tried += 1
                rejected(with_region(case.certificate, eps=wider.eps), case.network)
    assert tried >= 10


def test_another_question_is_not_proven():
    tried = 0
    for case in of_kind("certified"):
        claim, pixels = case.top, case.net.map_shape[0] * case.net.map_shape[1]
        others = [p for p in range(pixels) if p not in claim.top]
        rejected(case.claiming(top=(*claim.top[1:], others[0])), case.network)
        if claim.within > len(claim.top):
            tighter = replace(case.asked, within=None if claim.within - 1 == case.asked.k else claim.within - 1)
            if tighter.answer().stable is not True:
                tried += 1
                rejected(case.claiming(within=claim.within - 1), case.network)
        for class_idx in range(case.net.classes):
            here = replace(case.asked, class_idx=class_idx)
            cam = case.net.cam(case.asked.x, class_idx).flatten()
            if set(cam.topk(case.asked.k).indices.tolist()) != set(claim.top) or here.answer().stable is not True:
                tried += 1
                rejected(case.claiming(class_idx=class_idx), case.network)
    assert tried >= 30


def test_nonsense_is_refused():
    case = of_kind("certified")[0]
    claim, region = case.top, case.certificate.claim.region
    pixels = case.net.map_shape[0] * case.net.map_shape[1]
    for changes, why in (
        ({"top": ()}, "distinct"),
        ({"top": (0, 0)}, "distinct"),
        ({"top": (pixels,)}, "distinct"),
        ({"top": (-1,)}, "distinct"),
        ({"within": pixels}, "within"),
        ({"within": len(claim.top) - 1}, "within"),
        ({"class_idx": case.net.classes}, "does not exist"),
        ({"class_idx": -1}, "does not exist"),
    ):
        assert why in rejected(case.claiming(**changes), case.network)
    for changes, why in (
        ({"region": replace(region, center=region.center[:, :1])}, "shape"),
        ({"region": replace(region, clip=(2.0, 3.0))}, "outside its box"),
    ):
        assert why in rejected(with_claim(case.certificate, **changes), case.network)
    extra = {**case.certificate.claims, 99: next(iter(case.certificate.claims.values()))}
    assert "there are not" in rejected(replace(case.certificate, claims=extra), case.network)


@pytest.mark.parametrize("exact", [False, True])
def test_numbers_without_bound_prove_nothing(exact):
    case = of_kind("certified", trees=True)[0]
    huge = with_region(case.certificate, eps=1.7e308, clip=None)
    with pytest.raises(ProofError):
        check(huge, case.network, exact=exact)


def test_every_leaf_is_needed():
    tried = 0
    for case in of_kind("certified", trees=True):
        (first, *others) = case.certificate.trees
        for leaf in range(len(first.tree.phases)):
            kept = np.arange(len(first.tree.phases)) != leaf
            parts = {n: getattr(first.tree, n)[kept] for n in ("phases", "slopes", "mixes", "pushes")}
            broken = replace(first, tree=replace(first.tree, **parts))
            tried += 1
            why = rejected(replace(case.certificate, trees=(broken, *others)), case.network)
            assert "leave something out" in why
    assert tried >= 30


def test_trees_are_about_parts_and_units_of_the_network():
    case = of_kind("certified", trees=True)[0]
    proof = next(t for t in case.certificate.trees if len(t.tree.node))
    tree = proof.tree
    for wrong, why in (
        (replace(proof, parts=(proof.parts[0],) * 2, signs=(1.0, -1.0)), "no atom"),
        (replace(proof, parts=(10**6, proof.parts[-1]), signs=(1.0, -1.0)), "there are not"),
        (replace(proof, parts=(0, 1), signs=(1.0, 1.0)), "no atom"),
        (replace(proof, parts=(0,), signs=(2.0,)), "no atom"),
        (replace(proof, parts=(0,), signs=(1.0, 1.0)), "signs"),
        (replace(proof, parts=(), signs=()), "signs"),
        (replace(proof, parts=(0,), signs=(np.inf,)), "signs"),
        (replace(proof, tree=replace(tree, node=tree.node * 0)), "no ReLU"),
        (replace(proof, tree=replace(tree, flat=tree.flat + 10**6)), "no ReLU"),
        (replace(proof, tree=replace(tree, flat=tree.flat - 10**6)), "no ReLU"),
        (replace(proof, tree=replace(tree, inputs=tree.inputs + 10**6)), "out of order, or not"),
    ):
        trees = tuple(wrong if t is proof else t for t in case.certificate.trees)
        assert why in rejected(replace(case.certificate, trees=trees), case.network)
    others = [c for c in of_kind("certified", trees=True) if len(c.certificate.trees[0].tree.node) > 1]
    for case in others[:5]:
        (first, *rest) = case.certificate.trees
        for order in (np.arange(len(first.tree.node))[::-1], np.zeros(len(first.tree.node), dtype=np.int64)):
            mixed = replace(first.tree, node=first.tree.node[order], flat=first.tree.flat[order])
            broken = replace(case.certificate, trees=(replace(first, tree=mixed), *rest))
            assert "out of order" in (why := rejected(broken, case.network)) or "twice" in why


def test_a_counterexample_is_one_or_is_refused():
    for case in of_kind("falsified")[:15]:
        certificate, region = case.certificate, case.certificate.claim.region
        assert certificate.witness is not None
        at_center = replace(certificate, witness=region.center)
        assert "at its image no" in rejected(at_center, case.network)
        with pytest.raises(ProofError, match="at its image no"):
            check(at_center, case.network, exact=True)
        assert "no image" in rejected(replace(certificate, witness=None), case.network)
        assert "no image" in rejected(replace(certificate, witness=certificate.witness[:, :-1]), case.network)
        nearer = with_region(certificate, eps=case.verdict.counterexample.distance * (1 - 1e-12))
        assert "farther than eps" in rejected(nearer, case.network)
        outside = np.array(certificate.witness)
        outside.flat[0] = 50.0
        assert (
            "outside the box" in (why := rejected(replace(certificate, witness=outside), case.network)) or "far" in why
        )
        rivals = [p for p in range(case.net.map_shape[0] * case.net.map_shape[1]) if p not in case.top.top]
        why = rejected(case.claiming(top=(*case.top.top[1:], rivals[0])), case.network)
        assert "not proven to hold at its centre" in why or "anchors are not proven" in why


def test_what_only_looks_like_a_tie_is_no_counterexample():
    """Pixels of 0.1 x + 0.2 x and of 0.3 x - relu(x - 1): at x = 1 the first is the brighter by 2.8e-17."""

    def map_of(rows: list[list[float]]) -> np.ndarray:
        return np.array(rows)[:, :, None, None]

    plain = ((1, 1), (0, 0), (1, 1), 1)
    nodes = (
        Node(Input(), (), (1, 1, 1)),
        Node(Conv(map_of([[1.0], [1.0], [1.0]]), np.array([0.0, 0.0, -1.0]), *plain), (0,), (3, 1, 1)),
        Node(Relu(), (1,), (3, 1, 1)),
        # a row of two pixels: the kernel's second column is read by the first pixel
        Node(
            Conv(np.array([[[[0.3, 0.1]], [[0.0, 0.2]], [[-1.0, 0.0]]]]), np.zeros(1), (1, 1), (0, 1), (1, 1), 1),
            (2,),
            (1, 1, 2),
        ),
        Node(Relu(), (3,), (1, 1, 2)),
    )
    network = Network(nodes, 4, np.ones((1, 1)))
    region = Region(np.full((1, 1, 1), 2.0), 1.0, "inf", None)
    claim = Claim("falsified", network.sha256, region, TopPixels(0, (0,), 1))
    for exact in (False, True):
        with pytest.raises(ProofError, match="no group"):
            check(Certificate(claim, witness=np.ones((1, 1, 1))), network, exact=exact)
    other = replace(claim, region=replace(region, center=np.full((1, 1, 1), 1.5)))
    assert 0.1 + 0.2 > 0.3 and Fraction(0.1) + Fraction(0.2) > Fraction(0.3)
    with pytest.raises(ProofError):
        check(Certificate(other, witness=np.ones((1, 1, 1))), network)


def test_one_pixel_that_comes_in_changes_the_set_however_those_inside_tie():
    """Two top pixels are equal at the image, which rounding does not prove; the third is brighter than both."""
    plain = ((1, 1), (0, 0), (1, 1), 1)
    nodes = (
        Node(Input(), (), (1, 1, 3)),
        Node(Conv(np.array([0.1, 0.2])[:, None, None, None], np.zeros(2), *plain), (0,), (2, 1, 3)),
        Node(Conv(np.array([0.7, 1 / 3])[None, :, None, None], np.zeros(1), *plain), (1,), (1, 1, 3)),
    )
    network = Network(nodes, 2, np.ones((1, 1)))
    region = Region(np.array([[[2.0, 1.9, 1.0]]]), 2.0, "inf", None)
    claim = Claim("falsified", network.sha256, region, TopPixels(0, (0, 1), 2))
    image = np.array([[[1.0, 1.0, 1.5]]])
    assert check(Certificate(claim, witness=image), network).margin < -0.06
    # with one rival allowed, the tie is what it takes
    allowed = Certificate(replace(claim, says=TopPixels(0, (0,), 2)), witness=image)
    with pytest.raises(ProofError, match="no group"):
        check(allowed, network)


def test_files_that_hold_nan_or_too_much_are_refused(monkeypatch):
    certificate = of_kind("falsified")[0].certificate
    assert certificate.witness is not None
    with pytest.raises(CertificateError, match="NaN"):
        Certificate.from_bytes(replace(certificate, witness=certificate.witness * np.nan).to_bytes())
    content = replace(certificate, witness=np.zeros((1, 3000, 3000))).to_bytes()
    assert len(content) < 200_000  # a bomb: 72 MB of zeros
    monkeypatch.setattr(archive_module, "MOST_BYTES", 50_000_000)
    with pytest.raises(CertificateError, match="more than"):
        Certificate.from_bytes(content)


def flips(count: int, seed: int) -> None:
    """Random bytes of certificate files changed: refused, or still the same true claim."""
    rng = np.random.default_rng(seed)
    chosen = [*of_kind("certified", trees=True)[:6], *of_kind("certified")[:6], *of_kind("falsified")[:6]]
    contents = [case.certificate.to_bytes() for case in chosen]
    passed = 0
    for _ in range(count):
        which = int(rng.integers(len(chosen)))
        content = bytearray(contents[which])
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        try:
            changed = Certificate.from_bytes(bytes(content))
            check(changed, chosen[which].network)
        except (CertificateError, ProofError):
            continue
        passed += 1
        mine = chosen[which].certificate.claim
        assert changed.claim.sha256 == mine.sha256 and changed.claim.kind == mine.kind
        for name in STATEMENT_ARRAYS:
            assert np.array_equal(getattr(changed.claim.says, name), getattr(mine.says, name))
        assert changed.claim.region.eps == mine.region.eps and changed.claim.region.norm == mine.region.norm
    assert passed < 0.2 * count  # zip's checksums see most; what they do not cover (dates, flags) is no content


def test_flipped_bytes_are_refused_or_harmless():
    flips(1_000, 0)


@pytest.mark.slow
def test_flipped_bytes_are_refused_or_harmless_at_length():
    flips(10_000, 1)


def rewritten(certificate: Certificate, change: dict[str, object]) -> bytes:
    """The file with entries of its text changed, checksums mended."""
    import io
    import zipfile

    source, target = io.BytesIO(certificate.to_bytes()), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename == "claim.json":
                content = json.dumps({**json.loads(content), **change}).encode()
            new.writestr(member.filename, content)
    return target.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"version": 4},
        {"version": 1, "clip": [["0x0p0"], ["0x1p0"]]},
        {"version": 2, "clip": [["0x0p0", "0x0p0"], ["0x1p0", "0x1p0"]]},
        {"version": 2, "clip": [["0x1p0"], ["0x0p0"]]},
        {"version": 2, "clip": [["nan"], ["0x1p0"]]},
        {"version": 2, "clip": [["-inf"], ["0x1p0"]]},
        {"version": 2, "clip": [["0x0p0"], "0x1p0"]},
        {"version": 2, "clip": [["0x0p0"]]},
        {"clip": ["0x0p0", "inf"]},
        {"kind": "proven"},
        {"norm": "3"},
        {"eps": "-0x1p-4"},
        {"eps": "inf"},
        {"eps": "nan"},
        {"eps": 0.1},
        {"clip": ["0x1p0", "0x0p0"]},
        {"clip": ["nan", "nan"]},
        {"clip": ["0x0p0"]},
        {"said": 3},
        {"said": None},
        {"nodes": [5000]},
        {"nodes": []},
        {"trees": [[[0], [1]], [[0], [1]], [[0], [1]], [[0], [1]]]},
        {"kind": "falsified"},
    ],
)
def test_malformed_files_are_refused(change):
    malformed(of_kind("certified")[0].certificate, change)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 3},
        {"version": 1, "clip": [["0x0p0"], ["0x1p0"]]},
        {"version": 2, "clip": [["0x0p0"], "0x1p0"]},
        {"class": "0"},
        {"class": True},
        {"top": [1.0]},
        {"top": "12"},
        {"within": None},
    ],
)
def test_malformed_files_of_older_versions_are_refused(change):
    malformed(of_kind("certified")[0].claiming(), change)


def malformed(certificate: Certificate, change: dict[str, object]) -> None:
    assert Certificate.from_bytes(rewritten(certificate, {})).to_bytes() == certificate.to_bytes()
    with pytest.raises(CertificateError):
        Certificate.from_bytes(rewritten(certificate, change))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a certificate", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_certificate_is_refused(content, tmp_path: Path):
    with pytest.raises(CertificateError):
        Certificate.from_bytes(content)


class Liar:
    """A backend that answers leaves' linear programs as it likes."""

    def __init__(self, change: str) -> None:
        self.change, self.honest, self.asked = change, Highs(), 0
        self.capabilities = self.honest.capabilities

    def solve(self, problem: Problem, **given: object) -> Solution:
        self.asked += 1
        if self.change == "raises":
            raise RuntimeError("the solver died")
        found = self.honest.solve(problem, **given)
        y = np.zeros(problem.m) if found.row_dual is None else found.row_dual
        duals = {
            "negated": -y,
            "shuffled": y[::-1].copy(),
            "NaN": np.full(problem.m, np.nan),
            "empty": None,
            "huge": 1e300 * np.ones(problem.m),
            "stale": np.ones(problem.m),
        }
        return replace(found, bound=1e6, row_dual=duals[self.change])


CHANGES = ("negated", "shuffled", "NaN", "empty", "huge", "stale", "raises")


@pytest.mark.parametrize("change", mostly_slow(CHANGES, ["negated", "NaN", "raises"]))
def test_a_solver_that_lies_proves_nothing(change, monkeypatch):
    monkeypatch.setattr(branch_module, "SETTLED", 1e9)  # so that every node is left to the solver,
    monkeypatch.setattr(branch_module._Tree, "_meet", lambda tree, images: None)  # and no counterexample is met
    asked_in_all = 0
    for case in cases():
        if case.stable is not False or case.asked.norm == "2":
            continue
        liar = Liar(change)
        arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
        question = ask(case.net, case.asked.x, tie_tol=None, **arguments)
        prover = Prover(question, question.ball(case.asked.eps), None, liar, torch.device("cpu"))
        with pytest.raises((CertificateError, ProofError, RuntimeError)):
            prover(Deadline(20.0))
        asked_in_all += liar.asked
    assert asked_in_all > 5


class Fake:
    """A backend that ends every run in one way, whatever the problem, and makes up the rest."""

    def __init__(self, status: Status, change: str) -> None:
        self.status, self.change, self.asked = status, change, 0
        self.capabilities = Highs().capabilities

    def require(self) -> None:
        pass

    def solve(self, problem: Problem, **given: object) -> Solution:
        self.asked += 1
        honest = Highs().solve(problem.relaxed(), time_limit=10.0)
        y = np.zeros(problem.m) if honest.row_dual is None else honest.row_dual
        x = np.zeros(problem.n) if honest.x is None else honest.x
        duals = {
            "negated": -y,
            "shuffled": y[::-1].copy(),
            "NaN": y * np.nan,
            "empty": None,
            "stale": np.ones(problem.m),
        }
        point = {"NaN": x * np.nan, "empty": None}.get(self.change, x)
        bound = {"NaN": np.nan, "empty": np.inf}.get(self.change, 1e6)
        report = replace(honest.report, raw_status="optimal")
        return Solution(self.status, 1e6, bound, point, duals[self.change], report)


@pytest.mark.parametrize("change", ["negated", "shuffled", "NaN", "empty", "stale"])
@pytest.mark.parametrize("status", Status)
def test_no_backend_talks_the_checker_into_a_certificate(status, change, monkeypatch, what_is_certified_is_attacked):
    """Whatever a backend makes of a MILP or an LP: with proof="checked" only what is true is certified.

    Without, a MILP rests on the backend's word (proof="solver"), as it says.
    """
    unstable = [c for c in cases() if c.stable is False and c.asked.norm != "2"][:5]
    # verdicts that are yet to be checked may be wrong here
    monkeypatch.setattr(sys.modules["corgi_opt.answering.verdict"], "settle", what_is_certified_is_attacked)
    fake = Fake(status, change)
    monkeypatch.setattr(backends, "backend", lambda name: fake)
    for case in unstable:
        monkeypatch.setattr(Ladder, "attack", lambda *given: None)  # or the attack would settle it
        for method in ("milp", "lp"):
            try:
                verdict = co.verify(case.net, case.asked.x, method=method, proof="checked", **case.asked.arguments)
            except co.BoundOrderError:
                continue  # caught in contradiction
            assert verdict.status != "certified" and verdict.proof is None
    assert fake.asked > 0


def test_time_limits_and_falsehoods_leave_no_certificate():
    case = next(c for c in cases() if c.stable is False and c.asked.within is None)
    arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
    question = ask(case.net, case.asked.x, tie_tol=None, **arguments)
    with pytest.raises(CertificateError, match="not decided"):
        certified(question, question.ball(case.asked.eps), Highs(), torch.device("cpu"), Deadline(20.0))
    unknown = co.verify(case.net, case.asked.x, method="corgi", **{**case.asked.arguments, "eps": case.asked.eps / 2})
    if unknown.status == "unknown":
        with pytest.raises(CertificateError, match="nothing to prove"):
            unknown.prove()


def test_a_certificate_that_is_not_made_yet_is_made_as_the_message_says(monkeypatch):
    case = next(c for c in cases() if c.verdict.status == "certified" and c.asked.within is None)
    plain = co.verify(case.net, case.asked.x, method="bab", **case.asked.arguments)
    with pytest.raises(CertificateError, match=r"\.prove\(time_limit=\.\.\.\) makes one"):
        _ = plain.certificate
    assert check(plain.prove(time_limit=60), case.network).kind == "certified"
    assert case.verdict.prove(time_limit=1e-9) is case.verdict.certificate  # it is there
    for wrong in (0, -1.0, "60", True, float("nan")):
        with pytest.raises(co.InputError, match="time_limit must be a positive number"):
            plain.prove(time_limit=wrong)
    given = []
    monkeypatch.setattr(prove, "certified", lambda *given_: given.append(given_[-1].left) or case.certificate)
    plain.prove(time_limit=7.0)
    assert 6.0 < given[0] <= 7.0


def test_a_radius_has_a_certificate():
    case = next(c for c in cases() if c.asked.within is None and c.asked.norm == "inf")
    arguments = {n: v for n, v in case.asked.arguments.items() if n != "eps"}
    found = co.radius(case.net, case.asked.x, method="bab", **arguments)
    certificate = found.prove(time_limit=60)
    assert certificate.claim.region.eps == found.lower and check(certificate, case.network).kind == "certified"
