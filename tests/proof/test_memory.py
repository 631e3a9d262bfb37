"""What somebody writes into a certificate can't make its reader ask for more memory than a check may take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forged import EXACT, FORGED, certificate, network, of_units, tree
from patience import mostly_slow

from corgi_opt.errors import CertificateError, ProofError
from corgi_opt.proof import archive, memory
from corgi_opt.proof import checker as checker_module
from corgi_opt.proof.arithmetic import Float64
from corgi_opt.proof.bounds import Bounds
from corgi_opt.proof.certificate import Certificate, PartTree
from corgi_opt.proof.checker import check

SAID = {
    "units": ("ProofError", "a tree of 20,000 units would take"),
    "trees one after another": ("ProofError", "its margin is only proven to be"),
    "leaves of no units": ("CertificateError", "a tree's leaves"),
    "shape without content": ("CertificateError", "an array of type"),
    "inputs": ("ProofError", "inputs are out of order, or not of the image"),
    "phases": ("CertificateError", "a tree's leaves"),
    "text": ("CertificateError", "its text has more than"),
    "a part that is large": ("CertificateError", "it holds more than"),
    "a part larger than it says": ("CertificateError", ""),
    "a list of parts": ("CertificateError", "its list of parts"),
    "many top pixels": ("ProofError", "it is about more than 4,000,000 pairs of pixels"),
    "units in fractions": ("ProofError", "a tree of 700 units would take"),
}

ALWAYS = ("units", "shape without content", "a part that is large", "units in fractions")
"""Forged files that are tried in every run, each in a process of its own; the others with -m slow."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: the limit is set on what /proc counts")
@pytest.mark.parametrize("name", mostly_slow((*FORGED, *EXACT), ALWAYS))
def test_a_forged_file_is_refused_within_a_gibibyte(name, tmp_path):
    paths = [str(Path(__file__).parents[2]), *sys.path]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "forged.py"), str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr
    size, kind, message = json.loads(done.stdout.splitlines()[-1])
    assert kind == SAID[name][0] and SAID[name][1] in message and "MemoryError" not in message
    assert size < (3_000_000 if name != "a list of parts" else 100_000_000)


def test_the_limit_is_asked_before_rows_are_made(monkeypatch):
    made = of_units(100)
    with pytest.raises(ProofError, match="margin is only proven"):
        check(made, network(50))
    rows = 101 * 100
    monkeypatch.setattr(memory, "MOST_BYTES", 8 * 2 * rows - 1)
    with pytest.raises(ProofError, match="a tree of 100 units would take"):
        check(made, network(50))
    # enough for the units, but not for the image
    monkeypatch.setattr(memory, "MOST_BYTES", 8 * 2 * rows + 8 * 101 * 90)
    with pytest.raises(ProofError, match="a tree of 100 units would take"):
        check(made, network(50))


def test_what_is_proven_does_not_depend_on_how_much_is_held_at_once(monkeypatch):
    net = network(6)
    made = certificate(net, (PartTree((0, 3), (1.0, -1.0), tree(40, inputs=5)),), top=3)

    def found() -> np.ndarray:
        bounds = Bounds(net, made.claim.region, Float64())
        for node in range(3):
            bounds.reach(node)
        margins = checker_module.Margins(bounds, made.claim.says.of(net))
        margins.bound_atoms()
        margins.add_tree(made.trees[0])
        return np.concatenate([margins.atoms, margins.per_group])

    before = found()
    monkeypatch.setattr(memory, "ENTRIES_AT_ONCE", 40)
    monkeypatch.setattr(Float64, "at_once", 50)
    np.testing.assert_allclose(found(), before, rtol=1e-12)


def test_more_open_atoms_than_may_be_are_left_to_trees(monkeypatch):
    net = network(6)
    made = certificate(net, top=3)
    bounds = Bounds(net, made.claim.region, Float64())
    for node in range(3):
        bounds.reach(node)
    margins = checker_module.Margins(bounds, made.claim.says.of(net))
    assert len(margins.open_atoms()) == 3 * 33
    bounded = []

    def counted(terms: np.ndarray, coefs: np.ndarray) -> np.ndarray:
        bounded.append(len(terms))
        return np.zeros(len(terms))

    monkeypatch.setattr(margins, "_bounded", counted)
    monkeypatch.setattr(checker_module, "MOST_OPEN", 98)
    margins.bound_atoms()
    monkeypatch.setattr(checker_module, "MOST_OPEN", 99)
    margins.bound_atoms()
    assert bounded == [99]


def test_fractions_are_for_small_networks(monkeypatch):
    net = network(6)
    monkeypatch.setattr(checker_module, "MOST_EXACT", 100)
    with pytest.raises(ProofError, match="check it in float64, without 'exact'"):
        check(certificate(net), net, exact=True)
    with pytest.raises(ProofError, match="margin"):
        check(certificate(net), net)  # what the message says is possible


def test_a_machine_without_memory_is_a_typed_error(monkeypatch):
    def full(*_: object) -> float:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(checker_module, "_certified", full)
    with pytest.raises(ProofError, match="too little memory"):
        check(of_units(1), network(50))


def test_a_certificate_of_more_trees_than_a_file_holds_is_not_written():
    one = PartTree((0,), (1.0,), tree(0))
    few = certificate(network(6), (one,) * 9_400)
    with pytest.raises(CertificateError, match="9,400 trees of 9,400 rows in all are more than a file holds"):
        few.to_bytes()


@pytest.mark.parametrize("end", [b"x", b"PK\x05\x06", bytes(30)])
def test_a_file_with_something_after_its_end_is_refused(end):
    content = of_units(3).to_bytes()
    assert Certificate.from_bytes(content).to_bytes() == content
    with pytest.raises(CertificateError):
        Certificate.from_bytes(content + end)


def test_a_directory_that_is_said_to_be_elsewhere_is_refused():
    content = of_units(3).to_bytes()
    locator = b"PK\x06\x07" + bytes(16)
    with pytest.raises(CertificateError, match="no zip archive of their kind"):
        Certificate.from_bytes(content[:-22] + locator + content[-22:])
    assert archive.END.size == 22
