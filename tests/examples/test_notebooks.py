"""The notebooks run from top to bottom, show what they promise, and are kept with what they showed."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook, new_output

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


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
def test_notebooks_are_kept_with_outputs_and_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # one run, from top to bottom
    assert sum("image/png" in o.get("data", {}) for cell in code for o in cell.outputs) >= 2
    assert all(o.output_type != "error" and o.get("name") != "stderr" for cell in code for o in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(/home|/root|/tmp|/usr|/work|/Users|site-packages|\.venv)/| at 0x[0-9a-f]|\\r", text)


def test_what_is_kept_is_what_a_run_shows_but_for_numbers(first_certificate):
    kept = nbformat.read(EXAMPLES / "01_first_certificate.ipynb", as_version=4)
    old, new = (
        [NUMBER.sub("#", " ".join(text.split())) for cell in cells for text in outputs(cell, "text/plain")]
        for cells in ([c for c in kept.cells if c.cell_type == "code"], first_certificate)
    )
    assert [text for text in new if "\r" not in text and "pairs left" not in text] == old


def test_what_a_run_leaves_is_tidied():
    shown = {"text/plain": "<Styler at 0x7f00aa>", "text/html": '<table id="T_1a2b3">#T_1a2b3_row0</table>'}
    notebook = new_notebook(cells=[new_code_cell("1 + 1"), new_code_cell("2", metadata={"execution": {"a": "now"}})])
    first, second = notebook.cells
    first.outputs = [new_output("stream", name="stderr", text="\rradius [00:01]"), new_output("display_data", shown)]
    second.outputs = [new_output("stream", name="stdout", text="kept")]
    tidied = [load_script("run_notebooks").tidied(cell) for cell in (first, second)]
    (only,) = tidied[0].outputs
    assert only.data["text/plain"] == "<Styler>"
    assert only.data["text/html"] == '<table id="T_table">#T_table_row0</table>'
    assert tidied[1].metadata == {} and tidied[1].outputs[0].text == "kept"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
