"""Packages of an extra: handed over where they are, else named with the whole command; a broken one says so itself."""

from __future__ import annotations

import math
import sys

import pytest
from missing import hidden

from corgi_opt.data._optional import package
from corgi_opt.errors import MissingPackageError


def test_a_package_that_is_there_is_handed_over():
    assert package("math", "math", "counting", "gtsrb") is math


@pytest.mark.parametrize(("module", "extra"), [("PIL.Image", "gtsrb"), ("h5py", "keras")])
def test_one_that_is_not_is_named_with_its_purpose_and_the_command(module, extra, monkeypatch):
    with hidden(monkeypatch, module.partition(".")[0]), pytest.raises(MissingPackageError) as caught:
        package(module, "a-wheel", "reading images", extra)
    assert str(caught.value) == (
        f"reading images needs the package 'a-wheel', which is not installed. Run: pip install 'corgi_opt[{extra}]'"
    )
    assert isinstance(caught.value, ImportError)


def test_a_broken_one_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libxyz.so.3: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libxyz") as caught:
        package("broken_package", "broken-package", "reading", "gtsrb")
    assert not isinstance(caught.value, MissingPackageError)
    assert "broken_package" not in sys.modules
