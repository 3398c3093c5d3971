"""Mutations of the files that hold arrays: checkpoints, data, images."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import ground
import numpy as np
import torch
from mutate import changed, flipped
from PIL import Image


class Runs:
    """What a pickle makes a reader call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def programs(folder: Path) -> dict[str, Any]:
    """Pickles that run code; which of them leave the canary's mark."""
    mark = f"from pathlib import Path; Path({str(folder / 'canary.ran')!r}).write_text('pickle')"
    return {
        "os.system": Runs(os.system, f"touch {folder / 'canary.ran'}"),
        "exec": Runs(exec, mark),
        "getattr": Runs(getattr, "x", "upper"),
        "eval in a state dict": {"conv1.weight": Runs(eval, f"exec({mark!r})")},
        "a whole network": torch.nn.Linear(2, 2),
        "a path": {"state_dict": Path("x")},
        "numpy": {"conv1.weight": np.zeros(3)},
    }


def state(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(path)
    return found


def checkpoint(folder: Path, random: Random) -> tuple[bytes, str]:
    """A .pt of the base network, damaged, wrapped, or a program."""
    good = state(folder / "base" / "base.safetensors")
    way = random.choice(("flip", "flip", "program", "program", "raw", "tensor", "wrapped", "zip"))
    if way in ("program", "raw"):
        name, value = random.choice(list(programs(folder).items()))
        if way == "raw" and name != "a whole network":
            return pickle.dumps(value, random.choice((0, 2, 4))), f"a bare pickle: {name}"
        return saved(value, random.random() < 0.7), f"a program: {name}"
    if way == "tensor":
        key = random.choice(list(good))
        value, said = tensor(good[key], random)
        return saved({**good, key: value}), f"{key}: {said}"
    if way == "wrapped":
        value, said = wrapped(good, random)
        return saved(value), said
    if way == "zip":
        return zipped(saved(good), random)
    content, said = flipped(saved(good, random.random() < 0.7), random)
    return content, f"a checkpoint, {said}"


def saved(value: Any, new: bool = True) -> bytes:
    torch.save(value, buffer := io.BytesIO(), _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def tensor(good: torch.Tensor, random: Random) -> tuple[Any, str]:
    """Something else in the place of a tensor."""
    floats = torch.zeros(good.shape)
    ways: dict[str, Callable[[], Any]] = {
        "NaN": lambda: floats + float("nan"),
        "infinite": lambda: floats + float("inf"),
        "huge": lambda: floats + 3e38,
        "one dimension more": lambda: floats[None],
        "empty": lambda: torch.zeros(0),
        "integers": floats.long,
        "complex": lambda: floats.to(torch.complex64),
        "float64": floats.double,
        "half": floats.half,
        "sparse": floats.to_sparse,
        "on no device": lambda: torch.zeros(good.shape, device="meta"),
        "expanded to terabytes": lambda: torch.zeros(1).expand(10**12),
        "a number": lambda: 1.5,
        "a text": lambda: "x",
        "none": lambda: None,
    }
    name = random.choice(list(ways))
    return ways[name](), name


def wrapped(good: dict[str, Any], random: Random) -> tuple[Any, str]:
    """A state dict in what scripts, and nobody, put around it."""
    loop: dict[str, Any] = {}
    loop["model"] = loop
    deep: Any = good
    for _ in range(50):
        deep = {"model": deep}
    return random.choice(
        [
            ({"state_dict": good, "epoch": 3}, "wrapped"),
            ({f"module.{key}": value for key, value in good.items()}, "with a prefix"),
            (loop, "a mapping that holds itself"),
            (deep, "wrapped 50 times"),
            (list(good.values()), "a list"),
            ({}, "empty"),
            ({1: torch.zeros(1)}, "a number as a key"),
            ({"state_dict": None, "model": []}, "wrappers of nothing"),
            ({key: good[key] for key in list(good)[:3]}, "a part of it"),
            ({**good, "<script>": torch.zeros(1)}, "a key too many"),
            (torch.zeros(3), "a tensor"),
            (7, "a number"),
        ]
    )


def zipped(old: bytes, random: Random) -> tuple[bytes, str]:
    """A checkpoint's archive with another content."""
    source = zipfile.ZipFile(io.BytesIO(old))
    records = {name: source.read(name) for name in source.namelist()}
    name = random.choice(list(records))
    way = random.choice(("drop", "empty", "noise", "bomb", "other"))
    if way == "drop":
        del records[name]
    elif way != "other":
        records[name] = {"empty": b"", "noise": random.randbytes(200), "bomb": bytes(2**27)}[way]
    if way == "other":
        records["../../x"] = b"x"
    kind = zipfile.ZIP_DEFLATED if way == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", kind) as archive:
        for one, content in records.items():
            archive.writestr(one, content)
    return buffer.getvalue(), f"its archive, {name}: {way}"


def agent(run: Path, random: Random) -> tuple[bytes, str]:
    """A search's checkpoint."""
    old = (run / "checkpoint" / "agent.pt").read_bytes()
    return _state(old, run.parent, random)


def training(run: Path, random: Random) -> tuple[bytes, str]:
    """A fine-tuning's checkpoint."""
    old = (run / "finetune" / "checkpoint" / "training.pt").read_bytes()
    return _state(old, run.parent, random)


def _state(old: bytes, folder: Path, random: Random) -> tuple[bytes, str]:
    way = random.choice(("flip", "flip", "program", "changed", "changed", "changed", "zip"))
    if way == "program":
        name, value = random.choice(list(programs(folder).items()))
        return saved(value), f"a program: {name}"
    if way == "zip":
        return zipped(old, random)
    if way == "flip":
        return flipped(old, random)
    value = torch.load(io.BytesIO(old), weights_only=True)
    new, said = changed(value, random)
    for key in new if isinstance(new, dict) else ():
        if isinstance(new[key], torch.Tensor) and random.random() < 0.2:
            new[key], how = tensor(new[key], random)
            said += f"; {key}: {how}"
    return saved(new), said


def npy_header(shape: str, dtype: str = "|u1") -> bytes:
    """The head of an .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz(folder: Path, random: Random) -> tuple[bytes, str]:
    """The data set, with one of its arrays as it should not be."""
    old = (folder / "tiny.npz").read_bytes()
    if random.random() < 0.35:
        return flipped(old, random)
    arrays: dict[str, Any] = dict(np.load(folder / "tiny.npz"))
    key = random.choice(list(arrays))
    if random.random() < 0.3:
        return _lying(arrays, key, random)
    value, said = array(arrays[key], random, folder)
    arrays[key] = value
    if said == "missing":
        del arrays[key]
    np.savez_compressed(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue(), f"{key}: {said}"


def _lying(arrays: dict[str, Any], key: str, random: Random) -> tuple[bytes, str]:
    """An archive in which one array's head claims what is not there."""
    shape = random.choice(
        (
            "(1000000000000, 8, 8, 1)",
            "(-1, 8)",
            "(2000000000,)",
            "()",
            "(0, 8, 8, 1)",
            "'x'",
            "9" * 99,
        )
    )
    dtype = random.choice(("|u1", "<f8", "<i8", "|O", "<U99999999", "<c16", "|V8", "nothing"))
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, value in arrays.items():
            np.save(part := io.BytesIO(), value)
            content = part.getvalue() if name != key else npy_header(shape, dtype) + bytes(64)
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue(), f"{key}: a head of {dtype} {shape[:30]}"


def array(good: np.ndarray, random: Random, folder: Path) -> tuple[Any, str]:
    """Something else in the place of an array."""
    ways: dict[str, Callable[[], Any]] = {
        "missing": lambda: good,
        "floats": lambda: good / 255,
        "NaN": lambda: np.full(good.shape, np.nan),
        "negative": lambda: -good.astype(np.int64) - 1,
        "huge": lambda: good.astype(np.int64) + 10**12,
        "one value": lambda: np.full_like(good, 1),
        "one": lambda: good[:1],
        "empty": lambda: good[:0],
        "too few": lambda: good[:-1],
        "flat": good.ravel,
        "one dimension more": lambda: good[None],
        "texts": lambda: good.astype(str),
        "complex": lambda: good.astype(complex),
        "booleans": lambda: good.astype(bool),
        "dates": lambda: good.astype("datetime64[s]"),
        "objects": lambda: np.array([Runs(os.system, f"touch {folder}/canary.ran")], object),
        "a million pixels each": lambda: np.zeros((4, 1000, 1000, 1), np.uint8),
        "a pixel each": lambda: np.zeros((len(good), 1, 1, 1), np.uint8),
        "1.5 GB of zeros": lambda: np.zeros((24_000_000, 8, 8, 1), np.uint8),
        "structured": lambda: np.zeros(len(good), [("a", "i4")]),
        "a number": lambda: np.array(3),
    }
    name = random.choice(list(ways))
    return ways[name](), name


def heldout(folder: Path, random: Random) -> tuple[bytes, str]:
    """Indices of held-out images."""
    if random.random() < 0.3:
        np.save(buffer := io.BytesIO(), np.arange(20))
        return flipped(buffer.getvalue(), random)
    if random.random() < 0.3:
        shape = random.choice(("(1000000000000,)", "(-1,)", "(2000000000,)", "()", "'x'"))
        dtype = random.choice(("<i8", "|O", "<f8", "|u1"))
        return npy_header(shape, dtype) + bytes(160), f"a head of {dtype} {shape}"
    value, said = array(np.arange(20), random, folder)
    np.save(buffer := io.BytesIO(), value)
    return buffer.getvalue(), said


def images(folder: Path, random: Random) -> str:
    """A folder of images, in place of the last one, with one thing wrong; what it is."""
    root = folder / "images"
    pixels, labels = ground.images(60)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        part = root / ("train" if number < 48 else "test") / f"class{label}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(part / f"{number}.png")
    victim = random.choice(sorted(root.rglob("*.png")))
    ways: dict[str, Callable[[], object]] = {
        "bytes": lambda: victim.write_bytes(flipped(victim.read_bytes(), random)[0]),
        "a bomb": lambda: victim.write_bytes(png_of(60_000)),
        "a large one": lambda: victim.write_bytes(png_of(12_000)),
        "16 bits": lambda: Image.fromarray(np.zeros((8, 8), np.uint16)).save(victim),
        "a text": lambda: victim.write_text("<script>"),
        "a folder of that name": lambda: (victim.unlink(), victim.mkdir()),
        "a link to itself": lambda: (victim.unlink(), victim.symlink_to(victim)),
        "a link to its folder": lambda: (victim.parent / "loop").symlink_to(victim.parent),
        "a pipe": lambda: (victim.unlink(), os.mkfifo(victim)),
        "brackets": lambda: victim.rename(victim.with_name("[bold]é\n.png")),
        "no text": lambda: os.rename(bytes(victim), bytes(victim.parent) + b"/\xff.png"),
        "an empty class": (root / "train" / "another").mkdir,
        "a class in test only": lambda: (root / "test" / "class0").rename(root / "test" / "new"),
        "one pixel": lambda: Image.new("L", (1, 1)).save(victim),
        "a line": lambda: Image.new("L", (1, 5000)).save(victim),
        "animated": lambda: victim.write_bytes(gif()),
    }
    name = random.choice(list(ways))
    ways[name]()
    return name


def png_of(side: int) -> bytes:
    """A PNG of a few kilobytes that claims side x side pixels."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1) * min(side, 2000))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def gif() -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 200)]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()
