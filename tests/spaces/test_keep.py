"""``space.keep``: what is named stays whole, in every space; what is named wrongly is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import Mine, config_of, zoo_network

from amc import cli
from amc.config import load_config, parse_config, to_yaml
from amc.data.datasets import Dataset
from amc.errors import UserError
from amc.network.layers import LayerSpec
from amc.network.trace import Network
from amc.options import Options
from amc.problem import Problem
from amc.search import resume, search
from amc.spaces.base import CompressionSpace, Decision, LayerwiseSpace
from amc.spaces.channel import ChannelSpace
from amc.spaces.lowrank import LowRankSpace
from amc.spaces.mixed import MixedSpace
from amc.testing import check_space

SPACES = (ChannelSpace, LowRankSpace, MixedSpace)
PRESET = "digits_resnet8_channel_macs50"


class Halves(LayerwiseSpace):
    """A plug-in that says nothing of keep: a linear layer becomes two."""

    def find_decisions(self) -> Iterator[Decision]:
        for layer in (layer for layer in self.network.table if layer.kind == "linear"):
            yield Decision(layer.name, (layer.name,), (1, 2, min(layer.in_channels, 8)))

    def resize_layer(self, layer: LayerSpec, rank: int) -> tuple[LayerSpec, ...]:
        first = replace(layer, name=f"{layer.name}.0", out_channels=rank, per_channel_params=0)
        return first, replace(layer, name=f"{layer.name}.1", in_channels=rank)

    def replace_layer(self, module: nn.Module, rank: int) -> nn.Module:
        assert isinstance(module, nn.Linear)
        first = nn.Linear(module.in_features, rank, bias=False)
        return nn.Sequential(first, nn.Linear(rank, module.out_features))


class Blocks(nn.Module):
    """Convolutions under a module's name, one of them depthwise, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.layer1 = nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.ReLU(),
            nn.Conv2d(16, 12, 1),
        )
        self.layer2 = nn.Sequential(nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 24, 3))
        self.hidden = nn.Linear(24, 18)
        self.fc = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.layer2(torch.relu(x + self.layer1(x)))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


@cache
def network() -> Network:
    torch.manual_seed(0)
    return Network.of(Blocks(), (1, 8, 8))


@cache
def bound(space: type[CompressionSpace], *keep: str, **options: Any) -> CompressionSpace:
    if space is not Halves:
        options["repair"] = "none"
    return space(network(), {"keep": keep, **options})


def shapes(model: nn.Module, layer: str) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in model.state_dict().items() if k.startswith(f"{layer}.")}


LAYERS = ("layer1", "layer1.2", "layer1.1", "layer2.*", "*.0", "fc")


@pytest.mark.parametrize("keep", LAYERS)
@pytest.mark.parametrize("kind", SPACES)
def test_what_is_named_stays_whole(kind: type[CompressionSpace], keep: str) -> None:
    space, free = bound(kind, keep), bound(kind)
    whole = space.network.model
    smallest, before = space.apply(space.smallest), free.apply(free.smallest)
    chosen = {"layer2.*": ["layer2.0", "layer2.2"], "*.0": ["layer1.0", "layer2.0"]}
    cut = False
    for layer in chosen.get(keep, [keep]):
        assert shapes(smallest, layer) == shapes(whole, layer) != {}
        cut |= shapes(before, layer) != shapes(whole, layer)
    assert cut or (kind is LowRankSpace and keep in ("layer1.1", "layer1.2"))
    left_out = {d.name for d in free.decisions} - {d.name for d in space.decisions}
    assert bool(left_out) == cut and set(space.decisions) <= set(free.decisions)
    layers = {layer for d in free.decisions if d.name in left_out for layer in d.layers}
    for layer in layers - {layer for d in space.decisions for layer in d.layers}:
        assert "space.keep" in space.left_alone[layer]


def test_the_reason_names_the_layer_that_is_kept() -> None:
    space = bound(ChannelSpace, "fc", "layer1.2")
    assert space.decisions
    assert (
        space.left_alone["hidden"] == "it shares channels with 'fc', which space.keep leaves whole"
    )
    assert "'layer1.2'" in space.left_alone["layer1.0"]
    mixed = bound(MixedSpace, "stem")
    assert mixed.decisions and mixed.left_alone["stem"] == "space.keep leaves it whole"
    assert mixed.left_alone["layer1.4"].startswith("channels: it shares channels with 'stem'")


def test_separate_ranks_are_both_left_out() -> None:
    space = bound(LowRankSpace, "layer2", tucker_ranks="separate")
    assert not [d for d in space.decisions if d.layers[0].startswith("layer2")] and space.decisions


def test_a_plug_in_need_not_know() -> None:
    torch.manual_seed(0)
    assert [d.name for d in bound(Halves, "fc").decisions] == ["hidden"]
    assert "1.weight" in "".join(bound(Halves, "fc").apply({"hidden": 1}).state_dict())
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        _ = bound(Halves, "hiden").decisions


def test_options_without_keep_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Options):
        keep: float = 0.5  # something else

    class Other(Halves):
        Options = Own

    assert Other(network(), {"keep": 0.3}).decisions
    monkeypatch.setattr(Other, "Options", Options)
    monkeypatch.setattr(sys.modules[__name__], "Other", Other, raising=False)
    monkeypatch.setitem(sys.modules, "my_halves", sys.modules[__name__])
    space = {"name": "my_halves:Other"}
    with pytest.raises(UserError, match=r"unknown key 'space\.keep'"):
        parse_config({"budget": {"ratio": 0.5}, "space": {**space, "keep": ["fc"]}})


def test_the_conformance_check_sees_a_space_that_forgets_a_reader() -> None:
    class Forgets(ChannelSpace):
        def reshapes(self, decision: Decision) -> set[str]:
            return set(decision.layers)

    with pytest.raises(AssertionError, match=r"space\.keep could not keep it"):
        check_space(Forgets, {"repair": "none"})


@pytest.mark.parametrize("pattern", ["layer9", "layer1.con1", "*.nosuch", ""])
@pytest.mark.parametrize("kind", SPACES)
def test_a_name_of_no_layer_is_refused(kind: type[CompressionSpace], pattern: str) -> None:
    with pytest.raises(UserError, match=r"unknown layer in space\.keep") as caught:
        _ = bound(kind, "fc", pattern).decisions
    assert "\n" not in str(caught.value)
    assert ("did you mean 'layer" in str(caught.value)) == pattern.startswith("layer")


def test_a_large_network_is_no_page_of_names() -> None:
    with pytest.raises(
        UserError, match=r"did you mean 'layer1\.0\.conv1'.*and [0-9]+ more"
    ) as caught:
        _ = ChannelSpace(
            zoo_network("resnet56"), {"repair": "none", "keep": "layer1.0.cnv1"}
        ).decisions
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("[conv1,linear]", ("conv1", "linear")),
        ("conv1", ("conv1",)),
        ("*.conv2", ("*.conv2",)),
        ("[*.conv2, ?onv1]", ("*.conv2", "?onv1")),
        ("'*.conv2'", ("*.conv2",)),
        ("[0,12]", ("0", "12")),
        ("null", ()),
        ("[]", ()),
    ],
)
def test_however_it_is_written(text: str, keep: tuple[str, ...], tmp_path: Any) -> None:
    config = load_config(PRESET, [f"space.keep={text}"])[1]
    assert config.space["keep"] == keep
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml"))[1] == config


def test_numbers_that_yaml_would_change_are_refused() -> None:
    with pytest.raises(UserError, match=r"space\.keep\.0 is 1\.1"):
        load_config(PRESET, ["space.keep=[1.10]"])


def test_another_space_keeps_the_same_layers() -> None:
    for order in (["space.keep=fc", "space=lowrank"], ["space.name=mixed", "space.keep=fc"]):
        assert load_config(PRESET, order)[1].space["keep"] == ("fc",)


def test_a_section_needs_no_name_for_it(digits: Dataset) -> None:
    config = parse_config({"budget": {"ratio": 0.9}, "space": {"keep": "b"}})
    assert config.space["name"] == "channel"
    assert parse_config({"budget": {"ratio": 0.9}, "agent": {"episodes": 7}}).agent["name"] == "td3"


def test_nothing_left_to_decide_is_refused(digits: Dataset) -> None:
    with pytest.raises(
        UserError, match=r"nothing to decide in 'Mine'.*space\.keep \[a, b\], name fewer"
    ):
        Problem.build(config_of("space.keep=[a,b]"), Mine(), digits)


def test_a_search_keeps_them(digits: Dataset, tmp_path: Any) -> None:
    torch.manual_seed(0)
    config = config_of("space.keep=b", "space=lowrank", "budget.ratio=0.99", "agent=random")
    config = parse_config(config.model_dump(), ["agent.episodes=2"])
    run = search(config, model=Mine(width=32), dataset=digits, out=tmp_path).run
    assert (
        "b:rank" not in run.best["strategy"] and "space.keep" in run.provenance["left_alone"]["b"]
    )
    assert resume(run.path, model=Mine(width=32), dataset=digits).run.config == config


def test_show_tells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["amc", "show", PRESET, "space.keep=[conv1,*.conv2]"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main()
    assert "[conv1, *.conv2]" in capsys.readouterr().out
