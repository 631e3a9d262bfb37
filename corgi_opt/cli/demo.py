"""The demo: bundled digits and network; a table of radii and one picture. Offline, about half a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from corgi_opt.answering.comparison import Comparison, added_briefly, compare
from corgi_opt.cli.files import picture_file, writing
from corgi_opt.data import digits
from corgi_opt.network.cam import CamNetwork, from_torch

METHODS = ("corgi", "crown", "lp", "bab")


@dataclass(frozen=True)
class Row:
    """One line of the demo's table: what was asked of one test image, and what came out.

    ``image``: its number, as ``digits.load_digits`` and ``--image`` count.
    """

    image: int
    label: int
    x: torch.Tensor
    k: int
    comparison: Comparison


def run_demo(console: Console, picture: Path, images: tuple[int, ...], ks: tuple[int, ...]) -> list[Row]:
    """Compares all methods on test digits (places within the test split), says each step, prints the table, saves the
    picture.

    Raises InputError when the picture cannot be saved there.
    """
    picture_file(picture)
    start = time.monotonic()
    _say(console, "1. Reading the bundled network and digits (no download)")
    data, labels = digits.load_digits()
    _, test = digits.digits_split()
    net = from_torch(digits.digits_model(), data[:1])
    _say(console, f"   {net}")
    _say(console, f"2. Radii by {', '.join(METHODS)}: {len(images)} test digits, k = {', '.join(map(str, ks))}")
    rows = []
    for image in test[list(images)].tolist():
        x, label = data[image][None], int(labels[image])
        for k in ks:
            rows.append(Row(image, label, x, k, compare(net, x, k=k, methods=METHODS)))
            r = rows[-1].comparison.radii["bab"]
            _say(console, f"   digit {image}, k={k}: certified up to {r.lower:.5f}, broken at {r.upper:.5f}")
    _say(console, "3. The table")
    console.print(_table(rows))
    console.print(
        "certified: proven that no image within eps (L-inf, inside [0, 1]) changes the k brightest CAM pixels.\n"
        "attack: the smallest eps at which PGD alone found an image that does. A method's time is what it adds to\n"
        "the work of those before it; shared: nothing.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    _say(console, "4. The picture of a counterexample")
    saved = f"Picture: {picture}" if _save_picture(net, rows, picture) else "No counterexample, no picture"
    _say(console, f"{saved}   ({time.monotonic() - start:.0f} s in all)")
    return rows


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _table(rows: list[Row]) -> Table:
    """Fits 80 columns: that is what rich assumes where the output is a file."""
    table = Table(
        title="The largest certified eps by method, and the smallest that the attack broke",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("image")
    table.add_column("k", justify="right")
    for name in (*METHODS, "attack"):
        table.add_column(f"{name}\n[dim]time[/dim]", justify="right")
    table.add_column("bab /\ncorgi", justify="right")
    table.add_column("attack /\nbab", justify="right")
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        radii = row.comparison.radii
        attack, exact = radii["bab"].attack, radii["bab"].lower
        cells = [f"{row.image}\n[dim]a {row.label}[/dim]", str(row.k)]
        eps = {name: radii[name].lower for name in METHODS} | {"attack": attack}
        cells += [f"{value:.5f}\n[dim]{_time(row.comparison.only.seconds[name])}[/dim]" for name, value in eps.items()]
        cells += [_ratio(exact, radii["bab"].corgi), _ratio(attack, exact)]
        table.add_row(*cells, end_section=after is None or after.image != row.image)
    return table


def _time(seconds: float) -> str:
    said = added_briefly(seconds)
    return said if said == "shared" else f"{said} s"


def _ratio(above: float, below: float) -> str:
    return f"{above / below:.3f}" if below > 0 else "-"


def _save_picture(net: CamNetwork, rows: list[Row], path: Path) -> bool:
    """The first image's counterexample for the largest k; False when no row has one."""
    # Agg: no display is needed, and no window of a notebook's backend is opened.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from corgi_opt.plots import plot_counterexample

    for row in sorted(rows, key=lambda r: (rows[0].image != r.image, -r.k)):
        witness = row.comparison.radii["bab"].counterexample
        if witness is not None:
            figure = plot_counterexample(net, row.x, row.k, witness)
            with writing(path):
                figure.savefig(path, dpi=150)
            pyplot.close(figure)
            return True
    return False
