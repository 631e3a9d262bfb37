"""Packages of an extra: handed over where they are, else named with the whole command; a broken one says so itself."""

from __future__ import annotations

import math
import sys

import pytest
from missing import hidden

from corgi_opt.data._optional import gtsrb_package
from corgi_opt.errors import MissingPackageError


def test_a_package_that_is_there_is_handed_over():
    assert gtsrb_package("math", "math", "counting") is math


@pytest.mark.parametrize("module", ["PIL.Image", "h5py"])
def test_one_that_is_not_is_named_with_its_purpose_and_the_command(module, monkeypatch):
    package = module.partition(".")[0]
    with hidden(monkeypatch, package), pytest.raises(MissingPackageError) as caught:
        gtsrb_package(module, "a-wheel", "reading images")
    assert str(caught.value) == (
        "reading images needs the package 'a-wheel', which is not installed. Run: pip install 'corgi_opt[gtsrb]'"
    )
    assert isinstance(caught.value, ImportError)


def test_a_broken_one_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libxyz.so.3: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libxyz") as caught:
        gtsrb_package("broken_package", "broken-package", "reading")
    assert not isinstance(caught.value, MissingPackageError)
    assert "broken_package" not in sys.modules
