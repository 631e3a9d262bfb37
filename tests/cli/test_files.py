"""What a command will write: its folder is made, what is there stays, and what cannot be written is refused."""

from __future__ import annotations

import pytest

from corgi_opt.cli.files import picture_file, writable, writing
from corgi_opt.errors import InputError


def test_the_folder_is_made_and_no_file_is_left(tmp_path):
    path = tmp_path / "new" / "deep" / "a.cert"
    assert writable(path) is path
    assert path.parent.is_dir() and not path.exists()


def test_what_is_there_stays_as_it_is(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"an older picture")
    assert picture_file(path) is path and path.read_bytes() == b"an older picture"


def test_what_cannot_be_written_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, why in (("file/a.cert", "exists|directory"), ("folder", "directory"), ("x" * 300, "too long")):
        with pytest.raises(InputError, match=rf"cannot write '.*{name}': .*({why}).*; name another file"):
            writable(tmp_path / name)


def test_a_picture_has_to_be_of_a_kind(tmp_path):
    with pytest.raises(InputError, match="a picture's name must end in one of"):
        picture_file(tmp_path / "new" / "a.txt")
    assert not (tmp_path / "new").exists()


def test_an_error_on_the_way_is_one_of_ours(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*No space left on device"), writing(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError
