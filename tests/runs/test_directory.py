"""The directories of runs: each run has its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from zoo import Mine, config_of

from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.runs.directory import claim
from amc.search import search


def test_runs_of_one_second_get_a_folder_each(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    config = config_of("agent=uniform")
    paths = [search(config, model=Mine(), dataset=digits, out=tmp_path).run.path for _ in range(4)]
    names = [path.name for path in paths]
    assert names == [f"s0-20260101-000000{end}" for end in ("", "-2", "-3", "-4")]
    assert all((path / "best.json").is_file() for path in paths)


def test_of_many_who_ask_at_once_each_gets_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: claim(tmp_path / "new" / "s0"), range(64)))
    assert len(set(found)) == 64 and all(path.is_dir() for path in found)
    assert {path.name for path in found} == {"s0", *(f"s0-{number}" for number in range(2, 65))}


def test_a_file_in_the_way_is_said(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for out in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(UserError, match="a file is in its way"):
            search(config_of("agent=uniform"), model=Mine(), dataset=digits, out=out)
