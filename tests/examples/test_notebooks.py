"""The notebooks run from top to bottom, show what they promise, and are kept without outputs."""

from __future__ import annotations

import base64
import os
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


def run_through(name: str, folder: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook after a run in a folder."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})  # tests run side by side
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def first_certificate(tmp_path_factory):
    """The code cells of the notebook after a run, by their source."""
    return run_through("01_first_certificate.ipynb", tmp_path_factory.mktemp("run"))


def shown_by(cells: list[nbformat.NotebookNode], call: str, kind: str = "text/plain") -> str:
    """What the one cell that makes this call shows."""
    (cell,) = (c for c in cells if call in c.source)
    return "\n".join(outputs(cell, kind))


def matched(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    assert found is not None, text
    return found


def test_there_are_notebooks():
    names = ["01_first_certificate.ipynb", "02_bound_tightness.ipynb", "03_paper_gtsrb.ipynb"]
    assert [path.name for path in NOTEBOOKS] == names


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
    low, high = map(float, matched(r"certified up to (\S+), falsified at (\S+):", text).groups())
    paper = float(matched(r"bound alone certifies (\S+)", text).group(1))
    assert 0 < paper < low <= high <= 1.011 * low
    assert low > 0.03
    assert high < 0.05  # as the two verdicts say


def test_the_first_certificate_shows_a_table_and_two_pictures(first_certificate):
    table = shown_by(first_certificate, "c.to_frame()", "text/html")
    assert all(f"<th>{method}</th>" in table for method in ("corgi", "crown", "lp", "bab"))
    assert_pictures(first_certificate, "plot_counterexample(net", "c.plot()")


def assert_pictures(cells: list[nbformat.NotebookNode], *calls: str) -> None:
    for call in calls:
        picture = base64.b64decode(shown_by(cells, call, "image/png"))
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000  # more than a blank sheet


@pytest.mark.slow
def test_bound_tightness_shows_ladders_a_map_and_a_study(tmp_path):
    cells = run_through("02_bound_tightness.ipynb", tmp_path)
    ladder = shown_by(cells, "ladder = co.compare(", "text/html")
    assert all(f"<th>{method}</th>" in ladder for method in ("corgi", "crown", "dual", "lp", "bab"))
    assert_pictures(cells, "ladder.plot()", "table.plot(", "radii.plot()", "co.heat_map(", "study.write_report(")
    said = shown_by(cells, "study.run(")
    assert said.splitlines()[0] == "30 cells: 30 done, 0 to do" and "no worker was started" in said
    assert "certified_fraction.png" in shown_by(cells, "study.write_report(")
    assert (tmp_path / "five_digits" / "report.html").is_file()


@pytest.mark.gtsrb
@pytest.mark.slow
def test_the_papers_network_is_closed_and_proven(gtsrb, tmp_path, monkeypatch):
    monkeypatch.setenv("CORGI_GTSRB_DIR", str(gtsrb.resolve()))
    cells = run_through("03_paper_gtsrb.ipynb", tmp_path)
    text = shown_by(cells, "r = co.radius(")
    paper, ours = (float(matched(rf"{who}:\s+certified (\S+),", text).group(1)) for who in ("paper", "ours"))
    assert ours > 1.3 * paper
    assert float(matched(r": (\S+) apart", text).group(1)) <= 1.0021
    assert re.search(r"0\.\d\d MB, proven again in \S+ s: margin >= [1-9]", shown_by(cells, 'proof="checked"'))
    assert_pictures(cells, "plot_counterexample(net", "eps=1.10e-3, k=k, class_idx=c).plot()", "eps=2.5e-3")
