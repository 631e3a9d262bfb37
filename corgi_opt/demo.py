"""The demo: bundled digits and network; a table of radii and one picture. Offline, about half a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from corgi_opt.compare import Comparison, compare
from corgi_opt.data import digits
from corgi_opt.network.cam import CamNetwork, from_torch

METHODS = ("corgi", "crown", "lp", "milp")


@dataclass(frozen=True)
class Row:
    """One line of the demo's table."""

    image: int
    comparison: Comparison


def digits_network() -> CamNetwork:
    """The bundled digits network as a layer graph."""
    images, _ = digits.load_digits()
    return from_torch(digits.digits_model(), images[:1])


def run_demo(console: Console, picture: Path, images: tuple[int, ...], ks: tuple[int, ...]) -> list[Row]:
    """Compares all methods on test digits (numbers within the test split), prints the table, saves the picture."""
    start = time.monotonic()
    net = digits_network()
    data, labels = digits.load_digits()
    _, test = digits.digits_split()
    console.print(f"[bold]{net}[/bold]")
    rows = []
    for image in images:
        for k in ks:
            x = data[test[image]][None]
            rows.append(Row(image, compare(net, x, k=k, methods=METHODS)))
    console.print(_table(rows, [int(labels[test[r.image]]) for r in rows]))
    console.print(
        "Certified: proven that no image within eps (L-inf, inside [0, 1]) changes the k brightest CAM pixels. "
        "Attack: the smallest eps at which PGD found an image that does."
    )
    _save_picture(net, rows[0], picture)
    console.print(f"Picture: {picture}   ({time.monotonic() - start:.0f} s in all)")
    return rows


def _table(rows: list[Row], labels: list[int]) -> Table:
    table = Table(title="Radius (eps) and seconds per method", header_style="bold")
    table.add_column("test image")
    table.add_column("k", justify="right")
    for name in (*METHODS, "attack"):
        table.add_column(f"{name}\neps", justify="right")
        table.add_column("\ns", justify="right", style="dim")
    table.add_column("attack /\nmilp", justify="right")
    for row, label in zip(rows, labels, strict=True):
        c = row.comparison
        attack = c.radii["milp"].attack
        cells = [f"{row.image} (a {label})", str(c.k)]
        for name in METHODS:
            cells += [f"{c.radii[name].lower:.5f}", f"{c.seconds[name]:.2f}"]
        cells += [f"{attack:.5f}", f"{c.seconds['attack']:.2f}", f"{attack / c.radii['milp'].lower:.3f}"]
        table.add_row(*cells)
    return table


def _save_picture(net: CamNetwork, row: Row, path: Path) -> None:
    # Agg: no display is needed, and no window of a notebook's backend is opened.
    import matplotlib

    matplotlib.use("Agg")
    from corgi_opt.plots import plot_counterexample

    witness = row.comparison.radii["milp"].counterexample
    if witness is None:
        return
    data, _ = digits.load_digits()
    _, test = digits.digits_split()
    figure = plot_counterexample(net, data[test[row.image]][None], row.comparison.k, witness)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
