"""Runs the notebooks of this folder and keeps what they show: the documentation shows it without running them.

    OMP_WAIT_POLICY=PASSIVE python examples/run_notebooks.py [NAME ...]

Each runs in an empty folder, from top to bottom, in a few minutes. Nothing of the machine is kept: no path, no address
of an object, no progress line.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
DEFAULT_DATA = FOLDER.parents[1] / "shared" / "gtsrb"
"""Where notebook 03 looks for the paper's network if CORGI_GTSRB_DIR names no other folder."""


SHOWS_DATA = "shows-data"
"""Tag of a cell whose picture holds an image of a data set: that is not ours to hand on, so it is not kept."""


def tidied(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A code cell whose outputs are the same on the next machine, as far as its numbers are."""
    cell.metadata.pop("execution", None)
    if SHOWS_DATA in cell.metadata.get("tags", []):
        for output in cell.outputs:
            data = output.get("data", {})
            data.pop("image/png", None)
            if "text/html" in data:
                data["text/html"] = re.sub(r"<img [^>]*>", "", data["text/html"])
    cell.outputs = [o for o in cell.outputs if "\r" not in o.get("text", "")]  # what is left of a progress line
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/plain" in data:
            data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
        if "text/html" in data:
            data["text/html"] = re.sub(r"T_[0-9a-f]{5}(?=[_\s\"#])", "T_table", data["text/html"])
    return cell


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    kept = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=900,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        data = os.environ.get("CORGI_GTSRB_DIR", str(DEFAULT_DATA))
        client.execute(env={**os.environ, "CORGI_GTSRB_DIR": str(Path(data).resolve())})
    notebook.metadata = nbformat.from_dict(kept)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tidied(cell)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.name in names or path.stem in names:
            run(path)
            print(f"{path.name}: run, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
