"""Small pictures inside HTML: drawn when they are asked for, with no window and no pyplot; never an error."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Callable
from typing import Any

MOST_BYTES = 44_000
"""Of a PNG: in base64 it is a third longer, and then below 60 kB."""

RESOLUTIONS = (96, 72, 54, 40, 28, 20)
"""Dots an inch, the finest first; the first that is small enough is taken."""

COLOURS = 128

Draw = Callable[[Any], None]
"""Draws into an empty matplotlib Figure."""


def inline_png(draw: Draw, size: tuple[float, float]) -> str | None:
    """A picture of ``size`` inches as the text of a ``data:`` address; None where it cannot be drawn, for whatever
    reason, or is not small enough."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fonts and of layouts: nothing that a table's reader can do about
            png = _png(draw, size)
    except Exception:  # a table without a picture is better than none
        return None
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png(draw: Draw, size: tuple[float, float]) -> bytes | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    draw(figure)
    for dpi in RESOLUTIONS:
        figure.set_dpi(dpi)
        canvas.draw()
        pixels = Image.fromarray(_bytes_of(canvas)).convert("RGB").quantize(COLOURS)
        stream = io.BytesIO()
        pixels.save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= MOST_BYTES:
            return stream.getvalue()
    return None


def _bytes_of(canvas: Any) -> Any:
    """What a canvas shows, (H, W, 4) bytes."""
    import numpy as np

    return np.asarray(canvas.buffer_rgba())


def beside(table: str, draw: Draw | None, size: tuple[float, float], alt: str) -> str:
    """A table in HTML with a picture beside it, or alone where there is none. ``alt``: the picture in words."""
    address = None if draw is None else inline_png(draw, size)
    if address is None:
        return table
    picture = f'<img src="{address}" alt="{html.escape(alt, quote=True)}" style="max-width:100%">'
    return f'<div style="display:flex;flex-wrap:wrap;align-items:center;gap:1em"><div>{table}</div>{picture}</div>'
