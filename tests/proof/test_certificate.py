"""Files: they come back as they were, older ones too, and what was changed is refused or the same true claim."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certificates import of_kind, with_claim
from patience import mostly_slow

import corgi_opt as co
from corgi_opt.errors import CertificateError, ProofError
from corgi_opt.proof import archive as archive_module
from corgi_opt.proof import certificate as certificate_module
from corgi_opt.proof.certificate import STATEMENT_ARRAYS, Certificate
from corgi_opt.proof.checker import check
from corgi_opt.proof.statement import TopPixels


@pytest.mark.parametrize(("certified", "falsified"), mostly_slow([(4, 2), (12, 6)], [(4, 2)]))
def test_files_come_back_as_they_were(certified, falsified, tmp_path: Path):
    for case in [*of_kind("certified")[:certified], *of_kind("falsified")[:falsified]]:
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
        assert found.kind == known.kind
        assert found.margin == pytest.approx(known.margin, rel=1e-9, abs=1e-12)


def test_what_a_reader_would_not_take_is_not_written(tmp_path: Path, monkeypatch):
    case = of_kind("certified")[0]
    content = case.certificate.to_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        held = sum(member.file_size for member in file.infolist())
    # as many bytes as it takes: read, and not written, as its text may have more
    monkeypatch.setattr(archive_module, "MOST_BYTES", held)
    monkeypatch.setattr(certificate_module, "MOST_BYTES", held)
    Certificate.from_bytes(content)
    with pytest.raises(CertificateError, match=r"trees of [\d,]+ rows in all are more than a file holds"):
        case.certificate.save(tmp_path / "a.cert")
    assert not (tmp_path / "a.cert").exists()
    answer = co.verify(case.net, case.asked.x, eps=case.verdict.eps, k=case.asked.k, norm=case.verdict.asked.norm)
    with pytest.raises(CertificateError, match="more than a file holds"):
        answer.prove()


@pytest.mark.parametrize(("certified", "falsified"), mostly_slow([(2, 1), (6, 3)], [(2, 1)]))
def test_a_statement_is_what_it_is_said_to_be(certified, falsified, tmp_path: Path):
    """The checker proves a statement; that it is what the property says here, ``co.check_certificate`` sees."""
    path = tmp_path / "a.cert"
    for case in [*of_kind("certified")[:certified], *of_kind("falsified")[:falsified]]:
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


def test_a_notebook_shows_what_is_claimed_and_that_nothing_is_checked_yet():
    case = of_kind("certified")[0]
    page = case.certificate._repr_html_()
    region = case.certificate.claim.region
    for words in ("certificate: certified", f"eps={region.eps:.6g}", f"L-{region.norm}", "name=TopK", "class_idx="):
        assert words in page
    for row in ("norm", "clip", "proof", "method", "reason"):
        assert f">{row}</th>" in page
    assert "co.check_certificate" in page and case.certificate.claim.sha256[:16] in page
    assert "an image that breaks it" in of_kind("falsified")[0].certificate._repr_html_()
    assert "pixels stays among the" in case.claiming()._repr_html_()
