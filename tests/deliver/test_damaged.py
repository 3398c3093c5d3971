"""Files of a run, an export and a fine-tuning with anything in them: read, or refused in one
sentence.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from zoo import config_of

from amc.analysis.compare import compare
from amc.analysis.pareto import pareto
from amc.data.datasets import Dataset
from amc.deliver.export import export
from amc.deliver.finetune import Finished, begun_episode, finetune, read_config
from amc.deliver.load import load
from amc.errors import UserError
from amc.network.checkpoints import read_checkpoint
from amc.network.models import check_size
from amc.runs.directory import Run
from amc.search import resume, search
from amc.training.keeper import InFolder
from amc.views.page import report

MODEL = "digits:resnet8"
DEEP: Any = [[[[[[{}]]]]]]
VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    2**70,
    float("nan"),
    float("inf"),
    True,
    "x",
    "<script>alert(1)</script>",
    [],
    {},
    DEEP,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an export and a fine-tuning."""
    out = tmp_path_factory.mktemp("runs")
    config = config_of(
        f"model={MODEL}",
        "dataset=digits",
        "train.epochs=2",
        "agent={name: random, episodes: 2}",
        "allow_untrained=true",
    )
    path = search(config, out=out).run.path
    finetune(path, {"epochs": 1})
    export(path, ["safetensors"])
    return path


def changed(value: Any, most: int = 25) -> Iterator[Any]:
    """A value with each of its parts dropped, or replaced by each of `VALUES`."""
    yield from VALUES
    for place in list(places(value))[:most]:
        for other in (*VALUES, ...):
            new = copy.deepcopy(value)
            inner = new
            for step in place[:-1]:
                inner = inner[step]
            if other is ...:
                del inner[place[-1]]
            else:
                inner[place[-1]] = other
            yield new


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (key,)
        if isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in places(inner))


def right_or_refused(read: Callable[[], object]) -> bool:
    """Whether it was refused."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return True
    return False


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("provenance.json", lambda path: pareto([path])),
        ("best.json", lambda path: (Run.open(path).best, pareto([path]))),
        ("export/strategy.json", load),
        ("finetune/metrics.json", lambda path: Finished.of(path / "finetune")),
        ("finetune/provenance.json", lambda path: begun_episode(path / "finetune")),
    ],
)
def test_json_files(run: Path, tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    good = json.loads((path / name).read_text())
    assert not right_or_refused(lambda: read(path))
    refused = 0
    for value in changed(good):
        (path / name).write_text(json.dumps(value))
        refused += right_or_refused(lambda: read(path))
    assert refused > 10
    for content in (b"", b"\xff", b"[" * 10**5, b"{" * 10**5, b"9" * 10**5, b'"', b"\x00" * 99):
        (path / name).write_bytes(content)
        assert right_or_refused(lambda: read(path))


def test_files_that_the_page_reads(run: Path, tmp_path: Path) -> None:
    """With what each can be; every picture is drawn, so only some values of each."""
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for name in ("best.json", "export/metrics.json", "finetune/before.json"):
        good = json.loads((path / name).read_text())
        for key in list(good)[:3]:
            for value in ("<script>alert(1)</script>", -1):
                (path / name).write_text(json.dumps({**good, key: value}))
                if not right_or_refused(lambda: report(path)):
                    assert "<script>" not in (path / "report.html").read_text()
        (path / name).write_text(json.dumps(good))
    for name in ("layers.csv", "finetune/log.csv"):
        good = (path / name).read_bytes()
        for content in (b"", b"\xff\xfe", good[:30], good.replace(b"1", b"x"), b"a,b\n1"):
            (path / name).write_bytes(content)
            right_or_refused(lambda: report(path))
        (path / name).write_bytes(good)
    assert not right_or_refused(lambda: report(path))


def test_journals(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    first, *rest = (path / "episodes.jsonl").read_text().splitlines()
    (path / "best.json").unlink()
    for value in changed(json.loads(first)):
        (path / "episodes.jsonl").write_text("\n".join([json.dumps(value), *rest, ""]))
        right_or_refused(lambda: (compare([path]), pareto([path])))
    (path / "episodes.jsonl").write_text("\n".join([first.replace(":", ";"), *rest, ""]))
    assert right_or_refused(lambda: pareto([path]))


def test_configs(run: Path, tmp_path: Path) -> None:
    """With the checksum that whoever changed them would have written beside them."""
    path = tmp_path / "run"
    shutil.copytree(run, path)
    good = yaml.safe_load((path / "config.yaml").read_text())
    facts = json.loads((path / "provenance.json").read_text())
    for value in changed(good):
        text = yaml.safe_dump(value).encode()
        (path / "config.yaml").write_bytes(text)
        facts["config_sha256"] = hashlib.sha256(text).hexdigest()
        (path / "provenance.json").write_text(json.dumps(facts))
        right_or_refused(lambda: (Run.open(path).config, pareto([path])))
    own = yaml.safe_load((path / "finetune" / "config.yaml").read_text())
    for value in changed(own):
        (path / "finetune" / "config.yaml").write_text(yaml.safe_dump(value))
        right_or_refused(lambda: read_config(path / "finetune"))


def test_flipped_bits_are_told(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for name, read in (
        ("export/model.safetensors", lambda: load(path)),
        ("finetune/best.safetensors", lambda: export(path, ["safetensors"])),
        ("base.safetensors", lambda: resume(path)),
    ):
        good = (path / name).read_bytes()
        (path / name).write_bytes(good[:-3] + bytes([good[-3] ^ 4]) + good[-2:])
        with pytest.raises(UserError, match=r"its checksum \(sha256\) is another"):
            read()
        (path / name).write_bytes(good)
    assert not right_or_refused(lambda: load(path))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "torchvision:vit_h_14"},
        {"model": "torchvision:vgg19", "classes": 2**20},
        {"classes": 2**20},
        {"input_shape": [2**20, 8, 8]},
        {"space": "lowrank", "structure": {"factors": {"conv1": ["tucker", [2**40, 2**40]]}}},
        {"space": "mixed", "structure": {"cuts": {}, "factors": {"linear": ["svd", [2**33]]}}},
    ],
)
def test_absurd_sizes_take_no_memory(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "export"
    shutil.copytree(run / "export", path)
    good = json.loads((path / "strategy.json").read_text())
    (path / "strategy.json").write_text(json.dumps({**good, **change}))
    made: list[int] = []

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.device.type != "meta":
                made.append(found.numel())
            return found

    with Counted(), pytest.raises(UserError):
        load(path)
    assert sum(made) < 10**7, "lists of channels, no weights"


def test_a_network_that_is_too_large_for_its_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(bytes(10**6))
    with pytest.raises(UserError, match=r"has 63\d,\d+,\d+ parameters, but the weights"):
        check_size("torchvision:vit_h_14", 1000, 3, tmp_path / "w.safetensors")


def test_weights_that_are_none(tmp_path: Path) -> None:
    """Whatever a file claims to be."""
    expected = nn.Linear(4, 3).state_dict()
    path = tmp_path / "weights.pt"

    def saved(value: Any) -> None:
        torch.save(value, path)

    meta = {key: value.to("meta") for key, value in expected.items()}
    sparse = {**expected, "weight": torch.eye(3, 4).to_sparse()}
    views = {"weight": torch.zeros(1).expand(3, 4).as_strided((2**30, 2**10), (0, 0))}
    quantised = {"weight": torch.quantize_per_tensor(torch.zeros(3, 4), 1.0, 0, torch.qint8)}
    for value in (
        meta,
        sparse,
        views,
        quantised,
        {"weight": torch.zeros(3, 4, dtype=torch.cfloat)},
    ):
        saved(value)
        with pytest.raises(UserError, match=r"is damaged|cannot be read"):
            read_checkpoint(path, expected)
    for value in (None, [], {}, {"a": 1}, {1: torch.zeros(2)}, "text", torch.zeros(3)):
        saved(value)
        with pytest.raises(UserError, match="holds no state dict"):
            read_checkpoint(path, expected)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}})
    for content in (
        struct.pack("<Q", 2**40) + b"{",
        struct.pack("<Q", len(header)) + header.encode() + b"0000",
        b"PK\x03\x04" + bytes(100),
        bytes(50),
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            read_checkpoint(path, expected)


def test_a_training_state_that_is_none(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "finetune" / "metrics.json").unlink()
    keeper = InFolder(path / "finetune")
    good = keeper.load_state()
    assert good is not None
    for value in (
        {},
        [1],
        {**good, "progress": {}},
        {**good, "progress": {**good["progress"], "step": 10**9}},
        {**good, "progress": {**good["progress"], "step": -1}},
        {**good, "progress": {**good["progress"], "epochs": [1]}},
        {**good, "objective": {}},
        {**good, "optimizer": {"param_groups": []}},
    ):
        keeper.save_state(value)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"training\.pt \(delete it .*is damaged"):
            finetune(path)


def test_a_damaged_checkpoint_of_a_search_is_done_without(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])
    for agent in ("td3", "random"):
        config = config_of(
            f"agent={agent}", "agent.episodes=4", "budget.ratio=0.8", "allow_untrained=true"
        )
        made = search(config, model=model, dataset=digits, out=tmp_path).run
        journal = (made.path / "episodes.jsonl").read_bytes()
        state = made.load_checkpoint()
        assert state is not None
        for value in (None, {}, {"counters": ["x"]}, {**state, "counters": [3]}, {"a": DEEP}):
            torch.save(value, made.path / "checkpoint" / "agent.pt")
            again = resume(made.path, model=model, dataset=digits)
            assert again.best == made.best
            assert (made.path / "episodes.jsonl").read_bytes() == journal
