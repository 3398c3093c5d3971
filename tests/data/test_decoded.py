"""Decoded images on disk: what comes back is what the files hold, whatever has happened to them."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import decoded, folders
from amc.data.folders import FolderImages
from amc.errors import UserError

SIZE, COUNT = 32, 24
ALL = np.arange(COUNT)


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 images of three classes."""
    for number in range(COUNT):
        paint(tmp_path / "train" / "abc"[number // 8] / f"{number:02}.png", number)
    return tmp_path / "train"


def opened(root: Path) -> FolderImages:
    return FolderImages(root, SIZE, root.parent / "kept")


def expected(root: Path) -> torch.Tensor:
    """What the files hold, without anything kept."""
    found = []
    for path in sorted(root.rglob("*.png")):
        image = Image.open(path).convert("RGB")
        width, height = image.size
        short = SIZE * 8 // 7
        image = image.resize((short * width // height, short), Image.Resampling.BILINEAR)
        left, top = (round((length - SIZE) / 2) for length in image.size)
        image = image.crop((left, top, left + SIZE, top + SIZE))
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(found)


def pixel_file(root: Path) -> Path:
    return next((root.parent / "kept").glob("*/pixels"))


class Decodes:
    """Counts the images that are decoded, and may raise at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int = -1) -> None:
        self.count = 0
        real = Image.open

        def count(*arguments: Any) -> Any:
            self.count += 1
            if self.count == fail_at:
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(Image, "open", count)


def test_images_are_what_the_files_hold_and_are_decoded_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, wanted = opened(root), expected(root)
    counter = Decodes(monkeypatch)
    some = np.array([5, 0, 23, 5])
    first = images.fetch(some)
    assert first.dtype == torch.uint8 and first.is_contiguous() and torch.equal(first, wanted[some])
    assert counter.count in (3, 4)  # what is asked for twice at once may be decoded twice
    counter.count = 0
    assert torch.equal(images.fetch(some), wanted[some]) and counter.count == 0
    assert torch.equal(opened(root).fetch(ALL), wanted) and counter.count == COUNT - 3


def test_files_are_checked_once_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    real = folders.flaw
    monkeypatch.setattr(folders, "flaw", lambda path: checked.append(path.name) or real(path))
    opened(root)
    assert len(checked) == COUNT
    opened(root)
    assert len(checked) == COUNT
    paint(root / "b" / "new.png", 99)
    (root / "c" / "20.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"1 of the 25 images in .*'c/20.png' \(no image\)"):
        opened(root)
    assert sorted(checked[COUNT:]) == ["20.png", "new.png"]
    with pytest.raises(UserError, match="1 of the 25 images"):  # nor later
        opened(root)
    paint(root / "c" / "20.png", 20)
    assert torch.equal(opened(root).fetch(np.arange(25)), expected(root))


def test_a_folder_that_has_changed_gives_its_images_as_they_are(root: Path) -> None:
    opened(root).fetch(ALL)
    paint(root / "a" / "00.png", 100)  # another content
    paint(root / "a" / "00a.png", 101)  # all that follow have another number
    (root / "c" / "23.png").unlink()
    assert torch.equal(opened(root).fetch(ALL), expected(root))
    (root / "c" / "22.png").unlink()
    assert torch.equal(opened(root).fetch(ALL[:-1]), expected(root))


def test_a_file_that_changes_meanwhile_is_refused(root: Path) -> None:
    images = opened(root)
    before = images.fetch(ALL[:4])
    for number in (1, 5):
        paint(root / "a" / f"0{number}.png", 100)
    assert torch.equal(images.fetch(ALL[:4]), before)  # as they were listed
    with pytest.raises(UserError, match=r"'.*a/05.png' has changed since .* start again"):
        images.fetch(ALL[4:8])
    (root / "b" / "08.png").unlink()
    with pytest.raises(UserError, match=r"'.*b/08.png' cannot be read"):
        images.fetch(ALL[8:9])
    assert torch.equal(images.fetch(ALL[9:]), expected(root)[-15:])


def flipped(content: bytes, record: int) -> bytes:
    """One bit in each of three places: whose it is, its checksum, its pixels."""
    changed = bytearray(content)
    for place in (3, record + 9, 2 * record + 1000):
        changed[place] ^= 4
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "flipped": flipped,
    "empty": lambda content, record: b"",
    "cut": lambda content, record: content[: 3 * record],
    "cut within": lambda content, record: content[: 3 * record + record // 2],
    "zeros": lambda content, record: bytes(4 * record) + content[4 * record :],
    "noise": lambda content, record: np.random.default_rng(0).bytes(len(content)),
    "swapped": lambda content, record: content[record:] + content[:record],
    "longer": lambda content, record: content + content,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_noticed_and_made_good(root: Path, how: str) -> None:
    wanted = expected(root)
    opened(root).fetch(ALL)
    file = pixel_file(root)
    content = file.read_bytes()
    file.write_bytes(DAMAGE[how](content, len(content) // COUNT))
    for _ in range(2):
        assert torch.equal(opened(root).fetch(ALL), wanted)
        assert file.read_bytes() == content


@pytest.mark.parametrize("gone", ["pixels", "checked", "folder"])
def test_what_is_kept_may_be_deleted_meanwhile(root: Path, gone: str) -> None:
    images, wanted = opened(root), expected(root)
    images.fetch(ALL)
    place = pixel_file(root).parent
    if gone == "folder":
        shutil.rmtree(place)
    else:
        (place / gone).unlink()
    for one in (images, opened(root), images):
        assert torch.equal(one.fetch(ALL), wanted)
    (place / "checked").write_bytes(b"nonsense")
    assert torch.equal(opened(root).fetch(ALL), wanted)


def test_what_is_stopped_loses_only_the_images_that_were_being_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected(root)
    images = opened(root)
    real = os.pwritev

    def torn(file: int, parts: Any, place: int) -> int:  # kill -9: the record is half there
        real(file, [b"".join(parts)[:1500]], place)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", torn)
        with pytest.raises(SystemExit):
            images.fetch(ALL[-1:])
    with monkeypatch.context() as patch:
        Decodes(patch, fail_at=20)  # Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            images.fetch(ALL)
    counter = Decodes(monkeypatch)
    assert torch.equal(opened(root).fetch(ALL), wanted)
    assert counter.count <= 5  # one was stopped, and those after it were not begun


def test_several_fill_one_file_at_once(root: Path) -> None:
    wanted = expected(root)
    several = [opened(root) for _ in range(4)]  # each has its own view of the file, as processes do
    orders = [np.random.default_rng(seed).permutation(COUNT) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(FolderImages.fetch, several, orders))
    for pixels, order in zip(found, orders, strict=True):
        assert torch.equal(pixels, wanted[order])
    assert torch.equal(opened(root).fetch(ALL), wanted)


def test_it_is_said_how_large_the_file_becomes_and_only_what_is_asked_for_is_there(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = opened(root)
    (line,) = caplog.messages
    length = COUNT * (16 + 3 * SIZE**2)
    assert f"the 24 images in '{root}' are checked once" in line
    assert f"up to {length / 1e6:.1f} MB" in line and str(root.parent / "kept") in line
    assert not list(root.parent.glob("kept/*/pixels"))  # it is said before
    images.fetch(ALL[-1:])
    facts = pixel_file(root).stat()
    assert facts.st_size == length and facts.st_blocks * 512 < length / 2
    opened(root)
    assert len(caplog.messages) == 1


def test_a_place_that_cannot_be_written_is_done_without(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root.parent / "kept").write_text("a file in the way")
    images = opened(root)
    caplog.clear()
    for _ in range(2):
        assert torch.equal(images.fetch(ALL), expected(root))
    (line,) = caplog.messages
    assert "cannot be kept in" in line and "\n" not in line and "so they are decoded each" in line


def test_what_is_kept_is_of_use_where_nothing_can_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = expected(root)
    opened(root).fetch(ALL[:20])
    real = os.open

    def read_only(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *mode)

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        images, counter = opened(root), Decodes(patch)
        assert torch.equal(images.fetch(ALL[:20]), wanted[:20])
        assert counter.count == 0 and not caplog.messages
        for _ in range(2):
            assert torch.equal(images.fetch(ALL), wanted)
        assert counter.count == 8 and "Read-only file system" in caplog.text


@pytest.mark.parametrize("how", ["refused", "short", "little room", "no such length"])
def test_a_full_disk_is_said_once_and_loses_nothing(
    root: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = expected(root)
    real, written = os.pwritev, list[int]()

    def full(file: int, parts: Any, place: int) -> int:
        written.append(place)
        if len(written) <= 5:
            return real(file, parts, place)
        if how == "short":
            return real(file, [b"".join(parts)[:100]], place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(file: int, length: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    images = opened(root)
    caplog.clear()
    with monkeypatch.context() as patch:
        if how == "little room":
            patch.setattr(decoded, "RESERVE_BYTES", 10**18)
        elif how == "no such length":
            patch.setattr(os, "ftruncate", refuse)
        else:
            patch.setattr(os, "pwritev", full)
        for _ in range(2):
            assert torch.equal(images.fetch(ALL), wanted)
    (line,) = caplog.messages
    said = {"little room": "would be left free", "no such length": "File too large"}
    assert said.get(how, "No space left on device") in line
    assert torch.equal(opened(root).fetch(ALL), wanted)


def test_a_fetch_takes_little_more_than_what_it_gives(root: Path) -> None:
    images = opened(root)
    many = np.random.default_rng(0).integers(0, COUNT, 2000)
    images.fetch(ALL)
    tracemalloc.start()
    pixels = images.fetch(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * pixels.nbytes + 2**20


def test_what_is_held_and_sent_to_other_processes_is_small(root: Path) -> None:
    many = root.parent / "many"
    for name in ("a", "b"):
        (many / name).mkdir(parents=True)
        for number in range(500):
            os.link(root / "a" / "00.png", many / name / f"{number:03}.png")
    images = FolderImages(many, SIZE, root.parent / "kept")
    images.fetch(np.arange(1000))
    content = pickle.dumps(images)
    assert len(content) < 1000 * 100 + 10_000  # of 3,072 bytes of pixels an image
    assert torch.equal(pickle.loads(content).fetch(ALL), images.fetch(ALL))
