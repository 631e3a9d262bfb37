"""The demo of one image and one k: its table holds the comparison, its picture is there, or it says why not."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from corgi_opt.cli import demo
from corgi_opt.cli.demo import METHODS, run_demo
from corgi_opt.data import digits
from corgi_opt.errors import InputError


def console() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What was printed, the rows, and the picture."""
    picture = tmp_path_factory.mktemp("demo") / "new" / "a.png"
    screen = console()
    rows = run_demo(screen, picture, images=(2,), ks=(1,))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue(), rows, picture


def test_a_row_is_the_comparison_of_its_image(shown):
    text, (row,), _ = shown
    data, labels = digits.load_digits()
    place = digits.digits_split()[1][2]
    assert (row.image, row.k, row.label) == (int(place), 1, int(labels[place]))
    assert bool((row.x[0] == data[place]).all())
    radii = row.comparison.radii
    for method in METHODS:
        assert f"{radii[method].lower:.5f}" in text
    assert f"{radii['bab'].attack:.5f}" in text
    assert f"{radii['bab'].lower / radii['bab'].corgi:.3f}" in text
    assert f"\n{row.image} " in text and f"\na {row.label} " in text


def test_a_picture_is_saved_and_named(shown):
    text, _, picture = shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Picture: {picture}" in text


def test_what_cannot_be_saved_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(InputError, match="must end in one of"):
        run_demo(console(), tmp_path / "a.nothing", images=(0,), ks=(1,))
