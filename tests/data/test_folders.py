"""Images in files: classes are those of the training images, and damaged files are named before
anything long begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amc.data.datasets import Dataset, load_dataset
from amc.errors import UserError


def fill(folder: Path, value: int, names: Sequence[str] = ("1.png", "2.jpg")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30), (value, 0, 0)).save(folder / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes in train, told apart by their red; two of them in test."""
    for number, name in enumerate(("ant", "bee", "cow")):
        fill(tmp_path / "train" / name, 100 * number)
    for number, name in ((0, "ant"), (2, "cow")):
        fill(tmp_path / "test" / name, 100 * number)
    return tmp_path


def read(root: Path) -> Dataset:
    return load_dataset(f"imagefolder:{root}", root, image_size=16)


def test_a_class_that_test_lacks_does_not_shift_the_others(root: Path) -> None:
    data = read(root)
    assert data.classes == 3 and data.test.labels.tolist() == [0, 0, 2, 2]
    for part in (data.train, data.test):
        red = part.fetch(np.arange(len(part.labels)))[:, 0, 8, 8].int().numpy()
        assert np.abs(red - 100 * part.labels).max() <= 2
    (root / "test" / "bee").mkdir()  # likewise where its folder is empty
    assert read(root).test.labels.tolist() == [0, 0, 2, 2]


def test_a_class_that_only_test_has_is_refused(root: Path) -> None:
    (root / "test" / "Ant").mkdir()
    read(root)  # without images it does no harm
    fill(root / "test" / "Ant", 0)
    with pytest.raises(UserError, match=r"has the class 'Ant', .*\(they have ant, bee, cow\)"):
        read(root)


def test_an_empty_class_and_folders_without_classes_are_refused(root: Path) -> None:
    (root / "train" / "elk").mkdir()
    (root / "train" / "elk" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"class folder '.*elk' has no image: remove it, or put"):
        read(root)
    flat = root / "flat"
    fill(flat / "train", 0)
    fill(flat / "val", 0)
    with pytest.raises(UserError, match=r"train' does not hold a folder of images a class"):
        read(flat)
    with pytest.raises(UserError, match="must have a folder train and a folder test or val"):
        read(root / "nowhere")
    fill(root / "one" / "train" / "ant", 0)
    fill(root / "one" / "test" / "ant", 0)
    with pytest.raises(UserError, match="are of class 0: there is nothing to tell apart"):
        read(root / "one")


def test_hidden_files_and_what_is_no_image_are_passed_over(root: Path) -> None:
    for name in (".DS_Store", "._1.png", "Thumbs.db", "notes.txt"):
        (root / "train" / "bee" / name).write_bytes(b"no image")
    fill(root / "train" / ".ipynb_checkpoints", 0)
    fill(root / "train" / "bee" / ".hidden", 0)
    fill(root / "train" / "bee" / "inner" / "more", 100, ["3.PNG"])
    data = read(root)
    assert data.classes == 3 and data.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_images_of_any_8_bit_mode_are_read(root: Path) -> None:
    place, colour = root / "train" / "bee", Image.new("RGB", (40, 30), (100, 100, 100))
    colour.convert("P").save(place / "palette.png")
    colour.convert("L").save(place / "grey.png")
    colour.convert("RGBA").save(place / "alpha.png")
    colour.convert("CMYK").save(place / "print.jpg")
    colour.convert("1").save(place / "bits.png")
    colour.save(place / "old.bmp")
    colour.save(place / "new.webp")
    data = read(root)
    indices = np.flatnonzero(data.train.labels == 1)
    assert len(indices) == 9 and data.train.fetch(indices).shape == (9, 3, 16, 16)


def test_damaged_images_are_named_before_the_search(root: Path) -> None:
    place = root / "test" / "cow"
    whole = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    for name in ("torn.jpg", "torn.png", "torn.bmp"):
        Image.fromarray(whole).save(place / name)
        (place / name).write_bytes((place / name).read_bytes()[:-300])
    Image.fromarray(whole).save(place / "longer.jpg")  # some programs write more after the end
    (place / "longer.jpg").write_bytes((place / "longer.jpg").read_bytes() + bytes(1000))
    (place / "empty.png").touch()
    (place / "text.jpg").write_text("<html>404</html>")
    (place / "gone.jpg").symlink_to(place / "nowhere.jpg")
    with pytest.raises(UserError) as caught:
        read(root)
    message = str(caught.value)
    assert message.startswith(f"6 of the 11 images in '{root}/test' cannot be used: ")
    assert "'cow/empty.png' (no image), 'cow/gone.jpg' ([Errno 2]" in message
    for name in ("empty.png", "gone.jpg", "text.jpg"):
        (place / name).unlink()
    with pytest.raises(UserError, match=r"^3 of the 8.*'cow/torn.bmp' \(image file is truncated"):
        read(root)


def test_deep_images_are_not_clipped_silently(root: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 900
    Image.fromarray(deep).save(root / "train" / "ant" / "deep.png")
    Image.fromarray(deep.astype(np.float32)).save(root / "train" / "ant" / "deep.tif")
    with pytest.raises(UserError, match=r"^2 of the 8 .*\(mode I;16, more than 8 bits .*mode F"):
        read(root)


def test_an_image_that_is_damaged_in_its_middle_is_named(root: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    file = root / "train" / "bee" / "0.png"
    Image.fromarray(whole).save(file)
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the image '.*bee/0.png' cannot be read .*replace or rem"):
        read(root)  # it is among the first few, which are looked at


def test_a_folder_is_looked_for_in_the_data_folder_too(root: Path) -> None:
    data = load_dataset(f"imagefolder:{root.name}", root.parent, image_size=16)
    assert data.train.labels.tolist() == read(root).train.labels.tolist()
    message = r"/nowhere' must have a folder train .*\(train/CLASS/1.jpg, .*data_dir or AMC_DATA_D"
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("imagefolder:nowhere", root, image_size=16)
    assert str(root / "nowhere") in str(caught.value)
