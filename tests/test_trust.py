"""Code is imported only where the user has named it, and only as what it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from zoo import command

from amc import plugins
from amc.analysis.compare import compare
from amc.analysis.pareto import pareto
from amc.cli.running import run
from amc.config import load_config, parse_config
from amc.deliver.evaluate import evaluate
from amc.deliver.export import export
from amc.deliver.finetune import finetune
from amc.deliver.load import load
from amc.errors import UserError
from amc.network.models import build_model
from amc.registry import lookup
from amc.search import resume, search
from amc.views.page import report

SOURCE = """
from pathlib import Path
Path("canary").write_text("imported")  # in the current folder
import torch
from torch import nn
from amc.agents.random import RandomAgent
from amc.criteria.magnitude import l1
from amc.network.kinds import Kind
from amc.spaces.channel import ChannelSpace

class Space(ChannelSpace):
    pass

class Agent(RandomAgent):
    pass

class Flattening(Kind):
    def matches(self, module):
        return False

    def widths(self, module):
        return 1, 1

    def cut(self, module, gone_in, gone_out):
        pass

def reward(score, cost, original, budget):
    return score.accuracy

def criterion(group, network, grams=None):
    return l1(group, network)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
                         nn.Flatten(), nn.Linear(128, 10))
"""
HOMELY = SOURCE[SOURCE.index("def build") :]
NAMES = {
    "model": "model=someones_code:build",
    "space": "space=someones_code:Space",
    "criterion": "space.criterion=someones_code:criterion",
    "agent": "agent=someones_code:Agent",
    "kind": "kinds=someones_code:Flattening",
    "reward": "reward=someones_code:reward",
}
TINY = [
    "model=homely:build",
    "dataset=digits",
    "budget.ratio=0.5",
    "evaluate.images=60",
    "evaluate.calibration_images=60",
    "agent={name: random, episodes: 1}",
    "allow_untrained=true",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which a stranger's module lies."""
    (tmp_path / "someones_code.py").write_text(SOURCE)
    (tmp_path / "homely.py").write_text(f"import torch\nfrom torch import nn\n{HOMELY}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # what is added to it goes again
    forget(monkeypatch)
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process, of somebody who has never named anything."""
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.cwd() / "settings"))
    for name in ("someones_code", "homely"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def stranger(here: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> Path:
    """The run of somebody who used code of his own; the module as it was before it was imported."""
    config = parse_config({}, [*TINY, named])
    path = search(config, out=here / "runs").run.path
    export(path, ["safetensors"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "nobody"))
    monkeypatch.setattr(plugins, "_named", {"homely:build"})
    monkeypatch.delitem(sys.modules, "someones_code")
    (here / "canary").unlink()
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_a_strangers_run_imports_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = stranger(here, monkeypatch, NAMES[kind])
    doors: list[Callable[[], object]] = [
        lambda: resume(path),
        lambda: evaluate(path),
        lambda: finetune(path, {"epochs": 1}),
        lambda: export(path, ["safetensors"]),
        lambda: evaluate(path / "export"),
    ]
    for open_it in doors[: 1 if kind in ("agent", "reward") else None]:  # others ask for neither
        with pytest.raises(
            UserError, match=rf"the {kind} 'someones_code:\w+' would import someones_code \(/"
        ):
            open_it()
    assert report(path).is_file() and pareto([path]).points and compare([path]).curves
    if kind in ("model", "space", "kind"):
        with pytest.raises(UserError, match="say --trust"):
            load(path)
    else:
        load(path)
    assert not (here / "canary").exists()
    assert resume(path, trust=True).best["macs"], "with trust all is as it was"
    assert (here / "canary").exists()


def test_a_strangers_config_imports_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "his.yaml").write_text(
        yaml.safe_dump(
            {
                "model": "digits:resnet8",
                "dataset": "digits",
                "budget": {"ratio": 0.5},
                "agent": {"name": "someones_code:Agent"},
            }
        )
    )

    def said(*arguments: str) -> tuple[object, str]:
        """Exit status and error of ``amc ...``, as in a process of its own."""
        monkeypatch.setattr(plugins, "_named", set())
        monkeypatch.delitem(sys.modules, "someones_code", raising=False)
        monkeypatch.setattr(sys, "argv", ["amc", *arguments])
        with pytest.raises(SystemExit) as caught:
            run()
        return caught.value.code, capsys.readouterr().err

    for command_name in ("show", "search", "sweep", "profile"):
        status, error = said(command_name, "his.yaml")
        assert status == 2 and "agent 'someones_code:Agent' would import" in error
        assert len(error.strip().splitlines()) == 1
    assert not (here / "canary").exists()
    assert said("show", "his.yaml", "--trust")[0] == 0 and (here / "canary").exists()
    (here / "canary").unlink()
    assert said("show", "his.yaml")[0] == 0, "it was trusted once"
    (here / "canary").unlink()
    other = here / "other"
    other.mkdir()
    (other / "someones_code.py").write_text(SOURCE)
    monkeypatch.chdir(other)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(here)])
    assert said("show", str(here / "his.yaml"))[0] == 2, "the same name, but another file"
    assert not (other / "canary").exists()


def test_ones_own_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named on the command line is known in the next process."""
    named = [NAMES["agent"], "agent.episodes=1", NAMES["reward"], "train=null", "budget.ratio=0.8"]
    preset = "digits_resnet8_channel_macs50"
    done = command("search", preset, *TINY, *named, cwd=here)
    assert done.returncode == 0, done.stderr
    (path,) = (here / "runs" / preset).glob("s*")
    done = command("resume", str(path), cwd=here)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    ["os:abort", "sys:exit", "builtins:exec", "subprocess:run", "posix:abort", "os.path:join"],
)
@pytest.mark.parametrize("kind", ["space", "agent", "reward", "criterion", "model", "runtime"])
def test_parts_of_python_are_no_plug_ins(name: str, kind: str) -> None:
    plugins.allow(name)
    with pytest.raises(UserError, match=r"is a part of Python, not a"):
        plugins.imported(name, kind)


def test_plug_ins_are_what_they_should_be(here: Path) -> None:
    plugins.allow(
        {
            "a": [
                "someones_code:reward",
                "someones_code:Space",
                "someones_code:build",
                "someones_code:Agent",
            ]
        }
    )
    for kind, name, why in (
        ("space", "someones_code:reward", "it is not a class"),
        ("space", "someones_code:Agent", "it has no find_decisions"),
        ("agent", "someones_code:Space", "it has no run"),
        ("reward", "someones_code:build", "it cannot be called with 4 arguments"),
        ("model", "someones_code:reward", "it cannot be called with no argument"),
        ("criterion", "someones_code:build", "it cannot be called with 3 arguments"),
        ("runtime", "someones_code:build", "it is not a class"),
    ):
        with pytest.raises(UserError, match=f"'{name}' is no {kind}: {why}"):
            plugins.imported(name, kind)
    for kind, name in (("space", "someones_code:Space"), ("agent", "someones_code:Agent")):
        assert lookup(kind, name).__name__ == name.partition(":")[2]  # type: ignore[arg-type]


@pytest.mark.parametrize("line", ["raise SystemExit(0)", "1 / 0", "import nowhere_at_all", "("])
def test_a_module_that_cannot_be_imported(here: Path, line: str) -> None:
    (here / "broken_one.py").write_text(line)
    plugins.allow("broken_one:Space")
    sys.modules.pop("broken_one", None)
    with pytest.raises(UserError, match=r"importing the space 'broken_one:Space' raised \w+"):
        lookup("space", "broken_one:Space")


@pytest.mark.parametrize(
    "name", ["nowhere_at_all:X", "a.b.c:X", ":X", "a b:X", "someones_code.deeper:X", "..:X"]
)
def test_modules_that_are_not_there(here: Path, name: str) -> None:
    plugins.allow(name)
    with pytest.raises(UserError, match="unknown space"):
        lookup("space", name)
    assert not (here / "canary").exists(), "a parent is not imported to look into it"


def test_an_export_that_names_code(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({}, TINY)
    path = search(config, out=here / "runs").run.path
    export(path, ["safetensors"])
    file = path / "export" / "strategy.json"
    good = json.loads(file.read_text())
    monkeypatch.setattr(plugins, "_named", set())
    for key in ("model", "space"):
        for name in ("someones_code:build", "someones_code:Space", "os:abort"):
            file.write_text(json.dumps({**good, key: name}))
            with pytest.raises(UserError, match=r"would import|is a part of Python"):
                load(path / "export")
    assert not (here / "canary").exists()


def test_the_memory_of_plug_ins_may_be_damaged_or_not_writable(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = here / "settings" / "amc" / "plugins.json"
    memory.parent.mkdir(parents=True)
    for content in ("", "{", "[1]", "[[1, 2, 3]]", "{}", "[" * 100_000):
        memory.write_text(content)
        with pytest.raises(UserError, match="would import"):
            lookup("space", "someones_code:Space")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "someones_code.py"))  # a file
    plugins.allow("someones_code:Space")
    lookup("space", "someones_code:Space")


def test_a_config_read_as_a_file_names_nothing(here: Path) -> None:
    (here / "his.yaml").write_text(
        "{model: m, budget: {ratio: 0.5}, reward: 'someones_code:reward'}"
    )
    with pytest.raises(UserError, match="the reward 'someones_code:reward' would import"):
        load_config("his.yaml")
    with pytest.raises(UserError, match="the reward 'someones_code:reward' would import"):
        search("his.yaml")
    assert (
        load_config("his.yaml", ["reward=someones_code:reward"])[1].reward == "someones_code:reward"
    )


def test_looking_for_a_module_runs_nothing(here: Path) -> None:
    """Not even in a process that has imported nothing yet."""
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("raise SystemExit(3)")
    (here / "package" / "inner.py").write_text("raise SystemExit(4)")
    code = (
        "from amc.plugins import imported\nfrom amc.errors import UserError\n"
        "try: imported('package.inner:X', 'space')\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=False
    )
    assert done.returncode == 0 and "would import package.inner" in done.stdout


def test_a_module_in_folders_that_are_no_packages(here: Path) -> None:
    (here / "outer" / "within").mkdir(parents=True)
    (here / "homely.py").rename(here / "outer" / "within" / "homely.py")
    name = "outer.within.homely:build"
    with pytest.raises(UserError, match=r"would import outer.within.homely \(.*homely.py\)"):
        build_model(name, 10, 1)
    plugins.allow(name)
    assert next(build_model(name, 10, 1).parameters()).shape == (16, 1, 3, 3)


def test_what_a_users_code_raises_is_a_sentence(here: Path) -> None:
    """It names the line and where the traceback lies; what a callback raises is the callback's."""
    (here / "homely.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        raise KeyError('mine')\n"
        "def build():\n    return Net(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 10))\n"
        "def broken():\n    return 1 / 0\n"
    )
    for name, line, why in (("build", 5, "'mine'"), ("broken", 9, "ZeroDivisionError")):
        config = parse_config({}, [*TINY, f"model=homely:{name}"])
        with pytest.raises(UserError) as caught:
            search(config, out=here / "runs")
        assert why in str(caught.value)
        if "traceback:" in str(caught.value):
            assert f"homely.py, line {line}, raised" in str(caught.value)
            file = str(caught.value).rpartition("traceback: ")[2].rstrip(")")
            assert "Traceback" in Path(file).read_text()
            Path(file).unlink()

    class Mine(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        raise Mine

    (here / "homely.py").write_text(f"import torch\nfrom torch import nn\n{HOMELY}")
    sys.modules.pop("homely")
    with pytest.raises(Mine):
        search(parse_config({}, TINY), out=here / "runs", report=stop)
