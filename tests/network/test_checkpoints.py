"""Checkpoints as people have them: unwrapped where that makes them fit, said; refused otherwise."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from amc.errors import UserError
from amc.network.checkpoints import WRAPPERS
from amc.network.models import load_weights


def net(classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes)
    )


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def averaged(model: nn.Module) -> dict[str, Tensor]:
    return AveragedModel(model).state_dict()


Made = Callable[[nn.Module], Any]
WRAPPED: dict[str, tuple[Made, str]] = {
    "plain": (lambda m: m.state_dict(), ""),
    **{
        key: (lambda m, key=key: {"epoch": 3, key: m.state_dict()}, f"taken from {key!r}")  # type: ignore[misc]
        for key in WRAPPERS
    },
    "nested": (
        lambda m: {"model": {"state_dict": m.state_dict()}},
        "taken from 'model.state_dict'",
    ),
    "parallel": (lambda m: prefixed(m.state_dict(), "module."), "without the prefix 'module.'"),
    "compiled": (
        lambda m: {"model": prefixed(m.state_dict(), "module._orig_mod.")},
        "taken from 'model', without the prefix 'module._orig_mod.'",
    ),
    "backbone": (lambda m: prefixed(m.state_dict(), "backbone."), "without the prefix 'backbone.'"),
    "averaged": (averaged, "without the prefix 'module.'"),
    "both": (
        lambda m: {"ema": net().state_dict(), "model": m.state_dict(), "optimizer": {"state": {}}},
        "taken from 'model' (it also holds 'ema'",
    ),
    "half": (lambda m: {k: v.half() for k, v in m.state_dict().items()}, "cast from float16"),
    "brain": (
        lambda m: {"net": {k: v.bfloat16() for k, v in m.state_dict().items()}},
        "taken from 'net', cast from bfloat16",
    ),
    "no counters": (
        lambda m: {k: v for k, v in m.state_dict().items() if "num_batches" not in k},
        "",
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_is_wrapped_is_unwrapped_and_said(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, said = WRAPPED[how]
    torch.manual_seed(0)
    source, target = net(), net()
    torch.save(made(source), tmp_path / "weights.pth.tar")
    load_weights(target, tmp_path / "weights.pth.tar")
    for key, value in source.state_dict().items():
        if "num_batches" not in key:
            got = target.state_dict()[key]
            assert got.dtype == value.dtype and torch.allclose(got, value, atol=2e-3), key
    assert len(caplog.records) == bool(said) and said in caplog.text
    assert caplog.text.count("\n") == bool(said)


@pytest.mark.parametrize(
    "name", ["w.pt", "w.pth", "w.ckpt", "w.tar", "w.bin", "w.safetensors", "w"]
)
def test_a_file_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    source, target = net(), net()
    torch.save(source.state_dict(), tmp_path / name)
    load_weights(target, tmp_path / name)
    again = net()
    save_file(source.state_dict(), tmp_path / name)
    load_weights(again, tmp_path / name)
    for model in (target, again):
        assert torch.equal(model[0].weight, source[0].weight)  # type: ignore[index]


def test_a_prefix_of_the_network_itself_stays(tmp_path: Path, caplog: Any) -> None:
    model = nn.ModuleDict({"model": net(), "net": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert not caplog.records


def legacy(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: saved(net()),
            r"holds torch.nn.modules.container.Sequential: .*state_dict\(\), FILE",
        ),
        (lambda: legacy(net()), "cannot be read without running code"),
        (
            lambda: saved({"model": net().state_dict(), "args": argparse.Namespace(lr=1)}),
            "holds argparse.Namespace",
        ),
        (scripted, "as it holds a program"),
        (lambda: saved({"weights": net().state_dict(), "epoch": 3}), "its keys: weights, epoch"),
        (lambda: saved([net().state_dict()]), "holds no state dict:"),
        (lambda: saved({}), "holds no state dict"),
        (lambda: b"", "damaged or not a weights file"),
        (lambda: b"\x00" * 100, "damaged or not a weights file"),
        (lambda: b"no weights at all", "neither torch.save nor safetensors has written it"),
        (lambda: pickle.dumps({"w": 1}, protocol=4), "neither torch.save nor safetensors"),
        (lambda: saved(net().state_dict())[:400], "damaged or not a weights file"),
        (lambda: saved(net(7).state_dict()), r"with 7 classes, not 3 \(3.weight is \(7, 144\)"),
        (lambda: saved({**net().state_dict(), "extra": torch.ones(1)}), "extra is unknown"),
        (lambda: saved(prefixed(net().state_dict(), "encoder.")), r"is missing.* and [0-9]+ more"),
        (
            lambda: saved({**prefixed(net().state_dict(), "model."), "loss.weight": torch.ones(3)}),
            "do not fit the network: loss.weight is unknown$",
        ),
        (
            lambda: saved({**net().state_dict(), "3.weight": torch.ones(3, 144, dtype=torch.int8)}),
            "3.weight is int8, not float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    content: Callable[[], bytes], message: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recwarn.clear()
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text and re.search(message, text), text
    assert "weights_only" not in text and not recwarn.list
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    for write in (saved, legacy, pickle.dumps):
        path.write_bytes(write({"state_dict": net().state_dict(), "more": Evil(tmp_path / "run")}))  # type: ignore[operator]
        with pytest.raises(UserError, match=r"'.*weights\.ckpt'"):
            load_weights(net(), path)
    assert not (tmp_path / "run").exists()


def test_a_tensor_under_two_names_may_be_in_the_file_once(tmp_path: Path) -> None:
    source = Tied()
    save_model(source, str(tmp_path / "w.safetensors"))  # leaves the second names out
    torch.save(source.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        target = Tied()
        load_weights(target, tmp_path / name)
        assert torch.equal(target.b.weight, source.a.weight) and target.b.weight is target.a.weight
    torch.save({**source.state_dict(), "b.weight": torch.ones(4, 4)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="with which it is one tensor"):
        load_weights(Tied(), tmp_path / "w.pt")
