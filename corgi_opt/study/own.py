"""What a study uses that is its user's own: properties, bound methods, solvers and layers that other files register.

The cells of a study are answered in processes that know of these only what the plan's ``imports`` register. So a plan
names the files and modules that do, every process of the study imports them before anything else, and what a cell uses
of them is part of its key.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from corgi_opt.answering.backends import named_solver
from corgi_opt.data.user_code import import_module, user_code
from corgi_opt.errors import InputError, StudyError
from corgi_opt.methods import TABLE
from corgi_opt.network.builders import BUILDERS
from corgi_opt.problem.properties import PROPERTIES

HERE = ("corgi_opt", "corgi_solvers")
"""The packages whose properties, methods, solvers and layers every process knows."""

Role = Literal["property", "method", "solver", "layer"]


@dataclass(frozen=True)
class Import:
    """A module by its dotted name, or a file by its whole path; ``sha256``: of the file, when the study was planned."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name: str, folder: Path) -> Import:
        """Imports what a plan in ``folder`` names, if this process has not done so.

        Raises InputError for what is not there, StudyError for a file that has changed since this process imported it.
        """
        if name.endswith(".py"):
            name = str((folder / name).resolve())
            if not Path(name).is_file():
                raise InputError(f"imports: no such file: {name}")
        loaded = _load(name)
        if _sha256(loaded.files) != loaded.sha256:
            raise StudyError(f"{name} has changed since this process imported it: start a new process")
        return cls(name, loaded.sha256)

    def bring_in(self) -> None:
        """Imports it in a process of the study. Raises StudyError where it is not what the study was planned with."""
        if _load(self.name).sha256 != self.sha256:
            raise StudyError(f"{self.name} is another file than when the study began: run the study again")


def imports_of(entry: Any, folder: Path) -> tuple[Import, ...]:
    """A plan's ``imports``: one name or several. Raises what :meth:`Import.of` raises."""
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"imports must be 'file.py', 'package.module' or a list of such names, got {entry!r}")
    return tuple(Import.of(name, folder) for name in names)


@dataclass(frozen=True)
class _Loaded:
    """``files``: the module's own, none where it has none; ``sha256``: of them, when it was imported."""

    module: ModuleType
    files: tuple[Path, ...]
    sha256: str


_LOADED: dict[str, _Loaded] = {}
"""What this process has imported for plans, by name."""

_loading: list[str] = []
"""What this process is in the middle of importing."""


def being_imported() -> str | None:
    """The file or module that is being imported for a plan at this moment."""
    return _loading[-1] if _loading else None


def _load(name: str) -> _Loaded:
    """Imports it once, however often it is named. Raises InputError."""
    if name not in _LOADED:
        if name.endswith(".py"):
            _LOADED[name] = _load_file(Path(name))
        else:
            module = _load_module(name)
            files = (Path(module.__file__).resolve(),) if module.__file__ is not None else ()
            _LOADED[name] = _Loaded(module, files, _sha256(files))
    return _LOADED[name]


@contextmanager
def _during(name: str, folder: str) -> Iterator[None]:
    """While ``name`` is imported: the modules of ``folder`` are found, and no study may start."""
    _loading.append(name)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        _loading.pop()


def _load_module(name: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"imports: {name!r} is neither a .py file nor a dotted module name")
    with _during(name, ""):  # modules of the current directory, as for models
        return import_module(name)


def _load_file(path: Path) -> _Loaded:
    """Runs a file, unless it is this process's script or a module that was imported before: what it registers must not
    be registered twice."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"imports: no file can be read from {str(path)!r}: {error}") from error
    sha256 = _sha256((path,))
    module = next((m for m in list(sys.modules.values()) if _is_of(m, path)), None)
    alias = alias_of(path)
    if module is not None:
        sys.modules[alias] = module
        return _Loaded(module, (path,), sha256)
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    with _during(str(path), str(path.parent)):  # the file's neighbours, as python file.py has them
        try:
            # what was hashed is what is run, so nothing compiled is taken in its place
            with user_code(str(path)):
                exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[alias]
            raise
    return _Loaded(module, (path,), sha256)


def alias_of(path: Path) -> str:
    """The name of an imported file's module: one that no other file has."""
    return f"_corgi_opt_import_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"


def _is_of(module: Any, path: Path) -> bool:
    file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    return isinstance(file, str) and file.endswith(path.name) and Path(file).resolve() == path


def run_once(name: str) -> str:
    """``file.py:function`` with the file's module in place of the file, where a plan has imported it: so it is not run
    again, and registers nothing twice. Any other name as it is. Raises InputError where there is no such function."""
    where, _, function = name.rpartition(":")
    loaded = _LOADED.get(str(Path(where).resolve())) if where.endswith(".py") else None
    if loaded is None:
        return name
    if not hasattr(loaded.module, function):
        raise InputError(f"{where} has no function {function!r}")
    return f"{alias_of(Path(where).resolve())}:{function}"


# --- what a cell uses ---------------------------------------------------------------------------------------------


class UnknownNameError(StudyError, InputError):
    """A plan or a store names a property, method or solver that nobody registered here; says what to do.

    Whoever calls from Python gave a wrong argument; whoever runs a study cannot go on.
    """


@dataclass(frozen=True, order=True)
class Own:
    """A property, method, solver or layer that is not corgi_opt's. ``sha256``: of the ``files`` that define it.
    ``homes``: what a plan would name to import them."""

    role: Role
    name: str
    sha256: str
    files: tuple[Path, ...] = field(compare=False)
    homes: tuple[str, ...] = field(compare=False)


def is_known(role: Role, name: Any) -> bool:
    """Is something of this name registered in this process?"""
    try:
        _makers(role, name)
    except (KeyError, TypeError, InputError):
        return False
    return True


def own_of(role: Role, name: str) -> Own | None:
    """What somebody else than corgi_opt registered by this name; None where it is corgi_opt's.

    Raises UnknownNameError.
    """
    if not is_known(role, name):
        raise UnknownNameError(f"there is no {role} {name!r} here. {hint(role)}")
    strange = [maker for maker in map(_unwrapped, _makers(role, name)) if _package(maker) not in HERE]
    if not strange:
        return None
    homes = {file: _home(maker, file) for maker, file in ((m, _file(m)) for m in strange) if file is not None}
    files = tuple(sorted(homes))
    return Own(role, name, _sha256(files), files, tuple(homes[file] for file in files))


def own_layers(imports: Iterable[Import]) -> tuple[Own, ...]:
    """The layers that the files of ``imports`` register."""
    files = {file for name in imports for file in _load(name.name).files}
    return tuple(layer for layer in _all_own_layers() if files.intersection(layer.files))


def layers_left_out(imports: Iterable[Import]) -> tuple[str, ...]:
    """Names of the layers that this process knows and that are neither corgi_opt's nor registered by ``imports``."""
    brought = {layer.name for layer in own_layers(imports)}
    return tuple(layer.name for layer in _all_own_layers() if layer.name not in brought)


def _all_own_layers() -> list[Own]:
    return [layer for layer in (own_of("layer", name) for name in sorted(BUILDERS)) if layer is not None]


def hint(role: Role, homes: Iterable[str] = ()) -> str:
    """What to do for the processes of a study to know something of one's own, with what to import for it."""
    names = ", ".join(f'"{home}"' for home in homes) or '"FILE.py"'
    return (
        f"A {role} of your own is known to a study where its plan names the file or module that registers it: "
        f"imports = [{names}]"
    )


def _makers(role: Role, name: Any) -> list[Any]:
    """The classes and functions that something registered is made of. Raises KeyError, TypeError or InputError."""
    if role == "property":
        return [PROPERTIES[name]]
    if role == "method":
        return [part for part in (TABLE[name].bound, TABLE[name].solve) if part is not None]
    if role == "layer":
        return [BUILDERS[name]]
    return [type(named_solver(name, "ibp", "inf"))]  # a method that asks no solver, so any solver will do


def _unwrapped(maker: Any) -> Any:
    """What a partial or a decorated function was made from; of an object that is called, its class."""
    while isinstance(maker, functools.partial):
        maker = maker.func
    maker = inspect.unwrap(maker)
    return maker if isinstance(maker, type) or inspect.isroutine(maker) else type(maker)


def _package(maker: Any) -> str:
    return str(maker.__module__).partition(".")[0]


def _file(maker: Any) -> Path | None:
    """The file that defines a class or function; None in a notebook."""
    try:
        file = Path(inspect.getfile(maker)).resolve()
    except (OSError, TypeError):
        return None
    return file if file.is_file() else None


def _home(maker: Any, file: Path) -> str:
    """A module of a package by its dotted name, since it may import its neighbours by dots; else the file."""
    return str(maker.__module__) if "." in str(maker.__module__) else str(file)


def _sha256(files: Iterable[Path]) -> str:
    """Of the contents of files, whatever their names."""
    contents = sorted(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(b"".join(contents)).hexdigest()


# --- what a process of the study knows ----------------------------------------------------------------------------


def known_here(task: Mapping[str, Any]) -> dict[str, Any]:
    """Imports ``task["imports"]``, and says as ``known`` what each of ``task["uses"]`` is here.

    Both are lists of pairs: of a name and its hash, of a role and a name. What is said is None where nobody registered
    such a thing, else the hash of the files that define it, empty for corgi_opt's own.
    """
    bring_in(task)
    return {"known": [_known_as(role, name) for role, name in task["uses"]]}


def bring_in(task: Mapping[str, Any]) -> None:
    """Imports what the plan of a task names, if anything. Raises what :meth:`Import.bring_in` raises."""
    for name, sha256 in task.get("imports", ()):
        Import(name, sha256).bring_in()


def _known_as(role: Role, name: str) -> str | None:
    if not is_known(role, name):
        return None
    mine = own_of(role, name)
    return "" if mine is None else mine.sha256
