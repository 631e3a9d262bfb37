"""Where a study's answers are kept: one SQLite file, one row a cell, one writer.

Each answer is a transaction of its own, on disk when ``put`` returns, so whatever kills the process costs the cells in
flight and nothing else. Others may read while it is written (``sqlite3``, pandas, a browser of databases).
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import InputError, MissingPackageError, StoreError
from corgi_opt.problem.properties import Property, TopK, property_from

State = Literal["done", "failed", "timeout", "crashed"]
"""There is an answer (``unknown`` is one); an error was raised; the cell took longer than its time limit and the grace;
it took its process with it, or used more memory than it may."""

SCHEMA = 4
"""Files of schema 1 have no column ``clip``, those of 1 and 2 no ``property``, those of 1 to 3 none of the last four
columns, no ``how`` of a run and no table ``arrays``. They can be read, and writing upgrades them."""

SINCE = {"clip": 2, "property": 3, "question": 4, "own_lower": 4, "own_upper": 4, "cpu": 4}
"""The schema that a column came with."""

ARRAYS = "CREATE TABLE arrays (key TEXT, name TEXT, shape TEXT, data BLOB, PRIMARY KEY (key, name))"
"""Maps and images of a cell: float64 values, little-endian, row by row, in zlib's format; ``shape`` as JSON."""

BY_QUESTION = "CREATE INDEX cells_by_question ON cells (question)"

FILE = "results.sqlite"


@dataclass(frozen=True)
class Row:
    """One cell: what was asked, what came out, and how. Radii in units of the input, margins in units of the CAM.

    ``lower``, ``upper``: the certified and the falsified eps of a radius, the bounds of a margin. ``corgi``: the
    paper's bound on the same. ``attack``: the smallest eps that PGD broke. ``gap``: the margin at the image.
    ``seconds`` on the clock; ``peak_mb``: the process's largest resident memory meanwhile, sampled. ``finished``: UTC,
    ISO 8601. ``clip``: where channels have boxes of their own, ``[lows, highs]`` as JSON; ``clip_low`` and
    ``clip_high`` are the outermost then. ``property``: as JSON, where what is asked is no top-k set (``k`` and
    ``within`` are empty then). ``question``: a hash of what was asked, the same for every method. ``lower`` and
    ``upper`` hold what the cells of weaker methods had of the same question, where that is better than
    ``own_lower`` and ``own_upper``, with which the cell's own search ended. ``cpu``: model and cores.
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
    question: str | None = None
    own_lower: float | None = None
    own_upper: float | None = None
    cpu: str | None = None


COLUMNS = tuple(f.name for f in fields(Row))


def property_of(k: Any, within: Any, said: Any) -> Property:
    """The property that a row is about, from its columns ``k``, ``within`` and ``property``."""
    return property_from(said) if isinstance(said, str) else TopK(int(k), int(within))


@dataclass(frozen=True)
class Run:
    """A run of a plan: when it began (UTC, ISO 8601), the plan's name, the plan as it was written, and what the run was
    told beside it."""

    started: str
    name: str
    plan: str
    how: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a plan is: how many cells it has, how many are left to do, and how many are in each state."""

    cells: int
    left: int
    states: dict[str, int]

    def __str__(self) -> str:
        if not self.states:
            return f"0 of {self.cells} cells have an answer"
        parts = [f"{count} {state}" for state, count in sorted(self.states.items())]
        return f"{self.cells} cells: {', '.join([*parts, f'{self.left} to do'])}"


class Store:
    """The answers of one study, in ``folder/results.sqlite``. A context manager.

    Made by :meth:`reading`, or by :meth:`writing`, which keeps every other writer out until it is closed or its process
    ends, however that ends. Raises StoreError for a file that is no store, or one of another version.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: Any) -> None:
        self._folder, self._connection, self._lock = folder, connection, lock
        self._columns, self._version = ", ".join(COLUMNS), SCHEMA

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

    @staticmethod
    def there(folder: str | Path) -> bool:
        """Whether the folder has a store."""
        return (Path(folder) / FILE).is_file()

    @classmethod
    def reading(cls, folder: str | Path) -> Store:
        """Raises StoreError where there is none."""
        folder = Path(folder)
        if not cls.there(folder):
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
            self._connection.execute("CREATE TABLE runs (started TEXT, name TEXT, plan TEXT, how TEXT)")
            self._connection.execute(ARRAYS)
            self._connection.execute(BY_QUESTION)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self._connection.execute("COMMIT")
        elif 1 <= version < SCHEMA:
            self._connection.execute("BEGIN IMMEDIATE")
            types = {f.name: _type(str(f.type)) for f in fields(Row)}
            for column, since in SINCE.items():
                if version < since:
                    self._connection.execute(f"ALTER TABLE cells ADD COLUMN {column} {types[column]}")
            if version < 4:
                self._connection.execute("ALTER TABLE runs ADD COLUMN how TEXT")
                self._connection.execute(ARRAYS)
                self._connection.execute(BY_QUESTION)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self._connection.execute("COMMIT")
        self._check_version()

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if 1 <= version <= SCHEMA:
            self._version = version
            self._columns = ", ".join(f"NULL AS {c}" if SINCE.get(c, 1) > version else c for c in COLUMNS)
        else:
            raise StoreError(f"{self._folder / FILE} has schema {version}, this version of corgi_opt reads {SCHEMA}")

    def began(self, name: str, plan: str, how: Mapping[str, Any] | None = None) -> None:
        """Records that a run of a plan began; ``how``: what it was told beside the plan, as JSON types."""
        self._connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (now(), name, plan, json.dumps(how or {})))

    @property
    def last_run(self) -> Run | None:
        """The run that began last; None where none did."""
        how = "how" if self._version >= 4 else "NULL"
        said = self._connection.execute(f"SELECT started, name, plan, {how} FROM runs ORDER BY rowid DESC LIMIT 1")
        last = said.fetchone()
        return None if last is None else Run(last[0], last[1], last[2], json.loads(last[3] or "{}"))

    @property
    def name(self) -> str:
        """The name of the plan that was run last; empty where none was."""
        last = self.last_run
        return "" if last is None else last.name

    def put(self, row: Row, arrays: Mapping[str, NDArray[np.float64]] | None = None) -> None:
        """Keeps one answer, in place of an earlier one; on disk when this returns. ``arrays``: its maps and images by
        name. Raises StoreError."""
        marks = ", ".join("?" * len(COLUMNS))
        with _store_errors(self._folder), self._transaction() as connection:
            connection.execute(f"INSERT OR REPLACE INTO cells ({', '.join(COLUMNS)}) VALUES ({marks})", astuple(row))
            connection.execute("DELETE FROM arrays WHERE key = ?", (row.key,))
            for name, array in (arrays or {}).items():
                data = zlib.compress(np.ascontiguousarray(array, dtype="<f8").tobytes())
                connection.execute(
                    "INSERT INTO arrays VALUES (?, ?, ?, ?)", (row.key, name, json.dumps(array.shape), data)
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it on disk at the end, or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def arrays(self, key: str) -> dict[str, NDArray[np.float64]]:
        """The maps and images of a cell by name; none where it has none."""
        if self._version < 4:
            return {}
        found = self._connection.execute("SELECT name, shape, data FROM arrays WHERE key = ?", (key,))
        return {
            name: np.frombuffer(zlib.decompress(data), dtype="<f8").reshape(json.loads(shape))
            for name, shape, data in found
        }

    def pictured(self, question: str | None, name: str) -> set[str]:
        """The keys of a question's cells (None: of all) that have a map or an image of this name."""
        if self._version < 4:
            return set()
        found = "SELECT key FROM arrays JOIN cells USING (key) WHERE name = ? AND (question = ? OR ? IS NULL)"
        return {key for (key,) in self._connection.execute(found, (name, question, question))}

    def name_questions(self, questions: Mapping[str, str]) -> None:
        """Fills the column ``question`` of cells that are older than it. ``questions``: by the cell's key."""
        with _store_errors(self._folder), self._transaction() as connection:
            connection.executemany(
                "UPDATE cells SET question = ? WHERE key = ? AND question IS NULL",
                [(question, key) for key, question in questions.items()],
            )

    def states(self) -> dict[str, str]:
        """The state of every cell that has one, by key."""
        return dict(self._connection.execute("SELECT key, state FROM cells"))

    def rows(self) -> list[Row]:
        """All rows, in the order in which they were put."""
        return self._rows("ORDER BY rowid")

    def rows_of(self, question: str) -> list[Row]:
        """The rows of one question, in the order in which they were put. For who writes."""
        return self._rows("WHERE question = ? ORDER BY rowid", question)

    def _rows(self, which: str, *values: str) -> list[Row]:
        tuples = self._connection.execute(f"SELECT {self._columns} FROM cells {which}", values)
        named = (dict(zip(COLUMNS, found, strict=True)) for found in tuples)
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
