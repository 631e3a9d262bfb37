"""The notebooks run from top to bottom, show what they promise, and are kept without outputs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def outputs(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    """What a run cell shows as ``kind``, a MIME type; printed text counts as text/plain."""
    printed = [o.text for o in cell.outputs if o.output_type == "stream"] if kind == "text/plain" else []
    return printed + [o.data[kind] for o in cell.outputs if kind in o.get("data", {})]


@pytest.fixture(scope="module")
def first_certificate(tmp_path_factory):
    """The code cells of the notebook after a run, by their source."""
    notebook = nbformat.read(EXAMPLES / "01_first_certificate.ipynb", as_version=4)
    folder = tmp_path_factory.mktemp("run")
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown_by(cells: list[nbformat.NotebookNode], call: str, kind: str = "text/plain") -> str:
    """What the one cell that makes this call shows."""
    (cell,) = (c for c in cells if call in c.source)
    return "\n".join(outputs(cell, kind))


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS][:1] == ["01_first_certificate.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def test_the_first_certificate_shows_the_network_and_both_verdicts(first_certificate):
    assert "CamNetwork(" in shown_by(first_certificate, "co.from_torch(")
    assert "nothing unsupported" in shown_by(first_certificate, "co.from_torch(")
    assert shown_by(first_certificate, "v = co.verify(").startswith("Verdict(certified, eps=0.03, k=5")
    assert "Verdict(falsified, eps=0.05, k=5" in shown_by(first_certificate, "broken = co.verify(")
    assert "Witness(margin=-" in shown_by(first_certificate, "broken = co.verify(")


def test_the_first_certificate_brackets_the_radius(first_certificate):
    text = shown_by(first_certificate, "co.radius(")
    low, high = map(float, re.search(r"certified up to (\S+), falsified at (\S+):", text).groups())
    paper = float(re.search(r"bound alone certifies (\S+)", text).group(1))
    assert 0 < paper < low <= high <= 1.011 * low
    assert low > 0.03
    assert high < 0.05  # as the two verdicts say


def test_the_first_certificate_shows_a_table_and_two_pictures(first_certificate):
    table = shown_by(first_certificate, "c.to_frame()", "text/html")
    assert all(f"<th>{method}</th>" in table for method in ("corgi", "crown", "lp", "bab"))
    for call in ("plot_counterexample(net", "c.plot()"):
        picture = base64.b64decode(shown_by(first_certificate, call, "image/png"))
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000  # more than a blank sheet
