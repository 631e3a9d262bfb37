"""The store: what is put is there after any end of the process, once, and only one process writes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sqlite3
from typing import Any

import numpy as np
import pandas as pd
import pytest

import corgi_opt as co
from corgi_opt.study import Progress, Row, Store
from corgi_opt.study.store import FILE


def row(key: str, **more: Any) -> Row:
    base = Row(
        key=key,
        state="done",
        model="m",
        model_sha256="a",
        images="t",
        image="t[0]",
        image_sha256="b",
        kind="radius",
        k=3,
        within=3,
        eps=None,
        method="bab",
        norm="inf",
        clip_low=0.0,
        clip_high=1.0,
        class_idx=7,
        keep_class=False,
        rtol=0.01,
        solver=None,
        time_limit=60.0,
        seed=2**62,
        status="closed",
        lower=0.1 + 0.2,
    )
    return dataclasses.replace(base, **more)


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        row("a"),
        row("b", state="crashed", lower=None, reason='it said "no"'),
        row("c", eps=1e-300, keep_class=True),
    ]
    with Store.writing(tmp_path) as store:
        for r in rows:
            store.put(r)
        assert store.states() == {"a": "done", "b": "crashed", "c": "done"}
    with Store.reading(tmp_path) as store:
        assert store.rows() == rows
        frame = store.to_frame()
        assert list(frame.columns) == [f.name for f in dataclasses.fields(Row)]
        assert frame["lower"].tolist()[0] == 0.1 + 0.2 and frame["keep_class"].dtype == bool


def test_a_cell_answered_again_takes_the_place_of_the_first(tmp_path):
    with Store.writing(tmp_path) as store:
        store.put(row("a", state="failed"))
        store.put(row("a"))
        assert len(store.rows()) == 1 and store.states() == {"a": "done"}
        progress = store.progress(["a", "b"])
    assert (progress.cells, progress.left, progress.states) == (2, 1, {"done": 1})
    assert str(progress) == "2 cells: 1 done, 1 to do"
    assert str(Progress(5, 5, {})) == "0 of 5 cells have an answer"


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    with Store.writing(tmp_path) as store:
        store.put(row("a"))
        with pytest.raises(co.StoreError, match="another process"):
            Store.writing(tmp_path)
        with Store.reading(tmp_path) as other:
            assert len(other.rows()) == 1
    Store.writing(tmp_path).close()


def put_and_die(folder, count):
    store = Store.writing(folder)
    for i in range(count):
        store.put(row(str(i)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_put_outlives_its_process_and_so_does_the_right_to_write(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=put_and_die, args=(tmp_path, 20))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with Store.writing(tmp_path) as store:
        assert sorted(int(r.key) for r in store.rows()) == list(range(20))


def test_tables_are_written_as_parquet_and_csv(tmp_path):
    with Store.writing(tmp_path) as store:
        store.put(row("a"))
        store.put(row("b", upper=2.0))
        frame = store.to_frame()
        for name, read in (("t.parquet", pd.read_parquet), ("t.csv", pd.read_csv)):
            store.export(tmp_path / name)
            back = read(tmp_path / name)
            assert back["lower"].tolist() == frame["lower"].tolist() and back["key"].tolist() == ["a", "b"]
        with pytest.raises(co.InputError, match="end in"):
            store.export(tmp_path / "t.xlsx")
        with pytest.raises(co.InputError, match="cannot write"):
            store.export(tmp_path / "gone" / "t.csv")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(co.StoreError, match="no results"):
        Store.reading(tmp_path)
    (tmp_path / FILE).write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(co.StoreError, match="cannot be used"):
        Store.reading(tmp_path)
    with pytest.raises(co.StoreError, match="cannot be used"):
        Store.writing(tmp_path)
    (tmp_path / "new").mkdir()
    with sqlite3.connect(tmp_path / "new" / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(co.StoreError, match="schema 99"):
        Store.reading(tmp_path / "new")
    with pytest.raises(co.InputError, match="cannot make"):
        Store.writing(tmp_path / FILE / "below")


LATER = {
    2: ("ALTER TABLE cells DROP COLUMN clip",),
    3: ("ALTER TABLE cells DROP COLUMN property",),
    4: (
        "DROP INDEX cells_by_question",
        *(f"ALTER TABLE cells DROP COLUMN {name}" for name in ("question", "own_lower", "own_upper", "cpu")),
        "ALTER TABLE runs DROP COLUMN how",
        "DROP TABLE arrays",
    ),
}
"""What takes a file back to the schema before."""


def of_version(folder, version: int) -> None:
    """A file with one answer, as it was before channels could have boxes of their own (1), before there were other
    properties (2), before cells shared what they prove (3)."""
    with Store.writing(folder) as store:
        store.began("old", "the plan")
        store.put(row("a"))
    with sqlite3.connect(folder / FILE) as connection:
        for since, statements in LATER.items():
            for statement in statements if since > version else ():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_of_before_can_be_read_and_written(version, tmp_path):
    of_version(tmp_path, version)
    with Store.reading(tmp_path) as store:
        assert store.rows() == [row("a")] and store.to_frame()["clip"].isna().all()
        assert store.name == "old" and store.last_run is not None
        assert (store.last_run.plan, store.last_run.how, store.arrays("a")) == ("the plan", {}, {})
    own = row("b", clip="[[0.0, 0.5], [1.0, 2.0]]", clip_high=2.0, property='{"name": "KeepsClass"}', k=None)
    own = dataclasses.replace(own, question="q", own_lower=0.125, own_upper=0.5, cpu="a processor, 2 cores")
    with Store.writing(tmp_path) as store:
        store.put(own, {"witness": np.full((1, 2), 1 / 3)})
        store.began("new", "another", {"grace": 1.0})
        assert store.rows() == [row("a"), own]
        assert store.rows_of("q") == [own] and store.pictured("q", "witness") == {"b"}
    with Store.reading(tmp_path) as store:
        assert store.rows() == [row("a"), own]
        assert store.arrays("b")["witness"].tolist() == [[1 / 3, 1 / 3]]
        assert store.last_run is not None and store.last_run.how == {"grace": 1.0}
        assert store.to_frame()["own_lower"].tolist()[1] == 0.125


def test_an_answer_of_before_learns_what_its_question_was_and_no_other_is_touched(tmp_path):
    of_version(tmp_path, 3)
    with Store.writing(tmp_path) as store:
        store.put(row("b", question="mine"))
        store.name_questions({"a": "q", "b": "q", "c": "q"})
        assert [r.question for r in store.rows()] == ["q", "mine"]


def test_an_answer_takes_its_pictures_with_it(tmp_path):
    with Store.writing(tmp_path) as store:
        store.put(row("a", question="q"), {"witness": np.zeros((1, 1)), "cam": np.array([[5e-324, -0.0]])})
        assert store.arrays("a")["cam"].tobytes() == np.array([[5e-324, -0.0]]).tobytes()
        store.put(row("a", question="q"), {"cam": np.ones((2, 2))})
        assert set(store.arrays("a")) == {"cam"} and store.pictured("q", "witness") == set()
        assert store.pictured("q", "cam") == {"a"} and store.pictured("other", "cam") == set()
