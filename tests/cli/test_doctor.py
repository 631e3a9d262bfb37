"""What is said of an installation is what is there."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
import torch
from typer.testing import CliRunner

from corgi_opt.cli import doctor
from corgi_opt.cli.main import app


@pytest.fixture
def quick(monkeypatch):
    """One solver, and no self-test."""
    monkeypatch.setattr(doctor, "known_solvers", lambda: ("highs",))
    monkeypatch.setattr(doctor, "_self_test", lambda: doctor.Finding("self-test", True, "left out"))


def test_this_installation_works():
    findings = {finding.what: finding for finding in doctor.examined()}
    assert findings["torch"].said == importlib.metadata.version("torch") == torch.__version__.partition("+")[0] or (
        findings["torch"].said == torch.__version__
    )
    assert findings["solver highs"].works and findings["self-test"].works, findings["self-test"].said
    assert all(finding.works for finding in findings.values() if finding.needed)


def test_what_is_missing_is_said_with_what_installs_it(quick, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "EXTRAS", {"study": ("no-such-package",)})
    ran = CliRunner().invoke(app, ["doctor"])
    assert ran.exit_code == 2
    assert "no  no-such-package: not installed: pip install no-such-package" in ran.output
    assert "extra study: without no-such-package: pip install 'corgi_opt[study]'" in ran.output


def test_an_extra_that_is_missing_is_no_failure(quick, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"study": ("no-such-package",)})
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    assert ran.exit_code == 0
    assert {"what": "extra study", "works": False}.items() <= json.loads(ran.output)[-2].items()


def test_what_goes_wrong_in_the_self_test_is_reported(monkeypatch):
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("no numbers today")

    monkeypatch.setattr(doctor, "verify", breaks)
    finding = doctor._self_test()
    assert not finding.works and finding.said == "RuntimeError: no numbers today"
    monkeypatch.setattr(doctor, "_answered", lambda seconds: "wrong: this and that")
    assert not doctor._self_test().works
