"""Mutations of values (as JSON and YAML hold them), of texts, and of bytes. Each gives what it made
and says in a few words what it did.
"""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

Path_ = tuple[Any, ...]
NAMES = ("canary:run", "canary:Thing", "os:abort", "sys:exit", "builtins:exec", "os:system")
"""What is planted where a plug-in or a network is named: code of a stranger's, or of Python's."""


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def wild(random: Random) -> Any:
    """A value that hardly anyone expects."""
    return random.choice(
        [
            *(None, True, False, -1, 0, 1, -0.5, 0.5, 1e308, -1e308, math.inf, -math.inf, math.nan),
            *(10**12, 10**30, -(10**30), 2**63, 2**31, 1e-300, 3),
            *("", " ", "x", "0.5", "nan", "conv1", "<script>alert(1)</script>", "a" * 100_000),
            *("../../x", "/dev/zero", "\x00", "\ud800", "[bold]x[/]", "[/red]", "é" * 300, "\n\n"),
            *("torchvision:vit_h_14", "torchvision:resnet18", "digits:resnet8", "cifar:resnet110"),
            *NAMES[:4],
            *([], {}, [[]], {"a": 1}, [1, 2, 3], [None], {"": None}, [1] * 10_000, nested(40)),
            nested(400),
        ]
    )


def places(value: Any, here: Path_ = ()) -> Iterator[Path_]:
    """The way to everything in a value."""
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value[:50])
    for key, child in children:
        yield (*here, key)
        yield from places(child, (*here, key))


def at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def changed(value: Any, random: Random) -> tuple[Any, str]:
    """A value with one thing in it changed (in one of four, two)."""
    new, said = copy.deepcopy(value), []
    for _ in range(random.choice((1, 1, 1, 2))):
        ways = list(places(new))
        if not ways:
            break
        *parent, last = random.choice(ways)
        said.append(_change(at(new, tuple(parent)), last, random, ".".join(map(str, parent))))
    return new, "; ".join(said)


def _change(holder: Any, key: Any, random: Random, where: str) -> str:
    name = f"{where}.{key}"
    old = holder[key]
    ways = ["set"] * 6 + ["drop", "drop", "swap"]
    ways += ["negative", "huge", "nan", "text"] if type(old) in (int, float) else []
    ways += ["rename", "listed"] if isinstance(holder, dict) else ["twice"]
    ways += ["plant"] * 2 if isinstance(old, str) else []
    way = random.choice(ways)
    if way == "drop":
        del holder[key]
    elif way == "rename":
        holder[f"{key}_"] = holder.pop(key)
    elif way == "twice":
        holder.insert(key, copy.deepcopy(old))
    else:
        holder[key] = {
            "set": wild,
            "swap": lambda _: list(old) if isinstance(old, dict) else {"0": old},
            "negative": lambda _: -old,
            "huge": lambda _: old * 10**9 + 10**12,
            "nan": lambda _: math.nan,
            "text": lambda _: str(old),
            "listed": lambda _: [old],
            "plant": lambda r: r.choice(NAMES),
        }[way](random)
        return f"{name}: {way} {str(holder[key])[:60]!r}"
    return f"{name}: {way}"


def dumped(value: Any) -> bytes:
    """JSON, as Python writes it: NaN and lone surrogates too."""
    return json.dumps(value, indent=2).encode("utf-8", "surrogatepass")


YAML_LINES = {
    "a key twice": "seed: 1\nseed: 2\n",
    "an alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))  # noqa: B905
    + "model: *i\n",
    "a list within itself": "space: &s {name: channel, keep: [*s]}\n",
    "a mapping that holds itself": "space: &s\n  name: channel\n  more: *s\n",
    "deep brackets": f"seed: {'[' * 3000}{']' * 3000}\n",
    "deeper brackets": f"seed: {'[' * 100_000}\n",
    "deep mappings": "".join(f"{' ' * i}a:\n" for i in range(1000)),
    "a tab": "space:\n\tname: channel\n",
    "a whole number of 5,000 digits": f"seed: {'9' * 5000}\n",
    "a hexadecimal of 5,000 digits": f"seed: 0x{'f' * 5000}\n",
    "1e999": "budget: {ratio: 1.0e+999}\n",
    ".nan": "budget: {ratio: .nan}\n",
    ".inf": "budget: {limit: .inf}\n",
    "-.inf": "evaluate: {racing: -.inf}\n",
    "binary": "model: !!binary R0lGODlhDAAMAIQAAP//9/X17unp5WZmZgAAAOfn515eXvPz7Y6OjuDg4J\n",
    "broken binary": "model: !!binary '%%%'\n",
    "a call of os.system": "model: !!python/object/apply:os.system ['touch canary.ran']\n",
    "an object": "model: !!python/object/new:canary.Thing [1]\n",
    "a name of Python's": "model: !!python/name:canary.run ''\n",
    "a module of Python's": "model: !!python/module:canary ''\n",
    "an unknown tag": "model: !mine {a: 1}\n",
    "no date": "model: 2026-99-99\n",
    "no time": "model: 2026-01-01 99:99:99\n",
    "minutes and seconds": "seed: 190:20:30\n",
    "minutes without end": f"seed: {':'.join(['1'] * 2000)}\n",
    "a list as a key": "? [1, 2]\n: 3\n",
    "a number as a key": "1: 2\n",
    "nothing as a key": "~: 2\n",
    "merged": "<<: {seed: 3}\n",
    "merged with no mapping": "<<: 3\n",
    "a set": "space: !!set {name}\n",
    "ordered": "space: !!omap [name: channel]\n",
    "wrongly ordered": "space: !!omap {name: channel}\n",
    "pairs": "space: !!pairs [name: channel]\n",
    "two documents": "---\nseed: 1\n---\nseed: 2\n",
    "another version": "%YAML 9.9\n---\nseed: 1\n",
    "a zero": "model: \x00\n",
    "a bell": "model: '\x07'\n",
    "an escape": 'model: "\\x1b[31mred"\n',
    "half a pair": 'model: "\\ud800"\n',
    "an anchor without a name": "model: &\n",
    "an alias without an anchor": "model: *nobody\n",
    "a text without an end": 'model: "abc\n',
    "markup": "model: '[/bold][red]'\n",
}
"""What is written before a config, or instead of it."""


def yaml_text(old: str, random: Random) -> tuple[bytes, str]:
    name = random.choice(list(YAML_LINES))
    lines = YAML_LINES[name]
    keys = {line.split(":")[0] for line in lines.splitlines()}
    way = random.choice(("after", "instead", "in its place", "in its place"))
    if way == "in its place":  # the keys of the old one that it names make room
        old = "".join(_sections(old, keys)) + lines
    else:
        old = old + lines if way == "after" else lines
    encoding = random.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig", "latin-1"])
    return old.encode(encoding, "replace"), f"{name}, {way} ({encoding})"


def _sections(text: str, without: set[str]) -> Iterator[str]:
    """The lines of the top keys that are not among some."""
    skipped = False
    for line in text.splitlines(keepends=True):
        if line[:1].strip():
            skipped = line.split(":")[0] in without
        if not skipped:
            yield line


JSON_TEXTS = {
    "empty": "",
    "null": "null",
    "a list": "[]",
    "a text": '"x"',
    "a number": "1e999",
    "NaN": "NaN",
    "deep brackets": "[" * 3000 + "]" * 3000,
    "deeper brackets": "[" * 200_000,
    "a whole number of 5,000 digits": "9" * 5000,
    "a key twice": '{"schema": 1, "schema": 2}',
    "half a pair": '{"\\ud800": "\\udfff"}',
    "a zero": "{\x00}",
    "a comma too many": '{"a": 1,}',
    "two of them": "{} {}",
    "nothing but an end": "}",
    "empty mapping": "{}",
}


def json_text(old: bytes, random: Random) -> tuple[bytes, str]:
    name = random.choice(list(JSON_TEXTS))
    text = JSON_TEXTS[name]
    if random.random() < 0.5 and b":" in old:  # in place of a value
        lines = old.decode("utf-8", "replace").splitlines(keepends=True)
        found = [i for i, line in enumerate(lines) if ":" in line and line.strip()[-1] not in "[{"]
        if found:
            index = random.choice(found)
            key, _, rest = lines[index].partition(":")
            comma = "," if rest.rstrip().endswith(",") else ""
            lines[index] = f"{key}: {text}{comma}\n"
            return "".join(lines).encode("utf-8", "surrogatepass"), f"{key.strip()}: {name}"
    return text.encode(), f"instead: {name}"


def flipped(old: bytes, random: Random) -> tuple[bytes, str]:
    """Bytes turned, cut off, lost, doubled, or of chance."""
    new = bytearray(old)
    way = random.choice(
        ("flip", "flip", "flip", "head", "cut", "lose", "twice", "zeros", "noise", "empty", "more")
    )
    if not new:
        way = "noise"
    start = random.randrange(max(1, len(new)))
    length = random.choice((1, 4, 64, 4096))
    if way in ("flip", "head"):
        reach = len(new) if way == "flip" else min(len(new), 64)
        count = random.choice((1, 3, 20))
        for _ in range(count):
            new[random.randrange(reach)] ^= 1 << random.randrange(8)
        return bytes(new), f"{count} bits turned" + (" in its head" if way == "head" else "")
    if way == "cut":
        del new[start:]
    elif way == "lose":
        del new[start : start + length]
    elif way == "twice":
        new[start:start] = new[start : start + length]
    elif way == "zeros":
        new[start : start + length] = bytes(len(new[start : start + length]))
    elif way == "noise":
        new = bytearray(random.randbytes(random.choice((1, 8, 9, 100, 5000))))
    elif way == "empty":
        new.clear()
    else:
        new += random.randbytes(length)
    return bytes(new), f"{way} at {start} ({length})"


def safetensors(old: bytes, random: Random) -> tuple[bytes, str]:
    """A header that promises what is not there."""
    length = struct.unpack("<Q", old[:8])[0]
    header, body = json.loads(old[8 : 8 + length]), old[8 + length :]
    way = random.choice(("length", "header", "header", "header", "dtype", "shape", "missing"))
    if way == "length":
        claimed = random.choice((0, 1, 2**63, 2**64 - 1, length + 1, length - 1, len(old) * 2))
        return struct.pack("<Q", claimed) + old[8:], f"a header of {claimed} bytes"
    names = [name for name in header if name != "__metadata__"]
    name = random.choice(names)
    if way == "dtype":
        header[name]["dtype"] = random.choice(("F64", "I64", "BOOL", "F8_E4M3", "X", "BF16"))
    elif way == "shape":
        header[name]["shape"] = random.choice(([2**40, 2**40], [0], [], [-1], [10**12]))
    elif way == "missing":
        del header[name]
    said = f"{name}: {way}"
    if way == "header":
        header, said = changed(header, random)
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + body, said
