"""Law 8: imports point one way, and the wheel installs nothing but ``amc``."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    ["amc", "amc.moved", "amc.errors", "amc.progress", "amc.options"],
    ["amc.files", "amc.reading", "amc.randomness", "amc.compute"],
    ["amc.plugins"],
    ["amc.registry"],
    ["amc.overrides"],
    ["amc.network"],
    ["amc.data", "amc.cost"],
    ["amc.surgery"],
    ["amc.repair"],
    ["amc.criteria"],
    ["amc.spaces"],
    ["amc.device", "amc.evaluate"],
    ["amc.training"],
    ["amc.sections"],
    ["amc.config"],
    ["amc.runs"],
    ["amc.analysis", "amc.parallel"],
    ["amc.views"],
    ["amc.envs", "amc.agents"],
    ["amc.base"],
    ["amc.problem"],
    ["amc.kept"],
    ["amc.walk"],
    ["amc.search"],
    ["amc.apply"],
    ["amc.deliver"],
    ["amc.sweep"],
    ["amc.testing", "amc.testing_examples"],
    ["amc.testing_kinds"],
    ["amc.cli"],
    ["amc.__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def files() -> list[tuple[str, Path]]:
    found = [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), path)
        for path in (ROOT / "amc").rglob("*.py")
    ]
    for folder in ("envs", "agents", "configs"):
        found += [(f"amc.{folder}.{path.stem}", path) for path in (ROOT / folder).glob("*.py")]
    return [(name.removesuffix(".__init__"), path) for name, path in found]


def part(module: str) -> str:
    """The room that a module stands in: its folder, or itself at the top."""
    pieces = module.split(".")
    return ".".join(pieces[:2])


def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in files():
        if module == "amc":  # it hands on what is asked for
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [node.module] if node.module != "amc" else [f"amc.{a.name}" for a in node.names]
                )
            for name in names:
                if (
                    not name.startswith("amc.")
                    or part(name) == part(module)
                    or part(name) not in RANK
                ):
                    continue
                if RANK[part(name)] >= RANK[part(module)] or {part(name), part(module)} == {
                    "amc.envs",
                    "amc.agents",
                }:
                    wrong.append(f"{module} imports {name}")
    assert not wrong


def test_every_module_has_a_rank_and_the_root_imports_nothing_heavy() -> None:
    assert {part(module) for module, _ in files()} <= set(RANK) | {"amc.configs"}
    code = "import sys, amc; assert not {'torch', 'numpy', 'stable_baselines3'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, amc.cli.running; assert not {'torch', 'stable_baselines3'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_imported_by_its_own_name_is_refused() -> None:
    for name in ("envs", "agents"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "import this package as amc." in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(
        ".git", "build", "*.egg-info", ".venv", "__pycache__", ".*_cache"
    )
    shutil.copytree(
        ROOT,
        source / "amc",
        ignore=lambda folder, found: {
            *ignore(folder, found),
            *(["runs"] if Path(folder) == ROOT else []),
        },
    )
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(target),
        str(source / "amc"),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_wheel_holds_everything_under_one_name(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"amc"}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "amc").rglob("*.py")}
    same = {folder: folder for folder in ("envs", "agents", "configs", "configs/devices")}
    for inside, folder in {**same, "weights": "experiments/baselines/weights"}.items():
        expected |= {
            f"amc/{inside}/{path.name}"
            for path in (ROOT / folder).iterdir()
            if path.suffix in (".py", ".yaml", ".safetensors", ".npy")
        }
    assert expected <= names and "amc/py.typed" in names
