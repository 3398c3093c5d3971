"""Files on disks that refuse them, and names of folders."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from zoo import Mine, config_of

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.files import folder_name, on_disk, write_bytes
from amc.search import search


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_a_disk_refuses_is_one_sentence(number: int) -> None:
    with pytest.raises(UserError) as caught, on_disk(Path("some/file")):
        raise OSError(number, os.strerror(number))
    said = str(caught.value)
    assert "'some/file'" in said and "\n" not in said
    in_the_way = number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
    assert ("in its way" if in_the_way else os.strerror(number)) in said


def test_real_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("n" * 300, "File name too long"),
        ("file/below", "a file is in its way"),
        ("folder", "a folder is in its way"),
    ):
        with pytest.raises(UserError, match=said):
            write_bytes(tmp_path / name, b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "kept"


NAMES = [
    "../../x",
    "/etc/x",
    "a/b",
    "a\0b",
    "n" * 5000,
    ".",
    "..",
    "...",
    "",
    "/",
    "é" * 300,
    "a\nb",
]


@pytest.mark.parametrize("text", NAMES)
def test_a_folder_name_leads_nowhere_else(text: str, tmp_path: Path) -> None:
    name = folder_name(text)
    folder = tmp_path / "out" / name
    folder.mkdir(parents=True)
    assert folder.resolve().parent == tmp_path / "out" and not name.startswith(".")
    assert folder_name(name) == name


def test_names_stay_apart_and_as_they_are() -> None:
    assert folder_name("digits_resnet8+lr=0.1") == "digits_resnet8+lr=0.1"
    assert folder_name("n" * 300 + "a") != folder_name("n" * 300 + "b")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", ".", "a/../..", "n" * 400])
def test_a_run_stays_inside_out(name: str, digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    path = search(config_of("agent=uniform"), model=Mine(), dataset=digits, out=out, name=name)
    assert path.run.path.resolve().parents[1] == out
