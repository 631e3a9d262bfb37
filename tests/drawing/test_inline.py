"""Pictures inside HTML: small, drawn without pyplot, and left out where they cannot be drawn."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from corgi_opt.drawing.inline import MOST_BYTES, beside, inline_png


def png(address: str | None) -> bytes:
    assert address is not None and address.startswith("data:image/png;base64,")
    return base64.b64decode(address.split(",")[1])


def noise(figure) -> None:
    """What compresses worst."""
    for ax in figure.subplots(1, 4):
        ax.imshow(np.random.default_rng(0).random((300, 300, 3)))


def test_a_picture_is_a_png_of_its_size():
    found = Image.open(io.BytesIO(png(inline_png(lambda figure: figure.subplots().plot([1, 2]), (2.0, 1.0)))))
    assert found.size == (192, 96) and len(found.convert("RGB").getcolors(9999) or []) > 2


def test_a_picture_is_small_whatever_it_shows():
    address = inline_png(noise, (5.4, 1.55))
    assert len(png(address)) <= MOST_BYTES and address is not None and len(address) < 60_000
    assert inline_png(noise, (30.0, 8.0)) is None  # no resolution is small enough


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), RuntimeError("layout")])
def test_what_cannot_be_drawn_is_left_out(error):
    def draw(figure) -> None:
        raise error

    assert inline_png(draw, (2.0, 1.0)) is None
    assert beside("<table></table>", draw, (2.0, 1.0), "a picture") == "<table></table>"
    assert beside("<table></table>", None, (2.0, 1.0), "a picture") == "<table></table>"


def test_warnings_are_nobodys_business():
    def draw(figure) -> None:
        warnings.warn("a font is missing", stacklevel=1)
        figure.subplots()

    assert inline_png(draw, (2.0, 1.0)) is not None


def test_the_picture_stands_beside_the_table_with_its_words():
    found = beside("<table></table>", lambda figure: figure.subplots(), (2.0, 1.0), 'a "map" & more')
    assert "<table></table>" in found and 'alt="a &quot;map&quot; &amp; more"' in found
    assert len(re.findall("<img ", found)) == 1


def test_neither_pyplot_nor_its_backend_nor_settings_are_touched():
    code = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['figure.dpi'] = 33\n"
        "before = dict(matplotlib.rcParams.copy()); backend = dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "from corgi_opt.drawing.inline import inline_png\n"
        "assert inline_png(lambda figure: figure.subplots().plot([1, 2]), (2.0, 1.0))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict.__getitem__(matplotlib.rcParams, 'backend') is backend\n"
        "assert dict(matplotlib.rcParams.copy()) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_figures_that_are_open_stay_as_they_are():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.close("all")
    mine = plt.figure()
    assert inline_png(lambda figure: figure.subplots(), (2.0, 1.0)) is not None
    assert plt.get_fignums() == [mine.number] and plt.gcf() is mine
    plt.close(mine)
