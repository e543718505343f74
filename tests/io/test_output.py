import collections
import errno
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest

from cryowgen_jax.io.output import (
    prepare_output_file,
    prepare_output_folder,
    require_free_space,
    write_bytes_atomic,
    write_text_atomic,
)
from cryowgen_jax.types import InputError

Usage = collections.namedtuple("Usage", "total used free")


def deny_writes(monkeypatch, number=errno.EACCES):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)


def test_folder_is_made_with_its_parents(tmp_path):
    folder = prepare_output_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    assert prepare_output_folder(folder) == folder


def test_folder_with_files_is_refused_unless_resuming(tmp_path):
    (tmp_path / "mean.mrc").write_bytes(b"precious")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".s.mrc.0123.cryowgen-tmp").write_bytes(b"half")
    with pytest.raises(InputError, match=r"not empty .*mean\.mrc.*--resume"):
        prepare_output_folder(tmp_path)
    assert (tmp_path / "samples" / ".s.mrc.0123.cryowgen-tmp").exists()
    prepare_output_folder(tmp_path, resume=True)
    assert (tmp_path / "mean.mrc").read_bytes() == b"precious"
    assert list((tmp_path / "samples").iterdir()) == []


def test_folder_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        prepare_output_folder(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write"):
        prepare_output_folder(tmp_path / "file" / "below")
    deny_writes(monkeypatch)
    with pytest.raises(InputError, match=r"cannot write .*Permission denied"):
        prepare_output_folder(tmp_path / "new")
    deny_writes(monkeypatch, errno.EROFS)
    with pytest.raises(InputError, match="Read-only"):
        prepare_output_folder(tmp_path / "new")


def test_output_file(tmp_path, monkeypatch):
    assert prepare_output_file(tmp_path / "new" / "a.mrc") == tmp_path / "new" / "a.mrc"
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(InputError, match="is a folder"):
        prepare_output_file(tmp_path)
    with pytest.raises(InputError, match="compressed"):
        prepare_output_file(tmp_path / "a.mrc.gz")
    deny_writes(monkeypatch)
    with pytest.raises(InputError, match="Permission denied"):
        prepare_output_file(tmp_path / "a.mrc")


def test_free_space(tmp_path, monkeypatch):
    require_free_space(tmp_path / "not" / "yet", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**10, 0, 5_000_000))
    require_free_space(tmp_path / "not" / "yet", 5_000_000)
    with pytest.raises(InputError, match=r"3\.2 GB needed, 5\.0 MB free"):
        require_free_space(tmp_path / "not" / "yet", 3_200_000_000)


def test_bytes_and_text(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_bytes_atomic(path, b"ab", np.array([1, 2], "<u2"), b"")
    assert path.read_bytes() == b"ab\x01\x00\x02\x00"
    write_text_atomic(path, "voxel 10 Å\n")
    assert path.read_bytes() == b"voxel 10 \xc3\x85\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.bin"]


def test_file_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_link_keeps_pointing(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text_atomic(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full.*needed.*free"), (errno.EDQUOT, "disk is full"), (errno.EACCES, "Permission denied")],
)
def test_failed_write_changes_nothing(tmp_path, monkeypatch, number, words):
    path = tmp_path / "run.json"
    path.write_text("precious")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=words) as caught:
        write_text_atomic(path, "new")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "precious"


def test_old_content_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("old")
    seen = []
    real_replace = os.replace

    def watched(source, target):
        seen.append((pathlib.Path(source).read_text(), pathlib.Path(target).read_text(), pathlib.Path(source).parent))
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_text_atomic(path, "new")
    assert seen == [("new", "old", tmp_path)]
    assert path.read_text() == "new"


def test_a_name_taken_by_a_folder(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_text_atomic(tmp_path / "taken", "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
