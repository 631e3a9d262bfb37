"""Where a study's answers are kept: one SQLite file, one row a cell, one writer.

Each answer is a transaction of its own, on disk when ``put`` returns, so whatever kills the process costs the cells in
flight and nothing else. Others may read while it is written (``sqlite3``, pandas, a browser of databases).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from corgi_opt.errors import InputError, MissingPackageError, StoreError
from corgi_opt.problem.properties import Property, TopK, property_from

State = Literal["done", "failed", "timeout", "crashed"]
"""There is an answer (``unknown`` is one); an error was raised; the cell took longer than its time limit and the grace;
it took its process with it, or used more memory than it may."""

SCHEMA = 3
"""Files of schema 1 have no column ``clip``, those of 1 and 2 no ``property``. They can be read, and writing upgrades
them."""

SINCE = {"clip": 2, "property": 3}
"""The schema that a column came with."""

FILE = "results.sqlite"


@dataclass(frozen=True)
class Row:
    """One cell: what was asked, what came out, and how. Radii in units of the input, margins in units of the CAM.

    ``lower``, ``upper``: the certified and the falsified eps of a radius, the bounds of a margin. ``corgi``: the
    paper's bound on the same. ``attack``: the smallest eps that PGD broke. ``gap``: the margin at the image.
    ``seconds`` on the clock; ``peak_mb``: the process's largest resident memory meanwhile, sampled. ``finished``: UTC,
    ISO 8601. ``clip``: where channels have boxes of their own, ``[lows, highs]`` as JSON; ``clip_low`` and
    ``clip_high`` are the outermost then. ``property``: as JSON, where what is asked is no top-k set (``k`` and
    ``within`` are empty then).
    """

    key: str
    state: State
    model: str
    model_sha256: str
    images: str
    image: str
    image_sha256: str
    kind: str
    k: int | None
    within: int | None
    eps: float | None
    method: str
    norm: str
    clip_low: float | None
    clip_high: float | None
    class_idx: int | None
    keep_class: bool
    rtol: float
    solver: str | None
    time_limit: float
    seed: int
    status: str | None = None
    lower: float | None = None
    upper: float | None = None
    corgi: float | None = None
    attack: float | None = None
    gap: float | None = None
    proof: str | None = None
    settled_by: str | None = None
    reason: str | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    device: str | None = None
    host: str | None = None
    versions: str | None = None
    finished: str | None = None
    clip: str | None = None
    property: str | None = None


COLUMNS = tuple(f.name for f in fields(Row))


def property_of(k: Any, within: Any, said: Any) -> Property:
    """The property that a row is about, from its columns ``k``, ``within`` and ``property``."""
    return property_from(said) if isinstance(said, str) else TopK(int(k), int(within))


@dataclass(frozen=True)
class Progress:
    """How far a plan is: how many cells it has, how many are left to do, and how many are in each state."""

    cells: int
    left: int
    states: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{count} {state}" for state, count in sorted(self.states.items())]
        return f"{self.cells} cells: {', '.join([*parts, f'{self.left} to do'])}"


class Store:
    """The answers of one study, in ``folder/results.sqlite``. A context manager.

    Made by :meth:`reading`, or by :meth:`writing`, which keeps every other writer out until it is closed or its process
    ends, however that ends. Raises StoreError for a file that is no store, or one of another version.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: Any) -> None:
        self._folder, self._connection, self._lock = folder, connection, lock
        self._columns = ", ".join(COLUMNS)

    @classmethod
    def writing(cls, folder: str | Path) -> Store:
        """Makes the folder and the file where they are missing. Raises StoreError where another process writes."""
        from filelock import FileLock, Timeout

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the study's folder {str(folder)!r}: {error}") from error
        lock = FileLock(folder / "writer.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another process is running the study in {str(folder)!r}; wait for it or end it"
            ) from error
        try:
            with _store_errors(folder):
                connection = sqlite3.connect(folder / FILE, isolation_level=None)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                store = cls(folder, connection, lock)
                store._create_or_upgrade()
                return store
        except BaseException:
            lock.release()
            raise

    @classmethod
    def reading(cls, folder: str | Path) -> Store:
        """Raises StoreError where there is none."""
        folder = Path(folder)
        if not (folder / FILE).is_file():
            raise StoreError(f"there are no results in {str(folder)!r}; run the study first")
        with _store_errors(folder):
            connection = sqlite3.connect(f"{(folder / FILE).resolve().as_uri()}?mode=ro", uri=True)
            store = cls(folder, connection, None)
            store._check_version()
            return store

    def _create_or_upgrade(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            columns = ", ".join(f"{f.name} {_type(str(f.type))}" for f in fields(Row)[1:])
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(f"CREATE TABLE cells (key TEXT PRIMARY KEY, {columns})")
            self._connection.execute("CREATE TABLE runs (started TEXT, name TEXT, plan TEXT)")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self._connection.execute("COMMIT")
        elif 1 <= version < SCHEMA:
            self._connection.execute("BEGIN IMMEDIATE")
            for column, since in SINCE.items():
                if version < since:
                    self._connection.execute(f"ALTER TABLE cells ADD COLUMN {column} TEXT")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self._connection.execute("COMMIT")
        self._check_version()

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if 1 <= version <= SCHEMA:
            self._columns = ", ".join(f"NULL AS {c}" if SINCE.get(c, 1) > version else c for c in COLUMNS)
        else:
            raise StoreError(f"{self._folder / FILE} has schema {version}, this version of corgi_opt reads {SCHEMA}")

    def began(self, name: str, plan: str) -> None:
        """Records that a run of a plan began."""
        self._connection.execute("INSERT INTO runs VALUES (?, ?, ?)", (now(), name, plan))

    @property
    def name(self) -> str:
        """The name of the plan that was run last; empty where none was."""
        last = self._connection.execute("SELECT name FROM runs ORDER BY rowid DESC LIMIT 1").fetchone()
        return "" if last is None else str(last[0])

    def put(self, row: Row) -> None:
        """Keeps one answer, in place of an earlier one; on disk when this returns. Raises StoreError."""
        marks = ", ".join("?" * len(COLUMNS))
        with _store_errors(self._folder):
            self._connection.execute(f"INSERT OR REPLACE INTO cells VALUES ({marks})", astuple(row))

    def states(self) -> dict[str, str]:
        """The state of every cell that has one, by key."""
        return dict(self._connection.execute("SELECT key, state FROM cells"))

    def rows(self) -> list[Row]:
        """All rows, in the order in which they were put."""
        tuples = self._connection.execute(f"SELECT {self._columns} FROM cells ORDER BY rowid")
        named = (dict(zip(COLUMNS, values, strict=True)) for values in tuples)
        return [Row(**{**row, "keep_class": bool(row["keep_class"])}) for row in named]

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a cell, with the columns of :class:`Row`."""
        import pandas as pd

        frame = pd.read_sql_query(f"SELECT {self._columns} FROM cells ORDER BY rowid", self._connection)
        numbers = [f.name for f in fields(Row) if "float" in str(f.type)]
        frame[numbers] = frame[numbers].astype("float64")  # a column of nothing but NULL has no type of its own
        return frame.astype({"keep_class": bool})

    def export(self, path: str | Path) -> None:
        """Writes every row to a ``.parquet`` or ``.csv`` file. Raises InputError, MissingPackageError."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".parquet", ".csv"):
            raise InputError(f"a table's name must end in .parquet or .csv, got {str(path)!r}")
        frame = self.to_frame()
        try:
            if suffix == ".csv":
                frame.to_csv(path, index=False)
            else:
                frame.to_parquet(path, index=False)
        except ImportError as error:
            raise MissingPackageError("pyarrow", "writing Parquet", "pip install 'corgi_opt[study]'") from error
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error}") from error

    def progress(self, keys: Iterable[str]) -> Progress:
        """How far a plan with cells of these keys is."""
        wanted, known = list(keys), self.states()
        states: dict[str, int] = {}
        for key in wanted:
            if key in known:
                states[known[key]] = states.get(known[key], 0) + 1
        return Progress(len(wanted), len(wanted) - sum(states.values()), states)

    def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _type(annotation: str) -> str:
    """SQLite's type of a column."""
    for word, name in (("float", "REAL"), ("int", "INTEGER"), ("bool", "INTEGER")):
        if annotation.startswith(word):
            return name
    return "TEXT"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    """Turns sqlite's errors into a StoreError that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{folder / FILE} cannot be used as a study's results: {error}") from error
