"""Files that may come from anyone are read within bounds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from amc.config import load_config, parse_config
from amc.errors import UserError, shown
from amc.reading import LARGEST, damaged, parse_json, parse_yaml, read_csv, read_json, read_text
from amc.runs.records import Best, LayerRow, Provenance

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "has more than 1,000,000 values"),
        ("a: &a [*a]", "within itself"),
        ("[" * 3000, "nested more than 40 levels deep"),
        ("{a: " * 3000, "nested more than 40 levels deep"),
        ("- " * 500 + "x", "nested more than 40 levels deep"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("budget: {ratio: 0.5, ratio: 0.6}", "the key 'ratio' stands twice"),
        ("? [a, b]\n: 1", "unhashable|a key is a"),
        ("? {a: b}\n: 1", "unhashable|a key is a"),
        ("a: !!python/object/apply:os.abort []", "could not determine a constructor"),
        ("a: !!python/name:os.abort ''", "could not determine a constructor"),
        ("a: !other 1", "could not determine a constructor"),
        ("a: b: c", "mapping values are not allowed"),
        ("a:\n\t- b", "cannot start any token|tab"),
        ("a: " + "9" * 5000, "digit"),
        ("a: \x00", "special characters|control characters"),
        ("%YAML 9.9\n---\na: 1", "incompatible|version"),
        ("a: 1\n---\na: 2", "single document|another document"),
        ("a: *nowhere", "within itself|undefined alias"),
        ("a: 2026-99-99", "month"),
    ],
)
def test_yaml(text: str, why: str) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"^'his\.yaml'.* is not valid YAML: .*({why})") as caught:
        parse_yaml(text, "his.yaml")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_yaml_that_is_right() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "s") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
    }
    assert parse_yaml("a: [1, 0.5, null, text, true]\n3: x", "s")["a"][1] == 0.5
    assert parse_yaml("", "s") is None


def test_a_config_says_no_more_than_it_must() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"model": "m", "budget": {"ratio": 0.5}, "seed": "9" * 100_000})
    assert str(caught.value).startswith("seed is '999") and len(str(caught.value)) < 400
    with pytest.raises(UserError) as caught:
        parse_config({"k" * 100_000: 1})
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match=r"agent\.name is 3: a name is expected"):
        parse_config({"model": "m", "budget": {"ratio": 0.5}, "agent": {"name": 3}})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\x00", "can't decode"),
        (b"[" * 100_000, "nested too deep"),
        (b"{", "Expecting property name"),
        (b"[]", "valid dictionary"),
        (b"{}", "macs: field required"),
        (b'{"macs": 1e400}', "macs: input should be a valid integer"),
        (b"9" * 5000, "digit"),
    ],
)
def test_json(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "best.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"best\.json' is damaged: .*{why}"):
        read_json(path, Best)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be read"):
            read_text(path)
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="larger than 64 MB"):
        load_config(str(large))


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    path.write_text("name,out_channels,macs,params\nconv,8,100,20\nrest,,5,0\n")
    assert [(row.name, row.macs) for row in read_csv(path, LayerRow)] == [
        ("conv", 100),
        ("rest", 5),
    ]
    for line in ("conv,8,-1,20", "conv,8,nan,20", "conv,8", "conv,x,1,1", '"' + "x" * 200_000):
        path.write_text(f"name,out_channels,macs,params\n{line}\n")
        with pytest.raises(UserError, match=r"layers\.csv.* is damaged"):
            read_csv(path, LayerRow)


def test_what_more_stands_in_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text('{"schema": 2, "config_sha256": "x", "later": [1]}')
    found = read_json(path, Provenance).as_dict()
    assert found["later"] == [1] and found["schema"] == 2


def test_damaged_lets_through_what_is_no_damage() -> None:
    with pytest.raises(UserError, match="'a' is damaged: KeyError: 'b'"), damaged("a"):
        {}["b"]
    for error in (UserError("mine"), MemoryError("none"), OSError("full")):
        with pytest.raises(type(error), match=str(error)), damaged("a"):
            raise error


def test_values_are_shown_short() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("abc") == "'abc'" and shown(0.5) == "0.5" and "Odd" in shown(Odd())
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for value in ("x" * 10**6, list(range(10**6)), 10**4000, nested, {"a": "b" * 1000}):
        assert len(shown(value)) < 100
    with pytest.raises(UserError, match="is damaged"):
        parse_json("[" * 100_000, "s")
