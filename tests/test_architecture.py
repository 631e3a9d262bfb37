"""The house keeps its shape: imports point one way, the solvers stand alone, modules stay small and have tests."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mutants import MUTANTS
from nets import Pooled, seeded

import corgi_opt as co
from corgi_opt.answering.prover import plain_network

REPO = Path(__file__).parents[1]
SOURCES = {"corgi_opt": REPO / "corgi_opt", "corgi_solvers": REPO / "solvers" / "corgi_solvers"}
TESTS = REPO / "tests"
LONGEST = 500

RANK = {
    "corgi_opt.errors": 0,
    "corgi_opt._version": 0,
    "corgi_opt._ambient": 1,
    "corgi_opt._checks": 1,
    "corgi_opt._deadline": 1,
    "corgi_opt._progress": 1,
    "corgi_opt.methods": 1,
    "corgi_opt.drawing": 1,
    "corgi_opt.proof": 1,
    "corgi_opt.network": 2,
    "corgi_opt.problem": 3,
    "corgi_opt.data": 3,
    "corgi_opt.plots": 4,
    "corgi_opt.bounding": 4,
    "corgi_opt.encode": 5,
    "corgi_opt.search": 6,
    "corgi_opt.answering": 7,
    "corgi_opt.study": 8,
    "corgi_opt": 9,  # the public names: nothing inside imports them from there
    "corgi_opt.cli": 9,
    "corgi_opt.__main__": 10,
}
"""A module may import lower ranks and its own package, nothing else of corgi_opt."""

MAY_SOLVE = {"corgi_opt.encode", "corgi_opt.search", "corgi_opt.answering"}

LAZY = {
    "h5py",
    "skimage",
    "PIL",
    "sklearn",
    "pandas",
    "matplotlib",
    "highspy",
    "pulp",
    "cvxpy",
    "clarabel",
    "dask",
    "jinja2",
    "psutil",
    "pyarrow",
    "distributed",
    "filelock",
    "onnx",
    "onnxruntime",
}
"""Slow to import, or optional: imported by the function that needs them, never by ``import corgi_opt``."""

SOLVERS_MAY_IMPORT = {"numpy", "scipy", "corgi_solvers", *sys.stdlib_module_names}

OWN_SOLVER = {
    "corgi_solvers.highs": {"highspy"},
    "corgi_solvers.highs_run": {"highspy"},
    "corgi_solvers.pulp": {"pulp"},
    "corgi_solvers.pulp_engines": {"pulp", "highspy", "pyscipopt", "gurobipy", "cplex"},
    "corgi_solvers.cvxpy": {"cvxpy"},
}


class Import:
    """One imported module, by name; ``top``: at module level, so importing the importer imports it too."""

    def __init__(self, name: str, *, top: bool) -> None:
        self.name, self.top = name, top


def module_name(package: str, path: Path) -> str:
    parts = [package, *path.relative_to(SOURCES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(*packages: str) -> dict[str, Path]:
    found = {module_name(p, path): path for p in packages for path in sorted(SOURCES[p].rglob("*.py"))}
    assert len(found) > 5  # the tree is where we think it is
    return found


def imports(source: str) -> list[Import]:
    """What a module imports, at module level and inside functions; not what it only names in annotations."""
    return list(_imports(ast.parse(source), top=True))


def _imports(node: ast.AST, *, top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and top
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, top=top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            for alias in child.names:
                # "from corgi_opt.data import digits" names a module, "from corgi_opt.errors import X" a class
                whole = f"{child.module}.{alias.name}"
                yield Import(whole if is_module(whole) else str(child.module), top=top)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue  # never run: for annotations only
        else:
            yield from _imports(child, top=inside)


def is_module(name: str) -> bool:
    package, *rest = name.split(".")
    if package not in SOURCES:
        return False
    path = SOURCES[package].joinpath(*rest)
    return path.is_dir() or path.with_suffix(".py").is_file()


def layer(name: str) -> str:
    """``corgi_opt.network.cam`` -> ``corgi_opt.network``."""
    return ".".join(name.split(".")[:2])


def wrong_directions(name: str, source: str) -> list[str]:
    own = layer(name)
    targets = {layer(i.name) for i in imports(source) if i.name.split(".")[0] == "corgi_opt"}
    return [f"{name} imports {t}" for t in sorted(targets - {own}) if RANK[t] >= RANK[own]]


def test_every_module_has_a_rank():
    assert {layer(name) for name in modules("corgi_opt")} == set(RANK)


def test_imports_point_one_way():
    wrong = [w for name, path in modules("corgi_opt").items() for w in wrong_directions(name, path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("corgi_opt.network.cam", "from corgi_opt.bounding.crown import crown_pass"),
        ("corgi_opt.bounding.crown", "def f():\n    from corgi_opt.search import attack"),
        ("corgi_opt.answering.attacking", "import corgi_opt"),
        ("corgi_opt.answering.verdict", "def f():\n    if True:\n        import corgi_opt.study.plan"),
        ("corgi_opt.problem.region", "from corgi_opt import study"),
    ],
)
def test_a_wrong_direction_is_seen(name, source):
    assert len(wrong_directions(name, source)) == 1


def test_a_right_direction_is_let_through():
    source = "from corgi_opt.errors import TieError\nfrom corgi_opt.bounding.dual import Interval\nimport torch"
    assert wrong_directions("corgi_opt.bounding.crown", source) == []


def test_only_encode_search_and_answering_use_the_solvers():
    users = {
        layer(name)
        for name, path in modules("corgi_opt").items()
        if any(i.name.split(".")[0] == "corgi_solvers" for i in imports(path.read_text()))
    }
    assert users == MAY_SOLVE


def test_the_solvers_import_numpy_scipy_and_their_own_solver_only():
    for name, path in modules("corgi_solvers").items():
        allowed = SOLVERS_MAY_IMPORT | OWN_SOLVER.get(name, set())
        assert {i.name.split(".")[0] for i in imports(path.read_text())} <= allowed, name


def test_what_checks_a_proof_imports_numpy_only():
    proof = {name: path for name, path in modules("corgi_opt").items() if layer(name) == "corgi_opt.proof"}
    assert len(proof) > 6
    for name, path in proof.items():
        found = {i.name for i in imports(path.read_text())}
        own = {n for n in found if n.split(".")[0] == "corgi_opt"}
        assert {layer(n) for n in own} <= {"corgi_opt.proof", "corgi_opt.errors"}, name
        assert {n.split(".")[0] for n in found - own} <= {"numpy", *sys.stdlib_module_names}, name


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_slow_and_optional_packages_are_imported_when_needed(package):
    for name, path in modules(package).items():
        at_import = {i.name.split(".")[0] for i in imports(path.read_text()) if i.top}
        assert not at_import & LAZY, name


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_modules_stay_small(package):
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(package).items()}
    assert {n: length for n, length in lengths.items() if length > LONGEST} == {}


OPERATIONS = ("arithmetic", "layers", "node", "pooling", "resizing", "shaping", "table", "tensors")
KERAS_LAYERS = ("affine", "layer", "modules", "pointwise", "spatial", "table")
TESTED_TOGETHER = {
    # one table of ONNX operations, and one table of cases: each is compared with onnxruntime
    **{f"corgi_opt.network.onnx.{name}": "test_operations.py" for name in OPERATIONS},
    # one table of Keras's layers, and one table of cases: each is compared with plain loops
    **{f"corgi_opt.data.keras.{name}": "test_layers.py" for name in KERAS_LAYERS},
    # where things stand in a file: every layout is read whole, and compared with what was written
    **{f"corgi_opt.data.keras.{name}": "test_files.py" for name in ("graph", "reader", "store", "weights")},
    "corgi_opt.data.keras._hdf5": "test_hostile.py",  # a process of its own, for files that harm their reader
    "corgi_opt.data.keras.entry": "test_network.py",  # the whole way, from a file to a certificate
    "corgi_opt.network.onnx.limits": "test_reading.py",  # what is too large is refused where it is read
    "corgi_opt.network.onnx.package": "test_reading.py",
    "corgi_opt.network.onnx.module": "test_network.py",  # what a graph becomes, run by every door
    "corgi_opt.network.smooth_builders": "test_smooth.py",  # each is read, with its arguments, as what it is
    "corgi_opt.__main__": "cli/test_ending.py",  # one more door to the command line
    "corgi_opt.encode.square_pools": "test_onnx_graph.py",  # a step of that graph's making
    "corgi_opt.encode.vnnlib": "../answering/test_vnnlib.py",  # the text, read back by a reader of its own
}
"""Modules whose tests are those of what they are a part of, and why."""


def test_every_module_has_tests_of_its_name():
    """Where its package has its own folder of tests; a leading underscore says who may import it, and is left out."""
    missing = []
    for package, folder in (("corgi_opt", TESTS), ("corgi_solvers", TESTS / "solvers")):
        for name, path in modules(package).items():
            module = path.relative_to(SOURCES[package])
            together = TESTED_TOGETHER.get(name, f"test_{module.stem.lstrip('_')}.py")
            expected = folder / module.parent / together
            if module.name != "__init__.py" and not expected.is_file():
                missing.append(f"{name} has no {expected.relative_to(REPO)}")
    assert missing == []


def test_every_folder_of_tests_is_one_of_the_source_or_of_the_examples():
    folders = {p.name for p in TESTS.iterdir() if p.is_dir() and any(p.glob("test_*.py"))}
    assert folders - {"solvers", "examples"} == {p.name for p in SOURCES["corgi_opt"].iterdir() if any(p.glob("*.py"))}


def test_every_mutant_has_its_line():
    """A line that has moved on would be a mutant that nobody notices is none."""
    checker = SOURCES["corgi_opt"] / "proof"
    assert [(name, old) for name, old, _ in MUTANTS if (checker / name).read_text().count(old) != 1] == []


@pytest.mark.parametrize("name", co.__all__)
def test_public_names_exist_and_say_what_they_are(name):
    doc = getattr(co, name).__doc__
    # a dataclass without a docstring is given its signature for one
    assert doc and not doc.startswith(f"{name}("), f"{name} has no docstring"


def test_no_public_name_hides_a_module():
    """``import corgi_opt.bounding.crown as c`` works, whatever was imported before."""
    assert [name for name in co.__all__ if is_module(f"corgi_opt.{name}")] == []
    for name in modules("corgi_opt"):
        code = importlib.import_module(name)
        found: object = co
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        assert found is code, name


def test_public_names_are_all_of_them():
    tree = ast.parse((SOURCES["corgi_opt"] / "__init__.py").read_text())
    names = {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert names == {*co.__all__, "__version__"}
    assert co.__all__ == sorted(co.__all__, key=lambda n: (n.islower(), n))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_solvers_know_nothing_of_torch_and_load_highspy_late():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import corgi_solvers\n"
        "assert corgi_solvers.Highs and corgi_solvers.Problem\n"
        "print('highspy' in sys.modules, 'corgi_opt' in sys.modules)"
    )
    assert run_python(code).split() == ["False", "False"]


def test_a_proof_is_checked_without_torch_scipy_or_a_solver(tmp_path):
    """The package's own __init__ offers everything, torch included; so it is left out here."""
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    net = co.from_torch(seeded(Pooled), x)
    r = co.radius(net, x, k=1)
    r.prove().save(tmp_path / "a.cert")
    (tmp_path / "network").write_bytes(pickle.dumps(plain_network(net)))
    code = (
        "import sys, types, pickle\n"
        "for name in ('torch', 'scipy', 'networkx', 'highspy', 'corgi_solvers'): sys.modules[name] = None\n"
        "package = types.ModuleType('corgi_opt'); sys.modules['corgi_opt'] = package\n"
        f"package.__path__ = [{str(SOURCES['corgi_opt'])!r}]\n"
        "from corgi_opt.proof.certificate import Certificate\n"
        "from corgi_opt.proof.checker import check\n"
        f"network = pickle.load(open({str(tmp_path / 'network')!r}, 'rb'))\n"
        f"print(check(Certificate.load({str(tmp_path / 'a.cert')!r}), network).kind)"
    )
    assert run_python(code).strip() == "certified"


def test_importing_corgi_opt_loads_no_slow_package():
    # those that torch itself pulls in are no choice of ours
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"import corgi_opt; print(sorted(set({sorted(LAZY)!r}) & (set(sys.modules) - before)))"
    )
    assert run_python(code).strip() == "[]"
    assert importlib.util.find_spec("matplotlib") is not None  # it could have been loaded
