"""Where a cell was answered: versions of what is installed, the processor as the machine says it."""

from __future__ import annotations

import platform
from importlib.metadata import version

from corgi_opt.study import where


def test_versions_are_those_that_are_installed_and_what_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(where, "PACKAGES", ("torch", "no-such-package-here"))
    assert where.versions() == f"python {platform.python_version()}, torch {version('torch')}"


def test_the_processor_has_its_model_and_cores(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n")
    monkeypatch.setattr(where, "CPU_INFO", info)
    monkeypatch.setattr("corgi_opt.study.where.os.cpu_count", lambda: 8)
    monkeypatch.setattr("corgi_opt.study.where.os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert where.cpu() == "A Processor @ 2 GHz, 2 of 8 cores"
    monkeypatch.setattr("corgi_opt.study.where.os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert where.cpu() == "A Processor @ 2 GHz, 8 cores"
    monkeypatch.setattr(where, "CPU_INFO", tmp_path / "gone")
    assert where.cpu().endswith(", 8 cores") and not where.cpu().startswith(",")
